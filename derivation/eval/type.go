package eval

import (
	"fmt"
	"math"
	"regexp"
	"strings"

	"go.starlark.net/starlark"
)

// Type is what a field accepts. Types are values of the language: int, str, bool, float, list, dict and any are the
// built-in functions of those names; list_of, dict_of, optional, one_of, enum, int_range and matching make others;
// object, path and function are constants; and a record type is the type of its records.
type Type interface {
	// String is the type as a person would write it.
	String() string
	// Convert returns the value to keep, or says what is wrong with it.
	Convert(v starlark.Value) (starlark.Value, *mismatch)
}

// mismatch says which part of a value is not what was wanted.
type mismatch struct {
	path []int // indexes into nested lists, outermost first
	want string
	got  starlark.Value
	hint string
}

func (m *mismatch) String() string {
	var b strings.Builder
	for _, i := range m.path {
		fmt.Fprintf(&b, "element %d: ", i)
	}
	fmt.Fprintf(&b, "want %s, got %s", m.want, describe(m.got))
	if m.hint != "" {
		fmt.Fprintf(&b, " (%s)", m.hint)
	}
	return b.String()
}

// describe prints a value for an error: its type and, when it is short, itself.
func describe(v starlark.Value) string {
	switch v := v.(type) {
	case starlark.NoneType:
		return "None"
	case starlark.String:
		if len(v) > 60 {
			return fmt.Sprintf("string %.60q…", string(v))
		}
		return "string " + v.String()
	case starlark.Int, starlark.Bool, starlark.Float:
		return v.Type() + " " + v.String()
	}
	return v.Type()
}

func wrong(want Type, got starlark.Value) *mismatch { return &mismatch{want: want.String(), got: got} }

// named is a type that one predicate decides.
type named struct {
	name string
	ok   func(starlark.Value) bool
}

func (t *named) String() string { return t.name }

func (t *named) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	if !t.ok(v) {
		return nil, wrong(t, v)
	}
	return v, nil
}

func is[T starlark.Value](v starlark.Value) bool { _, ok := v.(T); return ok }

var (
	anyType    = &frozen{}
	intType    = &named{"int", is[starlark.Int]}
	strType    = &named{"string", is[starlark.String]}
	boolType   = &named{"bool", is[starlark.Bool]}
	noneType   = &named{"None", is[starlark.NoneType]}
	funcType   = &named{"function", is[starlark.Callable]}
	objectType = &named{"object", func(v starlark.Value) bool { return is[*Object](v) || is[HostPath](v) }}
	floatType  = &named{"float", func(v starlark.Value) bool { return is[starlark.Float](v) || is[starlark.Int](v) }}
	pathType   = &named{"path", func(v starlark.Value) bool {
		s, ok := v.(starlark.String)
		return ok && strings.HasPrefix(string(s), "/") && !strings.ContainsAny(string(s), "\x00\n") || objectType.ok(v)
	}}
	listType Type = &listOf{anyType}
	dictType Type = &dictOf{anyType, anyType}
)

// frozen accepts everything and freezes it.
type frozen struct{}

func (*frozen) String() string { return "any value" }

func (*frozen) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	v.Freeze()
	return v, nil
}

// listOf is a list whose elements have one type. It keeps a frozen copy, so that a list may be used further
// by whoever made it.
type listOf struct{ elem Type }

func (t *listOf) String() string {
	if t.elem == anyType {
		return "list"
	}
	return "list of " + t.elem.String()
}

func (t *listOf) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	var seq starlark.Indexable
	switch v := v.(type) {
	case *starlark.List:
		seq = v
	case starlark.Tuple:
		seq = v
	default:
		return nil, wrong(t, v)
	}
	elems := make([]starlark.Value, seq.Len())
	for i := range elems {
		e, bad := t.elem.Convert(seq.Index(i))
		if bad != nil {
			bad.path = append([]int{i}, bad.path...)
			return nil, bad
		}
		elems[i] = e
	}
	l := starlark.NewList(elems)
	l.Freeze()
	return l, nil
}

// dictOf is a dict with typed keys and values; it keeps a frozen copy in the same order.
type dictOf struct{ key, value Type }

func (t *dictOf) String() string {
	if t.key == anyType && t.value == anyType {
		return "dict"
	}
	return fmt.Sprintf("dict of %s to %s", t.key, t.value)
}

func (t *dictOf) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	d, ok := v.(*starlark.Dict)
	if !ok {
		return nil, wrong(t, v)
	}
	out := starlark.NewDict(d.Len())
	for i, item := range d.Items() {
		k, bad := t.key.Convert(item[0])
		if bad == nil {
			item[1], bad = t.value.Convert(item[1])
		}
		if bad != nil {
			bad.path = append([]int{i}, bad.path...)
			return nil, bad
		}
		if err := out.SetKey(k, item[1]); err != nil {
			return nil, &mismatch{path: []int{i}, want: "a hashable key", got: k}
		}
	}
	out.Freeze()
	return out, nil
}

// oneOf accepts what one of several types accepts, tried in order.
type oneOf struct{ types []Type }

func (t *oneOf) String() string {
	names := make([]string, len(t.types))
	for i, u := range t.types {
		names[i] = u.String()
	}
	return strings.Join(names, " or ")
}

func (t *oneOf) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	deepest := wrong(t, v)
	for _, u := range t.types {
		w, bad := u.Convert(v)
		if bad == nil {
			return w, nil
		}
		if len(bad.path) > len(deepest.path) {
			deepest = bad
		} else if bad.hint != "" && len(deepest.path) == 0 {
			deepest.hint = bad.hint
		}
	}
	return nil, deepest
}

// enum is one of a few strings.
type enum struct{ names []string }

