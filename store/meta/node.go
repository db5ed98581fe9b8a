package meta

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"
)

// Node is what the graph of references needs of an object's row.
type Node struct {
	Name       []byte
	NarSize    int64
	Deriver    Digest // zero: none
	References []Digest
}

// readNodes calls Options.Node for each object, and refuses fewer or more objects than the last transaction knew.
func (d *DB) readNodes() error {
	var count atomic.Int64
	err := each(256, func() func(int) error {
		var n Node
		return func(first int) error {
			rows, err := d.nodesFrom(byte(first), &n)
			count.Add(rows)
			return err
		}
	})
	if err != nil {
		return err
	}
	d.objects = count.Load()
	return d.view(func(txn *badger.Txn) error { return checkCount(txn, d.objects) })
}

// each calls what worker returns, for each processor, for the numbers below n, until one call fails.
func each(n int, worker func() func(i int) error) error {
	var g errgroup.Group
	var next atomic.Int64
	var failed atomic.Bool
	for range min(runtime.GOMAXPROCS(0), n) {
		g.Go(func() error {
			fn := worker()
			for i := int(next.Add(1)) - 1; i < n && !failed.Load(); i = int(next.Add(1)) - 1 {
				if err := fn(i); err != nil {
					failed.Store(true)
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (d *DB) nodesFrom(first byte, n *Node) (rows int64, err error) {
	err = d.scan([]byte{tableObjects, first}, func(key, value []byte) error {
		rows++
		if d.opts.Node == nil {
			return nil
		}
		object := Digest(key[1:])
		if err := decodeNode(value, n); err != nil {
			return fmt.Errorf("read row of %s: %w", object, err)
		}
		return d.opts.Node(object, n)
	})
	return rows, err
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
