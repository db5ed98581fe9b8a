package eval

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"go.starlark.net/starlark"
)

// JSONer is a value with a JSON form of its own.
type JSONer interface{ JSONValue() (any, error) }

// JSON returns a value as JSON. Records are objects of their fields, store objects are {"path": …} with
// the derivation and output that make them; record fields and dicts keep their order. Functions have no JSON form.
func JSON(v starlark.Value) (json.RawMessage, error) { return encodeJSON(v, false) }

// encodeJSON returns a value as JSON; plain: store objects are their paths, as configuration files want them.
func encodeJSON(v starlark.Value, plain bool) ([]byte, error) {
	w := &jsonWriter{plain: plain}
	if err := w.value(v, 0); err != nil {
		return nil, err
	}
	return []byte(w.b.String()), nil
}

// MarshalJSON is what json.encode of the language writes.
func (r *Record) MarshalJSON() ([]byte, error) { return encodeJSON(r, true) }

// MarshalJSON is what json.encode of the language writes.
func (o *Object) MarshalJSON() ([]byte, error) { return encodeJSON(o, true) }

// MarshalJSON is what json.encode of the language writes.
func (h HostPath) MarshalJSON() ([]byte, error) { return encodeJSON(h, true) }

type jsonWriter struct {
	b     strings.Builder
	plain bool
}

const maxDepth = 200

var errTooDeep = fmt.Errorf("value is nested deeper than %d: does it contain itself?", maxDepth)

func (w *jsonWriter) value(v starlark.Value, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	switch v := v.(type) {
	case starlark.NoneType:
		w.b.WriteString("null")
	case starlark.Bool, starlark.Int:
		w.b.WriteString(strings.ToLower(v.String()))
	case starlark.Float:
		return w.float(float64(v))
	case starlark.String:
		w.text(string(v))
	case HostPath:
		w.text(string(v))
	case *Object:
		return w.object(v)
	case *Record:
		return w.record(v, depth)
	case *starlark.Dict:
		return w.dict(v, depth)
	case JSONer:
		return w.other(v)
	case starlark.Iterable:
		return w.list(v, depth)
	default:
		return fmt.Errorf("%s has no JSON form", v.Type())
	}
	return nil
}

func (w *jsonWriter) float(f float64) error {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return fmt.Errorf("float %v has no JSON form", f)
	}
	fmt.Fprintf(&w.b, "%g", f)
	return nil
}

func (w *jsonWriter) text(s string) {
	enc := json.NewEncoder(chomp{&w.b})
	enc.SetEscapeHTML(false)
	enc.Encode(s) //nolint:errcheck // a string into memory
}

// chomp drops the newline that an encoder writes after a value.
type chomp struct{ b *strings.Builder }

func (c chomp) Write(p []byte) (int, error) {
	c.b.WriteString(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

func (w *jsonWriter) object(o *Object) error {
	p, err := o.Path()
	if err != nil {
		return err
	}
	if w.plain {
		w.text(p)
		return nil
	}
	w.b.WriteString(`{"path":`)
	w.text(p)
	if drv, output, _ := o.Output(); !drv.IsZero() {
		w.b.WriteString(`,"drv":`)
		w.text(drv.String())
		w.b.WriteString(`,"output":`)
		w.text(output)
	}
	w.b.WriteByte('}')
	return nil
}

func (w *jsonWriter) record(r *Record, depth int) error {
	w.b.WriteByte('{')
	for i, f := range r.typ.Fields {
		if i > 0 {
			w.b.WriteByte(',')
		}
		w.text(f.Name)
		w.b.WriteByte(':')
		if err := w.value(r.vals[i], depth+1); err != nil {
			return within(err, depth, r.Type()+"."+f.Name)
		}
	}
	w.b.WriteByte('}')
	return nil
}

func (w *jsonWriter) dict(d *starlark.Dict, depth int) error {
	w.b.WriteByte('{')
	for i, item := range d.Items() {
		if i > 0 {
			w.b.WriteByte(',')
		}
		k, ok := item[0].(starlark.String)
		if !ok {
			return fmt.Errorf("dict key %s is not a string", describe(item[0]))
		}
		w.text(string(k))
		w.b.WriteByte(':')
		if err := w.value(item[1], depth+1); err != nil {
			return within(err, depth, "["+k.String()+"]")
		}
	}
	w.b.WriteByte('}')
	return nil
}

// within says in which part of a value an error is, but not two hundred times.
func within(err error, depth int, part string) error {
	if depth > 0 && errors.Is(err, errTooDeep) {
		return err
	}
	return fmt.Errorf("%s: %w", part, err)
}

func (w *jsonWriter) list(l starlark.Iterable, depth int) error {
	w.b.WriteByte('[')
	i := 0
	for x := range starlark.Elements(l) {
		if i > 0 {
			w.b.WriteByte(',')
		}
		if err := w.value(x, depth+1); err != nil {
			return within(err, depth, fmt.Sprintf("[%d]", i))
		}
		i++
	}
	w.b.WriteByte(']')
	return nil
}

func (w *jsonWriter) other(v JSONer) error {
	x, err := v.JSONValue()
	if err != nil {
		return err
	}
	if s, ok := x.(starlark.Value); ok {
		return w.value(s, 0)
	}
	enc := json.NewEncoder(chomp{&w.b})
	enc.SetEscapeHTML(false)
	return enc.Encode(x)
}
