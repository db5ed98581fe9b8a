package disk

import (
	"math/rand/v2"
	"testing"

	"cairn/store/meta"
)

// TestIndex compares the index with a map while nodes come and go. Digests share their first bytes, so that they collide, and
// homes lie at the end of a table, too.
func TestIndex(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	x := newIndex()
	var nodes []*node
	model := map[meta.Digest]*node{}
	digest := func() (d meta.Digest) {
		d[0], d[8] = byte(random.IntN(2)), byte(random.IntN(200))
		return d
	}
	for range 20000 {
		d := digest()
		n := model[d]
		if got := x.find(nodes, &d); got != n {
			t.Fatalf("find %x: %v, want %v", d, got, n)
		}
		if n == nil {
			n = &node{digest: d, id: uint32(len(nodes))}
			nodes = append(nodes, n)
			x.add(nodes, n)
			model[d] = n
		} else if random.IntN(3) > 0 {
			x.remove(nodes, n)
			nodes[n.id] = nil
			delete(model, d)
		}
		if x.count != len(model) {
			t.Fatalf("%d nodes, want %d", x.count, len(model))
		}
	}
	var ds []meta.Digest
	for a := range 2 {
		for b := range 200 {
			d := meta.Digest{0: byte(a), 8: byte(b)}
			ds = append(ds, d)
		}
	}
	found := make([]*node, len(ds))
	x.findEach(nodes, ds, found)
	for i, d := range ds {
		if found[i] != model[d] {
			t.Errorf("find %x among others: %v, want %v", d, found[i], model[d])
		}
	}
}
