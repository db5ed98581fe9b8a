package config

import (
	"encoding/binary"
	"fmt"
	"slices"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"cairn/derivation/eval"
	"cairn/services"
)

// serviceType is a service type as a value of the language: calling it makes a service.
type serviceType struct {
	record *eval.RecordType
	typ    *services.Type
	thread *starlark.Thread
	place  syntax.Position

	extends []*serviceType
	compose starlark.Callable // nil: join lists
	extend  starlark.Callable // nil: cannot be extended

	standard *eval.Record              // made by byDefault
	numbers  map[starlark.Value]uint32 // of contributions
	extended map[extension]*eval.Record
}

var _ starlark.Callable = (*serviceType)(nil)

func (t *serviceType) Name() string          { return t.typ.Name }
func (t *serviceType) String() string        { return "<service type " + t.typ.Name + ">" }
func (t *serviceType) Type() string          { return "service type" }
func (t *serviceType) Freeze()               {}
func (t *serviceType) Truth() starlark.Bool  { return true }
func (t *serviceType) Hash() (uint32, error) { return starlark.String(t.typ.Name).Hash() }

// AsType makes a service type the type of a field that holds its services.
func (t *serviceType) AsType() eval.Type {
	return eval.NewType("service "+t.typ.Name, func(v starlark.Value) bool {
		s, ok := v.(*service)
		return ok && s.typ == t
	})
}

// Attr: name and doc.
func (t *serviceType) Attr(name string) (starlark.Value, error) {
	switch name {
	case "name":
		return starlark.String(t.typ.Name), nil
	case "doc":
		return starlark.String(t.typ.Doc), nil
	}
	return nil, eval.NoAttribute("service type", name, t.AttrNames())
}

// AttrNames lists what Attr knows.
func (t *serviceType) AttrNames() []string { return []string{"name", "doc"} }

// JSONValue is the documentation.
func (t *serviceType) JSONValue() (any, error) { return t.doc(""), nil }

// CallInternal makes a service.
func (t *serviceType) CallInternal(thread *starlark.Thread, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	r, err := t.record.CallInternal(thread, args, kwargs)
	if err != nil {
		return nil, err
	}
	return &service{typ: t, config: r.(*eval.Record), place: eval.UserPlace(thread)}, nil
}

// service is a value of a service type.
type service struct {
	typ    *serviceType
	config *eval.Record
	place  syntax.Position
}

var _ starlark.HasAttrs = (*service)(nil)

func (s *service) String() string        { return s.config.String() }
func (s *service) Type() string          { return "service " + s.typ.typ.Name }
func (s *service) Freeze()               {}
func (s *service) Truth() starlark.Bool  { return true }
func (s *service) Hash() (uint32, error) { return s.config.Hash() }

// JSONValue is the configuration.
func (s *service) JSONValue() (any, error) { return s.config, nil }

// CompareSameType compares configurations.
func (s *service) CompareSameType(op syntax.Token, y starlark.Value, depth int) (bool, error) {
	o := y.(*service)
	if op != syntax.EQL && op != syntax.NEQ {
		return false, fmt.Errorf("service %s service not implemented", op)
	}
	equal, err := starlark.EqualDepth(s.config, o.config, depth-1)
	return (equal && s.typ == o.typ) == (op == syntax.EQL), err
}

// Attr: the fields of the configuration, type, and with_.
func (s *service) Attr(name string) (starlark.Value, error) {
	switch name {
	case "with_":
		return starlark.NewBuiltin("with_", s.with).BindReceiver(s), nil
	case "type":
		return s.typ, nil
	}
	return s.config.Attr(name)
}

// AttrNames lists what Attr knows.
func (s *service) AttrNames() []string { return append(s.config.AttrNames(), "type") }

func (s *service) with(t *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	r, err := s.config.With(t, args, kwargs)
	if err != nil {
		return nil, err
	}
	return &service{typ: s.typ, config: r, place: eval.UserPlace(t)}, nil
}

// anyService is the name service: as a type, every service; as a function, service(T, …) is T(…).
type anyService struct{ *starlark.Builtin }

func (anyService) AsType() eval.Type {
	return eval.NewType("service", func(v starlark.Value) bool { _, ok := v.(*service); return ok })
}

func newAnyService() starlark.Value {
	return anyService{starlark.NewBuiltin("service", func(t *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if len(args) == 0 {
			return nil, eval.Wrong("service", "", "want a service type first")
		}
		typ, ok := args[0].(*serviceType)
		if !ok {
			return nil, eval.Wrong("service", "", "want a service type first, got %s", args[0].Type())
		}
		return typ.CallInternal(t, args[1:], kwargs)
	})}
}

