package disk

import (
	"slices"
	"sync"

	"cairn/store"
	"cairn/store/meta"
)

// node is an object in the graph. All but referrers, isDrv, isOut, missing, kept and gone is immutable,
// so that a snapshot can be walked without a lock.
type node struct {
	id        uint32
	self      bool // refers to itself
	digest    meta.Digest
	deriver   meta.Digest // zero: none
	name      string
	narSize   int64
	refs      []uint32 // without itself
	referrers []uint32 // without itself

	isDrv   bool   // there may be rows of its outputs
	isOut   bool   // there may be rows that say it was realised
	missing bool   // there is a row but no object on disk: not valid
	gone    bool   // deleted or replaced: not in the graph any more
	kept    uint64 // the collection that must not delete it
}

// graph is every valid object and its references, in memory.
type graph struct {
	mu       sync.RWMutex // guards all; the innermost lock: nothing else is taken or waited for under it
	byDigest map[meta.Digest]*node
	nodes    []*node  // by id; nil where free
	free     []uint32 // ids to use again
	retired  []uint32 // ids to use again after the running collection or deletion
	held     map[meta.Digest]int
	edges    int

	collection *Collection // the running one
	epoch      uint64      // its number
}

func newGraph() *graph {
	return &graph{byDigest: map[meta.Digest]*node{}, held: map[meta.Digest]int{}}
}

// find returns a valid object. The caller holds mu.
func (g *graph) find(d meta.Digest) *node {
	n := g.byDigest[d]
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
func (g *graph) rowOf(p store.Path) *node {
	d, ok := meta.ParseDigest(p.Digest())
	if n := g.byDigest[d]; ok && n != nil && n.name == p.Name() {
		return n
	}
	return nil
}

// found makes an object valid that was missing. The caller holds its references.
func (g *graph) found(d meta.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.byDigest[d]; n != nil {
		n.missing = false
	}
}

// valid reports whether p itself is valid: digest and name.
func (g *graph) valid(p store.Path) bool {
	d, ok := meta.ParseDigest(p.Digest())
	if !ok {
		return false
	}
	n := g.lookup(d)
	return n != nil && n.name == p.Name()
}

// place takes an id for a new node. The caller holds mu.
func (g *graph) place(n *node) {
	if last := len(g.free) - 1; last >= 0 && g.collection == nil {
		n.id = g.free[last]
		g.free = g.free[:last]
		g.nodes[n.id] = n
	} else {
		n.id = uint32(len(g.nodes))
		g.nodes = append(g.nodes, n)
	}
	g.byDigest[n.digest] = n
}

// insert adds an object whose references are there, or replaces one that was missing.
// It returns a reference that is not there, if any, and then changes nothing.
func (g *graph) insert(d meta.Digest, o *meta.Object) (meta.Digest, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range o.References {
		if r != d && g.find(r) == nil {
			return r, false
		}
	}
	n := newNode(d, o)
	if old := g.byDigest[d]; old != nil {
		g.replace(old, n)
	} else {
		g.place(n)
	}
	g.link(n, o.References)
	if c := g.collection; c != nil {
		n.kept = g.epoch
		for _, r := range n.refs {
			g.keep(g.nodes[r])
		}
		if drv := g.byDigest[n.deriver]; c.derivers && drv != nil {
			g.keep(drv)
		}
	}
	return d, true
}

// replace puts n, which has no references yet, where old was missing. The caller holds mu.
func (g *graph) replace(old, n *node) {
	n.id, n.referrers, n.isDrv, n.isOut = old.id, old.referrers, old.isDrv, old.isOut
	for _, r := range old.refs {
		m := g.nodes[r]
		m.referrers = slices.DeleteFunc(m.referrers, func(id uint32) bool { return id == old.id })
	}
	g.edges -= len(old.refs)
	old.gone = true // for snapshots
	g.nodes[n.id], g.byDigest[n.digest] = n, n
}

func newNode(d meta.Digest, o *meta.Object) *node {
	n := &node{digest: d, name: o.Name, narSize: o.NarSize, self: slices.Contains(o.References, d)}
	if !o.Deriver.IsZero() {
		n.deriver = meta.DigestOf(o.Deriver)
	}
	return n
}

// link fills in references; those without an object are left out. The caller holds mu.
func (g *graph) link(n *node, refs []meta.Digest) {
	count := len(refs)
	if n.self {
		count--
	}
	if count == 0 {
		return
	}
	n.refs = make([]uint32, 0, count)
	for _, r := range refs {
		if m := g.byDigest[r]; m != nil && m != n {
			n.refs = append(n.refs, m.id)
			m.referrers = append(m.referrers, n.id)
		}
	}
	g.edges += len(n.refs)
}

// remove takes nodes out. Whatever refers to them must be among them. The caller holds mu.
func (g *graph) remove(nodes []*node) {
	targets := map[uint32]struct{}{}
	for _, n := range nodes {
		n.gone = true
		delete(g.byDigest, n.digest)
		for _, r := range n.refs {
			targets[r] = struct{}{}
		}
		g.edges -= len(n.refs)
	}
	for id := range targets {
		if m := g.nodes[id]; m != nil && !m.gone {
			m.referrers = slices.DeleteFunc(m.referrers, func(r uint32) bool { return g.nodes[r] == nil || g.nodes[r].gone })
		}
	}
	for _, n := range nodes {
		g.nodes[n.id] = nil
		g.retired = append(g.retired, n.id)
	}
}

// recycle lets the numbers of removed nodes be used again. The caller holds mu.
func (g *graph) recycle() {
	g.free = append(g.free, g.retired...)
	g.retired = nil
}

// restore puts back nodes that remove took out, because their rows could not be deleted.
// The caller holds mu.
func (g *graph) restore(nodes []*node) {
	for _, n := range nodes {
		n.gone = false
		g.nodes[n.id] = n
		g.byDigest[n.digest] = n
		g.edges += len(n.refs)
	}
	back := map[uint32]bool{}
	for _, n := range nodes {
		back[n.id] = true
		for _, r := range n.refs {
			if m := g.nodes[r]; !slices.Contains(m.referrers, n.id) {
				m.referrers = append(m.referrers, n.id)
			}
		}
	}
	g.retired = slices.DeleteFunc(g.retired, func(id uint32) bool { return back[id] })
}

// hold keeps objects, valid or not yet, from being deleted until they are released.
func (g *graph) hold(ds ...meta.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range ds {
		g.held[d]++
		if n := g.byDigest[d]; n != nil {
			g.keep(n)
		}
	}
}

func (g *graph) release(ds ...meta.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range ds {
		if g.held[d]--; g.held[d] <= 0 {
			delete(g.held, d)
		}
	}
}

// keep saves an object and its closure from the running collection. The caller holds mu.
func (g *graph) keep(n *node) {
	if g.collection != nil {
		g.collection.keep(n)
	}
}

// walk returns the objects reachable from the given ones, those without further steps first:
// with refs as steps, references come first. The caller holds mu, or steps are immutable.
func walk(nodes []*node, from []*node, steps func(*node) []uint32) []*node {
	seen := NewSet(len(nodes))
	enter := func(id uint32) bool { return int(id) < len(nodes) && nodes[id] != nil && seen.Add(id) }
	ids := make([]uint32, len(from))
	for i, n := range from {
		ids[i] = n.id
	}
	order := PostOrder(ids, enter, func(id uint32) []uint32 { return steps(nodes[id]) })
	found := make([]*node, len(order))
	for i, id := range order {
		found[i] = nodes[id]
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

func refsOf(n *node) []uint32      { return n.refs }
func referrersOf(n *node) []uint32 { return n.referrers }
