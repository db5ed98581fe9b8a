package disk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// archiveOf is an object whose contents are text, with references.
func archiveOf(name, contents string, refs ...store.Path) disk.Archive {
	nar := storetest.File(contents)
	info := storetest.Source(store.DefaultDir, name, nar, refs...)
	info.CA = store.ContentAddress{}
	return disk.Archive{Info: info, NAR: nar}
}

func entries(t *testing.T, s *disk.Store) (names []string) {
	t.Helper()
	list, err := os.ReadDir(s.Layout().RealDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() != ".links" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestAddAll(t *testing.T) {
	s := open(t, newLayout(t))
	a := archiveOf("a", "a")
	b := archiveOf("b", "b", a.Info.Path)
	c := archiveOf("c", "c", b.Info.Path)
	for range 2 {
		if err := s.AddAll(t.Context(), []disk.Archive{a, b, a, c}); err != nil {
			t.Fatal(err)
		}
	}
	if paths, err := s.Closure(c.Info.Path); err != nil || len(paths) != 3 {
		t.Errorf("closure %v, %v", paths, err)
	}
	if got := entries(t, s); len(got) != 3 {
		t.Errorf("entries %q", got)
	}
	verify(t, s)
}

func TestAddAllOfDerivations(t *testing.T) {
	infos, archives := chain(t, 4)
	s := open(t, newLayout(t))
	var list []disk.Archive
	for i := range infos {
		list = append(list, disk.Archive{Info: infos[i], NAR: archives[i]})
	}
	if err := s.AddAll(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	if o, err := s.Outputs(infos[3].Path); err != nil || len(o) != 2 {
		t.Errorf("outputs %v, %v", o, err)
	}
	verify(t, s)
}

func TestAddAllStopsAtTheFirstThatIsWrong(t *testing.T) {
	good := archiveOf("good", "good")
	late := archiveOf("late", "late", good.Info.Path)
	spoil := map[string]struct {
		change func(*disk.Archive)
		want   error
	}{
		"hash":      {func(a *disk.Archive) { a.Info.NarHash = store.SHA256.Sum(nil) }, store.ErrHashMismatch},
		"size":      {func(a *disk.Archive) { a.Info.NarSize++ }, store.ErrHashMismatch},
		"reference": {func(a *disk.Archive) { a.Info.References = []store.Path{late.Info.Path} }, store.ErrNotValid},
		"address": {func(a *disk.Archive) {
			a.Info.CA = store.ContentAddress{Method: store.Flat, Hash: store.SHA256.Sum(nil)}
		}, nil},
		"tail": {func(a *disk.Archive) {
			a.NAR = append(a.NAR, 0)
			a.Info.NarHash, a.Info.NarSize = store.SHA256.Sum(a.NAR), int64(len(a.NAR))
		}, nil},
		"no archive": {func(a *disk.Archive) {
			a.NAR = []byte("nothing of the kind")
			a.Info.NarHash, a.Info.NarSize = store.SHA256.Sum(a.NAR), int64(len(a.NAR))
		}, nil},
	}
	for name, spoil := range spoil {
		t.Run(name, func(t *testing.T) {
			s := open(t, newLayout(t))
			bad := archiveOf("bad", "bad")
			spoil.change(&bad)
			err := s.AddAll(t.Context(), []disk.Archive{good, bad, late})
			if err == nil || spoil.want != nil && !errors.Is(err, spoil.want) || !strings.Contains(err.Error(), "-bad") {
				t.Errorf("error %v, want %v", err, spoil.want)
			}
			if !s.IsValid(good.Info.Path) || s.IsValid(bad.Info.Path) || s.IsValid(late.Info.Path) {
				t.Error("not exactly the object before the wrong one is valid")
			}
			if got := entries(t, s); len(got) != 1 {
				t.Errorf("entries %q", got)
			}
		})
	}
}

// TestAddAllTogether has several add batches that overlap.
func TestAddAllTogether(t *testing.T) {
	s := open(t, newLayout(t))
	var list []disk.Archive
	var refs []store.Path
	for i := range 60 {
		a := archiveOf(fmt.Sprint("object-", i), fmt.Sprint("contents ", i), refs...)
		list, refs = append(list, a), []store.Path{a.Info.Path}
	}
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			for at := 0; at < len(list); at += 7 + n {
				if err := s.AddAll(t.Context(), list[at:min(at+7+n, len(list))]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n, _ := s.Count(); n != len(list) {
		t.Errorf("%d objects, want %d", n, len(list))
	}
	if got := entries(t, s); len(got) != len(list) {
		t.Errorf("%d entries, want %d", len(got), len(list))
	}
	verify(t, s)
}

func TestAddAllCancelled(t *testing.T) {
	s := open(t, newLayout(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := archiveOf("a", "a")
	if err := s.AddAll(ctx, []disk.Archive{a}); err == nil {
		t.Error("no error")
	}
	if got := entries(t, s); len(got) != 0 {
		t.Errorf("entries %q", got)
	}
}
