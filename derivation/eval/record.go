package eval

import (
	"fmt"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// RecordType makes typed, immutable records. Calling it checks every argument.
type RecordType struct {
	*Schema
	check starlark.Callable // nil: none; takes the record, returns None, a message, or (field, message)
	place syntax.Position   // where it is declared
}

// NewRecordType makes a record type; check may be nil.
func NewRecordType(s *Schema, check starlark.Callable, place syntax.Position) *RecordType {
	return &RecordType{Schema: s, check: check, place: place}
}

var (
	_ starlark.Callable = (*RecordType)(nil)
	_ Type              = recordType{}
)

// recordType is a RecordType as the type of a field.
type recordType struct{ *RecordType }

func (t recordType) String() string { return t.Schema.Name }

func (t recordType) Convert(v starlark.Value) (starlark.Value, *mismatch) {
	if r, ok := v.(*Record); ok && r.typ == t.RecordType {
		return v, nil
	}
	return nil, wrong(t, v)
}

func (t *RecordType) Name() string          { return t.Schema.Name }
func (t *RecordType) String() string        { return "<record type " + t.Schema.Name + ">" }
func (t *RecordType) Type() string          { return "record type" }
func (t *RecordType) Freeze()               {}
func (t *RecordType) Truth() starlark.Bool  { return true }
func (t *RecordType) Hash() (uint32, error) { return starlark.String(t.Schema.Name).Hash() }

// Place is where the type is declared.
func (t *RecordType) Place() syntax.Position { return t.place }

// CallInternal makes a record of the arguments.
func (t *RecordType) CallInternal(thread *starlark.Thread, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	vals, err := t.Bind(args, kwargs)
	if err != nil {
		return nil, err
	}
	return t.make(thread, vals)
}

// New makes a record of checked values, as Bind returns them.
func (t *RecordType) New(thread *starlark.Thread, vals []starlark.Value) (*Record, error) {
	return t.make(thread, vals)
}

func (t *RecordType) make(thread *starlark.Thread, vals []starlark.Value) (*Record, error) {
	r := &Record{typ: t, vals: vals, place: UserPlace(thread)}
	if t.check == nil {
		return r, nil
	}
	v, err := starlark.Call(thread, t.check, starlark.Tuple{r}, nil)
	if err != nil {
		return nil, err
	}
	return r, t.verdict(v)
}

// verdict turns what a check function returns into an error.
func (t *RecordType) verdict(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.NoneType:
		return nil
	case starlark.String:
		return &argError{call: t.Schema.Name, whole: true, message: string(v)}
	case starlark.Tuple:
		if len(v) == 2 && is[starlark.String](v[0]) && is[starlark.String](v[1]) {
			return &argError{call: t.Schema.Name, keyword: string(v[0].(starlark.String)), message: string(v[1].(starlark.String))}
		}
	}
	return fmt.Errorf("%s: check returned %s; want None, a message, or (field, message)", t.Schema.Name, describe(v))
}

// Record is a typed, immutable value with named fields.
type Record struct {
	typ   *RecordType
	vals  []starlark.Value
	place syntax.Position
}

var (
	_ starlark.HasAttrs   = (*Record)(nil)
	_ starlark.Comparable = (*Record)(nil)
)

// RecordType returns the type.
func (r *Record) RecordType() *RecordType { return r.typ }

// Place is where the record was made, in the user's own files if it was made on their behalf.
func (r *Record) Place() syntax.Position { return r.place }

// Field returns a field's value, or nil.
func (r *Record) Field(name string) starlark.Value {
	if i, ok := r.typ.index[name]; ok {
		return r.vals[i]
	}
	return nil
}

func (r *Record) Type() string         { return r.typ.Schema.Name }
func (r *Record) Freeze()              {}
func (r *Record) Truth() starlark.Bool { return true }

func (r *Record) String() string {
	var b strings.Builder
	b.WriteString(r.typ.Schema.Name)
	b.WriteByte('(')
	for i, f := range r.typ.Fields {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(f.Name + " = " + r.vals[i].String())
	}
	b.WriteByte(')')
	return b.String()
}

func (r *Record) Hash() (uint32, error) {
	h := uint32(2166136261)
	for _, v := range r.vals {
		x, err := v.Hash()
		if err != nil {
			return 0, fmt.Errorf("unhashable: %s", r.typ.Schema.Name)
		}
		h = (h ^ x) * 16777619
	}
	return h, nil
}

func (r *Record) CompareSameType(op syntax.Token, y starlark.Value, depth int) (bool, error) {
	if op != syntax.EQL && op != syntax.NEQ {
		return false, fmt.Errorf("%s %s %s not implemented", r.Type(), op, y.Type())
	}
	equal, err := r.equal(y.(*Record), depth)
	return equal == (op == syntax.EQL), err
}

