package disk_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/store"
	"cairn/store/disk"
)

// model is what a store must be: each object and its references.
type model struct {
	t      *testing.T
	s      *disk.Store
	random *rand.Rand
	refs   map[store.Path]map[store.Path]bool
	texts  int
}

func (m *model) paths() []store.Path {
	return slices.SortedFunc(maps.Keys(m.refs), store.Path.Compare)
}

func (m *model) some(n int) []store.Path {
	all := m.paths()
	var some []store.Path
	for range min(n, len(all)) {
		some = append(some, all[m.random.IntN(len(all))])
	}
	slices.SortFunc(some, store.Path.Compare)
	return slices.Compact(some)
}

func (m *model) add() store.Path {
	refs := m.some(m.random.IntN(5))
	m.texts++
	p := text(m.t, m.s, fmt.Sprint("object-", m.texts), fmt.Sprint(m.texts), refs...)
	m.refs[p] = map[store.Path]bool{}
	for _, r := range refs {
		m.refs[p][r] = true
	}
	return p
}

func (m *model) referrers(p store.Path) []store.Path {
	var found []store.Path
	for _, q := range m.paths() {
		if m.refs[q][p] {
			found = append(found, q)
		}
	}
	return found
}

// reach is a closure, the slow way.
func (m *model) reach(p store.Path, steps func(store.Path) []store.Path) map[store.Path]bool {
	seen := map[store.Path]bool{p: true}
	for queue := []store.Path{p}; len(queue) > 0; queue = queue[1:] {
		for _, q := range steps(queue[0]) {
			if !seen[q] {
				seen[q] = true
				queue = append(queue, q)
			}
		}
	}
	return seen
}

func (m *model) references(p store.Path) []store.Path {
	return slices.SortedFunc(maps.Keys(m.refs[p]), store.Path.Compare)
}

// delete deletes an object and what refers to it.
func (m *model) delete(p store.Path) {
	m.t.Helper()
	going := m.reach(p, m.referrers)
	deleted, err := m.s.Delete(m.t.Context(), slices.Collect(maps.Keys(going)))
	if err != nil || len(deleted) != len(going) {
		m.t.Fatalf("delete %s: %d of %d, %v", p, len(deleted), len(going), err)
	}
	for q := range going {
		delete(m.refs, q)
	}
}

// collect deletes what nobody holds, in batches, and adds and holds others meanwhile.
func (m *model) collect() {
	m.t.Helper()
	lease := m.s.Lease("model", 0)
	defer lease.Release()
	roots := m.some(10)
	hold := func(ps ...store.Path) {
		if err := lease.Hold(ps...); err != nil {
			m.t.Fatal(err)
		}
	}
	hold(roots...)
	c, err := m.s.Collect(m.t.Context(), false)
	if err != nil {
		m.t.Fatal(err)
	}
	defer c.End()
	order, err := m.s.TopoSort(m.paths())
	if err != nil {
		m.t.Fatal(err)
	}
	ids := everything(m.t, c, order)
	roots = append(roots, m.add(), m.add())
	if err := c.Seal(disk.NewSet(c.Len()), extend(c)); err != nil {
		m.t.Fatal(err)
	}
	keep := func() map[store.Path]bool {
		kept := map[store.Path]bool{}
		for _, r := range roots {
			maps.Copy(kept, m.reach(r, m.references))
		}
		return kept
	}
	for batch := range slices.Chunk(ids, 7) {
		deleted, err := c.Delete(batch)
		if err != nil {
			m.t.Fatal(err)
		}
		kept := keep()
		for _, d := range deleted {
			if kept[d.Path] {
				m.t.Fatalf("%s is needed and was deleted", d.Path)
			}
			delete(m.refs, d.Path)
		}
		if m.random.IntN(4) == 0 {
			more := m.some(1)
			hold(more...)
			roots = append(append(roots, more...), m.add())
		}
	}
	if kept := keep(); len(kept) != len(m.refs) {
		m.t.Fatalf("%d objects are left, %d are needed", len(m.refs), len(kept))
	}
}

