// Package config is the vocabulary of cairn's language: it turns a file into systems and machines.
//
// Package eval is the core; here service types and services are bound to package services, and the library's prelude
// declares system, user, group, machine and managed_host. A system's services, and those that stand for its fields
// (essential_services of base.star), are folded into system_root, whose record is decoded into a system.Spec by the names of the
// fields, and the system's derivation is made of that. Nothing is computed that is not asked for.
//
// The exported globals of the file are its values: those that no underscore starts and that it does not load.
//
//	System("")   the value called system, or the only one that is a system
//	Machines()   the value called machines, or else every exported machine, in the order of the file
//
// # Isolation
//
// When Init was called at the start of the program, Load evaluates in a child process, the same program again, which speaks gob
// over its standard input and output (child.go). The kernel limits the child's memory; a file that eats all of it kills the child
// and not the caller. Without Init, Load evaluates in this process, where the limits of package eval alone apply.
package config

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"go.starlark.net/starlark"

	"cairn/derivation/eval"
	"cairn/services/library"
	"cairn/services/system"
	"cairn/store"
)

// Options say how a file is evaluated. The zero value works.
type Options struct {
	Root     string                      // the configuration's folder; default: that of the file
	Dir      store.Dir                   // the store whose paths are computed; default store.DefaultDir
	Platform string                      // what derivations are built for, such as x86_64-linux; default: this machine's kind
	Args     map[string]string           // what args.get gives
	Cairn    string                      // the cairn program that is part of every system; default: this one
	MaxSteps uint64                      // default 1e9
	MaxHeap  uint64                      // default 1 GiB
	Print    func(place, message string) // nil discards what print(…) prints
}

// System is a folded system.
type System struct {
	Name   string // the host name
	Spec   *system.Spec
	Drv    store.Path
	Output string // of Drv
}

// Machine is a system and where it runs.
type Machine struct {
	Name        string
	System      *System
	Environment Environment
}

// Environment is how a machine is reached.
type Environment struct {
	Type      string // "managed_host"
	Host      string
	Port      int    // 0: what ssh's configuration says
	User      string // "": likewise
	Identity  string // a file, absolute; "": likewise
	HostKey   string // "": what known_hosts says
	SSHConfig string // a file, absolute; "": the user's
}

// Target is something that can be built or that is a source.
type Target struct {
	Name   string
	Drv    store.Path // zero for a source
	Output string
	Path   store.Path // zero when it is known only after the build
}

// TypeDoc describes a service type, or a record type that services have in their fields.
type TypeDoc struct {
	Name       string     `json:"name"`
	Kind       string     `json:"kind"` // "service" or "record"
	Doc        string     `json:"doc"`
	Module     string     `json:"module,omitempty"` // what to load it from; empty: it is there without
	Place      string     `json:"place,omitempty"`
	Extends    []string   `json:"extends,omitempty"`
	Extensible bool       `json:"extensible,omitempty"`
	Fields     []FieldDoc `json:"fields"`
}

// FieldDoc describes a field of a service type.
type FieldDoc struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Default  string `json:"default,omitempty"`
	Required bool   `json:"required,omitempty"`
	Doc      string `json:"doc"`
}

// Config is an evaluated file.
type Config struct{ backend }

// backend answers for an evaluated file: the evaluation itself, or a child that has it.
type backend interface {
	// Names lists the exported values in the order of the file.
	Names() ([]string, error)
	// Value returns an exported value as JSON; "" all of them that have a JSON form.
	Value(name string) (json.RawMessage, error)
	// Targets returns what an exported value would build: an object, a system, a machine, or lists and dicts of them.
	Targets(name string) ([]Target, error)
	// System returns a system: an exported one, or "" for the one called system or the only one.
	System(name string) (*System, error)
	// Machines returns the machines.
	Machines() ([]Machine, error)
	// ServiceTypes describes the service and record types of the library and those that the file exports, by name.
	ServiceTypes() ([]TypeDoc, error)
	// Additions returns what a store must be given so that paths exist in it, references first.
	Additions(paths ...store.Path) ([]eval.Addition, error)
	// Close ends the evaluation; the Config is of no use then.
	Close() error
}

