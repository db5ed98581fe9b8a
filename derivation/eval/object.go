package eval

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"cairn/store"
)

// Object is a store object as a value: a text, a local file or folder, or an output of a derivation.
// What its path is computed from is looked at when the path is first wanted.
type Object struct {
	e       *Evaluation
	kind    string // "plain_file", "local_file", …: the function that made it
	name    string
	place   syntax.Position
	text    func() (string, error) // contents, when known without a build
	compute func() (*ref, error)   // makes ref
	outputs map[string]*Object     // of a derivation, all of them
	ref     *ref
	err     error
}

var (
	_ starlark.HasAttrs  = (*Object)(nil)
	_ starlark.HasBinary = (*Object)(nil)
)

// resolve computes the path or placeholder once.
func (o *Object) resolve() (*ref, error) {
	if o.ref != nil || o.err != nil {
		return o.ref, o.err
	}
	r, err := o.compute()
	if err != nil {
		var placed *Error
		if !errors.As(err, &placed) {
			err = at(o.place, fmt.Sprintf("%s %s: %v", o.kind, o.name, err))
		}
		o.err = err
		return nil, err
	}
	o.ref = o.e.objects.register(r)
	return o.ref, nil
}

// Path returns the store path or placeholder.
func (o *Object) Path() (string, error) {
	r, err := o.resolve()
	if err != nil {
		return "", err
	}
	return r.text, nil
}

// Output returns the derivation and the output that the object is; the zero path when it is a source.
func (o *Object) Output() (drv store.Path, output string, err error) {
	r, err := o.resolve()
	if err != nil {
		return store.Path{}, "", err
	}
	return r.drv, r.output, nil
}

// String is the store path or placeholder. The interface of the interpreter has no place for an error here, so one ends
// the evaluation.
func (o *Object) String() string {
	p, err := o.Path()
	if err != nil {
		o.e.cancel(err)
		return "<" + o.kind + " " + o.name + ">"
	}
	return p
}

func (o *Object) Type() string         { return "object" }
func (o *Object) Freeze()              {}
func (o *Object) Truth() starlark.Bool { return true }

// Hash is of the identity that a person sees: two objects may have equal hashes without being equal.
func (o *Object) Hash() (uint32, error) { return starlark.String(o.kind + o.name).Hash() }

// CompareSameType compares paths.
func (o *Object) CompareSameType(op syntax.Token, y starlark.Value, _ int) (bool, error) {
	a, err := o.Path()
	if err != nil {
		return false, err
	}
	b, err := y.(*Object).Path()
	if err != nil {
		return false, err
	}
	switch op {
	case syntax.EQL:
		return a == b, nil
	case syntax.NEQ:
		return a != b, nil
	}
	return false, fmt.Errorf("object %s object not implemented", op)
}

// Binary makes object + "/bin/x" and "x=" + object strings.
func (o *Object) Binary(op syntax.Token, y starlark.Value, side starlark.Side) (starlark.Value, error) {
	s, ok := y.(starlark.String)
	if op != syntax.PLUS || !ok {
		return nil, nil
	}
	p, err := o.Path()
	if err != nil {
		return nil, err
	}
	if side == starlark.Left {
		return starlark.String(p) + s, nil
	}
	return s + starlark.String(p), nil
}

// Attr: path, name; text of what is known without a build; drv_path and the outputs of a derivation.
func (o *Object) Attr(name string) (starlark.Value, error) {
	if out := o.outputs[name]; out != nil {
		return out, nil
	}
	switch name {
	case "path":
		p, err := o.Path()
		return starlark.String(p), err
	case "name":
		return starlark.String(o.name), nil
	case "text":
		if o.text == nil {
			return nil, fmt.Errorf("the contents of %s %s are known only after a build", o.kind, o.name)
		}
		s, err := o.text()
		return starlark.String(s), err
	case "drv_path":
		drv, _, err := o.Output()
		if err != nil || drv.IsZero() {
			return starlark.None, err
		}
		return starlark.String(drv.String()), nil
	}
	return nil, NoAttribute("object", name, o.AttrNames())
}

// AttrNames lists what Attr knows.
func (o *Object) AttrNames() []string {
	names := []string{"path", "name", "text", "drv_path"}
	for n := range o.outputs {
		names = append(names, n)
	}
	return names
}

// HostPath is a file of the host, an explicit impurity. It is its own text.
type HostPath string

func (h HostPath) String() string        { return string(h) }
func (h HostPath) Type() string          { return "host_path" }
func (h HostPath) Freeze()               {}
func (h HostPath) Truth() starlark.Bool  { return true }
func (h HostPath) Hash() (uint32, error) { return starlark.String(h).Hash() }

// Binary makes host_path + string a string.
func (h HostPath) Binary(op syntax.Token, y starlark.Value, side starlark.Side) (starlark.Value, error) {
	s, ok := y.(starlark.String)
	if op != syntax.PLUS || !ok {
		return nil, nil
	}
	if side == starlark.Left {
		return starlark.String(h) + s, nil
	}
	return s + starlark.String(h), nil
}

func hostPath(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	p := string(a[0].(starlark.String))
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, " \t\n\x00") {
		return nil, Wrong("host_path", "", "%q is not an absolute clean path", p)
	}
	of(t).objects.hosts[p] = true
	return HostPath(p), nil
}

// mentions reports whether p stands in text and does not go on behind.
func mentions(text, p string) bool {
	for {
		i := strings.Index(text, p)
		if i < 0 {
			return false
		}
		text = text[i+len(p):]
		if text == "" || !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/", rune(text[0])) {
			return true
		}
	}
}