func (t *enum) String() string {
	quoted := make([]string, len(t.names))
	for i, n := range t.names {
		quoted[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(quoted, " or ")
}

func (t *enum) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	bad := wrong(t, v)
	s, ok := v.(starlark.String)
	if !ok {
		return nil, bad
	}
	for _, n := range t.names {
		if n == string(s) {
			return v, nil
		}
	}
	if near := Nearest(string(s), t.names); near != "" {
		bad.hint = fmt.Sprintf("did you mean %q?", near)
	}
	return nil, bad
}

// intRange is an int between two bounds, both allowed.
type intRange struct{ low, high int64 }

func (t *intRange) String() string { return fmt.Sprintf("int from %d to %d", t.low, t.high) }

func (t *intRange) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	i, ok := v.(starlark.Int)
	if !ok {
		return nil, wrong(t, v)
	}
	if n, exact := i.Int64(); !exact || n < t.low || n > t.high {
		return nil, wrong(t, v)
	}
	return v, nil
}

// matching is a string that a regular expression matches whole.
type matching struct {
	what    string
	pattern *regexp.Regexp
}

func (t *matching) String() string { return t.what }

func (t *matching) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	s, ok := v.(starlark.String)
	if !ok || !t.pattern.MatchString(string(s)) {
		return nil, wrong(t, v)
	}
	return v, nil
}

// typeValue is a Type as a value of the language.
type typeValue struct{ t Type }

func (t typeValue) Type() string          { return "type" }
func (t typeValue) Freeze()               {}
func (t typeValue) Truth() starlark.Bool  { return true }
func (t typeValue) Hash() (uint32, error) { return starlark.String(t.t.String()).Hash() }
func (t typeValue) String() string        { return t.t.String() }

// JSONValue is the type's name.
func (t typeValue) JSONValue() (any, error) { return t.t.String(), nil }

// TypeOf returns the type that a value stands for, or false.
func TypeOf(v starlark.Value) (Type, bool) {
	switch v := v.(type) {
	case typeValue:
		return v.t, true
	case starlark.NoneType:
		return noneType, true
	case *starlark.Builtin:
		if v == starlark.Universe[v.Name()] {
			t, ok := builtinTypes[v.Name()]
			return t, ok
		}
	case *RecordType:
		return recordType{v}, true
	case interface{ AsType() Type }:
		return v.AsType(), true
	}
	return nil, false
}

// NewType makes a type that one predicate decides.
func NewType(name string, ok func(starlark.Value) bool) Type { return &named{name, ok} }

var builtinTypes = map[string]Type{
	"int": intType, "str": strType, "bool": boolType, "float": floatType,
	"list": listType, "dict": dictType, "any": anyType,
}

// typeOfTypes is the type of values that stand for types.
var typeOfTypes = &named{"type", func(v starlark.Value) bool { _, ok := TypeOf(v); return ok }}

func typeBuiltins() starlark.StringDict {
	d := starlark.StringDict{
		"object": typeValue{objectType}, "path": typeValue{pathType}, "function": typeValue{funcType},
	}
	for name, f := range map[string]func(args []Type) (Type, error){
		"list_of": func(a []Type) (Type, error) { return &listOf{a[0]}, nil },
		"dict_of": func(a []Type) (Type, error) { return &dictOf{a[0], a[1]}, nil },
		"optional": func(a []Type) (Type, error) {
			return &oneOf{[]Type{a[0], noneType}}, nil
		},
		"one_of": func(a []Type) (Type, error) { return &oneOf{a}, nil },
	} {
		d[name] = starlark.NewBuiltin(name, typeMaker(f, map[string]int{"list_of": 1, "dict_of": 2, "optional": 1}[name]))
	}
	d["enum"] = starlark.NewBuiltin("enum", makeEnum)
	d["int_range"] = starlark.NewBuiltin("int_range", makeIntRange)
	d["matching"] = starlark.NewBuiltin("matching", makeMatching)
	return d
}

type builtinFunc = func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error)

// typeMaker makes the built-in that makes a type of want types (0: any number but none).
func typeMaker(f func([]Type) (Type, error), want int) builtinFunc {
	return func(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if len(kwargs) > 0 || want > 0 && len(args) != want || len(args) == 0 {
			return nil, fmt.Errorf("%s: want %s", b.Name(), plural(max(want, 1), "type"))
		}
		types := make([]Type, len(args))
		for i, a := range args {
			t, ok := TypeOf(a)
			if !ok {
				return nil, &argError{call: b.Name(), index: i, message: fmt.Sprintf("want a type, got %s", describe(a))}
			}
			types[i] = t
		}
		t, err := f(types)
		return typeValue{t}, err
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func makeEnum(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	t := &enum{}
	for i, a := range args {
		s, ok := a.(starlark.String)
		if !ok {
			return nil, &argError{call: "enum", index: i, message: fmt.Sprintf("want string, got %s", describe(a))}
		}
		t.names = append(t.names, string(s))
	}
	if len(kwargs) > 0 || len(t.names) == 0 {
		return nil, fmt.Errorf("enum: want strings, at least one")
	}
	return typeValue{t}, nil
}

func makeIntRange(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	t := &intRange{high: math.MaxInt64}
	if err := starlark.UnpackArgs("int_range", args, kwargs, "low", &t.low, "high?", &t.high); err != nil {
		return nil, err
	}
	return typeValue{t}, nil
}

func makeMatching(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var pattern, what string
	if err := starlark.UnpackArgs("matching", args, kwargs, "pattern", &pattern, "what", &what); err != nil {
		return nil, err
	}
	re, err := regexp.Compile("^(?:" + pattern + ")$")
	if err != nil {
		return nil, &argError{call: "matching", message: err.Error()}
	}
	return typeValue{&matching{what, re}}, nil
}