func newServiceTypeBuiltin() starlark.Value {
	function := eval.NewType("function", func(v starlark.Value) bool {
		_, ok := v.(starlark.Callable)
		return ok || v == starlark.None
	})
	text, _ := eval.TypeOf(starlark.Universe["str"])
	dict, _ := eval.TypeOf(starlark.Universe["dict"])
	return eval.NewBuiltin("service_type", "Declare a service type.", []eval.Field{
		{Name: "name", Type: text, Positional: true, Doc: "Its name."},
		{Name: "doc", Type: text, Default: starlark.String(""), Doc: "What its services do, in one sentence."},
		{Name: "config", Type: dict, Default: starlark.NewDict(0), Doc: "Its fields: name to field(…)."},
		{Name: "check", Type: function, Default: starlark.None, Doc: "Gets the configuration; returns None, a message, or (field, message)."},
		{Name: "extends", Type: dict, Default: starlark.NewDict(0), Doc: "Service type to a function that makes the contribution to it of the configuration."},
		{Name: "compose", Type: function, Default: starlark.None, Doc: "Makes one value of the list of contributions; default: joins lists."},
		{Name: "extend", Type: function, Default: starlark.None, Doc: "Makes a configuration of the own one and what compose returned; without it the type cannot be extended."},
		{Name: "default", Type: boolean, Default: starlark.True, Doc: "Whether a missing service is made with the defaults of all fields."},
	}, makeServiceType)
}

var boolean = eval.NewType("bool", func(v starlark.Value) bool { _, ok := v.(starlark.Bool); return ok })

func makeServiceType(thread *starlark.Thread, a []starlark.Value) (starlark.Value, error) {
	fields, err := eval.Fields("service_type", "config", a[2].(*starlark.Dict))
	if err != nil {
		return nil, err
	}
	name, doc, place := string(a[0].(starlark.String)), string(a[1].(starlark.String)), eval.UserPlace(thread)
	check, _ := a[3].(starlark.Callable)
	t := &serviceType{
		record: eval.NewRecordType(eval.NewSchema(name, doc, fields), check, place),
		typ:    &services.Type{Name: name, Doc: doc, Place: place.String()},
		thread: thread,
		place:  place,

		numbers:  map[starlark.Value]uint32{},
		extended: map[extension]*eval.Record{},
	}
	t.compose, _ = a[5].(starlark.Callable)
	t.extend, _ = a[6].(starlark.Callable)
	if t.extend != nil {
		t.typ.Compose, t.typ.Extend = t.composeAll, t.extendOwn
	}
	if a[7] == starlark.True && t.record.AllDefault() {
		t.typ.Default = t.byDefault
	}
	return t, t.setExtensions(a[4].(*starlark.Dict))
}

func (t *serviceType) setExtensions(d *starlark.Dict) error {
	for _, item := range d.Items() {
		target, ok := item[0].(*serviceType)
		if !ok {
			return eval.Wrong("service_type", "extends", "want service types as keys, got %s", item[0].Type())
		}
		if target.extend == nil {
			return eval.Wrong("service_type", "extends", "%s cannot be extended: it has no extend", target.typ.Name)
		}
		f, ok := item[1].(starlark.Callable)
		if !ok {
			return eval.Wrong("service_type", "extends", "%s: want a function, got %s", target.typ.Name, item[1].Type())
		}
		t.extends = append(t.extends, target)
		t.typ.Extensions = append(t.typ.Extensions, services.Extension{Target: target.typ, Compute: t.contribution(f)})
	}
	return nil
}

// contribution makes the Go function of an extension. The same configuration always contributes the same value,
// since functions of the language have no effects: what was computed for one system is used for all.
func (t *serviceType) contribution(f starlark.Callable) func(any) (any, error) {
	known := map[*eval.Record]starlark.Value{}
	return func(own any) (any, error) {
		config := own.(*eval.Record)
		if v := known[config]; v != nil {
			return v, nil
		}
		v, err := t.call(f, config.Place(), config)
		if err == nil {
			known[config] = v
		}
		return v, err
	}
}

// call runs a function of the type on behalf of what was written at place.
func (t *serviceType) call(f starlark.Callable, place syntax.Position, args ...starlark.Value) (starlark.Value, error) {
	var v starlark.Value
	err := eval.OnBehalf(t.thread, place, func() (err error) {
		if v, err = starlark.Call(t.thread, f, args, nil); err == nil {
			v.Freeze()
		}
		return err
	})
	if err != nil {
		return nil, eval.Prefix(err, "service "+t.typ.Name+": ")
	}
	return v, nil
}

// contributed is what others contribute to a service, before it is composed.
type contributed struct {
	list []starlark.Value
	key  string // the same for the same values; "" when that cannot be told
}

