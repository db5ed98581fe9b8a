// Package eval is the core of cairn's language: Starlark with typed records and store objects.
//
// # The dialect
//
// Starlark as go.starlark.net has it, with sets and with if and for at the top level of a file; without while,
// recursion, and assigning a global twice. Every file is frozen once it has run. A file reads others in two ways:
//
//	load("lib/web.star", "web")      below the file's own folder; "//lib/web.star" below the configuration's root
//	load("@cairn//base.star", "etc")  from the library that is part of the program
//
// and data by local_file and local_tree. Nothing outside the root can be reached, not by ".." and not through a symlink.
// There is no clock, no randomness, no environment and no network; args.get is the only other input.
//
// # Records
//
// record(name, {field: field(type, default, doc)}) makes a type whose records are immutable and checked when made;
// see Type for what a field may be. The same Schema checks the arguments of built-in functions, so that every wrong,
// misspelt or missing argument is an error at the argument's own line and column.
//
// # Objects
//
// plain_file, local_file, local_tree, derivation, tree and fetch make store objects. str(object) is the object's store
// path or, when the path is known only after a build, a placeholder. A text that becomes an object or a field of a derivation
// is scanned for the digests of this evaluation's objects, and what is found are its references. This works through every string
// operation; there are no string contexts. A plain file that mentions an output of a derivation is itself made by
// a derivation, since a store accepts no object before its references.
//
// Nothing is written. An Evaluation can say what a store must be given so that a path exists in it: Additions.
// A local file is read when its path is wanted, not when local_file names it.
//
// # Bounds
//
// An evaluation ends with an error after Options.MaxSteps steps of the interpreter, or when the heap has grown by
// Options.MaxHeap bytes (a watchdog looks every few milliseconds). One built-in operation is not interrupted, so a
// hostile file can still ask for more at once: package client/config evaluates in a child process with a limit
// of the kernel's behind this one.
//
// Not safe for concurrent use. The package is the language's core; what a machine or a service is, is bound by client/config.
package eval

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"cairn/store"
)

// Options control an evaluation. The zero value works.
type Options struct {
	Root     string    // the configuration's folder; default: that of the first file
	Dir      store.Dir // the store whose paths are computed; default store.DefaultDir
	System   string    // what derivations are built for unless they say; default: this machine's kind
	Library  fs.FS     // what "@cairn//" stands for; nil: nothing
	Prelude  string    // a file of Library whose globals every other file sees
	Args     map[string]string
	MaxSteps uint64 // default 1e9, about ten seconds
	MaxHeap  uint64 // default 1 GiB
	// Predeclared are more names that every file sees. They must be frozen or immutable.
	Predeclared starlark.StringDict
	// Print receives what print(…) prints; nil discards it.
	Print func(place, message string)
}

const (
	defaultMaxSteps = 1_000_000_000
	defaultMaxHeap  = 1 << 30
)

// Evaluation is one run of a configuration: its modules and the objects that they made.
type Evaluation struct {
	opts     Options
	root     *os.Root
	realRoot string // absolute, without symlinks
	prefix   string // what stands before a file's name when it is shown
	thread   *starlark.Thread
	names    starlark.StringDict // predeclared
	modules  map[string]*Module
	loading  []string
	shown    map[string]*Module      // by the name in positions
	failed   atomic.Pointer[failure] // why the thread was cancelled
	asked    map[string]bool         // arguments that the configuration asked for
	objects  objects
}

// fileOptions is the dialect.
var fileOptions = &syntax.FileOptions{Set: true, TopLevelControl: true}

// New prepares an evaluation of files below opts.Root, which may be empty only when Run is given a file.
func New(opts *Options) (*Evaluation, error) {
	e := &Evaluation{modules: map[string]*Module{}, shown: map[string]*Module{}, asked: map[string]bool{}}
	if opts != nil {
		e.opts = *opts
	}
	if e.opts.Dir == "" {
		e.opts.Dir = store.DefaultDir
	}
	if e.opts.System == "" {
		e.opts.System = System()
	}
	if e.opts.MaxSteps == 0 {
		e.opts.MaxSteps = defaultMaxSteps
	}
	if e.opts.MaxHeap == 0 {
		e.opts.MaxHeap = defaultMaxHeap
	}
	e.objects.init(e.opts.Dir)
	e.thread = &starlark.Thread{Name: "configuration", Load: e.load, Print: e.print}
	e.thread.SetMaxExecutionSteps(e.opts.MaxSteps)
	e.thread.OnMaxSteps = func(t *starlark.Thread) {
		e.cancel(fmt.Errorf("more than %d steps: does a loop never end? (%w)", e.opts.MaxSteps, ErrLimit))
	}
	e.thread.SetLocal(evaluationKey, e)
	e.names = e.vocabulary()
	return e, e.setRoot(e.opts.Root)
}

// System is this machine's kind as derivations name it, such as x86_64-linux.
func System() string {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i686"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	return arch + "-" + runtime.GOOS
}

const evaluationKey = "cairn evaluation"

// of returns the evaluation that a thread belongs to.
func of(t *starlark.Thread) *Evaluation { return t.Local(evaluationKey).(*Evaluation) }

