package disk

import (
	"slices"
	"sync"
	"sync/atomic"

	"cairn/store"
	"cairn/store/base32"
	"cairn/store/meta"
)

// node is an object in the graph. All but referrers, stale, dirty, isDrv, isOut, missing, kept and gone is immutable,
// so that a snapshot can be walked without a lock.
type node struct {
	digest  meta.Digest
	deriver meta.Digest // zero: none
	id      uint32
	stale   uint32 // how many of referrers are gone
	narSize int64
	name    string

	refs      []uint32 // without itself
	referrers []uint32 // without itself; perhaps with some that are gone
	kept      uint32   // the collection that must not delete it

	self    bool // refers to itself
	dirty   bool // in graph.dirty
	isDrv   bool // there may be rows of its outputs
	isOut   bool // there may be rows that say it was realised
	missing bool // there is a row but no object on disk: not valid
	gone    bool // deleted or replaced: not in the graph any more
}

// graph is every valid object and its references, in memory: about 220 bytes for an object with five references and as many referrers.
//
// Nothing here takes long under the lock, however large the graph is: tables grow in small parts (index); referrers that are gone are
// taken out of an object's list when they are half of it, or bit by bit at the end of a deletion; walks let others in between (walk).
type graph struct {
	mu      sync.RWMutex // guards all; the innermost lock: nothing else is taken or waited for under it
	digests index
	nodes   []*node  // by id; nil where free
	free    []uint32 // ids to use again, unless a collection or a walk runs
	retired []uint32 // ids to use again after the running collection or deletion
	dirty   []uint32 // nodes with stale referrers; perhaps gone themselves
	held    map[meta.Digest]int
	edges   int
	walks   atomic.Int32 // how many run; added to under mu

	collection *Collection // the running one
	epoch      uint32      // its number
}

func newGraph() *graph {
	return &graph{digests: newIndex(), held: map[meta.Digest]int{}}
}

// row returns the object with a digest that has a row, whether it is valid or missing, or nil. The caller holds mu.
func (g *graph) row(d meta.Digest) *node { return g.digests.find(g.nodes, &d) }

// rows is row for many.
func (g *graph) rows(ds []meta.Digest) []*node {
	found := make([]*node, len(ds))
	g.digests.findEach(g.nodes, ds, found)
	return found
}

// find returns a valid object. The caller holds mu.
func (g *graph) find(d meta.Digest) *node {
	n := g.row(d)
	if n == nil || n.missing {
		return nil
	}
	return n
}

func (g *graph) lookup(d meta.Digest) *node {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.find(d)
}

// rowOf returns the object that p names and that has a row, whether it is valid or missing, or nil. The caller holds mu.
func (g *graph) rowOf(p store.Path) *node { return g.named(p.Base()) }

// named returns the object that has a row and that name in the store directory, or nil. The caller holds mu.
func (g *graph) named(base string) *node { return g.namedEach([]string{base})[0] }

// namedEach is named for many.
func (g *graph) namedEach(bases []string) []*node {
	ds := make([]meta.Digest, len(bases))
	for i, base := range bases {
		ds[i], _ = meta.ParseDigest(base[:min(len(base), store.DigestLen)])
	}
	found := g.rows(ds)
	for i, n := range found {
		if n != nil && !n.isNamed(bases[i]) {
			found[i] = nil
		}
	}
	return found
}

// isNamed reports whether an object has a name in the store directory whose digits are its own, or no digits.
func (n *node) isNamed(base string) bool {
	const at = store.DigestLen
	return len(base) > at && base[at] == '-' && base[at+1:] == n.name && base32.Valid(base[:at])
}

// found makes an object valid that was missing. The caller holds its references.
func (g *graph) found(d meta.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.row(d); n != nil {
		n.missing = false
	}
}