// composeAll only collects: composing is left to extendOwn, which may know the result already.
func (t *serviceType) composeAll(contributions []any) (any, error) {
	c := contributed{list: make([]starlark.Value, len(contributions))}
	key := make([]byte, 0, 4*len(contributions))
	for i, x := range contributions {
		v := x.(starlark.Value)
		c.list[i] = v
		id, ok := t.identity(v)
		if !ok {
			return c, nil
		}
		key = binary.LittleEndian.AppendUint32(key, id)
	}
	c.key = string(key)
	if len(key) == 0 {
		c.key = "none"
	}
	return c, nil
}

// identity numbers the values that have come by; it tells apart only values that are compared by identity.
func (t *serviceType) identity(v starlark.Value) (uint32, bool) {
	switch v.(type) {
	case *starlark.List, *starlark.Dict, *eval.Record:
	default:
		return 0, false
	}
	id, ok := t.numbers[v]
	if !ok {
		id = uint32(len(t.numbers))
		t.numbers[v] = id
	}
	return id, true
}

// extension is an own value and what is contributed to it.
type extension struct {
	own *eval.Record
	key string
}

// extendOwn composes and extends. Services that many systems share are extended once for all of them.
func (t *serviceType) extendOwn(own, composed any) (any, error) {
	config, more := own.(*eval.Record), composed.(contributed)
	x := extension{config, more.key}
	if r := t.extended[x]; r != nil && more.key != "" {
		return r, nil
	}
	v, err := t.composed(more.list)
	if err != nil {
		return nil, err
	}
	if v, err = t.call(t.extend, config.Place(), config, v); err != nil {
		return nil, err
	}
	r, ok := v.(*eval.Record)
	if !ok || r.RecordType() != t.record {
		return nil, fmt.Errorf("service type %s: extend returned %s, want the configuration it was given, changed", t.typ.Name, v.Type())
	}
	t.extended[x] = r
	return r, nil
}

func (t *serviceType) composed(list []starlark.Value) (starlark.Value, error) {
	if t.compose != nil {
		return t.call(t.compose, t.place, starlark.NewList(list))
	}
	var joined []starlark.Value
	for _, c := range list {
		l, ok := c.(starlark.Indexable)
		if !ok || c.Type() == "string" {
			return nil, fmt.Errorf("%s: want lists as contributions, got %s", t.typ.Name, c.Type())
		}
		for i := range l.Len() {
			joined = append(joined, l.Index(i))
		}
	}
	all := starlark.NewList(joined)
	all.Freeze()
	return all, nil
}

// byDefault returns the configuration without any field given, always the same.
func (t *serviceType) byDefault() (any, error) {
	if t.standard != nil {
		return t.standard, nil
	}
	vals, err := t.record.Bind(nil, nil)
	if err != nil {
		return nil, err
	}
	t.standard, err = t.record.New(t.thread, vals)
	return t.standard, err
}

// fold computes the value of the root's service.
func fold(list []*service, root *serviceType) (*eval.Record, error) {
	all := make([]*services.Service, len(list))
	for i, s := range list {
		all[i] = &services.Service{Type: s.typ.typ, Value: s.config, Place: s.place.String()}
	}
	v, err := services.Fold(all, root.typ)
	if err != nil {
		return nil, err
	}
	return v.(*eval.Record), nil
}

// serviceList turns a list of the language into services.
func serviceList(v starlark.Value) ([]*service, error) {
	l, ok := v.(starlark.Indexable)
	if !ok {
		return nil, fmt.Errorf("want a list of services, got %s", v.Type())
	}
	out := make([]*service, l.Len())
	for i := range out {
		if out[i], ok = l.Index(i).(*service); !ok {
			return nil, fmt.Errorf("element %d: want a service, got %s", i, l.Index(i).Type())
		}
	}
	return out, nil
}

// doc describes the type for people.
func (t *serviceType) doc(module string) TypeDoc {
	d := TypeDoc{
		Name: t.typ.Name, Kind: "service", Doc: t.typ.Doc, Module: module, Place: t.place.String(),
		Extensible: t.extend != nil, Fields: fieldDocs(t.record),
	}
	for _, x := range t.extends {
		d.Extends = append(d.Extends, x.typ.Name)
	}
	slices.Sort(d.Extends)
	return d
}

func fieldDocs(t *eval.RecordType) []FieldDoc {
	docs := []FieldDoc{}
	for _, f := range t.Fields {
		d := FieldDoc{Name: f.Name, Type: f.Type.String(), Doc: f.Doc, Required: f.Default == nil}
		if f.Default != nil {
			d.Default = f.Default.String()
		}
		docs = append(docs, d)
	}
	return docs
}
