package eval

import (
	"maps"

	"go.starlark.net/lib/json"
	"go.starlark.net/starlark"
)

// vocabulary is what every file sees: the core's own names and those of the options.
func (e *Evaluation) vocabulary() starlark.StringDict {
	name := Field{Name: "name", Type: &oneOf{[]Type{strType, noneType}}, Default: starlark.None, Doc: "The object's name; default: the file's."}
	where := Field{Name: "path", Type: strType, Positional: true, Doc: "Relative to the file that says so; // starts at the configuration's root."}
	d := starlark.StringDict{
		"field":      fieldSchema.builtin(makeField),
		"record":     recordSchema.builtin(makeRecord),
		"derivation": derivationSchema.builtin(makeDerivation),
		"tree":       treeSchema.builtin(makeTree),
		"fetch":      fetchSchema.builtin(fetch),
		"json":       jsonModule(),
		"args":       e.arguments(),
		"unique":     uniqueSchema.builtin(unique),
		"plain_file": NewBuiltin("plain_file", "A text as an object.", []Field{
			{Name: "name", Type: strType, Positional: true}, {Name: "text", Type: strType, Positional: true},
		}, plainFile),
		"local_file":  NewBuiltin("local_file", "A file of the configuration as an object.", []Field{where, name}, localFile),
		"local_tree":  NewBuiltin("local_tree", "A folder of the configuration as an object.", []Field{where, name}, localTree),
		"host_path":   NewBuiltin("host_path", "A file of the host that is used as it is.", []Field{{Name: "path", Type: strType, Positional: true}}, hostPath),
		"store_path":  NewBuiltin("store_path", "An object that is in the store already.", []Field{{Name: "path", Type: strType, Positional: true}}, storePath),
		"placeholder": NewBuiltin("placeholder", "What stands for an output's path in its own derivation.", []Field{{Name: "output", Type: strType, Positional: true, Default: starlark.String("out")}}, placeholder),
	}
	maps.Copy(d, typeBuiltins())
	maps.Copy(d, treeEntryBuiltins())
	maps.Copy(d, e.opts.Predeclared)
	for _, v := range d {
		v.Freeze()
	}
	return d
}

// jsonModule is the interpreter's own, whose functions have no effects.
func jsonModule() starlark.Value { return json.Module }

// arguments is the value args: the inputs that whoever evaluates gives by name.
func (e *Evaluation) arguments() starlark.Value {
	get := NewBuiltin("args.get", "An argument of the evaluation.", []Field{
		{Name: "name", Type: strType, Positional: true},
		{Name: "default", Type: anyType, Default: unset, Positional: true},
	}, func(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
		name := string(a[0].(starlark.String))
		e.asked[name] = true
		if v, ok := e.opts.Args[name]; ok {
			return starlark.String(v), nil
		}
		if a[1] == starlark.Value(unset) {
			return nil, Wrong("args.get", "", "argument %s is not given; give it with --arg %s=VALUE", name, name)
		}
		return a[1], nil
	})
	return &module{"args", starlark.StringDict{"get": get}}
}

// module is a value with functions.
type module struct {
	name    string
	members starlark.StringDict
}

func (m *module) String() string        { return "<" + m.name + ">" }
func (m *module) Type() string          { return m.name }
func (m *module) Freeze()               { m.members.Freeze() }
func (m *module) Truth() starlark.Bool  { return true }
func (m *module) Hash() (uint32, error) { return starlark.String(m.name).Hash() }
func (m *module) AttrNames() []string   { return m.members.Keys() }

func (m *module) Attr(name string) (starlark.Value, error) {
	if v, ok := m.members[name]; ok {
		return v, nil
	}
	return nil, nil
}

var uniqueSchema = NewSchema("unique", "Check that no two records of a list have the same value in a field.", []Field{
	{Name: "records", Type: listType, Positional: true},
	{Name: "field", Type: strType, Positional: true},
	{Name: "what", Type: strType, Positional: true, Doc: "What the field names, for the error."},
})

// unique returns its list, or an error that names both places.
func unique(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	field, what := string(a[1].(starlark.String)), string(a[2].(starlark.String))
	seen := map[string]*Record{}
	for v := range a[0].(*starlark.List).Elements() {
		r, ok := v.(*Record)
		if !ok || r.Field(field) == nil {
			return nil, Wrong("unique", "records", "want records with a field %s, got %s", field, describe(v))
		}
		key := r.Field(field).String()
		if first := seen[key]; first != nil {
			return nil, at(r.place, what+" "+key+" is declared twice, first at "+first.place.String())
		}
		seen[key] = r
	}
	return a[0], nil
}
