package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"cairn/archive/cache"
	"cairn/client/peer"
	"cairn/store"
)

// maxIdle is how many connections to a store are kept.
const maxIdle = 8

// remote is a store somewhere else, as a cache.
type remote struct {
	address peer.Address
	opts    *peer.Options
	idle    chan *peer.Conn
	closed  atomic.Bool
}

func newRemote(a peer.Address, opts *peer.Options) *remote {
	return &remote{address: a, opts: opts, idle: make(chan *peer.Conn, maxIdle)}
}

// with lends a connection, a kept one first. One that breaks is not kept; when it was a kept one the other side may have been
// started again meanwhile, and a new one is tried.
func (m *remote) with(ctx context.Context, use func(*peer.Conn) error) error {
	c, kept := m.take()
	if kept {
		err := use(c)
		m.keep(c, err)
		if err == nil || errors.Is(err, store.ErrNotValid) || ctx.Err() != nil {
			return err
		}
	}
	c, err := peer.Dial(ctx, m.address, m.opts)
	if err != nil {
		return err
	}
	err = use(c)
	m.keep(c, err)
	return err
}

func (m *remote) take() (*peer.Conn, bool) {
	select {
	case c := <-m.idle:
		return c, true
	default:
		return nil, false
	}
}

// keep keeps a connection that works.
func (m *remote) keep(c *peer.Conn, err error) {
	if err == nil || errors.Is(err, store.ErrNotValid) {
		select {
		case m.idle <- c:
			if m.closed.Load() {
				m.drain()
			}
			return
		default:
		}
	}
	c.Close()
}

// Close closes the connections that are kept, and keeps no more.
func (m *remote) Close() error {
	m.closed.Store(true)
	m.drain()
	return nil
}

func (m *remote) drain() {
	for {
		c, ok := m.take()
		if !ok {
			return
		}
		c.Close()
	}
}

// Info says nothing but that there is an answer. Stores come before caches, as in Nix.
func (m *remote) Info(ctx context.Context) (*cache.Info, error) {
	c, kept := m.take()
	if !kept {
		var err error
		if c, err = peer.Dial(ctx, m.address, m.opts); err != nil {
			return nil, err
		}
	}
	m.keep(c, nil)
	return &cache.Info{StoreDir: m.opts.Dir, WantMassQuery: true}, nil
}

// NarInfo returns what the store knows of a path.
func (m *remote) NarInfo(ctx context.Context, p store.Path) (*cache.NarInfo, error) {
	var info *store.Info
	err := m.with(ctx, func(c *peer.Conn) (err error) {
		info, err = c.Info(ctx, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &cache.NarInfo{Info: *info}, nil
}

// NAR returns the archive. Whoever reads it checks its hash: stores send it without one.
func (m *remote) NAR(ctx context.Context, n *cache.NarInfo) (io.ReadCloser, error) {
	c, kept := m.take()
	if !kept {
		var err error
		if c, err = peer.Dial(ctx, m.address, m.opts); err != nil {
			return nil, err
		}
	}
	r, w := io.Pipe()
	ctx, stop := context.WithCancel(ctx)
	d := &download{PipeReader: r, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		err := c.NAR(ctx, n.Path, w)
		m.keep(c, err)
		w.CloseWithError(err)
	}()
	return d, nil
}

// download is an archive that comes from a store.
type download struct {
	*io.PipeReader
	stop context.CancelFunc
	done chan struct{}
}

// Close ends the download and waits until nothing of it runs any more.
func (d *download) Close() error {
	d.PipeReader.Close()
	d.stop()
	<-d.done
	return nil
}

// Realisation returns where an output is.
func (m *remote) Realisation(ctx context.Context, id store.DrvOutput) (*store.Realisation, error) {
	var r *store.Realisation
	err := m.with(ctx, func(c *peer.Conn) error {
		found, ok, err := c.Realisation(ctx, id)
		switch {
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("realisation of %s: %w", id, store.ErrNotValid)
		}
		r = &found
		return nil
	})
	return r, err
}

// Traced knows nothing: connections are made without protocol.FeatureRealisations.
func (m *remote) Traced(_ context.Context, drv store.Path, _ string) (*cache.Trace, error) {
	return nil, fmt.Errorf("trace of %s: %w", drv, store.ErrNotValid)
}
