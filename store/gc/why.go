package gc

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"cairn/store"
	"cairn/store/disk"
)

// Chain is one way from a root to an object: each path keeps the next.
type Chain struct {
	Root  Root         `json:"root"`
	Paths []store.Path `json:"paths"` // the root's target first, the object last
}

func (c Chain) String() string {
	var b strings.Builder
	b.WriteString(c.Root.String())
	for _, p := range c.Paths {
		b.WriteString(" -> ")
		b.WriteString(p.String())
	}
	return b.String()
}

// Why returns a shortest chain from each root that keeps path, shortest first; none when it is
// garbage. It assumes that live outputs keep their derivations.
func Why(ctx context.Context, s *disk.Store, path store.Path) ([]Chain, error) {
	snap := s.Snapshot()
	id, ok := snap.Find(path)
	if !ok {
		_, err := s.Info(ctx, path)
		return nil, err
	}
	roots, err := Roots(ctx, s)
	if err != nil {
		return nil, err
	}
	e := edges{snap: snap, derivers: true}
	next, err := e.keepers(id)
	if err != nil {
		return nil, err
	}
	var chains []Chain
	for _, r := range roots {
		at, ok := snap.Find(r.Target)
		if !ok {
			continue
		}
		if _, ok := next[at]; !ok {
			continue
		}
		c := Chain{Root: r, Paths: []store.Path{r.Target}}
		for at != id {
			at = next[at]
			c.Paths = append(c.Paths, snap.Path(at))
		}
		chains = append(chains, c)
	}
	slices.SortStableFunc(chains, func(a, b Chain) int {
		return cmp.Or(cmp.Compare(len(a.Paths), len(b.Paths)), strings.Compare(a.Root.String(), b.Root.String()))
	})
	return chains, nil
}

// edges says what an object of a snapshot keeps alive.
type edges struct {
	snap     *disk.Snapshot
	derivers bool // an output keeps the derivation that made it
	outputs  bool // a derivation keeps its outputs
}

// keptBy appends to ids what objects keep.
func (e *edges) keptBy(objects, ids []uint32) ([]uint32, error) {
	ids = e.snap.Kept(objects, e.derivers, ids)
	if !e.outputs {
		return ids, nil
	}
	for _, id := range objects {
		outputs, err := e.snap.Outputs(id)
		if err != nil {
			return nil, err
		}
		ids = append(ids, outputs...)
	}
	return ids, nil
}

// keepers returns everything that keeps an object, each with the next step towards it.
func (e *edges) keepers(id uint32) (map[uint32]uint32, error) {
	back := make([][]uint32, e.snap.Len()) // who keeps
	var kept []uint32
	for k := range uint32(e.snap.Len()) {
		var err error
		if kept, err = e.keptBy([]uint32{k}, kept[:0]); err != nil {
			return nil, err
		}
		for _, n := range kept {
			back[n] = append(back[n], k)
		}
	}
	next := map[uint32]uint32{id: id}
	for queue := []uint32{id}; len(queue) > 0; queue = queue[1:] {
		for _, k := range back[queue[0]] {
			if _, ok := next[k]; !ok {
				next[k] = queue[0]
				queue = append(queue, k)
			}
		}
	}
	return next, nil
}
