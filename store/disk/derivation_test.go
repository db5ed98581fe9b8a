package disk_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

// newDerivation makes a derivation with the given inputs and correct outputs.
func newDerivation(t *testing.T, s *disk.Store, name string, inputs ...store.Path) *derivation.Derivation {
	t.Helper()
	d := &derivation.Derivation{
		Name: name, System: "x86_64-linux", Builder: "/bin/sh",
		Outputs:   map[string]derivation.Output{"out": {}, "dev": {}},
		Env:       map[string]string{"out": "", "dev": "", "name": name},
		InputDrvs: map[store.Path][]string{},
	}
	for _, p := range inputs {
		d.InputDrvs[p] = []string{"out"}
	}
	if err := s.Hashes().FillOutputs(d, s.Dir()); err != nil {
		t.Fatal(err)
	}
	return d
}

func addDerivation(s *disk.Store, d *derivation.Derivation, refs []store.Path) (*store.Info, error) {
	return s.AddStream(context.Background(), d.Name+".drv", store.Text, store.SHA256, refs, strings.NewReader(string(d.ATerm())))
}

func TestDerivations(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	a := newDerivation(t, s, "a")
	ai, err := addDerivation(s, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := newDerivation(t, s, "b", ai.Path)
	bi, err := addDerivation(s, b, b.References())
	if err != nil {
		t.Fatal(err)
	}
	want, err := b.Path(s.Dir())
	if err != nil || bi.Path != want {
		t.Errorf("path %s, want %s, %v", bi.Path, want, err)
	}
	check := func(s *disk.Store) {
		t.Helper()
		outputs, err := s.Outputs(ai.Path)
		if err != nil || len(outputs) != 2 || outputs["out"] != a.Outputs["out"].Path {
			t.Errorf("outputs %v, %v", outputs, err)
		}
		if d, err := s.Derivers(a.Outputs["dev"].Path); err != nil || !slices.Equal(d, []store.Path{ai.Path}) {
			t.Errorf("derivers %v, %v", d, err)
		}
	}
	check(s)
	if d, err := s.Derivation(bi.Path); err != nil || string(d.ATerm()) != string(b.ATerm()) {
		t.Errorf("read back: %v", err)
	}
	closeStore(t, s)
	s = open(t, l)
	check(s)
	if _, err := s.Delete(t.Context(), []store.Path{bi.Path, ai.Path}); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Derivers(a.Outputs["dev"].Path); err != nil || len(d) > 0 {
		t.Errorf("derivers of a deleted derivation: %v, %v", d, err)
	}
}

// TestHostileDerivations adds derivations that claim what is not so.
func TestHostileDerivations(t *testing.T) {
	s := open(t, newLayout(t))
	a := newDerivation(t, s, "a")
	ai, err := addDerivation(s, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := text(t, s, "other", "other")

	stolen := newDerivation(t, s, "stolen", ai.Path)
	o := stolen.Outputs["out"]
	o.Path = a.Outputs["out"].Path
	stolen.Outputs["out"] = o
	stolen.Env["out"] = o.Path.String()
	if _, err := addDerivation(s, stolen, stolen.References()); !errors.Is(err, derivation.ErrOutput) {
		t.Errorf("a stolen output path: %v", err)
	}
	b := newDerivation(t, s, "b", ai.Path)
	for name, refs := range map[string][]store.Path{"missing": nil, "more": {ai.Path, other}} {
		if _, err := addDerivation(s, b, refs); err == nil {
			t.Errorf("%s references are accepted", name)
		}
	}
	if _, err := s.AddStream(t.Context(), "c.drv", store.Text, store.SHA256, nil, strings.NewReader(string(a.ATerm()))); err == nil {
		t.Error("a derivation under another name is accepted")
	}
	dir := t.TempDir()
	if _, err := s.AddFromPath(t.Context(), "d.drv", store.Recursive, store.SHA256, store.References{}, dir); err == nil {
		t.Error("a directory is accepted as a derivation")
	}
	entries, err := os.ReadDir(s.Layout().RealDir)
	if err != nil || len(entries) != 3 { // a, other, trash
		t.Errorf("%d entries are left in the store directory, %v", len(entries), err)
	}
}
