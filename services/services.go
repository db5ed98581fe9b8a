// Package services holds service types, services, and the fold that turns a graph of them into one value.
//
// A service type says which other types its services contribute to, and how it takes in what others
// contribute to it:
//
//	value(service) = Extend(own value, Compose([Compute(value(d)) for every dependent d, in order]))
//
// A dependent of a service is every service, in the order of the list, whose type has an extension that targets the
// type of that service; one with two such extensions contributes twice. A type without Extend keeps its own value.
// The fold starts at a type that contributes to none, the sink, and its value is the result.
//
// Invariants: a type that is contributed to has exactly one service. Missing ones are made from the type's default,
// until none is missing; more than one is an error that names both places. Types that nobody contributes to
// may have any number of services. A type may not, over any number of steps, contribute to itself.
//
// Everything here is pure: types are compared by identity, functions are values, and errors name the type and the place
// where a service was written. The package knows no service by name and no language.
package services

import (
	"errors"
	"fmt"
	"strings"
)

// Errors that callers test for with errors.Is.
var (
	// ErrMissing says that a type that is contributed to has no service and no default.
	ErrMissing = errors.New("missing service")
	// ErrAmbiguous says that a type that is contributed to has several services.
	ErrAmbiguous = errors.New("more than one service")
	// ErrCycle says that a type contributes to itself.
	ErrCycle = errors.New("services extend each other in a circle")
)

// Type is a kind of service. It is compared by identity.
type Type struct {
	Name       string
	Doc        string
	Place      string // where it is declared, for errors
	Extensions []Extension
	// Compose makes one value of what all dependents contribute. Nil hands the list itself to Extend.
	Compose func(contributions []any) (any, error)
	// Extend joins a service's own value and the composed contributions. Nil keeps the own value.
	Extend func(own, composed any) (any, error)
	// Default makes the value of a service that nobody wrote. Nil: there is none.
	Default func() (any, error)
}

// Extension is an edge: what a service of the type that has it contributes to Target's service.
type Extension struct {
	Target  *Type
	Compute func(value any) (any, error)
}

// Service is a value of a type.
type Service struct {
	Type  *Type
	Value any
	Place string // where it is written, for errors; empty when made from the default
}

func (s *Service) String() string {
	if s.Place == "" {
		return "service " + s.Type.Name
	}
	return s.Place + ": service " + s.Type.Name
}

// Complete returns the services and, behind them, one service made from its default for every type
// that is contributed to and has none.
func Complete(list []*Service) ([]*Service, error) {
	all := append([]*Service(nil), list...)
	have := map[*Type]bool{}
	for _, s := range all {
		have[s.Type] = true
	}
	for i := 0; i < len(all); i++ {
		for _, x := range all[i].Type.Extensions {
			if have[x.Target] {
				continue
			}
			s, err := fromDefault(x.Target, all[i])
			if err != nil {
				return nil, err
			}
			have[x.Target] = true
			all = append(all, s)
		}
	}
	return all, nil
}

func fromDefault(t *Type, dependent *Service) (*Service, error) {
	if t.Default == nil {
		return nil, fmt.Errorf("%v extends %s, which has no service and no default; add a service %s: %w", dependent, t.Name, t.Name, ErrMissing)
	}
	v, err := t.Default()
	if err != nil {
		return nil, fmt.Errorf("default of service %s: %w", t.Name, err)
	}
	return &Service{Type: t, Value: v}, nil
}

// Fold completes the graph and returns the value of the sink's only service.
func Fold(list []*Service, sink *Type) (any, error) {
	all, err := Complete(list)
	if err != nil {
		return nil, err
	}
	f := fold{values: map[*Service]any{}, services: map[*Type][]*Service{}, dependents: map[*Type][]edge{}}
	for _, s := range all {
		f.services[s.Type] = append(f.services[s.Type], s)
		for i := range s.Type.Extensions {
			x := &s.Type.Extensions[i]
			f.dependents[x.Target] = append(f.dependents[x.Target], edge{s, x})
		}
	}
	for _, s := range all {
		for _, x := range s.Type.Extensions {
			if _, err := f.only(x.Target); err != nil {
				return nil, err
			}
		}
	}
	s, err := f.only(sink)
	if err != nil {
		return nil, err
	}
	return f.value(s)
}

// edge is one contribution: a service and the extension by which it contributes.
type edge struct {
	from      *Service
	extension *Extension
}

type fold struct {
	services   map[*Type][]*Service
	dependents map[*Type][]edge
	values     map[*Service]any // of services done
	stack      []*Service       // of services in the making
}

// only returns the single service of a type.
func (f *fold) only(t *Type) (*Service, error) {
	switch ss := f.services[t]; len(ss) {
	case 1:
		return ss[0], nil
	case 0:
		return nil, fmt.Errorf("service of type %s not found: %w", t.Name, ErrMissing)
	default:
		return nil, fmt.Errorf("%v is written again, first at %s; others extend it, so there can be only one: %w", ss[1], place(ss[0]), ErrAmbiguous)
	}
}

func place(s *Service) string {
	if s.Place == "" {
		return "an unknown place"
	}
	return s.Place
}

// value computes depth first, each service once.
func (f *fold) value(s *Service) (any, error) {
	if v, done := f.values[s]; done {
		return v, nil
	}
	if err := f.enter(s); err != nil {
		return nil, err
	}
	v, err := f.compute(s)
	if err != nil {
		return nil, err
	}
	f.stack = f.stack[:len(f.stack)-1]
	f.values[s] = v
	return v, nil
}

// enter puts a service on the stack unless it is there already.
func (f *fold) enter(s *Service) error {
	for i, t := range f.stack {
		if t == s {
			return fmt.Errorf("%s: %w", chain(append(f.stack[i:], s)), ErrCycle)
		}
	}
	f.stack = append(f.stack, s)
	return nil
}

// chain prints who extends whom; the stack holds targets before their dependents.
func chain(stack []*Service) string {
	var names []string
	for i := len(stack) - 1; i >= 0; i-- {
		names = append(names, stack[i].Type.Name)
	}
	return strings.Join(names, " → ")
}

func (f *fold) compute(s *Service) (any, error) {
	contributions, err := f.contributions(s.Type)
	if err != nil || s.Type.Extend == nil {
		return s.Value, err
	}
	var composed any = contributions
	if s.Type.Compose != nil {
		if composed, err = s.Type.Compose(contributions); err != nil {
			return nil, fmt.Errorf("compose what extends %s: %w", s.Type.Name, err)
		}
	}
	v, err := s.Type.Extend(s.Value, composed)
	if err != nil {
		return nil, fmt.Errorf("extend %v: %w", s, err)
	}
	return v, nil
}

func (f *fold) contributions(t *Type) ([]any, error) {
	list := make([]any, 0, len(f.dependents[t]))
	for _, e := range f.dependents[t] {
		v, err := f.value(e.from)
		if err != nil {
			return nil, err
		}
		c, err := e.extension.Compute(v)
		if err != nil {
			return nil, fmt.Errorf("%v, extending %s: %w", e.from, t.Name, err)
		}
		list = append(list, c)
	}
	return list, nil
}
