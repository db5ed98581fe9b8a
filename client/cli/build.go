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

	"cairn/client/config"
	"cairn/daemon/protocol"
	"cairn/derivation/eval"
	"cairn/store"
)

type buildOptions struct {
	fileOptions
	quiet, dryRun, check, json bool
	link                       string

	keepGoing, keepFailed bool
	timeout, maxSilent    time.Duration
	cores                 uint
	noSubstitute          bool
	substituters, options []string
	builders              []string
	jobs                  int // -1: what the daemon says
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
	f.IntVarP(&o.jobs, "max-jobs", "j", -1, "`N` builds at a time on this machine; 0: all on others")
	f.StringArrayVar(&o.builders, "builders", nil, "another machine that builds, as in nix.conf: `\"URI SYSTEMS KEY JOBS SPEED FEATURES\"`; may be given more than once")
	f.BoolVar(&o.noSubstitute, "no-substitute", false, "build everything, fetch nothing from caches")
	f.StringArrayVar(&o.substituters, "substituter", nil, "also fetch from the cache at `URI`; may be given more than once")
	f.StringArrayVar(&o.options, "option", nil, "a setting of nix.conf for this command, `NAME=VALUE`; may be given more than once")
}

// configure tells the daemon the limits, unless they are all its own.
func (o *buildOptions) configure(ctx context.Context, s *session) error {
	overrides, err := o.overrides()
	if err != nil {
		return err
	}
	jobs := protocol.Keep
	if o.jobs >= 0 {
		jobs = uint64(o.jobs)
	}
	if len(overrides) == 0 && jobs == protocol.Keep && !o.keepGoing && !o.keepFailed && o.maxSilent == 0 && o.cores == 0 && !o.noSubstitute {
		return nil
	}
	return s.SetOptions(ctx, &protocol.Options{
		KeepGoing: o.keepGoing, KeepFailed: o.keepFailed, Cores: uint64(o.cores), UseSubstitutes: !o.noSubstitute, MaxJobs: jobs,
		MaxSilent: uint64((o.maxSilent + time.Second - 1) / time.Second), UseBuildHook: true, Verbosity: protocol.LevelInfo, Overrides: overrides,
	})
}

// overrides are the settings that are told by name.
func (o *buildOptions) overrides() (map[string]string, error) {
	m := map[string]string{}
	for _, text := range o.options {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, hinted(fmt.Errorf("option %q is not NAME=VALUE", text), "for example --option connect-timeout=2")
		}
		m[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	if len(o.substituters) > 0 {
		m["extra-substituters"] = strings.Join(o.substituters, " ")
	}
	if o.builders != nil {
		m["builders"] = strings.Join(o.builders, "\n")
	}
	if o.timeout > 0 {
		m["timeout"] = strconv.FormatInt(int64((o.timeout+time.Second-1)/time.Second), 10)
	}
	return m, nil
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

What the daemon's caches have is fetched instead of built; a cache that fails is left
alone, and what it does not deliver is built. --substituter adds a cache for those whom
the daemon trusts, --no-substitute asks none.

--check builds again what is there, says which files came out differently and how, and ends
with exit code 104 if any did; with --keep-failed the other result is kept as PATH.check.

What nothing keeps may be collected later: -o makes a link that keeps it.`,
		Example: `  cairn build hello.star:hello
  cairn build -o result web.star:web
  cairn build --dry-run --substituter https://cache.example.org web.star:web
  cairn build --check --keep-failed hello.star:hello
  cairn build '/cairn/store/0v3q…-hello.drv!out'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBuild(cmd.Context(), env, o, args)
		},
	}
	f := cmd.Flags()
	o.flags(cmd)
	f.StringVarP(&o.link, "out-link", "o", "", "make `LINK` point to the result and keep it; further results get LINK-2, LINK-3, …")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only list what would be built and fetched")
	f.BoolVar(&o.check, "check", false, "build again and compare with what is there")
	o.limits(cmd)
	f.BoolVar(&o.json, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "check")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "out-link")
	return cmd
}

