package eval

import (
	"fmt"
	"slices"
	"strings"

	"go.starlark.net/starlark"
)

// Field is one field of a record, or one argument of a built-in function.
type Field struct {
	Name       string
	Type       Type
	Default    starlark.Value // nil: required
	Doc        string
	Positional bool // may be given by position, in the order of the fields
}

// Schema is a named list of fields. The same checker serves records, services and built-in functions.
type Schema struct {
	Name   string
	Doc    string
	Fields []Field
	index  map[string]int
}

// NewSchema makes a schema.
func NewSchema(name, doc string, fields []Field) *Schema {
	s := &Schema{Name: name, Doc: doc, Fields: fields, index: make(map[string]int, len(fields))}
	for i, f := range fields {
		s.index[f.Name] = i
	}
	return s
}

// names lists the fields.
func (s *Schema) names() []string {
	out := make([]string, len(s.Fields))
	for i, f := range s.Fields {
		out[i] = f.Name
	}
	return out
}

// argError is an error about one argument of the call that a built-in serves; Error finds its place in the file.
type argError struct {
	call    string
	keyword string // "": by position
	index   int    // counted from 0, when by position
	slot    int    // counted from 1: where the keyword goes by position, 0: unknown
	path    []int  // into a literal list or dict that is the argument
	message string
	whole   bool // about the call, not an argument
}

func (e *argError) Error() string {
	switch {
	case e.whole:
		return e.call + ": " + e.message
	case e.keyword == "":
		return fmt.Sprintf("%s: argument %d: %s", e.call, e.index+1, e.message)
	}
	return fmt.Sprintf("%s: field %s: %s", e.call, e.keyword, e.message)
}

// Bind checks the arguments of a call against the schema and returns one value per field.
func (s *Schema) Bind(args starlark.Tuple, kwargs []starlark.Tuple) ([]starlark.Value, error) {
	vals := make([]starlark.Value, len(s.Fields))
	if err := s.bindPositional(vals, args); err != nil {
		return nil, err
	}
	if err := s.bindKeywords(vals, kwargs); err != nil {
		return nil, err
	}
	return vals, s.fill(vals)
}

func (s *Schema) bindPositional(vals []starlark.Value, args starlark.Tuple) error {
	at := 0
	for i, a := range args {
		for at < len(s.Fields) && !s.Fields[at].Positional {
			at++
		}
		if at == len(s.Fields) {
			return &argError{call: s.Name, index: i, message: "want name = value; " + s.usage()}
		}
		v, bad := s.Fields[at].Type.Convert(a)
		if bad != nil {
			return &argError{call: s.Name, index: i, path: bad.path, message: s.Fields[at].Name + ": " + bad.String()}
		}
		vals[at] = v
		at++
	}
	return nil
}

func (s *Schema) usage() string {
	var names []string
	for _, f := range s.Fields {
		if f.Positional {
			names = append(names, f.Name)
		}
	}
	if len(names) == 0 {
		return "no argument goes by position"
	}
	return "only " + strings.Join(names, ", ") + " may go by position"
}

func (s *Schema) bindKeywords(vals []starlark.Value, kwargs []starlark.Tuple) error {
	for _, kw := range kwargs {
		name := string(kw[0].(starlark.String))
		i, ok := s.index[name]
		if !ok {
			return s.unknown(name)
		}
		if vals[i] != nil {
			return &argError{call: s.Name, keyword: name, message: "given twice"}
		}
		v, bad := s.Fields[i].Type.Convert(kw[1])
		if bad != nil {
			return &argError{call: s.Name, keyword: name, path: bad.path, message: bad.String()}
		}
		vals[i] = v
	}
	return nil
}

// unknown says that there is no such field, and which one may be meant.
func (s *Schema) unknown(name string) error {
	e := &argError{call: s.Name, keyword: name, message: "unknown"}
	if near := Nearest(name, s.names()); near != "" {
		e.message += fmt.Sprintf(" (did you mean %s?)", near)
	} else if len(s.Fields) > 0 && len(s.Fields) <= 12 {
		e.message += fmt.Sprintf(" (fields: %s)", strings.Join(s.names(), ", "))
	}
	return e
}

// fill puts defaults where nothing was given.
func (s *Schema) fill(vals []starlark.Value) error {
	var missing []string
	for i, v := range vals {
		if v != nil {
			continue
		}
		vals[i] = s.Fields[i].Default
		if vals[i] == nil {
			missing = append(missing, s.Fields[i].Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	noun := "field"
	if len(missing) > 1 {
		noun = "fields"
	}
	return &argError{call: s.Name, whole: true, message: fmt.Sprintf("missing %s %s", noun, strings.Join(missing, ", "))}
}

// AllDefault reports whether a call without arguments is complete.
func (s *Schema) AllDefault() bool {
	return !slices.ContainsFunc(s.Fields, func(f Field) bool { return f.Default == nil })
}

// builtin makes a built-in function whose arguments the schema checks.
func (s *Schema) builtin(f func(t *starlark.Thread, a []starlark.Value) (starlark.Value, error)) *starlark.Builtin {
	return starlark.NewBuiltin(s.Name, func(t *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		vals, err := s.Bind(args, kwargs)
		if err != nil {
			return nil, err
		}
		return f(t, vals)
	})
}

// NewBuiltin makes a built-in function whose arguments fields check.
func NewBuiltin(name, doc string, fields []Field, f func(t *starlark.Thread, a []starlark.Value) (starlark.Value, error)) *starlark.Builtin {
	return NewSchema(name, doc, fields).builtin(f)
}

// Wrong is the error of a built-in about one of its arguments, placed where that argument is written.
// An empty argument means the call as a whole.
func Wrong(call, argument, format string, args ...any) error {
	return &argError{call: call, keyword: argument, whole: argument == "", message: fmt.Sprintf(format, args...)}
}

// NoAttribute is the error of x.name where x has no such attribute.
func NoAttribute(typ, name string, known []string) error {
	if near := Nearest(name, known); near != "" {
		return fmt.Errorf("%s has no .%s field or method (did you mean .%s?)", typ, name, near)
	}
	return starlark.NoSuchAttrError(fmt.Sprintf("%s has no .%s field or method", typ, name))
}
