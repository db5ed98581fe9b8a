package client

import (
	"context"
	"fmt"
	"io"
	"slices"

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

// askNARs is how many archives are asked for at once.
const askNARs = 4096

// NARs writes the archives of valid paths, one after the other, each to the writer that next returns for its path.
func (c *Conn) NARs(ctx context.Context, paths []store.Path, next func(store.Path) (io.Writer, error)) error {
	if !c.answer.Serves(protocol.OpNARs) {
		return eachNAR(ctx, c, paths, next)
	}
	for some := range slices.Chunk(paths, askNARs) {
		err := c.do(ctx, &call{
			op: protocol.OpNARs, what: fmt.Sprintf("read %d paths", len(some)),
			fields: func(e *protocol.Encoder) { e.PathList(some) },
			bulk: func(r *wire.Reader) error {
				for _, p := range some {
					w, err := next(p)
					if err == nil {
						_, err = nar.Copy(w, r)
					}
					if err != nil {
						return err
					}
				}
				return nil
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// NARs is Conn.NARs for any store, with a question for each path where there is no other way.
func NARs(ctx context.Context, from store.Reader, paths []store.Path, next func(store.Path) (io.Writer, error)) error {
	if many, ok := from.(interface {
		NARs(context.Context, []store.Path, func(store.Path) (io.Writer, error)) error
	}); ok {
		return many.NARs(ctx, paths, next)
	}
	return eachNAR(ctx, from, paths, next)
}

func eachNAR(ctx context.Context, from store.Reader, paths []store.Path, next func(store.Path) (io.Writer, error)) error {
	for _, p := range paths {
		w, err := next(p)
		if err == nil {
			err = from.NAR(ctx, p, w)
		}
		if err != nil {
			return err
		}
	}
	return nil
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
	paths := store.PathsOf(infos)
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
			n := 0
			err := NARs(ctx, from, paths, func(store.Path) (io.Writer, error) {
				e.KeyedInfo(infos[n])
				n++
				return ww, nil
			})
			if err != nil {
				return err
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
