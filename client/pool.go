package client

import (
	"context"
	"errors"
	"io"
	"sync"

	"cairn/store"
)

// Pool is sessions with one daemon: as many as are in use, up to a limit. It is a store.Reader, and safe for
// concurrent use.
type Pool struct {
	dial  func(context.Context) (*Conn, error)
	slots chan struct{} // one for each session in use

	mu     sync.Mutex // guards what follows
	free   []*Conn
	closed bool
}

// NewPool returns a pool of at most limit sessions that dial makes.
func NewPool(limit int, dial func(context.Context) (*Conn, error)) *Pool {
	return &Pool{dial: dial, slots: make(chan struct{}, limit)}
}

// Do runs fn with a session that is fn's own meanwhile. When a session turns out to have ended while nobody used it,
// because the daemon was started anew, fn is run again with another.
func (p *Pool) Do(ctx context.Context, fn func(*Conn) error) error {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-p.slots }()
	for {
		c, used, err := p.take(ctx)
		if err != nil {
			return err
		}
		err = fn(c)
		p.give(c)
		if !used || !errors.Is(err, ErrClosed) || ctx.Err() != nil {
			return err
		}
	}
}

// take returns a session, and whether it was used before.
func (p *Pool) take(ctx context.Context) (*Conn, bool, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false, ErrClosed
	}
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return c, true, nil
	}
	p.mu.Unlock()
	c, err := p.dial(ctx)
	return c, false, err
}

func (p *Pool) give(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || c.ended() {
		c.Close()
		return
	}
	p.free = append(p.free, c)
}

// ended reports whether a session that nobody uses is of no more use.
func (c *Conn) ended() bool {
	select {
	case <-c.closed:
		return true
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// Close ends the sessions; those in use end when they are given back.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for _, c := range p.free {
		err = errors.Join(err, c.Close())
	}
	p.free, p.closed = nil, true
	return err
}

// Info returns what the daemon knows of a path.
func (p *Pool) Info(ctx context.Context, path store.Path) (*store.Info, error) {
	var info *store.Info
	err := p.Do(ctx, func(c *Conn) (err error) {
		info, err = c.Info(ctx, path)
		return err
	})
	return info, err
}

// NAR writes the archive of a valid path to w.
func (p *Pool) NAR(ctx context.Context, path store.Path, w io.Writer) error {
	seen := &seenWriter{Writer: w}
	var broken error // that must not be tried again
	err := p.Do(ctx, func(c *Conn) error {
		err := c.NAR(ctx, path, seen)
		if err != nil && seen.any {
			broken = err
			return nil
		}
		return err
	})
	return errors.Join(broken, err)
}

// seenWriter remembers whether anything was written.
type seenWriter struct {
	io.Writer
	any bool
}

func (w *seenWriter) Write(b []byte) (int, error) {
	w.any = w.any || len(b) > 0
	return w.Writer.Write(b)
}
