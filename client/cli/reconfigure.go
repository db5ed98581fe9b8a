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
			return env.withSession(cmd.Context(), func(s *session) error {
				p, err := buildSystem(cmd.Context(), env, s, o, args[0])
				if err != nil {
					return err
				}
				if o.link != "" {
					if err := s.makeLinks(cmd.Context(), env.path(o.link), []store.Path{p}); err != nil {
						return err
					}
				}
				return env.printPaths(o.json, []store.Path{p})
			})
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.link, "out-link", "o", "", "make `LINK` point to the system and keep it")
	o.limits(cmd)
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// buildSystem builds the system of a file.
func buildSystem(ctx context.Context, env *Env, s *session, o *buildOptions, arg string) (store.Path, error) {
	cfg, name, err := env.load(ctx, &o.fileOptions, arg)
	if err != nil {
		return store.Path{}, err
	}
	defer cfg.Close()
	sys, err := cfg.System(name)
	if err != nil {
		return store.Path{}, located(err)
	}
	paths, err := s.buildTargets(ctx, env, cfg, []config.Target{{Name: sys.Name, Drv: sys.Drv, Output: sys.Output}}, o)
	if err != nil {
		return store.Path{}, err
	}
	return paths[0], nil
}

func newSystemReconfigureCmd(env *Env) *cobra.Command {
	o := &switchOptions{}
	b := &buildOptions{}
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
				return env.withSession(cmd.Context(), func(s *session) error {
					return reconfigure(cmd.Context(), env, e, s, b, o, args[0])
				})
			})
		},
	}
	b.flags(cmd)
	o.flags(cmd)
	b.limits(cmd)
	return cmd
}

func reconfigure(ctx context.Context, env *Env, e *activate.Engine, s *session, b *buildOptions, o *switchOptions, arg string) error {
	sys, rest, err := s.storePath(env, arg)
	if err != nil || rest != "" {
		if sys, err = buildSystem(ctx, env, s, b, arg); err != nil {
			return err
		}
	}
	r, err := e.Switch(ctx, sys, o.engine())
	return env.switched(o, r, err)
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