// Load evaluates a file. The context bounds the whole life of the Config.
func Load(ctx context.Context, file string, opts *Options) (*Config, error) {
	if opts == nil {
		opts = &Options{}
	}
	if initialized {
		c, err := startChild(ctx, file, opts)
		if err != nil {
			return nil, err
		}
		return &Config{c}, nil
	}
	e, err := load(ctx, file, opts)
	if err != nil {
		return nil, err
	}
	return &Config{e}, nil
}

// ServiceTypes describes the library's service and record types, by name.
func ServiceTypes(ctx context.Context) ([]TypeDoc, error) {
	e, err := newEvaluated(ctx, &Options{})
	if err != nil {
		return nil, err
	}
	defer e.Close()
	return e.ServiceTypes()
}

// evaluated is the backend that has the evaluation.
type evaluated struct {
	ctx     context.Context
	opts    Options
	eval    *eval.Evaluation
	main    *eval.Module // nil: there is no file
	dir     string       // of the main file, absolute
	systems map[*eval.Record]*System
}

var _ backend = (*evaluated)(nil)

func newEvaluated(ctx context.Context, opts *Options) (*evaluated, error) {
	predeclared := starlark.StringDict{"service": newAnyService(), "service_type": newServiceTypeBuiltin()}
	e, err := eval.New(&eval.Options{
		Root: opts.Root, Dir: opts.Dir, System: opts.Platform, Library: library.Files(), Prelude: library.Prelude,
		Args: opts.Args, MaxSteps: opts.MaxSteps, MaxHeap: opts.MaxHeap, Predeclared: predeclared, Print: opts.Print,
	})
	if err != nil {
		return nil, err
	}
	return &evaluated{ctx: ctx, opts: *opts, eval: e, systems: map[*eval.Record]*System{}}, nil
}

func load(ctx context.Context, file string, opts *Options) (*evaluated, error) {
	e, err := newEvaluated(ctx, opts)
	if err != nil {
		return nil, err
	}
	if e.main, err = e.eval.Run(ctx, file); err != nil {
		e.Close()
		return nil, err
	}
	if e.dir, err = filepath.Abs(filepath.Dir(file)); err != nil {
		e.Close()
		return nil, fmt.Errorf("evaluate %s: %w", file, err)
	}
	return e, nil
}

func (e *evaluated) Close() error { return e.eval.Close() }

func (e *evaluated) Names() ([]string, error) { return e.main.Names(), nil }

func (e *evaluated) Additions(paths ...store.Path) ([]eval.Addition, error) {
	return e.eval.Additions(paths...), nil
}

func (e *evaluated) Value(name string) (json.RawMessage, error) {
	if name == "" {
		return e.allValues()
	}
	v, err := e.main.Lookup(name)
	if err != nil {
		return nil, err
	}
	var out json.RawMessage
	err = e.eval.Do(e.ctx, func(*starlark.Thread) (err error) { out, err = eval.JSON(v); return err })
	if err != nil {
		return nil, fmt.Errorf("value %s: %w", name, err)
	}
	return out, nil
}

// allValues leaves out functions, which have no JSON form.
func (e *evaluated) allValues() (json.RawMessage, error) {
	all := starlark.NewDict(0)
	for _, n := range e.main.Names() {
		v, ok := e.main.Globals[n]
		if _, function := v.(*starlark.Function); !ok || function {
			continue
		}
		if err := all.SetKey(starlark.String(n), v); err != nil {
			return nil, err
		}
	}
	var out json.RawMessage
	err := e.eval.Do(e.ctx, func(*starlark.Thread) (err error) { out, err = eval.JSON(all); return err })
	return out, err
}

func (e *evaluated) Targets(name string) ([]Target, error) {
	v, err := e.main.Lookup(name)
	if err != nil {
		return nil, err
	}
	return e.targets(name, v)
}

func (e *evaluated) targets(name string, v starlark.Value) ([]Target, error) {
	switch v := v.(type) {
	case *eval.Object:
		t, err := e.target(name, v)
		return []Target{t}, err
	case *eval.Record:
		return e.recordTargets(name, v)
	case *starlark.Dict:
		var all []Target
		for _, item := range v.Items() {
			ts, err := e.targets(name+"["+item[0].String()+"]", item[1])
			if err != nil {
				return nil, err
			}
			all = append(all, ts...)
		}
		return all, nil
	case *starlark.List:
		var all []Target
		for i := range v.Len() {
			ts, err := e.targets(fmt.Sprintf("%s[%d]", name, i), v.Index(i))
			if err != nil {
				return nil, err
			}
			all = append(all, ts...)
		}
		return all, nil
	}
	return nil, fmt.Errorf("%s is %s; want an object, a system, a machine, or a list or dict of them", name, v.Type())
}