// wish is what one argument of build asks for: values of a file, or a target of the store.
type wish struct {
	cfg    *config.Config // nil: target
	values []config.Target
	target protocol.Target
}

// runBuild understands all arguments before it asks the daemon, so that a mistake in a file needs none to be found.
func runBuild(ctx context.Context, env *Env, o *buildOptions, args []string) error {
	var wishes []wish
	defer func() {
		for _, w := range wishes {
			if w.cfg != nil {
				w.cfg.Close()
			}
		}
	}()
	for _, arg := range args {
		w, err := env.wish(ctx, o, arg)
		if err != nil {
			return err
		}
		wishes = append(wishes, w)
	}
	return env.withSession(ctx, func(s *session) error { return buildWishes(ctx, env, s, o, wishes) })
}

func buildWishes(ctx context.Context, env *Env, s *session, o *buildOptions, wishes []wish) error {
	var targets []protocol.Target
	for _, w := range wishes {
		if w.cfg == nil {
			targets = append(targets, w.target)
			continue
		}
		ts, err := s.addTargets(ctx, w.cfg, w.values)
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

// wish understands one argument of build. The caller closes its configuration.
func (e *Env) wish(ctx context.Context, o *buildOptions, arg string) (wish, error) {
	layout, err := e.layout()
	if err != nil {
		return wish{}, err
	}
	if !strings.HasPrefix(arg, layout.Dir.String()+"/") {
		return e.fileWish(ctx, o, arg)
	}
	path, output, one := strings.Cut(arg, "!")
	p, err := e.object(layout, path)
	if err != nil {
		return wish{}, err
	}
	w := wish{target: protocol.Target{Path: p}}
	if one {
		w.target.Outputs = strings.Split(output, ",")
	} else if p.IsDerivation() {
		w.target.Outputs = protocol.All()
	}
	return w, nil
}

func (e *Env) fileWish(ctx context.Context, o *buildOptions, arg string) (wish, error) {
	cfg, name, err := e.load(ctx, &o.fileOptions, arg)
	if err != nil {
		return wish{}, err
	}
	values, err := valuesToBuild(cfg, name)
	if err != nil {
		cfg.Close()
		return wish{}, fileError(arg, err)
	}
	return wish{cfg: cfg, values: values}, nil
}

// valuesToBuild lists what a value of a file, or every value that is something to build, stands for.
func valuesToBuild(cfg *config.Config, name string) ([]config.Target, error) {
	if name != "" {
		return cfg.Targets(name)
	}
	names, err := cfg.Names()
	if err != nil {
		return nil, err
	}
	var values []config.Target
	for _, n := range names {
		list, err := cfg.Targets(n)
		if as[*eval.Error](err) {
			return nil, err
		}
		values = append(values, list...) // none of a value that is nothing to build
	}
	if values == nil {
		return nil, fmt.Errorf("nothing to build: no object, system or machine among %s", strings.Join(names, ", "))
	}
	return values, nil
}

// buildDryRun lists the derivations that would be built, and tells what would be fetched.
func buildDryRun(ctx context.Context, env *Env, s *session, o *buildOptions, targets []protocol.Target) error {
	if err := o.configure(ctx, s); err != nil {
		return err
	}
	obs := env.buildObserver(o.quiet)
	m, err := s.Missing(ctx, targets, obs)
	obs.close()
	if err != nil {
		return err
	}
	if len(m.Unknown) > 0 {
		return fmt.Errorf("neither valid, buildable nor in a cache: %s", m.Unknown[0])
	}
	env.note("would build %s", count(len(m.Build), "derivation"))
	if len(m.Substitute) > 0 {
		env.note("would fetch %s, %s (%s unpacked):", count(len(m.Substitute), "path"), formatSize(int64(m.Download)), formatSize(int64(m.Unpacked)))
		for _, p := range m.Substitute {
			env.note("  %s", p)
		}
	}
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
