package eval

import (
	"fmt"
	"reflect"
	"strings"

	"go.starlark.net/starlark"
)

// Decode stores a value in the Go value that into points to: records in structs, whose field HostName is called
// host_name in the language; lists in slices, dicts in maps, None in nil or zero, objects and host paths in strings.
// A field of the record that the struct lacks is an error, a field of the struct that the record lacks stays zero.
func Decode(v starlark.Value, into any) error { return decode(v, reflect.ValueOf(into).Elem()) }

func decode(v starlark.Value, to reflect.Value) error {
	if v == starlark.None {
		to.SetZero()
		return nil
	}
	if to.Kind() == reflect.Pointer {
		to.Set(reflect.New(to.Type().Elem()))
		return decode(v, to.Elem())
	}
	switch v := v.(type) {
	case starlark.Bool:
		if to.Kind() == reflect.Bool {
			to.SetBool(bool(v))
			return nil
		}
	case starlark.Int:
		if n, ok := v.Int64(); ok && to.CanInt() && !to.OverflowInt(n) {
			to.SetInt(n)
			return nil
		}
	case starlark.String:
		return decodeString(string(v), v, to)
	case *Object:
		p, err := v.Path()
		if err != nil {
			return err
		}
		return decodeString(p, v, to)
	case HostPath:
		return decodeString(string(v), v, to)
	case *starlark.List:
		return decodeList(v, to)
	case *starlark.Dict:
		return decodeDict(v, to)
	case *Record:
		return decodeRecord(v, to)
	}
	return misfit(v, to)
}

func misfit(v starlark.Value, to reflect.Value) error {
	return fmt.Errorf("%s does not fit into %s", describe(v), to.Type())
}

func decodeString(s string, v starlark.Value, to reflect.Value) error {
	if to.Kind() != reflect.String {
		return misfit(v, to)
	}
	to.SetString(s)
	return nil
}

func decodeList(l *starlark.List, to reflect.Value) error {
	if to.Kind() != reflect.Slice {
		return misfit(l, to)
	}
	if l.Len() == 0 {
		to.SetZero()
		return nil
	}
	to.Set(reflect.MakeSlice(to.Type(), l.Len(), l.Len()))
	for i := range l.Len() {
		if err := decode(l.Index(i), to.Index(i)); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return nil
}

func decodeDict(d *starlark.Dict, to reflect.Value) error {
	if to.Kind() != reflect.Map || to.Type().Key().Kind() != reflect.String {
		return misfit(d, to)
	}
	to.Set(reflect.MakeMapWithSize(to.Type(), d.Len()))
	for _, item := range d.Items() {
		k, ok := item[0].(starlark.String)
		if !ok {
			return misfit(item[0], to)
		}
		x := reflect.New(to.Type().Elem()).Elem()
		if err := decode(item[1], x); err != nil {
			return fmt.Errorf("[%s]: %w", k, err)
		}
		to.SetMapIndex(reflect.ValueOf(string(k)).Convert(to.Type().Key()), x)
	}
	return nil
}

func decodeRecord(r *Record, to reflect.Value) error {
	if to.Kind() != reflect.Struct {
		return misfit(r, to)
	}
	for i, f := range r.typ.Fields {
		name := strings.ReplaceAll(f.Name, "_", "")
		field := to.FieldByNameFunc(func(n string) bool { return strings.EqualFold(n, name) })
		if !field.IsValid() {
			return fmt.Errorf("%s has a field %s, which %s lacks", r.Type(), f.Name, to.Type())
		}
		if err := decode(r.vals[i], field); err != nil {
			return fmt.Errorf("%s.%s: %w", r.Type(), f.Name, err)
		}
	}
	return nil
}