func (r *Record) equal(o *Record, depth int) (bool, error) {
	if r == o {
		return true, nil
	}
	if r.typ != o.typ {
		return false, nil
	}
	for i := range r.vals {
		same, err := starlark.EqualDepth(r.vals[i], o.vals[i], depth-1)
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// Attr returns a field, or the method with_.
func (r *Record) Attr(name string) (starlark.Value, error) {
	if i, ok := r.typ.index[name]; ok {
		return r.vals[i], nil
	}
	if name == "with_" {
		return starlark.NewBuiltin("with_", r.with).BindReceiver(r), nil
	}
	return nil, NoAttribute(r.Type(), name, r.AttrNames())
}

// AttrNames lists the fields and with_.
func (r *Record) AttrNames() []string { return append(r.typ.names(), "with_") }

func (r *Record) with(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	return r.With(thread, args, kwargs)
}

// With returns a copy in which the fields given by name have other values.
func (r *Record) With(thread *starlark.Thread, args starlark.Tuple, kwargs []starlark.Tuple) (*Record, error) {
	if len(args) > 0 {
		return nil, &argError{call: r.typ.Schema.Name + ".with_", message: "want name = value"}
	}
	vals := make([]starlark.Value, len(r.vals))
	if err := r.typ.bindKeywords(vals, kwargs); err != nil {
		return nil, err
	}
	for i, v := range vals {
		if v == nil {
			vals[i] = r.vals[i]
		}
	}
	return r.typ.make(thread, vals)
}

// fieldValue is the value of field(…): a field that has no name yet.
type fieldValue struct{ Field }

func (f *fieldValue) String() string        { return "field(" + f.Field.Type.String() + ")" }
func (f *fieldValue) Type() string          { return "field" }
func (f *fieldValue) Freeze()               {}
func (f *fieldValue) Truth() starlark.Bool  { return true }
func (f *fieldValue) Hash() (uint32, error) { return 0, fmt.Errorf("unhashable: field") }

var fieldSchema = NewSchema("field", "Declare a field of a record or service type.", []Field{
	{Name: "type", Type: typeOfTypes, Doc: "What the field accepts.", Positional: true},
	{Name: "default", Type: anyType, Default: unset, Doc: "Its value when not given; without one the field is required."},
	{Name: "doc", Type: strType, Default: starlark.String(""), Doc: "What it does, in one sentence."},
	{Name: "positional", Type: boolType, Default: starlark.False, Doc: "Whether it may be given by position."},
})

// unset stands for an argument that was not given where None is a value.
var unset = starlark.NewBuiltin("unset", nil)

func makeField(_ *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	t, _ := TypeOf(a[0])
	f := &fieldValue{Field{Type: t, Doc: string(a[2].(starlark.String)), Positional: bool(a[3].(starlark.Bool))}}
	if a[1] == starlark.Value(unset) {
		return f, nil
	}
	v, bad := t.Convert(a[1])
	if bad != nil {
		return nil, &argError{call: "field", keyword: "default", path: bad.path, message: bad.String()}
	}
	f.Default = v
	return f, nil
}

// Fields turns a dict of name: field(…) into fields.
func Fields(call, argument string, d *starlark.Dict) ([]Field, error) {
	var fields []Field
	for i, item := range d.Items() {
		name, ok := item[0].(starlark.String)
		if !ok || !identifier(string(name)) {
			return nil, &argError{call: call, keyword: argument, slot: 2, path: []int{i}, message: "want a name, got " + describe(item[0])}
		}
		f, ok := item[1].(*fieldValue)
		if !ok {
			return nil, &argError{call: call, keyword: argument, slot: 2, path: []int{i}, message: fmt.Sprintf("%s: want field(…), got %s", string(name), describe(item[1]))}
		}
		g := f.Field
		g.Name = string(name)
		fields = append(fields, g)
	}
	return fields, nil
}

func identifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && s != "with_"
}

var recordSchema = NewSchema("record", "Declare a record type.", []Field{
	{Name: "name", Type: strType, Positional: true, Doc: "Its name, for errors and documentation."},
	{Name: "fields", Type: dictType, Positional: true, Doc: "Its fields: a dict of name to field(…)."},
	{Name: "doc", Type: strType, Default: starlark.String(""), Doc: "What it is, in one sentence."},
	{Name: "check", Type: &oneOf{[]Type{funcType, noneType}}, Default: starlark.None, Doc: "A function that gets the record and returns None, a message, or (field, message)."},
})

func makeRecord(t *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	fields, err := Fields("record", "fields", a[1].(*starlark.Dict))
	if err != nil {
		return nil, err
	}
	check, _ := a[3].(starlark.Callable)
	return NewRecordType(NewSchema(string(a[0].(starlark.String)), string(a[2].(starlark.String)), fields), check, callPlace(t)), nil
}
