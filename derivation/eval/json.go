package eval

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"go.starlark.net/starlark"
)

// JSONer is a value with a JSON form of its own.
type JSONer interface{ JSONValue() (any, error) }

// JSON returns a value as JSON. Records are objects of their fields, store objects are {"path": …} with
// the derivation and output that make them; record fields and dicts keep their order. Functions have no JSON form.
func JSON(v starlark.Value) (json.RawMessage, error) {
	var b strings.Builder
	if err := writeJSON(&b, v, 0); err != nil {
		return nil, err
	}
	return json.RawMessage(b.String()), nil
}

const maxDepth = 200

func writeJSON(b *strings.Builder, v starlark.Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("value is nested deeper than %d", maxDepth)
	}
	switch v := v.(type) {
	case starlark.NoneType:
		b.WriteString("null")
	case starlark.Bool, starlark.Int:
		b.WriteString(strings.ToLower(v.String()))
	case starlark.Float:
		return writeFloat(b, float64(v))
	case starlark.String:
		writeString(b, string(v))
	case HostPath:
		writeString(b, string(v))
	case *Object:
		return writeObject(b, v)
	case *Record:
		return writeRecord(b, v, depth)
	case *starlark.Dict:
		return writeDict(b, v, depth)
	case JSONer:
		return writeOther(b, v)
	case starlark.Iterable:
		return writeList(b, v, depth)
	default:
		return fmt.Errorf("%s has no JSON form", v.Type())
	}
	return nil
}

func writeFloat(b *strings.Builder, f float64) error {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return fmt.Errorf("float %v has no JSON form", f)
	}
	fmt.Fprintf(b, "%g", f)
	return nil
}

func writeString(b *strings.Builder, s string) {
	enc := json.NewEncoder(chomp{b})
	enc.SetEscapeHTML(false)
	enc.Encode(s) //nolint:errcheck // a string into memory
}

// chomp drops the newline that an encoder writes after a value.
type chomp struct{ b *strings.Builder }

func (c chomp) Write(p []byte) (int, error) {
	c.b.WriteString(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

func writeObject(b *strings.Builder, o *Object) error {
	p, err := o.Path()
	if err != nil {
		return err
	}
	b.WriteString(`{"path":`)
	writeString(b, p)
	if drv, output, _ := o.Output(); !drv.IsZero() {
		b.WriteString(`,"drv":`)
		writeString(b, drv.String())
		b.WriteString(`,"output":`)
		writeString(b, output)
	}
	b.WriteByte('}')
	return nil
}

func writeRecord(b *strings.Builder, r *Record, depth int) error {
	b.WriteByte('{')
	for i, f := range r.typ.Fields {
		if i > 0 {
			b.WriteByte(',')
		}
		writeString(b, f.Name)
		b.WriteByte(':')
		if err := writeJSON(b, r.vals[i], depth+1); err != nil {
			return fmt.Errorf("%s.%s: %w", r.Type(), f.Name, err)
		}
	}
	b.WriteByte('}')
	return nil
}

func writeDict(b *strings.Builder, d *starlark.Dict, depth int) error {
	b.WriteByte('{')
	for i, item := range d.Items() {
		if i > 0 {
			b.WriteByte(',')
		}
		k, ok := item[0].(starlark.String)
		if !ok {
			return fmt.Errorf("dict key %s is not a string", describe(item[0]))
		}
		writeString(b, string(k))
		b.WriteByte(':')
		if err := writeJSON(b, item[1], depth+1); err != nil {
			return fmt.Errorf("[%s]: %w", k, err)
		}
	}
	b.WriteByte('}')
	return nil
}

func writeList(b *strings.Builder, l starlark.Iterable, depth int) error {
	b.WriteByte('[')
	i := 0
	for x := range starlark.Elements(l) {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := writeJSON(b, x, depth+1); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
		i++
	}
	b.WriteByte(']')
	return nil
}

func writeOther(b *strings.Builder, v JSONer) error {
	x, err := v.JSONValue()
	if err != nil {
		return err
	}
	if s, ok := x.(starlark.Value); ok {
		return writeJSON(b, s, 0)
	}
	enc := json.NewEncoder(chomp{b})
	enc.SetEscapeHTML(false)
	return enc.Encode(x)
}
