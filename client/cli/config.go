package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

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
	if err := e.readable(file, arg); err != nil {
		return nil, "", err
	}
	cfg, err = config.Load(ctx, file, opts)
	if err != nil {
		return nil, "", located(err)
	}
	return cfg, name, nil
}

// configError is a configuration that is wrong, or not there.
type configError struct{ error }

func (e *configError) Unwrap() error { return e.error }

// readable finds out whether a file of the command line can be read, before anything is started for it.
func (e *Env) readable(file, arg string) error {
	f, err := os.Open(file)
	if err == nil {
		fi, err := f.Stat()
		f.Close()
		if err == nil && fi.IsDir() {
			return &configError{hinted(fmt.Errorf("evaluate %s: it is a directory", arg), "%s", e.filesHint(file, ""))}
		}
		return nil
	}
	shown := &configError{fmt.Errorf("evaluate %s: %w", arg, errors.Unwrap(err))}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return hinted(shown, "this user must be able to read the file and enter its folders")
	}
	return hinted(shown, "%s", e.filesHint(filepath.Dir(file), filepath.Base(file)))
}

// filesHint says which configurations are in a folder, above all one that may have been meant.
func (e *Env) filesHint(dir, meant string) string {
	found, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.star"))
	if err != nil || len(found) == 0 {
		return fmt.Sprintf("no *.star file is in %s; 'cairn system search' lists what one can be made of", dir)
	}
	names := map[string]string{} // by base name
	var shown []string
	for _, f := range found {
		names[filepath.Base(f)] = f
		shown = append(shown, e.display(f))
	}
	if near := eval.Nearest(meant, sortedKeys(names)); near != "" {
		return "did you mean " + e.display(names[near]) + "?"
	}
	if more := len(shown) - 10; more > 0 {
		shown = append(shown[:10], fmt.Sprintf("and %d more", more))
	}
	return "there are " + strings.Join(shown, ", ")
}

// escapeGlob makes a pattern that matches one name.
func escapeGlob(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// fileError says of an error that FILE[:NAME] is wrong, with its place when it has one.
func fileError(arg string, err error) error {
	if as[*eval.Error](err) {
		return located(err)
	}
	if file, _ := fileName(arg); strings.Contains(err.Error(), filepath.Base(file)) {
		return &configError{err}
	}
	return &configError{fmt.Errorf("%s: %w", arg, err)}
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
	have, err := client.Present(ctx, s, all, false)
	if err != nil {
		return err
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
	info, err := s.addContents(ctx, a)
	if err != nil {
		return err
	}
	if info.Path != a.Path {
		return fmt.Errorf("add %s: it became %s, the evaluation said %s; did %s change meanwhile?", a.Name, info.Path, a.Path, a.File)
	}
	return nil
}

func (s *session) addContents(ctx context.Context, a *eval.Addition) (*store.Info, error) {
	if a.File != "" {
		return s.AddFile(ctx, a.Name, a.Method, a.Algo, a.References, a.File)
	}
	r, err := a.Open()
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", a.Name, err)
	}
	defer r.Close()
	return s.AddToStore(ctx, a.Name, a.Method, a.Algo, a.References, r)
}

// buildTargets makes the outputs of an evaluation exist and returns their paths, in order.
func (s *session) buildTargets(ctx context.Context, env *Env, cfg *config.Config, targets []config.Target, o *buildOptions) ([]store.Path, error) {
	want, err := s.addTargets(ctx, cfg, targets)
	if err != nil {
		return nil, err
	}
	return s.build(ctx, env, want, o)
}

// addTargets gives the store what targets of an evaluation need, and returns them as the daemon knows them.
func (s *session) addTargets(ctx context.Context, cfg *config.Config, targets []config.Target) ([]protocol.Target, error) {
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
	return want, nil
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
