// Package legacy speaks the protocol of "nix-store --serve" to another machine, over any stream.
//
// A Conn does one command at a time; concurrent callers take turns. It is a store.ReadWriter, as far as the protocol goes:
// the other side has no way to say why it refuses something but to write to its standard error and to leave. Every
// error but a failed build therefore ends the connection, and the stream's owner knows the reason (package peer).
//
// The other side checks no signatures: whom ssh lets in is trusted, or is not at all.
package legacy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// ErrClosed says that the connection cannot be used any more.
var ErrClosed = errors.New("connection is closed")

// Options are the choices of a connection. The zero value works.
type Options struct {
	Dir     store.Dir        // the store directory; default: store.DefaultDir
	Version protocol.Version // announced; default: protocol.ServeNewest
}

// Conn is a session with another machine.
type Conn struct {
	rw  io.ReadWriteCloser
	dir store.Dir

	mu  sync.Mutex // held for a command; guards what follows and the stream
	d   *protocol.Decoder
	e   *protocol.Encoder
	err error
}

// New does the handshake on a stream, and owns it from then on.
func New(ctx context.Context, rw io.ReadWriteCloser, opts *Options) (*Conn, error) {
	if opts == nil {
		opts = &Options{}
	}
	c := &Conn{rw: rw, dir: opts.Dir}
	if c.dir == "" {
		c.dir = store.DefaultDir
	}
	stop := context.AfterFunc(ctx, func() { rw.Close() })
	defer stop()
	r, w := wire.NewReader(rw), wire.NewWriter(rw)
	f, err := protocol.ServeGreet(r, w, c.dir, opts.Version)
	if err != nil {
		rw.Close()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("handshake: %w", err)
	}
	c.d, c.e = protocol.NewDecoder(r, f), protocol.NewEncoder(w, f)
	return c, nil
}

// Close ends the session. A command under way fails.
func (c *Conn) Close() error { return c.rw.Close() }

// Dir returns the store directory.
func (c *Conn) Dir() store.Dir { return c.dir }

// Version returns what was agreed on.
func (c *Conn) Version() protocol.Version { return c.d.Version }

// do runs one command. Every error ends the session.
func (c *Conn) do(ctx context.Context, what string, n protocol.ServeCommand, send func(*protocol.Encoder) error, read func(*protocol.Decoder) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("%s: %w: %w", what, ErrClosed, c.err)
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	stop := context.AfterFunc(ctx, func() { c.rw.Close() })
	err := c.exchange(n, send, read)
	if !stop() && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.err = err
		c.rw.Close()
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (c *Conn) exchange(n protocol.ServeCommand, send func(*protocol.Encoder) error, read func(*protocol.Decoder) error) error {
	c.e.Uint64(uint64(n))
	if err := send(c.e); err != nil {
		return err
	}
	if err := c.e.Flush(); err != nil {
		return c.reason(err)
	}
	c.d.Reset(protocol.MaxReply)
	if err := read(c.d); err != nil {
		return err
	}
	return c.d.Err()
}

// reason prefers what the stream's reading side says of its end to "broken pipe".
func (c *Conn) reason(err error) error {
	if _, readErr := c.d.Wire().ReadByte(); readErr != nil && !errors.Is(readErr, io.EOF) {
		return readErr
	}
	return err
}

func fields(f func(*protocol.Encoder)) func(*protocol.Encoder) error {
	return func(e *protocol.Encoder) error { f(e); return nil }
}

func values(f func(*protocol.Decoder)) func(*protocol.Decoder) error {
	return func(d *protocol.Decoder) error { f(d); return nil }
}

// ack reads the constant that stands for success.
func ack(d *protocol.Decoder) error {
	if n := d.Uint64(); d.Err() == nil && n != 1 {
		return fmt.Errorf("the other side answered %d, wanted is 1", n)
	}
	return d.Err()
}

// Infos returns what is known of those of the paths that are valid.
func (c *Conn) Infos(ctx context.Context, paths []store.Path) ([]*store.Info, error) {
	var list []*store.Info
	asked := map[store.Path]bool{}
	for _, p := range paths {
		asked[p] = true
	}
	err := c.do(ctx, "query path infos", protocol.ServeQueryPathInfos, fields(func(e *protocol.Encoder) { e.Paths(paths) }), func(d *protocol.Decoder) error {
		for {
			p := d.OptionalPath()
			if d.Err() != nil || p.IsZero() {
				return d.Err()
			}
			if !asked[p] {
				return fmt.Errorf("the answer is about %s, which was not asked about", p)
			}
			asked[p] = false
			list = append(list, d.ServeInfo(p))
		}
	})
	return list, err
}

// Info returns what is known of a path, or an error that is store.ErrNotValid.
func (c *Conn) Info(ctx context.Context, path store.Path) (*store.Info, error) {
	list, err := c.Infos(ctx, []store.Path{path})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("query %s: %w", path, store.ErrNotValid)
	}
	return list[0], nil
}

// NAR writes the archive of a valid path to w.
func (c *Conn) NAR(ctx context.Context, path store.Path, w io.Writer) error {
	// Asking for what is not there would end the session.
	if _, err := c.Info(ctx, path); err != nil {
		return err
	}
	return c.do(ctx, "read "+path.String(), protocol.ServeDumpStorePath, fields(func(e *protocol.Encoder) { e.Path(path) }), func(d *protocol.Decoder) error {
		_, err := nar.Copy(w, d.Wire())
		return err
	})
}

