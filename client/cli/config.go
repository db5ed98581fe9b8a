package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/client/config"
	"cairn/daemon/protocol"
	"cairn/derivation/eval"
	"cairn/store"
)

// fileOptions are the flags of commands that evaluate a file.
type fileOptions struct {
	args []string
	top  string
}

func (o *fileOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&o.args, "arg", nil, "give the file `NAME=VALUE`, which it reads with args.get(NAME); may be repeated")
	cmd.Flags().StringVar(&o.top, "top", "", "the folder that the file may read below; default: its own")
}

// fileName splits FILE[:NAME]. A file that has the whole name is meant when there is one.
func fileName(arg string) (file, name string) {
	if _, err := os.Stat(arg); err == nil {
		return arg, ""
	}
	if i := strings.LastIndexByte(arg, ':'); i > 0 && !strings.ContainsRune(arg[i:], '/') {
		return arg[:i], arg[i+1:]
	}
	return arg, ""
}

// load evaluates the file of FILE[:NAME]. The caller closes the result.
func (e *Env) load(ctx context.Context, o *fileOptions, arg string) (cfg *config.Config, name string, err error) {
	layout, err := e.layout()
	if err != nil {
		return nil, "", err
	}
	opts := &config.Options{Dir: layout.Dir, Args: map[string]string{}, Print: func(place, message string) {
		e.note("%s: %s", place, message)
	}}
	if o.top != "" {
		opts.Root = e.path(o.top)
	}
	for _, a := range o.args {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return nil, "", &usageError{fmt.Errorf("--arg %q is not NAME=VALUE", a)}
		}
		opts.Args[k] = v
	}
	file, name := fileName(e.path(arg))
	if _, err := os.Stat(file); err != nil {
		return nil, "", fmt.Errorf("evaluate %s: %w", arg, errors.Unwrap(err))
	}
	cfg, err = config.Load(ctx, file, opts)
	if err != nil {
		return nil, "", located(err)
	}
	return cfg, name, nil
}

// located adds the calls that led to an error of a file.
func located(err error) error {
	if e, ok := errors.AsType[*eval.Error](err); ok {
		if trace := strings.TrimPrefix(e.Detail(), e.Error()); trace != "" {
			return fmt.Errorf("%w%s", err, trace)
		}
	}
	return err
}

// add gives the store what paths of an evaluation need, references first, and keeps it until the session ends.
func (s *session) add(ctx context.Context, cfg *config.Config, paths ...store.Path) error {
	additions, err := cfg.Additions(paths...)
	if err != nil {
		return err
	}
	all := make([]store.Path, len(additions))
	for i, a := range additions {
		all[i] = a.Path
		if err := s.AddTempRoot(ctx, a.Path); err != nil {
			return err
		}
	}
	valid, err := s.ValidPaths(ctx, all)
	if err != nil {
		return err
	}
	have := map[store.Path]bool{}
	for _, p := range valid {
		have[p] = true
	}
	for i := range additions {
		if !have[additions[i].Path] {
			if err := s.addOne(ctx, &additions[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) addOne(ctx context.Context, a *eval.Addition) error {
	r, err := a.Open()
	if err != nil {
		return fmt.Errorf("add %s: %w", a.Name, err)
	}
	defer r.Close()
	info, err := s.AddToStore(ctx, a.Name, a.Method, a.Algo, a.References, r)
	if err != nil {
		return err
	}
	if info.Path != a.Path {
		return fmt.Errorf("add %s: it became %s, the evaluation said %s; did %s change meanwhile?", a.Name, info.Path, a.Path, a.File)
	}
	return nil
}

// buildTargets makes the outputs of an evaluation exist and returns their paths, in order.
func (s *session) buildTargets(ctx context.Context, env *Env, cfg *config.Config, targets []config.Target, o *buildOptions) ([]store.Path, error) {
	want := make([]protocol.Target, len(targets))
	for i, t := range targets {
		top := t.Path
		want[i] = protocol.Target{Path: t.Path}
		if !t.Drv.IsZero() {
			top = t.Drv
			want[i] = protocol.Target{Path: t.Drv, Outputs: []string{t.Output}}
		}
		if err := s.add(ctx, cfg, top); err != nil {
			return nil, err
		}
	}
	return s.build(ctx, env, want, o)
}

// build builds targets and returns the path of each; a target with several outputs gives several.
func (s *session) build(ctx context.Context, env *Env, targets []protocol.Target, o *buildOptions) ([]store.Path, error) {
	if err := o.configure(ctx, s); err != nil {
		return nil, err
	}
	obs := env.buildObserver(o.quiet)
	results, err := s.Build(ctx, targets, o.mode(), obs)
	obs.close()
	if err != nil {
		return nil, err
	}
	if err := failedBuilds(results); err != nil {
		return nil, err
	}
	var paths []store.Path
	for i, r := range results {
		if len(targets[i].Outputs) == 0 {
			paths = append(paths, targets[i].Path)
			continue
		}
		out, err := s.outputs(ctx, targets[i], r)
		if err != nil {
			return nil, err
		}
		paths = append(paths, out...)
	}
	return paths, nil
}

// outputs returns the paths of the outputs that a target wants.
func (s *session) outputs(ctx context.Context, t protocol.Target, r *protocol.BuildResult) ([]store.Path, error) {
	known, err := s.OutputMap(ctx, t.Path)
	if err != nil {
		return nil, err
	}
	for name, o := range r.Outputs {
		known[name] = o.OutPath
	}
	names := t.Outputs
	if t.IsAll() {
		names = sortedKeys(known)
	}
	var paths []store.Path
	for _, n := range names {
		p, ok := known[n]
		if !ok || p.IsZero() {
			return nil, fmt.Errorf("derivation %s has no output %q", t.Path, n)
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// mode is how a build treats what is there.
func (o *buildOptions) mode() client.Mode {
	if o.check {
		return client.Check
	}
	return client.Normal
}

// display is a file's name as a person would write it here.
func (e *Env) display(file string) string {
	if rel, err := filepath.Rel(e.Dir, file); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return file
}