// valid reports whether p itself is valid: digest and name.
func (g *graph) valid(p store.Path) bool {
	if p.IsZero() {
		return false
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	n := g.rowOf(p)
	return n != nil && !n.missing
}

// place takes an id for a new node. The caller holds mu.
func (g *graph) place(n *node) {
	if last := len(g.free) - 1; last >= 0 && g.collection == nil && g.walks.Load() == 0 {
		n.id = g.free[last]
		g.free = g.free[:last]
		g.nodes[n.id] = n
	} else {
		n.id = uint32(len(g.nodes))
		g.nodes = append(g.nodes, n)
	}
	g.digests.add(g.nodes, n)
}

// insert adds an object whose references are there, or replaces one that was missing.
// It returns a reference that is not there, if any, and then changes nothing.
func (g *graph) insert(d meta.Digest, o *meta.Object) (meta.Digest, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	refs := g.rows(o.References)
	for i, r := range o.References {
		if m := refs[i]; r != d && (m == nil || m.missing) {
			return r, false
		}
	}
	n := newNode(d, o)
	n.refs = numbers(n, refs)
	if old := g.row(d); old != nil {
		g.replace(old, n)
	} else {
		g.place(n)
		g.link(n, n.refs)
	}
	if c := g.collection; c != nil {
		n.kept = g.epoch
		for _, r := range n.refs {
			g.keep(g.nodes[r])
		}
		if drv := g.row(n.deriver); c.derivers && drv != nil {
			g.keep(drv)
		}
	}
	return d, true
}

// replace puts n where old was missing. The caller holds mu.
func (g *graph) replace(old, n *node) {
	n.id, n.isDrv, n.isOut = old.id, old.isDrv, old.isOut
	n.referrers, n.stale, n.dirty = old.referrers, old.stale, old.dirty
	if !slices.Equal(n.refs, old.refs) {
		for _, r := range old.refs {
			m := g.nodes[r]
			m.referrers = slices.DeleteFunc(m.referrers, func(id uint32) bool { return id == old.id })
		}
		g.edges -= len(old.refs)
		g.link(n, n.refs)
	}
	old.gone = true // for snapshots
	g.nodes[n.id] = n
}

func newNode(d meta.Digest, o *meta.Object) *node {
	n := &node{digest: d, name: o.Name, narSize: o.NarSize, self: slices.Contains(o.References, d)}
	if !o.Deriver.IsZero() {
		n.deriver = meta.DigestOf(o.Deriver)
	}
	return n
}

// numbers returns those of n's references, without itself and those that have no object.
func numbers(n *node, refs []*node) []uint32 {
	if len(refs) == 0 {
		return nil
	}
	ids := make([]uint32, 0, len(refs))
	for _, m := range refs {
		if m != nil && m.digest != n.digest {
			ids = append(ids, m.id)
		}
	}
	return ids
}

// link makes n a referrer of nodes. The caller holds mu.
func (g *graph) link(n *node, refs []uint32) {
	for _, r := range refs {
		m := g.nodes[r]
		m.referrers = append(m.referrers, n.id)
	}
	g.edges += len(refs)
}

// remove takes nodes out. Whatever refers to them must be among them. The caller holds mu.
func (g *graph) remove(nodes []*node) {
	for _, n := range nodes {
		n.gone = true
		g.digests.remove(g.nodes, n)
		g.nodes[n.id] = nil
		g.retired = append(g.retired, n.id)
		g.edges -= len(n.refs)
	}
	for _, n := range nodes {
		for _, r := range n.refs {
			if m := g.nodes[r]; m != nil {
				m.stale++
				if !m.dirty {
					m.dirty = true
					g.dirty = append(g.dirty, r)
				}
				if m.stale > 64 && int(m.stale) > len(m.referrers)/2 {
					g.purge(m)
				}
			}
		}
	}
}

// purge takes those that are gone out of a node's referrers. The caller holds mu.
func (g *graph) purge(m *node) {
	m.referrers = slices.DeleteFunc(m.referrers, func(r uint32) bool { return g.nodes[r] == nil })
	if len(m.referrers) < cap(m.referrers)/4 {
		m.referrers = slices.Clone(m.referrers)
	}
	m.stale = 0
}

// referrers returns what refers to n, except itself; whoever changes it, or keeps it when mu is given back, clones it.
// The caller holds mu.
func (g *graph) referrers(n *node) []uint32 {
	if n.stale == 0 {
		return n.referrers
	}
	ids := make([]uint32, 0, len(n.referrers)-int(n.stale))
	for _, r := range n.referrers {
		if g.nodes[r] != nil {
			ids = append(ids, r)
		}
	}
	return ids
}

// purgeAtOnce is how many referrers are looked at before others may have the lock.
const purgeAtOnce = 1 << 16

// recycle lets the numbers of removed nodes be used again, when no list of referrers has them any more.
// It is called at the end of a collection or deletion, before another may begin.
func (g *graph) recycle() {
	for more := true; more; {
		g.mu.Lock()
		for looked := 0; len(g.dirty) > 0 && looked < purgeAtOnce; {
			last := len(g.dirty) - 1
			if m := g.nodes[g.dirty[last]]; m != nil {
				looked += len(m.referrers)
				m.dirty = false
				if m.stale > 0 {
					g.purge(m)
				}
			}
			looked++
			g.dirty = g.dirty[:last]
		}
		if more = len(g.dirty) > 0; !more {
			g.dirty = nil
			g.free = append(g.free, g.retired...)
			g.retired = nil
		}
		g.mu.Unlock()
	}
}

// restore puts back nodes that remove took out, because their rows could not be deleted.
// The caller holds mu.
func (g *graph) restore(nodes []*node) {
	back := map[uint32]bool{}
	for _, n := range nodes {
		n.gone = false
		g.nodes[n.id] = n
		g.digests.add(g.nodes, n)
		back[n.id] = true
	}
	g.retired = slices.DeleteFunc(g.retired, func(id uint32) bool { return back[id] })
	purged := map[uint32]bool{}
	for _, n := range nodes {
		for _, r := range n.refs {
			if m := g.nodes[r]; !purged[r] {
				purged[r] = true
				m.referrers = slices.DeleteFunc(m.referrers, func(id uint32) bool { return back[id] || g.nodes[id] == nil })
				m.stale = 0
			}
		}
	}
	for _, n := range nodes {
		g.link(n, n.refs)
	}
}

// holdAtOnce is how many objects are held or released before others may have the lock.
const holdAtOnce = 4096

// hold keeps objects, valid or not yet, from being deleted until they are released.
func (g *graph) hold(ds ...meta.Digest) {
	for some := range slices.Chunk(ds, holdAtOnce) {
		g.mu.Lock()
		for _, d := range some {
			g.held[d]++
			if n := g.row(d); n != nil && g.collection != nil {
				g.keep(n)
			}
		}
		g.mu.Unlock()
	}
}

func (g *graph) release(ds ...meta.Digest) {
	for some := range slices.Chunk(ds, holdAtOnce) {
		g.mu.Lock()
		for _, d := range some {
			if g.held[d]--; g.held[d] <= 0 {
				delete(g.held, d)
			}
		}
		g.mu.Unlock()
	}
}

// keep saves an object and its closure from the running collection. The caller holds mu.
func (g *graph) keep(n *node) {
	if g.collection != nil {
		g.collection.keep(n)
	}
}

// stepsAtOnce is how many steps a walk takes before others may have the lock.
const stepsAtOnce = 4096

// walk returns the objects reachable from the given ones, those without further steps first: with refsOf as steps, references come first.
// Others may come and go meanwhile; those that have gone are left out. The caller holds mu for reading, which is given back
// now and then.
func (g *graph) walk(from []*node, steps func(*node) []uint32) []*node {
	g.walks.Add(1) // so that no number gets another meaning
	defer g.walks.Add(-1)
	size := uint32(len(g.nodes))
	seen := NewSet(len(g.nodes))
	taken := 0
	enter := func(id uint32) bool {
		if taken++; taken%stepsAtOnce == 0 {
			g.mu.RUnlock()
			g.mu.RLock()
		}
		return id < size && g.nodes[id] != nil && seen.Add(id)
	}
	ids := make([]uint32, len(from))
	for i, n := range from {
		ids[i] = n.id
	}
	order := PostOrder(ids, enter, func(id uint32) []uint32 { return steps(g.nodes[id]) })
	found := make([]*node, 0, len(order))
	for _, id := range order {
		if n := g.nodes[id]; n != nil {
			found = append(found, n)
		}
	}
	return found
}

// PostOrder walks depth first from the given numbers and returns those that it entered, each after all that its steps lead
// to. enter says whether a number is to be entered, and must do so only once for each.
func PostOrder(from []uint32, enter func(uint32) bool, steps func(uint32) []uint32) []uint32 {
	type frame struct {
		id   uint32
		left []uint32 // steps not taken yet
	}
	order := make([]uint32, 0, len(from))
	var stack []frame
	visit := func(id uint32) {
		if enter(id) {
			stack = append(stack, frame{id, steps(id)})
		}
	}
	for _, id := range from {
		visit(id)
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if len(top.left) == 0 {
				order = append(order, top.id)
				stack = stack[:len(stack)-1]
				continue
			}
			next := top.left[0]
			top.left = top.left[1:]
			visit(next)
		}
	}
	return order
}

// The steps of a walk. The caller holds mu.
func (g *graph) refsOf(n *node) []uint32      { return n.refs }
func (g *graph) referrersOf(n *node) []uint32 { return slices.Clone(g.referrers(n)) }
