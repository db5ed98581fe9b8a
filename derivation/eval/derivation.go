package eval

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"cairn/derivation"
	"cairn/store"
)

// TreeEntry is one entry of the JSON that the builder "builtin:tree" takes; see package daemon/build.
// The key of an entry is its path; the key "" stands for the whole output, which then is a file.
type TreeEntry struct {
	Symlink    string   `json:"symlink,omitempty"`
	File       string   `json:"file,omitempty"`
	Text       *string  `json:"text,omitempty"`
	Executable bool     `json:"executable,omitempty"`
	Trees      []string `json:"trees,omitempty"`
}

// treeEntry is a TreeEntry that the user wrote.
type treeEntry struct {
	kind       string
	target     string
	executable bool
	objects    []*Object
	object     starlark.Value
}

func (e *treeEntry) String() string        { return "<" + e.kind + ">" }
func (e *treeEntry) Type() string          { return "tree entry" }
func (e *treeEntry) Freeze()               {}
func (e *treeEntry) Truth() starlark.Bool  { return true }
func (e *treeEntry) Hash() (uint32, error) { return 0, fmt.Errorf("unhashable: tree entry") }

// entry computes the builder's form.
func (e *treeEntry) entry() (TreeEntry, error) {
	switch e.kind {
	case "symlink":
		return TreeEntry{Symlink: e.target}, nil
	case "executable":
		return TreeEntry{Text: &e.target, Executable: e.executable}, nil
	case "copied":
		p, err := e.objects[0].Path()
		return TreeEntry{File: p, Executable: e.executable}, err
	}
	var t TreeEntry
	for _, o := range e.objects {
		p, err := o.Path()
		if err != nil {
			return t, err
		}
		t.Trees = append(t.Trees, p)
	}
	return t, nil
}

func treeEntryBuiltins() starlark.StringDict {
	object := NewType("object", is[*Object])
	executable := Field{Name: "executable", Type: boolType, Default: starlark.False, Doc: "Whether the file may be run."}
	return starlark.StringDict{
		"symlink": NewBuiltin("symlink", "An entry of a tree: a symlink to any target.", []Field{
			{Name: "target", Type: strType, Positional: true},
		}, func(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
			return &treeEntry{kind: "symlink", target: string(a[0].(starlark.String))}, nil
		}),
		"executable": NewBuiltin("executable", "An entry of a tree: a file with this text that may be run.", []Field{
			{Name: "text", Type: strType, Positional: true},
		}, func(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
			return &treeEntry{kind: "executable", target: string(a[0].(starlark.String)), executable: true}, nil
		}),
		"copied": NewBuiltin("copied", "An entry of a tree: a copy of an object that is a file.", []Field{
			{Name: "object", Type: object, Positional: true}, executable,
		}, func(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
			return &treeEntry{kind: "copied", objects: []*Object{a[0].(*Object)}, executable: bool(a[1].(starlark.Bool))}, nil
		}),
		"union": NewBuiltin("union", "An entry of a tree: the folders of several objects laid over each other.", []Field{
			{Name: "objects", Type: &listOf{object}, Positional: true},
		}, func(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
			e := &treeEntry{kind: "union"}
			for x := range a[0].(*starlark.List).Elements() {
				e.objects = append(e.objects, x.(*Object))
			}
			return e, nil
		}),
	}
}

var treeSchema = NewSchema("tree", "A folder made of texts, symlinks and other objects.", []Field{
	{Name: "name", Type: strType, Positional: true, Doc: "The object's name."},
	{Name: "entries", Type: &dictOf{strType, anyType}, Positional: true, Doc: "Path to text, object (a symlink to it), symlink(…), executable(…), copied(…) or union(…)."},
})

func makeTree(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	e, name, items := of(t), string(a[0].(starlark.String)), a[1].(*starlark.Dict).Items()
	for i, item := range items {
		if err := checkTreeEntry(string(item[0].(starlark.String)), item[1]); err != nil {
			return nil, &argError{call: "tree", keyword: "entries", slot: 2, path: []int{i}, message: err.Error()}
		}
	}
	return e.object("tree", name, UserPlace(t), func() (*ref, error) {
		entries, err := treeEntries(items)
		if err != nil {
			return nil, err
		}
		return e.treeRef(name, entries)
	})
}

func checkTreeEntry(p string, v starlark.Value) error {
	if p == "" || path.IsAbs(p) || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../") || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%q is not a clean relative path", p)
	}
	switch v.(type) {
	case starlark.String, *Object, HostPath, *treeEntry:
		return nil
	}
	return fmt.Errorf("%s: want text, object or tree entry, got %s", p, describe(v))
}