// Add makes a path valid with the contents that it reads from archive, exactly one NAR.
func (c *Conn) Add(ctx context.Context, info *store.Info, archive io.Reader) error {
	send := func(e *protocol.Encoder) error {
		err := addition(e, info, func(w io.Writer) error {
			_, err := nar.Copy(w, archive)
			return err
		})
		if err != nil && e.Wire().Err() != nil {
			err = c.reason(err)
		}
		return err
	}
	return c.do(ctx, "add "+info.Path.String(), protocol.ServeAddToStoreNar, send, ack)
}

// addition writes the fields of AddToStoreNar.
func addition(e *protocol.Encoder, i *store.Info, dump func(io.Writer) error) error {
	e.Path(i.Path)
	e.Path(i.Deriver)
	e.Text(i.NarHash.Hex())
	e.Paths(i.References)
	e.Uint64(uint64(max(i.RegisteredAt, 0)))
	e.Uint64(uint64(i.NarSize))
	e.Bool(i.Ultimate)
	e.TextSet(i.Signatures)
	e.Text(i.CA.String())
	exact := &exactly{w: e.Wire(), left: i.NarSize}
	if err := dump(exact); err != nil {
		return err
	}
	if exact.left != 0 {
		return fmt.Errorf("archive of %s ends %d bytes before its size", i.Path, exact.left)
	}
	return nil
}

// exactly refuses to write more than was announced.
type exactly struct {
	w    io.Writer
	left int64
}

func (x *exactly) Write(p []byte) (int, error) {
	if x.left -= int64(len(p)); x.left < 0 {
		return 0, errors.New("archive is longer than its size")
	}
	return x.w.Write(p)
}

// AddFrom adds objects, reading them from a store, without waiting for the answer to each. References must come first.
func (c *Conn) AddFrom(ctx context.Context, infos []*store.Info, from store.Reader) error {
	if len(infos) == 0 {
		return nil
	}
	answers := make(chan error, 1)
	send := func(e *protocol.Encoder) error {
		go func() { answers <- c.acks(len(infos)) }()
		for n, i := range infos {
			if n > 0 {
				e.Uint64(uint64(protocol.ServeAddToStoreNar))
			}
			if err := addition(e, i, func(w io.Writer) error { return from.NAR(ctx, i.Path, w) }); err != nil {
				c.rw.Close()
				if answer := <-answers; e.Wire().Err() != nil && answer != nil {
					return answer // it says why nothing can be written
				}
				return err
			}
		}
		if err := e.Flush(); err != nil {
			c.rw.Close()
			return errors.Join(<-answers, err)
		}
		return nil
	}
	return c.do(ctx, fmt.Sprintf("add %d paths", len(infos)), protocol.ServeAddToStoreNar, send, func(*protocol.Decoder) error { return <-answers })
}

// acks reads the answers to n additions, while those are being sent: with a decoder of its own, as the connection's belongs
// to the sender.
func (c *Conn) acks(n int) error {
	d := protocol.NewDecoder(c.d.Wire(), c.d.Format)
	for range n {
		if err := ack(d); err != nil {
			return err
		}
	}
	return nil
}

// ValidPaths returns those of the paths that are valid.
func (c *Conn) ValidPaths(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	return c.valid(ctx, paths, false)
}

// Obtain returns those of the paths that are valid, after the other machine has fetched from its caches what it could.
// All are kept there until the connection ends, whether they are valid yet or not.
func (c *Conn) Obtain(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	return c.valid(ctx, paths, true)
}

func (c *Conn) valid(ctx context.Context, paths []store.Path, substitute bool) ([]store.Path, error) {
	var list []store.Path
	err := c.do(ctx, "query valid paths", protocol.ServeQueryValidPaths, fields(func(e *protocol.Encoder) {
		e.Bool(true)
		e.Bool(substitute)
		e.Paths(paths)
	}), values(func(d *protocol.Decoder) { list = d.Paths() }))
	return list, err
}

// Closure returns what is known of the paths and everything that they refer to, references first.
func (c *Conn) Closure(ctx context.Context, paths []store.Path) ([]*store.Info, error) {
	var all []store.Path
	err := c.do(ctx, "query closure", protocol.ServeQueryClosure, fields(func(e *protocol.Encoder) {
		e.Bool(false)
		e.Paths(paths)
	}), values(func(d *protocol.Decoder) { all = d.Paths() }))
	if err != nil {
		return nil, err
	}
	infos, err := c.Infos(ctx, all)
	if err != nil {
		return nil, err
	}
	return archive.Sort(infos)
}

// BuildDerivation builds a derivation whose inputs are resolved and valid. What the builder prints comes on
// the standard error of the other side.
func (c *Conn) BuildDerivation(ctx context.Context, path store.Path, drv *derivation.Derivation, limits *protocol.ServeOptions) (*protocol.BuildResult, error) {
	if limits == nil {
		limits = &protocol.ServeOptions{}
	}
	var r *protocol.BuildResult
	err := c.do(ctx, "build "+path.String(), protocol.ServeBuildDerivation, fields(func(e *protocol.Encoder) {
		e.Path(path)
		e.BasicDerivation(drv)
		e.ServeOptions(limits)
	}), values(func(d *protocol.Decoder) { r = d.ServeResult() }))
	if err != nil {
		return nil, err
	}
	r.Target = protocol.Target{Path: path, Outputs: protocol.All()}
	return r, nil
}