// check compares what the store says of some objects, and of all together.
func (m *model) check() {
	m.t.Helper()
	edges := 0
	for _, refs := range m.refs {
		edges += len(refs)
	}
	if paths, refs := m.s.Count(); paths != len(m.refs) || refs != edges {
		m.t.Fatalf("%d objects and %d references, want %d and %d", paths, refs, len(m.refs), edges)
	}
	if all := slices.SortedFunc(m.s.All(), store.Path.Compare); !slices.Equal(all, m.paths()) {
		m.t.Fatalf("objects %v, want %v", all, m.paths())
	}
	for _, p := range m.some(20) {
		refs, err := m.s.References(p)
		if err != nil || !slices.Equal(refs, m.references(p)) {
			m.t.Fatalf("references of %s: %v, %v, want %v", p, refs, err, m.references(p))
		}
		refs, err = m.s.Referrers(p)
		if err != nil || !slices.Equal(refs, m.referrers(p)) {
			m.t.Fatalf("referrers of %s: %v, %v, want %v", p, refs, err, m.referrers(p))
		}
		closure, err := m.s.Closure(p)
		m.ordered(closure, err, m.reach(p, m.references), m.references)
		closure, err = m.s.ReferrersClosure(p)
		m.ordered(closure, err, m.reach(p, m.referrers), m.referrers)
	}
}

// ordered checks that paths are those wanted, each after all that its steps lead to.
func (m *model) ordered(paths []store.Path, err error, want map[store.Path]bool, steps func(store.Path) []store.Path) {
	m.t.Helper()
	if err != nil || len(paths) != len(want) {
		m.t.Fatalf("%d paths, %v, want %d", len(paths), err, len(want))
	}
	seen := map[store.Path]bool{}
	for _, p := range paths {
		for _, q := range steps(p) {
			if !seen[q] {
				m.t.Fatalf("%s comes before %s", p, q)
			}
		}
		if seen[p] || !want[p] {
			m.t.Fatalf("%s is there twice or should not be", p)
		}
		seen[p] = true
	}
}

// TestGraphIsModel does all sorts of things to a store and to a simple model of it, and compares them, before and after it was opened again.
func TestGraphIsModel(t *testing.T) {
	for seed := range uint64(2) {
		l := newLayout(t)
		m := &model{t: t, s: open(t, l), random: rand.New(rand.NewPCG(seed, 7)), refs: map[store.Path]map[store.Path]bool{}}
		for step := range 30 {
			switch k := m.random.IntN(10); {
			case k == 0:
				m.collect()
			case k == 1 && len(m.refs) > 0:
				m.delete(m.some(1)[0])
			case k == 2 && step > 15:
				closeStore(t, m.s)
				m.s = open(t, l)
			default:
				for range 5 {
					m.add()
				}
			}
			m.check()
		}
		closeStore(t, m.s)
	}
}

// TestManyReferrers deletes the objects that refer to one, several times, so that
// numbers of those that are gone are used again.
func TestManyReferrers(t *testing.T) {
	s := open(t, newLayout(t))
	base := text(t, s, "base", "base")
	lease := s.Lease("test", 0)
	defer lease.Release()
	if err := lease.Hold(base); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		var want, dead []store.Path
		for i := range 160 {
			p := text(t, s, fmt.Sprint("user-", round, "-", i), fmt.Sprint(round, i), base)
			if i%10 > 0 {
				dead = append(dead, p)
			}
			want = append(want, p)
		}
		want = slices.DeleteFunc(want, func(p store.Path) bool { return slices.Contains(dead, p) })
		for batch := range slices.Chunk(dead, 50) {
			if _, err := s.Delete(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
		}
		store.SortPaths(want)
		got, err := s.Referrers(base)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("round %d: %d referrers, %v, want %d", round, len(got), err, len(want))
		}
		if _, err := s.Delete(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Snapshot().Len(); n > 260 {
		t.Errorf("numbers go up to %d for 161 objects", n)
	}
}

// TestWalkWhileDeleting asks for closures while objects are added, deleted, and take each other's numbers. An answer is complete, or says that the path
// is not valid.
func TestWalkWhileDeleting(t *testing.T) {
	s := open(t, newLayout(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var top atomic.Pointer[store.Path]
	wg.Go(func() {
		for ctx.Err() == nil {
			p := top.Load()
			if p == nil {
				continue
			}
			if closure, err := s.Closure(*p); err == nil && len(closure) != 11 {
				t.Errorf("closure of %s has %d paths", p, len(closure))
			}
			s.ReferrersClosure(*p)
		}
	})
	for round := range 12 {
		var chain []store.Path
		for i := range 11 {
			var refs []store.Path
			if i > 0 {
				refs = chain[i-1:]
			}
			chain = append(chain, text(t, s, fmt.Sprint(round, "-", i), fmt.Sprint(round, i), refs...))
		}
		top.Store(&chain[10])
		if _, err := s.Delete(t.Context(), chain); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}