func treeEntries(items []starlark.Tuple) (map[string]TreeEntry, error) {
	out := make(map[string]TreeEntry, len(items))
	for _, item := range items {
		var err error
		if out[string(item[0].(starlark.String))], err = toTreeEntry(item[1]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func toTreeEntry(v starlark.Value) (TreeEntry, error) {
	switch v := v.(type) {
	case starlark.String:
		s := string(v)
		return TreeEntry{Text: &s}, nil
	case *treeEntry:
		return v.entry()
	case *Object:
		p, err := v.Path()
		return TreeEntry{Symlink: p}, err
	}
	return TreeEntry{Symlink: v.String()}, nil
}

func (e *Evaluation) treeRef(name string, entries any) (*ref, error) {
	o, err := e.Tree(name, entries)
	if err != nil {
		return nil, err
	}
	return o.resolve()
}

// Tree makes the object that "builtin:tree" builds of entries, a map that its JSON form is made of.
func (e *Evaluation) Tree(name string, entries any) (*Object, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(entries); err != nil {
		return nil, fmt.Errorf("encode tree %s: %w", name, err)
	}
	d := &derivation.Derivation{
		Name: name, System: "builtin", Builder: "builtin:tree",
		Env:     map[string]string{"tree": strings.TrimSuffix(b.String(), "\n")},
		Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}},
	}
	refs, err := e.derive(d)
	if err != nil {
		return nil, err
	}
	return &Object{e: e, kind: "tree", name: name, ref: e.objects.register(refs["out"])}, nil
}

var derivationSchema = NewSchema("derivation", "An object that a program builds in the sandbox.", []Field{
	{Name: "name", Type: strType, Positional: true, Doc: "The object's name."},
	{Name: "builder", Type: &oneOf{[]Type{strType, objectType}}, Positional: true, Doc: "The program to run."},
	{Name: "args", Type: listType, Default: starlark.NewList(nil), Doc: "Its arguments: texts, numbers, objects."},
	{Name: "env", Type: &dictOf{strType, anyType}, Default: starlark.NewDict(0), Doc: "Its environment: texts, numbers, bools, objects, and lists of them."},
	{Name: "system", Type: strType, Default: starlark.String(""), Doc: "The kind of machine it runs on; default: that of the evaluation."},
	{Name: "outputs", Type: &listOf{strType}, Default: starlark.NewList([]starlark.Value{starlark.String("out")}), Doc: "The outputs, the object itself first."},
	{Name: "input_addressed", Type: boolType, Default: starlark.False, Doc: "Whether the path comes from the recipe and not from the contents."},
	{Name: "hash", Type: strType, Default: starlark.String(""), Doc: "What the only output must have as its hash; gives the build the network."},
	{Name: "hash_mode", Type: &enum{[]string{"flat", "recursive"}}, Default: starlark.String("flat"), Doc: "What the hash is of: the file, or the archive of the tree."},
})

func makeDerivation(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	e := of(t)
	r := &recipe{e: e, place: UserPlace(t), name: string(a[0].(starlark.String)), builder: a[1], args: a[2].(*starlark.List), env: a[3].(*starlark.Dict),
		system: string(a[4].(starlark.String))}
	if r.system == "" {
		r.system = e.opts.System
	}
	if err := r.setOutputs(a[5].(*starlark.List), bool(a[6].(starlark.Bool)), string(a[7].(starlark.String)), string(a[8].(starlark.String))); err != nil {
		return nil, err
	}
	if strings.HasSuffix(r.name, ".drv") {
		return nil, &argError{call: "derivation", keyword: "name", slot: 1, message: "a name that ends in .drv is a derivation's own"}
	}
	return r.object("derivation")
}

// recipe is a derivation that is computed when it is wanted.
type recipe struct {
	e       *Evaluation
	place   syntax.Position
	name    string
	builder starlark.Value
	args    *starlark.List
	env     *starlark.Dict
	system  string
	names   []string // of outputs
	output  derivation.Output
	refs    map[string]*ref
}

func (r *recipe) setOutputs(names *starlark.List, inputAddressed bool, hash, mode string) error {
	seen := map[string]bool{}
	for n := range names.Elements() {
		name := string(n.(starlark.String))
		if seen[name] || !identifier(name) || name == "name" || name == "path" || name == "text" || name == "drv_path" || name == "drv" {
			return &argError{call: "derivation", keyword: "outputs", message: fmt.Sprintf("%q is given twice or cannot be an output's name", name)}
		}
		seen[name] = true
		r.names = append(r.names, name)
	}
	if len(r.names) == 0 {
		return &argError{call: "derivation", keyword: "outputs", message: "want one at least"}
	}
	switch {
	case hash != "" && inputAddressed:
		return &argError{call: "derivation", keyword: "input_addressed", message: "an output with a hash is addressed by it"}
	case hash != "":
		return r.fix(hash, mode)
	case !inputAddressed:
		r.output = derivation.Output{Method: store.Recursive, Algo: store.SHA256}
	}
	return nil
}

// fix makes the only output one with a known hash.
func (r *recipe) fix(hash, mode string) error {
	if len(r.names) != 1 || r.names[0] != "out" {
		return &argError{call: "derivation", keyword: "outputs", message: "a derivation with a hash has the output out alone"}
	}
	h, err := store.ParseHash(hash, 0)
	if err != nil {
		return &argError{call: "derivation", keyword: "hash", message: err.Error()}
	}
	r.output = derivation.Output{Method: store.Flat, Algo: h.Algorithm(), Hash: h}
	if mode == "recursive" {
		r.output.Method = store.Recursive
	}
	return nil
}

// object makes the objects of all outputs and returns the first.
func (r *recipe) object(kind string) (starlark.Value, error) {
	all := map[string]*Object{}
	for _, n := range r.names {
		o, err := r.e.object(kind, r.name, r.place, func() (*ref, error) {
			err := r.compute()
			return r.refs[n], err
		})
		if err != nil {
			return nil, err
		}
		o.outputs = all
		all[n] = o
	}
	return all[r.names[0]], nil
}

func (r *recipe) compute() error {
	if r.refs != nil {
		return nil
	}
	d := &derivation.Derivation{Name: r.name, System: r.system, Env: map[string]string{}, Outputs: map[string]derivation.Output{}}
	var err error
	if d.Builder, err = word(r.builder); err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	for a := range r.args.Elements() {
		w, err := word(a)
		if err != nil {
			return fmt.Errorf("argument %d: %w", len(d.Args), err)
		}
		d.Args = append(d.Args, w)
	}
	for _, item := range r.env.Items() {
		if d.Env[string(item[0].(starlark.String))], err = words(item[1]); err != nil {
			return fmt.Errorf("environment variable %s: %w", item[0], err)
		}
	}
	for _, n := range r.names {
		d.Outputs[n] = r.output
	}
	r.refs, err = r.e.derive(d)
	return err
}

// word is a value as an argument or variable.
func word(v starlark.Value) (string, error) {
	switch v := v.(type) {
	case starlark.String:
		return string(v), nil
	case *Object:
		return v.Path()
	case HostPath, starlark.Int:
		return v.String(), nil
	case starlark.Bool:
		if v {
			return "1", nil
		}
		return "", nil
	}
	return "", fmt.Errorf("want text, number, bool or object, got %s", describe(v))
}

// words is like word, and joins the words of a list with spaces.
func words(v starlark.Value) (string, error) {
	l, ok := v.(*starlark.List)
	if !ok {
		return word(v)
	}
	var all []string
	for x := range l.Elements() {
		w, err := word(x)
		if err != nil {
			return "", err
		}
		all = append(all, w)
	}
	return strings.Join(all, " "), nil
}

// derive completes a derivation: inputs by scanning, output paths, the variables of outputs; and keeps it.
func (e *Evaluation) derive(d *derivation.Derivation) (map[string]*ref, error) {
	o := &e.objects
	for n, v := range map[string]string{"name": d.Name, "system": d.System, "builder": d.Builder} {
		if _, set := d.Env[n]; !set {
			d.Env[n] = v
		}
	}
	o.inputs(d)
	for n := range d.Outputs {
		if _, set := d.Env[n]; set {
			return nil, fmt.Errorf("environment variable %s is the output's own", n)
		}
	}
	if err := o.hashes.FillOutputs(d, o.dir); err != nil {
		return nil, err
	}
	drv, err := d.Path(o.dir)
	if err != nil {
		return nil, err
	}
	o.drvs[drv] = d
	o.added[drv] = Addition{Path: drv, Name: drv.Name(), Method: store.Text, Algo: store.SHA256, References: d.References(), Text: string(d.ATerm())}
	refs := map[string]*ref{}
	for n, out := range d.Outputs {
		r := &ref{text: out.Path.String(), drv: drv, output: n}
		if out.Path.IsZero() {
			r.text = derivation.UpstreamPlaceholder(drv, n)
		}
		refs[n] = o.register(r)
	}
	return refs, nil
}

// inputs finds what the builder, the arguments and the environment refer to.
func (o *objects) inputs(d *derivation.Derivation) {
	found := map[*ref]bool{}
	o.scan(d.Builder, found)
	for _, a := range d.Args {
		o.scan(a, found)
	}
	for n, v := range d.Env {
		o.scan(n, found)
		o.scan(v, found)
	}
	drvs := map[store.Path][]string{}
	for r := range found {
		if !r.source.IsZero() {
			d.InputSrcs = append(d.InputSrcs, r.source)
			continue
		}
		drvs[r.drv] = append(drvs[r.drv], r.output)
	}
	d.InputSrcs = store.SortPaths(d.InputSrcs)
	if len(drvs) > 0 {
		d.InputDrvs = sortedOutputs(drvs)
	}
}

// sortedOutputs sorts each list of outputs.
func sortedOutputs(drvs map[store.Path][]string) map[store.Path][]string {
	for _, outs := range drvs {
		slices.Sort(outs)
	}
	return drvs
}

func placeholder(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	return starlark.String(derivation.Placeholder(string(a[0].(starlark.String)))), nil
}
