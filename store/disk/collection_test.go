package disk_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/disk"
)

// extend marks objects and their closures.
func extend(c *disk.Collection) func(live disk.Set, from []uint32) error {
	return func(live disk.Set, from []uint32) error {
		for stack := slices.Clone(from); len(stack) > 0; {
			id := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if int(id) < c.Len() && live.Add(id) {
				stack = append(stack, c.References(id)...)
			}
		}
		return nil
	}
}

// everything returns the objects of a collection, referrers first, given references-first paths.
func everything(t *testing.T, c *disk.Collection, paths []store.Path) []uint32 {
	t.Helper()
	var ids []uint32
	for i := len(paths) - 1; i >= 0; i-- {
		id, ok := c.Find(paths[i])
		if !ok {
			t.Fatalf("%s is not in the snapshot", paths[i])
		}
		ids = append(ids, id)
	}
	return ids
}

// TestCollectionBarrier begins a collection without any root, and lets things become needed at
// every stage of it.
func TestCollectionBarrier(t *testing.T) {
	s := open(t, newLayout(t))
	var all []store.Path
	pair := func(name string) (base, top store.Path) {
		base = text(t, s, "base-"+name, name)
		top = text(t, s, "top-"+name, name, base)
		all = append(all, base, top)
		return base, top
	}
	_, before := pair("before")
	_, marking := pair("marking")
	_, sweeping := pair("sweeping")
	_, rooted := pair("rooted")
	addedBase, _ := pair("added")
	pair("garbage")
	l := s.Lease("test", 0)
	defer l.Release()
	hold := func(p store.Path) {
		t.Helper()
		if err := l.Hold(p); err != nil {
			t.Fatal(err)
		}
	}
	hold(before)
	c, err := s.Collect(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	hold(marking)
	live := disk.NewSet(c.Len())
	if err := c.Seal(live, extend(c)); err != nil {
		t.Fatal(err)
	}
	hold(sweeping)
	link := filepath.Join(t.TempDir(), "result")
	if err := os.Symlink(rooted.String(), link); err != nil {
		t.Fatal(err)
	}
	if err := s.AddIndirectRoot(link); err != nil {
		t.Fatal(err)
	}
	added := text(t, s, "added", "while sweeping", addedBase)
	deleted, err := c.Delete(everything(t, c, all))
	if err != nil {
		t.Fatal(err)
	}
	c.End()
	var names []string
	for _, d := range deleted {
		names = append(names, d.Path.Name())
	}
	if want := []string{"top-garbage", "base-garbage", "top-added"}; !slices.Equal(names, want) {
		t.Errorf("deleted %v, want %v", names, want)
	}
	for _, p := range []store.Path{before, marking, sweeping, rooted, added} {
		if _, err := s.Closure(p); err != nil {
			t.Error(err)
		}
	}
}

// TestCollectionKeepsRepaired adds an object that had disappeared from the disk while a collection
// that holds it for garbage runs.
func TestCollectionKeepsRepaired(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	base := text(t, s, "base", "base")
	lost := text(t, s, "lost", "lost", base)
	closeStore(t, s)
	if err := os.Remove(l.RealPath(lost)); err != nil {
		t.Fatal(err)
	}
	s = open(t, l)
	c, err := s.Collect(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	ids := everything(t, c, []store.Path{base, lost})
	if err := c.Seal(disk.NewSet(c.Len()), extend(c)); err != nil {
		t.Fatal(err)
	}
	text(t, s, "lost", "lost", base)
	deleted, err := c.Delete(ids)
	c.End()
	if err != nil || len(deleted) > 0 || !s.IsValid(lost) || !s.IsValid(base) {
		t.Errorf("deleted %v, %v", deleted, err)
	}
}

func TestCollectionsWait(t *testing.T) {
	s := open(t, newLayout(t))
	a := text(t, s, "a", "a")
	c, err := s.Collect(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Collect(ctx, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second collection: %v", err)
	}
	if _, err := s.Delete(ctx, []store.Path{a}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deletion meanwhile: %v", err)
	}
	c.End()
	if _, err := s.Delete(t.Context(), []store.Path{a}); err != nil {
		t.Error(err)
	}
}

// TestNumbersAreUsedAgain checks that a store that adds and deletes for ever stays small, and a
// snapshot from before is not confused by it.
func TestNumbersAreUsedAgain(t *testing.T) {
	s := open(t, newLayout(t))
	old := text(t, s, "old", "old")
	snap := s.Snapshot()
	for n := range 20 {
		p := text(t, s, "x", fmt.Sprint(n))
		if _, err := s.Delete(t.Context(), []store.Path{p}); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Snapshot().Len(); n > 3 {
		t.Errorf("%d numbers for one object", n)
	}
	if _, err := s.Delete(t.Context(), []store.Path{old}); err != nil {
		t.Fatal(err)
	}
	fresh := text(t, s, "fresh", "fresh")
	if _, ok := snap.Find(fresh); ok {
		t.Error("an old snapshot knows a new object")
	}
	if !snap.Has(0) || snap.Path(0) != old {
		t.Error("an old snapshot has forgotten a deleted object")
	}
}

// TestFailedDeletion makes the database refuse, and checks that nothing has changed.
func TestFailedDeletion(t *testing.T) {
	s := open(t, newLayout(t))
	a := text(t, s, "a", "a")
	b := text(t, s, "b", "b", a)
	if got, _ := s.Referrers(a); !slices.Equal(got, []store.Path{b}) {
		t.Fatal(got)
	}
	disk.BreakDatabase(s)
	for _, paths := range [][]store.Path{{a, b}, {b}} {
		if _, err := s.Delete(t.Context(), paths); err == nil {
			t.Fatal("deleted without a database")
		}
	}
	if !s.IsValid(a) || !s.IsValid(b) {
		t.Error("not valid after a failed deletion")
	}
	if got, _ := s.Referrers(a); !slices.Equal(got, []store.Path{b}) {
		t.Errorf("referrers after a failed deletion: %v", got)
	}
	if _, err := os.Lstat(s.RealPath(b)); err != nil {
		t.Error(err)
	}
	if _, err := s.AddStream(t.Context(), "c", store.Text, store.SHA256, nil, strings.NewReader("c")); err == nil {
		t.Error("added without a database")
	}
	entries, _ := os.ReadDir(s.Layout().RealDir)
	for _, e := range entries {
		if n := e.Name(); n != a.Base() && n != b.Base() && n != ".links" && n != ".trash" {
			t.Errorf("%s is in the store directory after a failed addition", n)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = open(t, s.Layout())
	if !s.IsValid(a) || !s.IsValid(b) {
		t.Error("not valid after reopening")
	}
}
