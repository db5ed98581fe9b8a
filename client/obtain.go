package client

import (
	"context"
	"fmt"

	"cairn/daemon/protocol"
	"cairn/store"
)

// Obtain returns those of the paths that are valid, after the daemon has fetched from its caches what it could.
func (c *Conn) Obtain(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	return c.validPaths(ctx, "obtain paths", paths, true)
}

// Holder is a store that can be asked for many paths at once, and to fetch them from its caches first.
type Holder interface {
	ValidPaths(ctx context.Context, paths []store.Path) ([]store.Path, error)
	Obtain(ctx context.Context, paths []store.Path) ([]store.Path, error)
}

// Present returns which of the paths are valid at a store, with obtain after it has fetched what it could.
func Present(ctx context.Context, at Holder, paths []store.Path, obtain bool) (map[store.Path]bool, error) {
	query := at.ValidPaths
	if obtain {
		query = at.Obtain
	}
	valid, err := query(ctx, paths)
	if err != nil {
		return nil, err
	}
	present := make(map[store.Path]bool, len(valid))
	for _, p := range valid {
		present[p] = true
	}
	return present, nil
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
