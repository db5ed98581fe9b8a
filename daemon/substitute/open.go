package substitute

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"cairn/archive/cache"
	"cairn/client"
	"cairn/store"
)

// nixSocket is where Nix's own daemon listens.
const nixSocket = "/nix/var/nix/daemon-socket/socket"

// openURI opens what the source's URI names: a binary cache, or a store behind a daemon.
//
//	daemon             Nix's daemon on this machine
//	unix:///SOCKET     any daemon
//	file, http, https, s3, or a folder: package cache
func (s *source) openURI() (Cache, error) {
	base, query, _ := strings.Cut(s.key.uri, "?")
	dir := s.pool.store.Dir()
	if socket, ok := strings.CutPrefix(base, "unix://"); ok || base == "daemon" {
		if base == "daemon" {
			socket = nixSocket
		}
		if _, err := url.ParseQuery(query); err != nil {
			return nil, fmt.Errorf("parameters: %w", err)
		}
		return &peer{dial: func(ctx context.Context) (*client.Conn, error) {
			return client.Dial(ctx, socket, &client.Options{Dir: dir})
		}, dir: dir, idle: make(chan *client.Conn, maxIdle)}, nil
	}
	return cache.Open(s.key.uri, dir, &cache.Options{
		ConnectTimeout: s.key.connect, StalledTimeout: s.key.stalled, Attempts: s.key.attempts, Connections: s.key.conns,
		NetrcFile: s.key.netrc, Progress: s.arrived, Warn: func(text string) { s.pool.opts.Logger.Warn(text, "uri", s.uri) },
	})
}

// maxIdle is how many connections to a daemon are kept.
const maxIdle = 8

// peer is a store behind a daemon, as a cache.
type peer struct {
	dial func(context.Context) (*client.Conn, error)
	dir  store.Dir
	idle chan *client.Conn
}

// with lends a connection, a kept one first. One that breaks is not kept; when it was a kept one the daemon may have been
// started again meanwhile, and a new one is tried.
func (p *peer) with(ctx context.Context, use func(*client.Conn) error) error {
	c, kept := p.take()
	if kept {
		err := use(c)
		if !c.Closed() || ctx.Err() != nil {
			p.keep(c)
			return err
		}
	}
	c, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer p.keep(c)
	return use(c)
}

func (p *peer) take() (*client.Conn, bool) {
	select {
	case c := <-p.idle:
		return c, true
	default:
		return nil, false
	}
}

func (p *peer) keep(c *client.Conn) {
	if c.Closed() {
		c.Close()
		return
	}
	select {
	case p.idle <- c:
	default:
		c.Close()
	}
}

// Close closes the connections that are kept.
func (p *peer) Close() error {
	for {
		select {
		case c := <-p.idle:
			c.Close()
		default:
			return nil
		}
	}
}

// Info says nothing but that there is an answer. Stores come before caches, as in Nix.
func (p *peer) Info(ctx context.Context) (*cache.Info, error) {
	err := p.with(ctx, func(c *client.Conn) error { return nil })
	return &cache.Info{StoreDir: p.dir, WantMassQuery: true}, err
}

// NarInfo returns what the daemon knows of a path.
func (p *peer) NarInfo(ctx context.Context, path store.Path) (n *cache.NarInfo, err error) {
	err = p.with(ctx, func(c *client.Conn) error {
		info, err := c.Info(ctx, path)
		if err == nil {
			n = &cache.NarInfo{Info: *info}
		}
		return err
	})
	return n, err
}

// NAR returns the archive. Whoever reads it checks its hash: the daemon sends it without one.
func (p *peer) NAR(ctx context.Context, n *cache.NarInfo) (io.ReadCloser, error) {
	c, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(c.NAR(ctx, n.Path, w))
		c.Close()
	}()
	return &download{PipeReader: r, conn: c, done: done}, nil
}

// download is an archive that comes from a daemon over a connection of its own.
type download struct {
	*io.PipeReader
	conn *client.Conn
	done chan struct{}
}

// Close ends the download and waits until nothing of it runs any more.
func (d *download) Close() error {
	d.PipeReader.Close()
	err := d.conn.Close()
	<-d.done
	return err
}

// Realisation returns where an output is.
func (p *peer) Realisation(ctx context.Context, id store.DrvOutput) (*store.Realisation, error) {
	var r *store.Realisation
	err := p.with(ctx, func(c *client.Conn) error {
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
func (p *peer) Traced(_ context.Context, drv store.Path, _ string) (*cache.Trace, error) {
	return nil, fmt.Errorf("trace of %s: %w", drv, store.ErrNotValid)
}
