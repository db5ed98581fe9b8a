package disk

import (
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sync/errgroup"

	"cairn/store/meta"
)

// load makes the graph of what opening the database has read, on all processors. What it allocates, it allocates in pieces that have no more
// than some hundred objects each, or it would never be given back as long as one of them is there.
func (s *Store) load(l *loading) error {
	l.g = s.graph
	l.number()
	l.each(func(p *part) { p.enter(l.g) })
	var named sync.WaitGroup
	var err error
	named.Go(func() { err = s.db.Named(l.name) })
	l.each(l.resolve)
	l.each(func(p *part) { p.refer(l.g) })
	for i := range l.parts {
		l.g.edges += l.parts[i].edges
		for _, id := range l.parts[i].dangling {
			s.log.Error("object refers to something that is not valid; verify the store", "path", s.path(l.g.nodes[id]).String())
		}
	}
	named.Wait()
	return err
}

// loading is a graph that nobody uses yet. A million objects and their names, hashes and numbers are not in a processor's cache together:
// looking up the references of one object after the other would wait for memory some ten million times. So references are
// sorted by the part of what they refer to, and looked up part by part.
type loading struct {
	g     *graph
	parts [256]part // by first byte of the digests
}

// part is the objects whose digests begin with the same byte.
type part struct {
	first byte
	at    uint32 // number of the first object
	slabs [][]node
	count int

	// Of all objects, one after the other, and where those of each object end:
	names    []byte
	nameEnds []uint32
	digests  []meta.Digest // what they refer to
	refEnds  []uint32

	refs   []ref       // sorted by the part of what they refer to
	starts [257]uint32 // of each part in refs
	found  []uint32    // the numbers of digests, or none

	edges    int
	dangling []uint32 // objects some of whose references have no object
}

// ref is a reference.
type ref struct {
	to   meta.Digest
	from uint32 // the object, in its part
	at   uint32 // which of its part's references it is
}

const none = ^uint32(0) // no number of an object

// slabNodes is how many nodes are allocated at once: 8 KiB of them.
const slabNodes = 8192 / int(unsafe.Sizeof(node{}))

// read takes up an object; it is a meta.Options.Node.
func (l *loading) read(d meta.Digest, m *meta.Node) error {
	p := &l.parts[d[0]]
	if p.count%slabNodes == 0 {
		p.slabs = append(p.slabs, make([]node, 0, slabNodes))
	}
	slab := &p.slabs[len(p.slabs)-1]
	*slab = append(*slab, node{digest: d, deriver: m.Deriver, narSize: m.NarSize, self: slices.Contains(m.References, d)})
	p.names = append(p.names, m.Name...)
	p.nameEnds = append(p.nameEnds, uint32(len(p.names)))
	p.digests = append(p.digests, m.References...)
	p.refEnds = append(p.refEnds, uint32(len(p.digests)))
	p.count++
	return nil
}

// number gives all objects their numbers, in the order of their digests.
func (l *loading) number() {
	total := 0
	for i := range l.parts {
		p := &l.parts[i]
		p.first, p.at = byte(i), uint32(total)
		total += p.count
	}
	l.g.nodes = make([]*node, total)
	l.g.digests.count = total
}

// each calls fn for the parts, on all processors.
func (l *loading) each(fn func(*part)) {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range l.parts {
		g.Go(func() error { fn(&l.parts[i]); return nil })
	}
	g.Wait()
}

// enter makes the objects known by number and digest, and sorts their references.
func (p *part) enter(g *graph) {
	mine := g.nodes[p.at : int(p.at)+p.count]
	start := uint32(0)
	for i := range mine {
		n := &p.slabs[i/slabNodes][i%slabNodes]
		n.id = p.at + uint32(i)
		mine[i] = n
	}
	for group := range slices.Chunk(mine, 256) {
		at := int(group[0].id - p.at)
		end := p.nameEnds[at+len(group)-1]
		names, from := string(p.names[start:end]), start
		for i, n := range group {
			n.name = names[start-from : p.nameEnds[at+i]-from]
			start = p.nameEnds[at+i]
		}
	}
	p.names, p.nameEnds, p.slabs = nil, nil, nil
	g.digests.fill(p.first, mine)
	p.sort()
}

// sort makes refs of digests.
func (p *part) sort() {
	for i := range p.digests {
		p.starts[int(p.digests[i][0])+1]++
	}
	for first := range 256 {
		p.starts[first+1] += p.starts[first]
	}
	p.refs, p.found = make([]ref, len(p.digests)), make([]uint32, len(p.digests))
	next := p.starts
	at := uint32(0)
	for from, end := range p.refEnds {
		for ; at < end; at++ {
			to := &p.digests[at]
			p.refs[next[to[0]]] = ref{*to, uint32(from), at}
			next[to[0]]++
		}
	}
	p.digests = nil
}

// eachRef calls fn for all references to a part's objects. It begins with another part than those who do it for other parts at the same time,
// because they write to what belongs to where the references come from.
func (l *loading) eachRef(to *part, fn func(from *part, r *ref)) {
	for i := range l.parts {
		from := &l.parts[to.first+byte(i)]
		refs := from.refs[from.starts[to.first]:from.starts[int(to.first)+1]]
		for j := range refs {
			fn(from, &refs[j])
		}
	}
}

// resolve finds what references to a part's objects refer to, and fills in these objects' referrers: it counts them, makes room,
// and then enters them.
func (l *loading) resolve(p *part) {
	count := make([]uint32, p.count)
	l.eachRef(p, func(from *part, r *ref) {
		from.found[r.at] = none
		if n := l.g.digests.find(l.g.nodes, &r.to); n != nil {
			from.found[r.at] = n.id
			if n.id != from.at+r.from {
				count[n.id-p.at]++
			}
		}
	})
	mine := l.g.nodes[p.at : int(p.at)+p.count]
	for group := range slices.Chunk(mine, 256) {
		at := group[0].id - p.at
		sum := uint32(0)
		for i := range group {
			sum += count[int(at)+i]
		}
		room := make([]uint32, sum)
		for i, n := range group {
			c := count[int(at)+i]
			n.referrers, room = room[:0:c], room[c:]
		}
	}
	l.eachRef(p, func(from *part, r *ref) {
		if id, referrer := from.found[r.at], from.at+r.from; id != none && id != referrer {
			n := l.g.nodes[id]
			n.referrers = append(n.referrers, referrer)
		}
	})
}

// refer fills in the references of a part's objects.
func (p *part) refer(g *graph) {
	start := uint32(0)
	for group := range slices.Chunk(g.nodes[p.at:int(p.at)+p.count], 256) {
		at := int(group[0].id - p.at)
		room := make([]uint32, 0, p.refEnds[at+len(group)-1]-start)
		for i, n := range group {
			end := p.refEnds[at+i]
			begin := len(room)
			for _, id := range p.found[start:end] {
				if id != none && id != n.id {
					room = append(room, id)
				}
			}
			n.refs = slices.Clip(room[begin:])
			p.edges += len(n.refs)
			want := int(end - start)
			if n.self {
				want--
			}
			if len(n.refs) != want {
				p.dangling = append(p.dangling, n.id)
			}
			start = end
		}
	}
	p.refs, p.found, p.refEnds = nil, nil, nil
}

// name notes which objects have rows besides their own.
func (l *loading) name(d meta.Digest, isDrv, isOut bool) {
	if n := l.g.row(d); n != nil {
		n.isDrv, n.isOut = n.isDrv || isDrv, n.isOut || isOut
	}
}
