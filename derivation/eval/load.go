package eval

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

const (
	libraryPrefix = "@cairn//"
	maxSource     = 4 << 20 // bytes of one file
)

// load serves the load statement.
func (e *Evaluation) load(t *starlark.Thread, name string) (starlark.StringDict, error) {
	key, err := e.resolve(t.CallFrame(0).Pos.Filename(), name)
	if err != nil {
		return nil, err
	}
	m, err := e.module(key)
	if err != nil {
		return nil, err
	}
	exported := make(starlark.StringDict, len(m.Globals))
	for _, n := range m.Names() {
		exported[n] = m.Globals[n]
	}
	return exported, nil
}

// resolve turns what a file writes into the key of a module or of a data file:
// a path below the root without "..", or a library name.
func (e *Evaluation) resolve(from, name string) (string, error) {
	if strings.HasPrefix(name, libraryPrefix) {
		return name, nil
	}
	if strings.HasPrefix(name, "@") {
		return "", fmt.Errorf("only %s is known", libraryPrefix)
	}
	rel, fromRoot := strings.CutPrefix(name, "//")
	if path.IsAbs(rel) || rel == "" || strings.ContainsRune(rel, 0) {
		return "", fmt.Errorf("%q is not a path below the configuration root", name)
	}
	m := e.shown[from]
	if m != nil && !fromRoot {
		if inner, library := strings.CutPrefix(m.Name, libraryPrefix); library {
			return libraryPrefix + path.Join(path.Dir(inner), rel), nil
		}
		rel = path.Join(path.Dir(m.Name), rel)
	}
	rel = path.Clean(rel)
	if rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("%q leads out of the configuration root", name)
	}
	return rel, nil
}

// module runs a file once.
func (e *Evaluation) module(key string) (*Module, error) {
	if m := e.modules[key]; m != nil {
		if !m.done {
			return nil, fmt.Errorf("files load each other in a circle: %s", strings.Join(e.circle(key), " → "))
		}
		return m, m.err
	}
	m := &Module{Name: key, shown: key}
	if !strings.HasPrefix(key, libraryPrefix) {
		m.shown = e.prefix + key
	}
	e.modules[key], e.shown[m.shown] = m, m
	e.loading = append(e.loading, key)
	if err := e.run(m); err != nil {
		m.err = e.locate(err)
	}
	e.loading = e.loading[:len(e.loading)-1]
	m.done = true
	return m, m.err
}

func (e *Evaluation) circle(key string) []string {
	chain := slices.Clone(e.loading[slices.Index(e.loading, key):])
	return append(chain, key)
}

func (e *Evaluation) run(m *Module) error {
	src, err := e.source(m.Name)
	if err != nil {
		return err
	}
	names, err := e.predeclared(m)
	if err != nil {
		return err
	}
	file, prog, err := starlark.SourceProgramOptions(fileOptions, m.shown, src, names.Has)
	m.syntax = file
	if err != nil {
		return err
	}
	m.order = globals(file)
	m.Globals, err = prog.Init(e.thread, names)
	m.Globals.Freeze()
	return err
}

// predeclared returns the names that a module sees: everything, but in the prelude itself not its own.
func (e *Evaluation) predeclared(m *Module) (starlark.StringDict, error) {
	prelude := libraryPrefix + e.opts.Prelude
	if e.opts.Prelude == "" || slices.Contains(e.loading, prelude) {
		return e.names, nil
	}
	p := e.modules[prelude]
	if p == nil {
		var err error
		if p, err = e.module(prelude); err != nil {
			return nil, err
		}
		for _, n := range p.Names() {
			e.names[n] = p.Globals[n]
		}
	}
	return e.names, p.err
}

// source reads the text of a module.
func (e *Evaluation) source(key string) ([]byte, error) {
	f, err := e.open(key)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxSource+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if len(src) > maxSource {
		return nil, fmt.Errorf("read %s: larger than %d bytes", key, maxSource)
	}
	return src, nil
}

func (e *Evaluation) open(key string) (fs.File, error) {
	if name, ok := strings.CutPrefix(key, libraryPrefix); ok {
		return e.openLibrary(name)
	}
	if e.root == nil {
		return nil, fmt.Errorf("open %s: there is no configuration root", key)
	}
	fi, err := e.root.Stat(key)
	if err != nil {
		return nil, e.notThere(key, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file", e.prefix+key)
	}
	f, err := e.root.Open(key)
	if err != nil {
		return nil, e.notThere(key, err)
	}
	return f, nil
}

// notThere words the error of looking for a file below the root.
func (e *Evaluation) notThere(key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no file %s", e.prefix+key)
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("open %s: %w", e.prefix+key, err)
}

func (e *Evaluation) openLibrary(name string) (fs.File, error) {
	if e.opts.Library == nil {
		return nil, fmt.Errorf("this evaluation has no library")
	}
	f, err := e.opts.Library.Open(name)
	if err == nil {
		return f, nil
	}
	var names []string
	if all, err := fs.Glob(e.opts.Library, "*.star"); err == nil {
		names = all
	}
	if near := Nearest(name, names); near != "" {
		return nil, fmt.Errorf("the library has no %s (did you mean %s?)", name, near)
	}
	return nil, fmt.Errorf("the library has no %s; it has %s", name, strings.Join(names, ", "))
}

// globals lists the names that a file binds at its top level, in order; names that load binds are not among them.
func globals(f *syntax.File) []string {
	g := globalNames{seen: map[string]bool{}}
	g.stmts(f.Stmts)
	return g.names
}

type globalNames struct {
	names []string
	seen  map[string]bool
}

func (g *globalNames) stmts(list []syntax.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *syntax.AssignStmt:
			g.bind(s.LHS)
		case *syntax.DefStmt:
			g.bind(s.Name)
		case *syntax.ForStmt:
			g.bind(s.Vars)
			g.stmts(s.Body)
		case *syntax.IfStmt:
			g.stmts(s.True)
			g.stmts(s.False)
		}
	}
}

func (g *globalNames) bind(e syntax.Expr) {
	switch e := e.(type) {
	case *syntax.Ident:
		if !g.seen[e.Name] {
			g.seen[e.Name] = true
			g.names = append(g.names, e.Name)
		}
	case *syntax.ParenExpr:
		g.bind(e.X)
	case *syntax.TupleExpr:
		for _, x := range e.List {
			g.bind(x)
		}
	case *syntax.ListExpr:
		for _, x := range e.List {
			g.bind(x)
		}
	}
}
