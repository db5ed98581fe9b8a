package meta

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Node is what the graph of references needs of an object's row.
type Node struct {
	Name       []byte
	NarSize    int64
	Deriver    Digest // zero: none
	References []Digest
}

// Nodes calls fn for each object, from so many goroutines at once. Those whose digests have the same first byte come
// one after the other, in order. The node is only lent.
func (d *DB) Nodes(workers int, fn func(object Digest, n *Node) error) error {
	return eachFirst(workers, func() func(byte) error {
		var n Node
		return func(first byte) error { return d.nodesFrom(first, &n, fn) }
	})
}

// eachFirst calls what worker returns, for each of so many goroutines, for all first bytes of digests, until one call fails.
func eachFirst(workers int, worker func() func(first byte) error) error {
	var g errgroup.Group
	var next atomic.Int32
	var failed atomic.Bool
	for range workers {
		g.Go(func() error {
			fn := worker()
			for first := next.Add(1) - 1; first < 256 && !failed.Load(); first = next.Add(1) - 1 {
				if err := fn(byte(first)); err != nil {
					failed.Store(true)
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (d *DB) nodesFrom(first byte, n *Node, fn func(Digest, *Node) error) error {
	return d.scan([]byte{tableObjects, first}, true, func(key, value []byte) error {
		object := Digest(key[1:])
		if err := decodeNode(value, n); err != nil {
			return fmt.Errorf("read row of %s: %w", object, err)
		}
		return fn(object, n)
	})
}

// decodeNode decodes what decodeObject does, and refuses what that refuses, without making what a node has not.
func decodeNode(b []byte, n *Node) error {
	r := reader{b: b}
	r.version()
	flags := r.u8()
	if flags&^flagsKnown != 0 {
		r.fail()
	}
	*n = Node{References: n.References[:0]}
	r.bytes(32) // NAR hash
	n.NarSize = int64(r.u64())
	r.u64() // time of registration
	n.Name = r.name()
	if n.NarSize < 0 {
		r.fail()
	}
	if flags&flagDeriver != 0 {
		n.Deriver = r.digest()
		r.name()
	}
	if flags&flagCA != 0 {
		r.contentAddress()
	}
	if flags&flagSeal != 0 {
		r.seal()
	}
	for range r.count(int(r.u32()), len(Digest{})) {
		n.References = append(n.References, r.digest())
	}
	for range r.count(int(r.u16()), 2) {
		r.text()
	}
	return r.end()
}
