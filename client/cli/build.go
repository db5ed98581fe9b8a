package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/daemon/protocol"
	"cairn/store"
)

type buildOptions struct {
	fileOptions
	quiet, dryRun, check, json bool
	link                       string

	keepGoing, keepFailed bool
	timeout, maxSilent    time.Duration
	cores                 uint
}

// limits are the flags of commands that build.
func (o *buildOptions) limits(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not show what builders write")
	f.BoolVarP(&o.keepGoing, "keep-going", "k", false, "after a failure build what does not depend on it")
	f.BoolVar(&o.keepFailed, "keep-failed", false, "keep the directory of a failed build")
	f.DurationVar(&o.timeout, "timeout", 0, "end a builder after `TIME`, for example 2h")
	f.DurationVar(&o.maxSilent, "max-silent", 0, "end a builder that wrote nothing for `TIME`")
	f.UintVar(&o.cores, "cores", 0, "`N` processors for one builder; 0: all")
}

// configure tells the daemon the limits, unless they are all its own.
func (o *buildOptions) configure(ctx context.Context, s *session) error {
	if !o.keepGoing && !o.keepFailed && o.timeout == 0 && o.maxSilent == 0 && o.cores == 0 {
		return nil
	}
	opts := &protocol.Options{KeepGoing: o.keepGoing, KeepFailed: o.keepFailed, Cores: uint64(o.cores), UseSubstitutes: true}
	opts.MaxSilent = uint64((o.maxSilent + time.Second - 1) / time.Second)
	if o.timeout > 0 {
		opts.Overrides = map[string]string{"timeout": strconv.FormatInt(int64((o.timeout+time.Second-1)/time.Second), 10)}
	}
	return s.SetOptions(ctx, opts)
}

func newBuildCmd(env *Env) *cobra.Command {
	o := &buildOptions{}
	cmd := &cobra.Command{
		Use:     "build [-o LINK] FILE[:NAME] | DERIVATION[!OUTPUT] | PATH …",
		GroupID: "store",
		Short:   "Build values of a file, or derivations, and print where they are",
		Long: `Evaluate a file and build what its values stand for: objects, systems, machines, lists
and dicts of them; with :NAME only that value. Derivations of the store (x.drv, or
x.drv!out for one output) are built as they are. The store paths are printed, one
per line; logs and progress go to standard error.

What nothing keeps may be collected later: -o makes a link that keeps it.`,
		Example: `  cairn build hello.star:hello
  cairn build -o result web.star:web
  cairn build '/cairn/store/0v3q…-hello.drv!out'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error { return runBuild(cmd.Context(), env, s, o, args) })
		},
	}
	f := cmd.Flags()
	o.flags(cmd)
	f.StringVarP(&o.link, "out-link", "o", "", "make `LINK` point to the result and keep it; further results get LINK-2, LINK-3, …")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only list what would be built")
	f.BoolVar(&o.check, "check", false, "build again and compare with what is there")
	o.limits(cmd)
	f.BoolVar(&o.json, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "check")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "out-link")
	return cmd
}

func runBuild(ctx context.Context, env *Env, s *session, o *buildOptions, args []string) error {
	var targets []protocol.Target
	for _, arg := range args {
		ts, err := s.targets(ctx, env, o, arg)
		if err != nil {
			return err
		}
		targets = append(targets, ts...)
	}
	if o.dryRun {
		return buildDryRun(ctx, env, s, o, targets)
	}
	paths, err := s.build(ctx, env, targets, o)
	if err != nil {
		return err
	}
	if o.link != "" {
		if err := s.makeLinks(ctx, env.path(o.link), paths); err != nil {
			return err
		}
	}
	return env.printPaths(o.json, paths)
}

// targets understands one argument of build; what a file's values need is added to the store.
func (s *session) targets(ctx context.Context, env *Env, o *buildOptions, arg string) ([]protocol.Target, error) {
	if strings.HasPrefix(arg, s.layout.Dir.String()+"/") {
		path, output, one := strings.Cut(arg, "!")
		p, err := s.object(env, path)
		if err != nil {
			return nil, err
		}
		t := protocol.Target{Path: p}
		if one {
			t.Outputs = strings.Split(output, ",")
		} else if p.IsDerivation() {
			t.Outputs = protocol.All()
		}
		return []protocol.Target{t}, nil
	}
	return s.fileTargets(ctx, env, o, arg)
}

func (s *session) fileTargets(ctx context.Context, env *Env, o *buildOptions, arg string) ([]protocol.Target, error) {
	cfg, name, err := env.load(ctx, &o.fileOptions, arg)
	if err != nil {
		return nil, err
	}
	defer cfg.Close()
	names := []string{name}
	if name == "" {
		if names, err = cfg.Names(); err != nil {
			return nil, err
		}
	}
	var targets []protocol.Target
	for _, n := range names {
		list, err := cfg.Targets(n)
		if err != nil && name == "" {
			continue // a value that is nothing to build
		}
		if err != nil {
			return nil, located(err)
		}
		for _, t := range list {
			top, pt := t.Path, protocol.Target{Path: t.Path}
			if !t.Drv.IsZero() {
				top, pt = t.Drv, protocol.Target{Path: t.Drv, Outputs: []string{t.Output}}
			}
			if err := s.add(ctx, cfg, top); err != nil {
				return nil, err
			}
			targets = append(targets, pt)
		}
	}
	if targets == nil {
		return nil, fmt.Errorf("%s: nothing to build: no object, system or machine among %s", arg, strings.Join(names, ", "))
	}
	return targets, nil
}

func buildDryRun(ctx context.Context, env *Env, s *session, o *buildOptions, targets []protocol.Target) error {
	m, err := s.Missing(ctx, targets)
	if err != nil {
		return err
	}
	if len(m.Unknown) > 0 {
		return fmt.Errorf("neither valid nor buildable: %s", m.Unknown[0])
	}
	env.note("would build %s", count(len(m.Build), "derivation"))
	return env.printPaths(o.json, m.Build)
}

// makeLinks points links to paths and registers them as roots.
func (s *session) makeLinks(ctx context.Context, link string, paths []store.Path) error {
	for i, p := range paths {
		name := link
		if i > 0 {
			name = fmt.Sprintf("%s-%d", link, i+1)
		}
		if err := replaceLink(p.String(), name); err != nil {
			return fmt.Errorf("make link: %w", err)
		}
		if err := s.AddIndirectRoot(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// replaceLink makes name a link to target. Only a link is replaced.
func replaceLink(target, name string) error {
	switch fi, err := os.Lstat(name); {
	case err == nil && fi.Mode()&fs.ModeSymlink == 0:
		return fmt.Errorf("%s is there and no link", name)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	temp := name + ".new"
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	return os.Rename(temp, name)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