func (e *evaluated) recordTargets(name string, r *eval.Record) ([]Target, error) {
	if e.isA(r, "machine") {
		r = r.Field("system").(*eval.Record)
	}
	if !e.isA(r, "system") {
		return nil, fmt.Errorf("%s is %s; want an object, a system or a machine", name, r.Type())
	}
	s, err := e.system(r)
	if err != nil {
		return nil, err
	}
	return []Target{{Name: name, Drv: s.Drv, Output: s.Output}}, nil
}

func (e *evaluated) target(name string, o *eval.Object) (Target, error) {
	t := Target{Name: name}
	return t, e.eval.Do(e.ctx, func(*starlark.Thread) error {
		p, err := o.Path()
		if err != nil {
			return err
		}
		t.Path, _ = e.eval.Dir().ParsePath(p) // stays zero for a placeholder
		t.Drv, t.Output, err = o.Output()
		return err
	})
}

// isA reports whether a record has a type of the prelude.
func (e *evaluated) isA(v starlark.Value, name string) bool {
	r, ok := v.(*eval.Record)
	if !ok {
		return false
	}
	t, err := e.prelude(name)
	return err == nil && r.RecordType() == t
}

func (e *evaluated) prelude(name string) (*eval.RecordType, error) {
	m, err := e.eval.Module(e.ctx, "@cairn//"+library.Prelude)
	if err != nil {
		return nil, err
	}
	t, ok := m.Globals[name].(*eval.RecordType)
	if !ok {
		return nil, fmt.Errorf("the library's prelude has no record type %s", name)
	}
	return t, nil
}

func (e *evaluated) System(name string) (*System, error) {
	if name == "" {
		return e.onlySystem()
	}
	v, err := e.main.Lookup(name)
	if err != nil {
		return nil, err
	}
	if e.isA(v, "machine") {
		v = v.(*eval.Record).Field("system")
	}
	if !e.isA(v, "system") {
		return nil, fmt.Errorf("%s is %s, not a system", name, v.Type())
	}
	return e.system(v.(*eval.Record))
}

func (e *evaluated) onlySystem() (*System, error) {
	if e.isA(e.main.Globals["system"], "system") {
		return e.System("system")
	}
	var names []string
	for _, n := range e.main.Names() {
		if e.isA(e.main.Globals[n], "system") {
			names = append(names, n)
		}
	}
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("%s has no system; assign one to a name with NAME = system(…)", e.main.Name)
	case 1:
		return e.System(names[0])
	}
	return nil, fmt.Errorf("%s has several systems, and none is called system; name one: %v", e.main.Name, names)
}

func (e *evaluated) ServiceTypes() ([]TypeDoc, error) {
	entries, err := library.Files().ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("read the library: %w", err)
	}
	found := map[starlark.Value]TypeDoc{}
	for _, entry := range entries {
		m, err := e.eval.Module(e.ctx, "@cairn//"+entry.Name())
		if err != nil {
			return nil, err
		}
		module := m.Name
		if entry.Name() == library.Prelude {
			module = ""
		}
		collectTypes(found, m, module)
	}
	if e.main != nil {
		collectTypes(found, e.main, "")
	}
	return slices.SortedFunc(maps.Values(found), func(a, b TypeDoc) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Place, b.Place))
	}), nil
}

// collectTypes adds the types that a module exports, each under the name it is first found with.
func collectTypes(found map[starlark.Value]TypeDoc, m *eval.Module, module string) {
	for _, n := range m.Names() {
		v := m.Globals[n]
		switch v := v.(type) {
		case *serviceType:
			if _, known := found[v]; !known {
				found[v] = v.doc(module)
			}
		case *eval.RecordType:
			if _, known := found[v]; !known {
				found[v] = TypeDoc{Name: n, Kind: "record", Doc: v.Schema.Doc, Module: module, Place: v.Place().String(), Fields: fieldDocs(v)}
			}
		}
	}
}

// cairnProgram is the program that becomes part of every system.
func (o *Options) cairnProgram() (string, error) {
	if o.Cairn != "" {
		return o.Cairn, nil
	}
	p, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the cairn program: %w", err)
	}
	return p, nil
}
