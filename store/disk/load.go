package disk

import (
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sync/errgroup"

	"cairn/store/meta"
)

// load reads all rows into the graph, once, on all processors. What it allocates, it allocates in pieces that have no more than some hundred
// objects each, or it would never be given back as long as one of them is there.
func (s *Store) load() error {
	l := &loading{g: s.graph}
	if err := s.db.Nodes(runtime.GOMAXPROCS(0), l.read); err != nil {
		return err
	}
	l.number()
	l.each(func(p *part) { p.enter(l.g) })
	var named sync.WaitGroup
	var err error
	named.Go(func() { err = s.db.Named(l.name) })
	l.each(func(p *part) { p.resolve(l.g) })
	for i := range l.parts {
		l.g.edges += l.parts[i].edges
		for _, id := range l.parts[i].dangling {
			s.log.Error("object refers to something that is not valid; verify the store", "path", s.path(l.g.nodes[id]).String())
		}
	}
	l.refer()
	named.Wait()
	return err
}

// loading is a graph that nobody uses yet.
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
	refs     []meta.Digest
	refEnds  []uint32

	edges    int
	dangling []uint32 // objects some of whose references have no object
}

// slabNodes is how many nodes are allocated at once: 8 KiB of them.
const slabNodes = 8192 / int(unsafe.Sizeof(node{}))

// read takes up an object.
func (l *loading) read(d meta.Digest, m *meta.Node) error {
	p := &l.parts[d[0]]
	if p.count%slabNodes == 0 {
		p.slabs = append(p.slabs, make([]node, 0, slabNodes))
	}
	slab := &p.slabs[len(p.slabs)-1]
	*slab = append(*slab, node{digest: d, deriver: m.Deriver, narSize: m.NarSize, self: slices.Contains(m.References, d)})
	p.names = append(p.names, m.Name...)
	p.nameEnds = append(p.nameEnds, uint32(len(p.names)))
	p.refs = append(p.refs, m.References...)
	p.refEnds = append(p.refEnds, uint32(len(p.refs)))
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

// enter makes the objects known by number and digest.
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
}

// resolve turns references from digests to numbers.
func (p *part) resolve(g *graph) {
	found := g.rows(p.refs)
	start := uint32(0)
	for i, end := range p.refEnds {
		n := g.nodes[int(p.at)+i]
		n.refs = numbers(n, found[start:end])
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
	p.refs, p.refEnds = nil, nil
}

// refer fills in referrers, each goroutine those of some objects.
func (l *loading) refer() {
	var wg sync.WaitGroup
	nodes, workers := l.g.nodes, runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() { refer(nodes, uint32(len(nodes)*w/workers), uint32(len(nodes)*(w+1)/workers)) })
	}
	wg.Wait()
}

// refer fills in the referrers of the objects from one number to before another: it counts them, makes room, and then enters them.
func refer(nodes []*node, from, to uint32) {
	count := make([]uint32, to-from)
	for _, n := range nodes {
		for _, r := range n.refs {
			if r >= from && r < to {
				count[r-from]++
			}
		}
	}
	for start := 0; start < len(count); start += 256 {
		group := count[start:min(start+256, len(count))]
		sum := uint32(0)
		for _, c := range group {
			sum += c
		}
		room := make([]uint32, sum)
		for i, c := range group {
			nodes[int(from)+start+i].referrers = room[:0:c]
			room = room[c:]
		}
	}
	for _, n := range nodes {
		for _, r := range n.refs {
			if r >= from && r < to {
				m := nodes[r]
				m.referrers = append(m.referrers, n.id)
			}
		}
	}
}

// name notes which objects have rows besides their own.
func (l *loading) name(d meta.Digest, isDrv, isOut bool) {
	if n := l.g.row(d); n != nil {
		n.isDrv, n.isOut = n.isDrv || isDrv, n.isOut || isOut
	}
}
