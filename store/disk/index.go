package disk

import (
	"encoding/binary"
	"math/rand/v2"

	"cairn/store/meta"
)

// index finds nodes by digest: for each first byte of digests, a table with open addressing of the numbers of nodes, from 1, 0 being
// free. There are many tables so that none takes long to grow. It has no pointers, and needs about 8 bytes for a node.
type index struct {
	seed   uint64 // so that nobody can choose digests that collide
	count  int
	tables [256]table
}

type table struct {
	slots []uint32 // a power of two of them, at most 3/4 in use
	used  int
}

const leastSlots = 8

func newIndex() index { return index{seed: rand.Uint64()} }

// home is where a digest stands unless others stood there before, modulo the size of its table.
func (x *index) home(d *meta.Digest) uint32 {
	return uint32((binary.LittleEndian.Uint64(d[8:]) ^ x.seed) * 0x9e3779b97f4a7c15 >> 32)
}

// find returns the node with a digest, or nil.
func (x *index) find(nodes []*node, d *meta.Digest) *node {
	t := &x.tables[d[0]]
	if t.used == 0 {
		return nil
	}
	mask := uint32(len(t.slots) - 1)
	for i := x.home(d) & mask; t.slots[i] != 0; i = (i + 1) & mask {
		if n := nodes[t.slots[i]-1]; n.digest == *d {
			return n
		}
	}
	return nil
}

// findEach is find for many digests. It takes a step for all of some before the next step, so that the processor waits for memory
// once for them, not for each: with a million nodes it is five times as fast.
func (x *index) findEach(nodes []*node, ds []meta.Digest, found []*node) {
	const some = 64 // at once
	for len(ds) > some {
		x.findEach(nodes, ds[:some], found)
		ds, found = ds[some:], found[some:]
	}
	var slots [some]uint32
	for i := range ds {
		if t := &x.tables[ds[i][0]]; t.used > 0 {
			slots[i] = t.slots[x.home(&ds[i])&uint32(len(t.slots)-1)]
		}
	}
	for i := range ds {
		if found[i] = nil; slots[i] != 0 {
			found[i] = nodes[slots[i]-1]
		}
	}
	for i := range ds {
		if found[i] != nil && found[i].digest != ds[i] {
			found[i] = x.find(nodes, &ds[i])
		}
	}
}

// add adds a node that nodes has and whose digest is new.
func (x *index) add(nodes []*node, n *node) {
	t := &x.tables[n.digest[0]]
	if (t.used+1)*4 > len(t.slots)*3 {
		x.grow(nodes, t)
	}
	x.put(t, n)
	t.used++
	x.count++
}

// fill adds all nodes whose digests begin with a byte, when there are none yet. It may run for several bytes at once;
// count is left to the caller.
func (x *index) fill(first byte, nodes []*node) {
	t := &x.tables[first]
	size := leastSlots
	for len(nodes)*4 > size*3 {
		size *= 2
	}
	t.slots, t.used = make([]uint32, size), len(nodes)
	for _, n := range nodes {
		x.put(t, n)
	}
}

func (x *index) put(t *table, n *node) {
	mask := uint32(len(t.slots) - 1)
	i := x.home(&n.digest) & mask
	for t.slots[i] != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = n.id + 1
}

func (x *index) grow(nodes []*node, t *table) {
	old := t.slots
	t.slots = make([]uint32, max(leastSlots, 2*len(old)))
	for _, v := range old {
		if v != 0 {
			x.put(t, nodes[v-1])
		}
	}
}

// remove removes a node that is in the index and in nodes, and moves up who stands behind it only because of it.
func (x *index) remove(nodes []*node, n *node) {
	t := &x.tables[n.digest[0]]
	mask := uint32(len(t.slots) - 1)
	hole := x.home(&n.digest) & mask
	for t.slots[hole] != n.id+1 {
		hole = (hole + 1) & mask
	}
	for i := (hole + 1) & mask; t.slots[i] != 0; i = (i + 1) & mask {
		home := x.home(&nodes[t.slots[i]-1].digest)
		if (i-home)&mask >= (i-hole)&mask { // its home is not behind the hole
			t.slots[hole], hole = t.slots[i], i
		}
	}
	t.slots[hole] = 0
	t.used--
	x.count--
}
