package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/client/config"
	"cairn/services/activate"
	"cairn/services/system"
	"cairn/store"
)

func newSystemBuildCmd(env *Env) *cobra.Command {
	o := &buildOptions{}
	cmd := &cobra.Command{
		Use:   "build [-o LINK] FILE[:NAME]",
		Short: "Build a system without switching to it",
		Long: `Evaluate a file and build its system: the value NAME, or the one called system, or the
only one. The system's store path is printed; nothing on this machine changes.`,
		Example: `  cairn system build web.star
  cairn system build -o web web.star:web`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSystemBuild(cmd.Context(), env, o, args[0])
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.link, "out-link", "o", "", "make `LINK` point to the system and keep it")
	o.limits(cmd)
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runSystemBuild(ctx context.Context, env *Env, o *buildOptions, arg string) error {
	return env.withSystem(ctx, o, arg, func(s *session, p store.Path) error {
		if o.link != "" {
			if err := s.makeLinks(ctx, env.path(o.link), []store.Path{p}); err != nil {
				return err
			}
		}
		return env.printPaths(o.json, []store.Path{p})
	})
}

// withSystem builds the system of a file and runs fn while the store keeps it.
// The file is evaluated before the daemon is asked, so that a mistake in it needs none to be found.
func (e *Env) withSystem(ctx context.Context, o *buildOptions, arg string, fn func(*session, store.Path) error) error {
	cfg, name, err := e.load(ctx, &o.fileOptions, arg)
	if err != nil {
		return err
	}
	defer cfg.Close()
	sys, err := cfg.System(name)
	if err != nil {
		return fileError(arg, err)
	}
	return e.withSession(ctx, func(s *session) error {
		paths, err := s.buildTargets(ctx, e, cfg, []config.Target{{Name: sys.Name, Drv: sys.Drv, Output: sys.Output}}, o)
		if err != nil {
			return err
		}
		return fn(s, paths[0])
	})
}

func newSystemReconfigureCmd(env *Env) *cobra.Command {
	o := &switchOptions{}
	b := &buildOptions{jobs: -1}
	cmd := &cobra.Command{
		Use:   "reconfigure [--dry-run] FILE[:NAME]",
		Short: "Build a system and switch this machine to it",
		Long: `Evaluate a file, build its system, and make this machine be it. Before the first change
all conflicts are looked for: files that are not ours, units, ports, space, the way
in. Then files, accounts and units change in journaled steps; units that did not
change keep running. When a unit or a health check fails, everything is undone.

--dry-run builds and prints the plan with its reasons. The configuration may also be
a system in the store.`,
		Example: `  cairn system reconfigure --dry-run web.star
  cairn system reconfigure web.star
  cairn system reconfigure --confirm-within 5m web.star:web`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withActivation(func(e *activate.Engine) error {
				return reconfigure(cmd.Context(), env, e, b, o, args[0])
			})
		},
	}
	b.flags(cmd)
	o.flags(cmd)
	b.limits(cmd)
	return cmd
}

func reconfigure(ctx context.Context, env *Env, e *activate.Engine, b *buildOptions, o *switchOptions, arg string) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	to := func(_ *session, sys store.Path) error {
		r, err := e.Switch(ctx, sys, o.engine())
		return env.switched(o, r, err)
	}
	if sys, rest, err := env.storePath(layout, arg); err == nil && rest == "" {
		return env.withSession(ctx, func(s *session) error { return to(s, sys) })
	}
	return env.withSystem(ctx, b, arg, to)
}

func newSystemDiffCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "diff A [B]",
		Short: "Say how two systems differ",
		Long: `Print what a switch from system A to system B would change. Each is the number of a
generation, a system in the store, or a link to one; B is the current one when it is
left out. The machine itself is not looked at.`,
		Example: `  cairn system diff 3
  cairn system diff 3 5`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withActivation(func(e *activate.Engine) error { return systemDiff(cmd.Context(), env, e, asJSON, args) })
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func systemDiff(ctx context.Context, env *Env, e *activate.Engine, asJSON bool, args []string) error {
	if len(args) == 1 {
		g, err := e.Describe(ctx)
		if err != nil {
			return err
		}
		args = append(args, fmt.Sprint(g.Number))
	}
	var manifests [2]*system.Manifest
	for i, a := range args {
		p, err := systemPath(ctx, e, a)
		if err != nil {
			return err
		}
		if manifests[i], err = e.Manifest(p); err != nil {
			return err
		}
	}
	d := activate.Diff(manifests[0], manifests[1])
	if asJSON {
		return env.printJSON(d)
	}
	env.printf("%s", stripEscapes(d.String()))
	return nil
}