// object makes an Object that is computed later.
func (e *Evaluation) object(kind, name string, place syntax.Position, compute func() (*ref, error)) (*Object, error) {
	if err := store.CheckName(name); err != nil {
		return nil, &argError{call: kind, keyword: "name", slot: 1, message: err.Error()}
	}
	return &Object{e: e, kind: kind, name: name, place: place, compute: compute}, nil
}

func plainFile(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	e, name, text := of(t), string(a[0].(starlark.String)), string(a[1].(starlark.String))
	o, err := e.object("plain_file", name, UserPlace(t), func() (*ref, error) { return e.textRef(name, text) })
	if err != nil {
		return nil, err
	}
	o.text = func() (string, error) { return text, nil }
	return o, nil
}

// textRef is the path of a text. One that mentions outputs of derivations is made by a derivation.
func (e *Evaluation) textRef(name, text string) (*ref, error) {
	found := map[*ref]bool{}
	e.objects.scan(text, found)
	var refs []store.Path
	for r := range found {
		if r.source.IsZero() {
			return e.treeRef(name, map[string]TreeEntry{"": {Text: &text}})
		}
		refs = append(refs, r.source)
	}
	refs = store.SortPaths(refs)
	p, err := e.opts.Dir.TextPath(name, store.SHA256.Sum([]byte(text)), refs)
	if err != nil {
		return nil, err
	}
	e.objects.added[p] = Addition{Path: p, Name: name, Method: store.Text, Algo: store.SHA256, References: refs, Text: text}
	return &ref{text: p.String(), source: p}, nil
}

func localFile(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	o, l, err := of(t).local(t, "local_file", a)
	if err != nil {
		return nil, err
	}
	if l.mode.IsDir() {
		return nil, &argError{call: "local_file", message: fmt.Sprintf("%s is a folder; use local_tree", l.shown)}
	}
	o.text = l.text
	return o, nil
}

func localTree(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	o, l, err := of(t).local(t, "local_tree", a)
	if err != nil {
		return nil, err
	}
	if !l.mode.IsDir() {
		return nil, &argError{call: "local_tree", message: fmt.Sprintf("%s is not a folder; use local_file", l.shown)}
	}
	return o, nil
}

// local is a file or folder below the root.
type local struct {
	e     *Evaluation
	key   string // below the root
	shown string
	mode  fs.FileMode
}

// local makes the object of a file below the root: it must be there, but is not read yet.
func (e *Evaluation) local(t *starlark.Thread, call string, a []starlark.Value) (*Object, *local, error) {
	wanted := string(a[0].(starlark.String))
	key, err := e.resolve(UserPlace(t).Filename(), wanted)
	if err == nil && (strings.HasPrefix(key, libraryPrefix) || e.root == nil) {
		err = fmt.Errorf("%q is not below the configuration root", wanted)
	}
	if err != nil {
		return nil, nil, &argError{call: call, message: err.Error()}
	}
	fi, err := e.root.Stat(key)
	if err != nil {
		return nil, nil, &argError{call: call, message: e.notThere(key, err).Error()}
	}
	if !fi.IsDir() && !fi.Mode().IsRegular() {
		return nil, nil, &argError{call: call, message: e.prefix + key + " is neither a file nor a folder"}
	}
	l := &local{e: e, key: key, shown: e.prefix + key, mode: fi.Mode()}
	name := path.Base(key)
	if n, ok := a[1].(starlark.String); ok {
		name = string(n)
	} else if key == "." {
		name = filepath.Base(e.realRoot)
	}
	o, err := e.object(call, name, UserPlace(t), func() (*ref, error) { return l.ref(name) })
	return o, l, err
}

func (l *local) ref(name string) (*ref, error) {
	file, err := l.real()
	if err != nil {
		return nil, err
	}
	h, err := narHash(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.shown, err)
	}
	p, err := l.e.opts.Dir.SourcePath(name, h, store.References{})
	if err != nil {
		return nil, err
	}
	l.e.objects.added[p] = Addition{Path: p, Name: name, Method: store.Recursive, Algo: store.SHA256, File: file}
	return &ref{text: p.String(), source: p}, nil
}

// real resolves symlinks and makes sure that none led out.
func (l *local) real() (string, error) {
	file, err := filepath.EvalSymlinks(filepath.Join(l.e.realRoot, filepath.FromSlash(l.key)))
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(l.e.realRoot, file); err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("%s leads out of the configuration root", l.shown)
	}
	return file, nil
}

const maxText = 16 << 20

func (l *local) text() (string, error) {
	f, err := l.e.root.Open(l.key)
	if err != nil {
		return "", l.e.notThere(l.key, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", l.shown, err)
	}
	if len(b) > maxText {
		return "", fmt.Errorf("read %s: larger than %d bytes, too large for a text", l.shown, maxText)
	}
	if !utf8.Valid(b) {
		return "", fmt.Errorf("read %s: not a text in UTF-8", l.shown)
	}
	return string(b), nil
}

func storePath(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	e, text := of(t), string(a[0].(starlark.String))
	p, err := e.opts.Dir.ParsePath(text)
	if err != nil {
		return nil, &argError{call: "store_path", message: err.Error()}
	}
	if strings.HasSuffix(p.Name(), ".drv") {
		return nil, &argError{call: "store_path", message: "a derivation is no object to use; name its output"}
	}
	return e.Existing(p), nil
}

// Existing returns the object of a path that the store has already.
func (e *Evaluation) Existing(p store.Path) *Object {
	r := e.objects.register(&ref{text: p.String(), source: p})
	return &Object{e: e, kind: "store_path", name: p.Name(), ref: r}
}
