package client

import (
	"context"
	"fmt"

	"cairn/daemon/protocol"
	"cairn/store"
)

// Obtain returns those of the paths that are valid, after the daemon has fetched from its caches what it could.
func (c *Conn) Obtain(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	return c.paths(ctx, protocol.OpQueryValidPaths, "obtain paths", func(e *protocol.Encoder) {
		e.Paths(paths)
		if e.Version >= protocol.Minor(27) {
			e.Bool(true)
		}
	})
}

// rootsAtOnce is how many requests are sent before the first answer is read. Their answers fit into every pipe.
const rootsAtOnce = 200

// AddTempRoots is AddTempRoot for many paths, without waiting for each.
func (c *Conn) AddTempRoots(ctx context.Context, paths []store.Path) error {
	for len(paths) > 0 {
		n := min(len(paths), rootsAtOnce)
		if err := c.addTempRoots(ctx, paths[:n]); err != nil {
			return err
		}
		paths = paths[n:]
	}
	return nil
}

func (c *Conn) addTempRoots(ctx context.Context, paths []store.Path) error {
	k := &call{op: protocol.OpAddTempRoot, what: fmt.Sprintf("keep %d paths", len(paths))}
	k.fields = func(e *protocol.Encoder) {
		e.Path(paths[0])
		for _, p := range paths[1:] {
			e.Uint64(uint64(protocol.OpAddTempRoot))
			e.Path(p)
		}
	}
	var failed error
	k.reply = func(d *protocol.Decoder) {
		ack(d)
		for range paths[1:] {
			if failed = c.messages(&call{}); failed != nil {
				return
			}
			ack(d)
		}
	}
	err := c.do(ctx, k)
	if failed != nil {
		err = fmt.Errorf("%s: %w", k.what, failed)
	}
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.end(err) // answers to the others may be under way
	}
	return err
}
