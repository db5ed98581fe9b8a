package services_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/services"
)

// list makes a type whose value is a list of strings, extended by appending.
func list(name string, extensions ...services.Extension) *services.Type {
	return &services.Type{
		Name:       name,
		Extensions: extensions,
		Compose: func(cs []any) (any, error) {
			var all []string
			for _, c := range cs {
				all = append(all, c.([]string)...)
			}
			return all, nil
		},
		Extend:  func(own, more any) (any, error) { return append(own.([]string), more.([]string)...), nil },
		Default: func() (any, error) { return []string{name}, nil },
	}
}

func to(t *services.Type) services.Extension {
	return services.Extension{Target: t, Compute: func(v any) (any, error) { return v, nil }}
}

func service(t *services.Type, place string, v ...string) *services.Service {
	return &services.Service{Type: t, Value: v, Place: place}
}

func TestFold(t *testing.T) {
	sink := list("sink")
	etc := list("etc", to(sink))
	units := list("units", to(sink))
	web := list("web", to(units), to(etc))
	tty := list("tty", to(units))
	got, err := services.Fold([]*services.Service{
		service(tty, "a:1", "tty1"), service(web, "a:2", "web"), service(tty, "a:3", "tty2"),
	}, sink)
	if err != nil {
		t.Fatal(err)
	}
	want := "[sink units tty1 web tty2 etc web]"
	if fmt.Sprint(got) != want {
		t.Errorf("fold is %v, want %s", got, want)
	}
}

func TestFoldComputesOnce(t *testing.T) {
	count := 0
	sink := list("sink")
	a, b := list("a", to(sink)), list("b", to(sink))
	leaf := list("leaf", to(a), to(b))
	leaf.Extend = func(own, _ any) (any, error) { count++; return own, nil }
	if _, err := services.Fold([]*services.Service{service(leaf, "", "x")}, sink); err != nil {
		t.Fatal(err)
	}
	if count != 1 {
		t.Errorf("leaf was extended %d times, want once", count)
	}
}

func TestKeepsValueWithoutExtend(t *testing.T) {
	sink := list("sink")
	plain := list("plain", to(sink))
	plain.Extend = nil
	leaf := list("leaf", to(plain))
	got, err := services.Fold([]*services.Service{service(leaf, "", "x")}, sink)
	if err != nil || fmt.Sprint(got) != "[sink plain]" {
		t.Errorf("fold is %v, %v", got, err)
	}
}

func TestFoldErrors(t *testing.T) {
	sink := list("sink")
	bare := list("bare", to(sink))
	bare.Default = nil
	needs := list("needs", to(bare))
	twice := list("twice", to(sink))
	user := list("user", to(twice))
	ring1 := list("ring1", to(sink))
	ring2 := list("ring2", to(ring1))
	ring1.Extensions = append(ring1.Extensions, to(ring2))
	broken := list("broken", services.Extension{Target: sink, Compute: func(any) (any, error) { return nil, errors.New("no luck") }})
	nodefault := list("lonely")
	nodefault.Default = nil
	for _, c := range []struct {
		name string
		list []*services.Service
		sink *services.Type
		is   error
		text string
	}{
		{"missing target", []*services.Service{service(needs, "web.star:3:4")}, sink, services.ErrMissing, "web.star:3:4: service needs extends bare"},
		{"missing sink", nil, nodefault, services.ErrMissing, "type lonely not found"},
		{"ambiguous", []*services.Service{service(twice, "a:1"), service(user, "a:2"), service(twice, "a:3")}, sink, services.ErrAmbiguous, "a:3: service twice is written again, first at a:1"},
		{"cycle", []*services.Service{service(ring2, "a:1")}, sink, services.ErrCycle, "ring1 → ring2 → ring1"},
		{"compute", []*services.Service{service(broken, "a:9")}, sink, nil, "a:9: service broken, extending sink: no luck"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := services.Fold(c.list, c.sink)
			if err == nil {
				t.Fatal("no error")
			}
			if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %q, want %v with %q", err, c.is, c.text)
			}
		})
	}
}
