package disk_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// chain returns derivations of which each has the one before as input, made in another store.
func chain(t *testing.T, n int) (infos []*store.Info, archives [][]byte) {
	t.Helper()
	s := open(t, newLayout(t))
	var inputs []store.Path
	for i := range n {
		d := newDerivation(t, s, string(rune('a'+i)), inputs...)
		info, err := addDerivation(s, d, d.References())
		if err != nil {
			t.Fatal(err)
		}
		inputs = []store.Path{info.Path}
		infos = append(infos, info)
		archives = append(archives, storetest.File(string(d.ATerm())))
	}
	return infos, archives
}

func TestImport(t *testing.T) {
	infos, archives := chain(t, 4)
	s := open(t, newLayout(t))
	i := s.Import()
	defer i.Close()
	for n := len(infos) - 1; n >= 0; n-- { // in the wrong order, and twice
		for range 2 {
			if err := i.Add(t.Context(), infos[n], bytes.NewReader(archives[n])); err != nil {
				t.Fatal(err)
			}
		}
		if s.IsValid(infos[n].Path) {
			t.Error("visible before the commit")
		}
	}
	if err := i.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Closure(infos[3].Path); err != nil || len(c) != 4 {
		t.Errorf("closure %v, %v", c, err)
	}
	if o, err := s.Outputs(infos[0].Path); err != nil || len(o) != 2 {
		t.Errorf("outputs %v, %v", o, err)
	}
}

func TestImportIsWhole(t *testing.T) {
	infos, archives := chain(t, 3)
	for name, spoil := range map[string]func(i *disk.Import) error{
		"dropped":   func(*disk.Import) error { return errors.New("never committed") },
		"reference": func(i *disk.Import) error { return i.Commit(t.Context()) }, // the first one is not there
		"contents": func(i *disk.Import) error {
			return i.Add(t.Context(), infos[0], bytes.NewReader(archives[1]))
		},
		"contents, later": func(i *disk.Import) error {
			return errors.Join(i.AddLater(t.Context(), infos[0], bytes.NewReader(archives[1])), i.Commit(t.Context()))
		},
	} {
		s := open(t, newLayout(t))
		i := s.Import()
		for n := 1; n < 3; n++ {
			if err := i.Add(t.Context(), infos[n], bytes.NewReader(archives[n])); err != nil {
				t.Fatal(err)
			}
		}
		if err := spoil(i); err == nil {
			t.Errorf("%s: no error", name)
		}
		i.Close()
		if n, _ := s.Count(); n != 0 {
			t.Errorf("%s: %d paths are valid", name, n)
		}
		if entries, err := os.ReadDir(s.Layout().RealDir); err != nil || len(entries) != 1 {
			t.Errorf("%s: %d entries in the store directory, %v", name, len(entries), err)
		}
	}
}