func (e *Evaluation) setRoot(dir string) error {
	if dir == "" {
		return nil
	}
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return fmt.Errorf("open configuration root: %w", err)
	}
	if e.root, err = os.OpenRoot(abs); err != nil {
		return fmt.Errorf("open configuration root: %w", err)
	}
	e.realRoot = abs
	if e.prefix = filepath.ToSlash(filepath.Clean(dir)) + "/"; e.prefix == "./" {
		e.prefix = ""
	}
	return nil
}

// Close releases the root folder.
func (e *Evaluation) Close() error {
	if e.root == nil {
		return nil
	}
	return e.root.Close()
}

// Dir is the store directory of the paths.
func (e *Evaluation) Dir() store.Dir { return e.opts.Dir }

// Run evaluates a file of the operating system and all that it loads.
func (e *Evaluation) Run(ctx context.Context, file string) (*Module, error) {
	if e.root == nil {
		if err := e.setRoot(filepath.Dir(file)); err != nil {
			return nil, err
		}
	}
	key, err := e.key(file)
	if err != nil {
		return nil, err
	}
	m, err := e.guarded(ctx, func() (*Module, error) { return e.module(key) })
	if err != nil {
		return nil, err
	}
	return m, e.checkArgs()
}

// key turns a file name of the operating system into one below the root.
func (e *Evaluation) key(file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", fmt.Errorf("evaluate %s: %w", file, err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("evaluate %s: %w", file, err)
	}
	rel, err := filepath.Rel(e.realRoot, filepath.Join(dir, filepath.Base(abs)))
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("evaluate %s: not below the configuration root %s", file, e.opts.Root)
	}
	return filepath.ToSlash(rel), nil
}

// Module evaluates a module as load would, such as "@cairn//base.star".
func (e *Evaluation) Module(ctx context.Context, name string) (*Module, error) {
	return e.guarded(ctx, func() (*Module, error) { return e.module(name) })
}

// Do runs f, which may call functions of the language on the thread it gets, within the evaluation's bounds.
// Errors come back with their place.
func (e *Evaluation) Do(ctx context.Context, f func(t *starlark.Thread) error) error {
	_, err := e.guarded(ctx, func() (*Module, error) { return nil, f(e.thread) })
	return err
}

func (e *Evaluation) guarded(ctx context.Context, f func() (*Module, error)) (*Module, error) {
	stop := e.watch(ctx)
	m, err := f()
	stop()
	if f := e.failed.Load(); err == nil && f != nil {
		err = f.err
	}
	if err != nil {
		return nil, e.locate(err)
	}
	return m, nil
}

// failure is the first reason for which the evaluation was ended from outside the interpreter.
type failure struct{ err error }

// cancel ends the evaluation from another goroutine, or from a place that cannot return an error.
func (e *Evaluation) cancel(err error) {
	if e.failed.CompareAndSwap(nil, &failure{err}) {
		e.thread.Cancel(err.Error())
	}
}

func (e *Evaluation) print(t *starlark.Thread, message string) {
	if e.opts.Print != nil {
		e.opts.Print(UserPlace(t).String(), message)
	}
}

// checkArgs refuses arguments that no file asked for.
func (e *Evaluation) checkArgs() error {
	known := make([]string, 0, len(e.asked))
	for name := range e.asked {
		known = append(known, name)
	}
	for name := range e.opts.Args {
		if e.asked[name] {
			continue
		}
		if near := Nearest(name, known); near != "" {
			return fmt.Errorf("argument %s: the configuration does not ask for it (did you mean %s?)", name, near)
		}
		return fmt.Errorf("argument %s: the configuration does not ask for it", name)
	}
	return nil
}

// Module is a file that has run.
type Module struct {
	Name    string // below the root, or "@cairn//…"
	Globals starlark.StringDict
	shown   string
	syntax  *syntax.File
	order   []string // names of globals in the order of the file
	err     error
	done    bool
}

// Names lists the exported globals, which are those that no underscore starts, in the order of the file.
func (m *Module) Names() []string {
	var out []string
	for _, n := range m.order {
		if !strings.HasPrefix(n, "_") {
			out = append(out, n)
		}
	}
	return out
}

// Lookup returns an exported global. The error of an unknown name is an *Error without a place: it is in none.
func (m *Module) Lookup(name string) (starlark.Value, error) {
	if v, ok := m.Globals[name]; ok && !strings.HasPrefix(name, "_") {
		return v, nil
	}
	return nil, &Error{Message: fmt.Sprintf("%s has no value %s%s", m.shown, name, m.others(name))}
}

// maxListed bounds how many names an error lists.
const maxListed = 20

// others says what there is instead of a name.
func (m *Module) others(name string) string {
	names := m.Names()
	if len(names) == 0 {
		return "; it has none that can be asked for"
	}
	s := ""
	if near := Nearest(name, names); near != "" {
		s = " (did you mean " + near + "?)"
	}
	if more := len(names) - maxListed; more > 0 {
		names = append(names[:maxListed], fmt.Sprintf("and %d more", more))
	}
	return s + "; it has " + strings.Join(names, ", ")
}

// ErrLimit says that an evaluation was ended by one of its bounds.
var ErrLimit = errors.New("limit of the evaluation reached")
