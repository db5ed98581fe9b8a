package client

import (
	"context"
	"fmt"
	"io"

	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/daemon/protocol"
	"cairn/store"
)

// NAR writes the archive of a valid path to w.
func (c *Conn) NAR(ctx context.Context, path store.Path, w io.Writer) error {
	return c.do(ctx, &call{
		op: protocol.OpNarFromPath, what: "read " + path.String(),
		fields: func(e *protocol.Encoder) { e.Path(path) },
		bulk: func(r *wire.Reader) error {
			_, err := nar.Copy(w, r)
			return err
		},
	})
}

// Add makes a path valid with the contents that it reads from archive, exactly one NAR.
// From an untrusted peer the path must be content-addressed or signed by a key that the daemon accepts.
func (c *Conn) Add(ctx context.Context, info *store.Info, archive io.Reader) error {
	return c.do(ctx, &call{
		op: protocol.OpAddToStoreNar, what: "add " + info.Path.String(), since: 23,
		fields: func(e *protocol.Encoder) {
			e.KeyedInfo(info)
			e.Bool(false)
			e.Bool(!c.opts.CheckSignatures)
		},
		body:  func(w io.Writer) error { return copyOne(w, archive) },
		whole: true,
	})
}

func copyOne(w io.Writer, archive io.Reader) error {
	_, err := nar.Copy(w, archive)
	return err
}

// AddFrom adds objects in one operation, reading them from a store. References must come first.
func (c *Conn) AddFrom(ctx context.Context, infos []*store.Info, from store.Reader) error {
	return c.do(ctx, &call{
		op: protocol.OpAddMultipleToStore, what: fmt.Sprintf("add %d paths", len(infos)), since: 32,
		fields: func(e *protocol.Encoder) {
			e.Bool(false)
			e.Bool(!c.opts.CheckSignatures)
		},
		body: func(w io.Writer) error {
			ww := wire.NewWriter(w)
			e := protocol.NewEncoder(ww, c.answer.Format)
			e.Uint64(uint64(len(infos)))
			for _, i := range infos {
				e.KeyedInfo(i)
				if err := from.NAR(ctx, i.Path, ww); err != nil {
					return err
				}
			}
			return e.Flush()
		},
		whole: true,
	})
}

// AddToStore adds contents under a name and returns what became of them.
// What r gives is the file's bytes for store.Text and store.Flat, a NAR for store.Recursive.
func (c *Conn) AddToStore(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, r io.Reader) (*store.Info, error) {
	return c.addToStore(ctx, name, method, algo, refs, copyAll(r))
}

func (c *Conn) addToStore(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, body func(io.Writer) error) (*store.Info, error) {
	var info *store.Info
	err := c.do(ctx, &call{
		op: protocol.OpAddToStore, what: "add " + name, since: 25,
		fields: func(e *protocol.Encoder) {
			e.Text(name)
			e.Method(method, algo)
			e.Paths(refs)
			e.Bool(false)
		},
		body:  body,
		reply: func(d *protocol.Decoder) { info = d.KeyedInfo() },
	})
	if err != nil {
		return nil, err
	}
	return info, nil
}

// AddSignatures adds signatures to a valid path.
func (c *Conn) AddSignatures(ctx context.Context, path store.Path, signatures []string) error {
	return c.do(ctx, &call{
		op: protocol.OpAddSignatures, what: "sign " + path.String(),
		fields: func(e *protocol.Encoder) {
			e.Path(path)
			e.TextSet(signatures)
		},
		reply: ack,
	})
}

// ack reads the constant that stands for success.
func ack(d *protocol.Decoder) { d.Uint64() }

// SetCheckSignatures changes Options.CheckSignatures for what is added from now on.
func (c *Conn) SetCheckSignatures(check bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opts.CheckSignatures = check
}
