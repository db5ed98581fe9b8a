// Package client speaks the worker protocol to a daemon: ours or Nix's.
//
// A Conn is one session over any stream, with one operation at a time; concurrent callers
// take turns, and whoever wants work in parallel dials again. It is a store.ReadWriter.
//
// An operation is one call value: number, fields, perhaps a framed upload, and how to read
// the reply. While an upload runs, a second goroutine reads the server's messages, so that
// an early refusal stops the upload and neither side waits for the other for ever. No
// goroutine outlives its operation.
//
// The protocol has no way to cancel. A context that ends during an operation closes the
// connection, which the daemon takes as "abort"; every later operation then fails with
// ErrClosed. The same goes for a stream that breaks, and for an upload whose source fails
// where the server could take the part for the whole.
//
// Daemons may be older or newer than the client, or Nix's. An operation of ours that a daemon does not serve
// (protocol.Answer.Serves) is ErrUnsupported, but for these, which are done in other ways:
//
//	NARs               NarFromPath, one by one
//	QueryClosure       QueryPathInfo, one by one
//	QueryClosurePaths  QueryClosure
//	CollectGarbage2    CollectGarbage, if it can what is asked for
//	AddOpen, AddSized  AddToStore
//
// Errors of the server are *protocol.Error. From our own daemon they are also the sentinels
// of package store; a Nix daemon's say the same in text only.
//
// What a daemon tells during an operation (log lines, activities, progress) goes to an
// Observer, in order, from the goroutine of the call or the reader of its upload.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"cairn/archive/wire"
	"cairn/daemon/protocol"
	"cairn/store"
)

// ErrClosed says that the connection cannot be used any more.
var ErrClosed = errors.New("connection to the daemon is closed")

// ErrUnsupported says that the daemon cannot do what was asked; only cairn's can.
var ErrUnsupported = errors.New("the daemon does not support this operation")

// Observer is told what the daemon tells during operations. It must not call the Conn.
type Observer interface {
	Message(*protocol.Message)
}

// ObserverFunc is a function that is an Observer.
type ObserverFunc func(*protocol.Message)

// Message calls the function.
func (f ObserverFunc) Message(m *protocol.Message) { f(m) }

// Options are the choices of a connection. The zero value is right for most.
type Options struct {
	// Dir is the store directory; the default is store.DefaultDir.
	Dir store.Dir
	// CheckSignatures makes the daemon check signatures of what Add adds even though the peer is trusted.
	CheckSignatures bool
	// Observer is told everything; the default is nobody.
	Observer Observer
	// Version and Features are announced. The default is the newest version, and the features but
	// protocol.FeatureRealisations, with which realisations are not known by hash.
	Version  protocol.Version
	Features []protocol.Feature
}

// Conn is a session with a daemon. It is safe for concurrent use.
type Conn struct {
	rw      io.ReadWriteCloser
	out     passer
	dir     store.Dir
	opts    Options
	answer  protocol.Answer
	closing sync.Once
	closed  chan struct{}

	mu  sync.Mutex // held for an operation; guards what follows and the stream
	d   *protocol.Decoder
	e   *protocol.Encoder
	err error // why the session ended
}

// Dial connects to the daemon at a socket.
func Dial(ctx context.Context, socket string, opts *Options) (*Conn, error) {
	name, release, err := SocketName(socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the daemon: %w; is it running?", err)
	}
	defer release()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return nil, fmt.Errorf("connect to the daemon at %s: %w; is it running?", socket, err)
	}
	c, err := New(ctx, nc, opts)
	if err != nil {
		return nil, fmt.Errorf("connect to the daemon at %s: %w", socket, err)
	}
	return c, nil
}

// New does the handshake on a stream, and owns it from then on.
func New(ctx context.Context, rw io.ReadWriteCloser, opts *Options) (*Conn, error) {
	if opts == nil {
		opts = &Options{}
	}
	c := &Conn{rw: rw, dir: opts.Dir, opts: *opts, closed: make(chan struct{})}
	if c.dir == "" {
		c.dir = store.DefaultDir
	}
	if err := c.handshake(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) handshake(ctx context.Context) error {
	stop := c.closeWhenDone(ctx)
	defer stop()
	hello := protocol.Client{Dir: c.dir, Version: c.opts.Version, Features: c.opts.Features}
	if hello.Features == nil {
		hello.Features = []protocol.Feature{protocol.FeatureCairn, protocol.FeatureDeleteReferrers}
	}
	if _, ok := c.rw.(*net.UnixConn); ok && c.opts.Features == nil {
		hello.Features = append(hello.Features, protocol.FeatureDescriptor)
	}
	c.out.Writer = c.rw
	r, w := wire.NewReader(c.rw), wire.NewWriter(&c.out)
	answer, err := hello.Handshake(r, w)
	if err != nil {
		return fmt.Errorf("handshake: %w", c.cause(ctx, err))
	}
	c.answer = answer
	c.d, c.e = protocol.NewDecoder(r, answer.Format), protocol.NewEncoder(w, answer.Format)
	if err := c.messages(&call{}); err != nil {
		return fmt.Errorf("handshake: %w", c.cause(ctx, err))
	}
	return nil
}

// Close ends the session. An operation under way fails.
func (c *Conn) Close() error {
	var err error
	c.closing.Do(func() {
		close(c.closed)
		err = c.rw.Close()
	})
	return err
}

// Dir returns the store directory.
func (c *Conn) Dir() store.Dir { return c.dir }

// Server returns what the daemon said of itself and what was agreed on.
func (c *Conn) Server() protocol.Answer { return c.answer }

// Trusted reports whether the daemon said that it trusts this peer.
func (c *Conn) Trusted() bool { return c.answer.Trust == protocol.Trusted }

// call is one operation.
type call struct {
	op     protocol.Op
	what   string                   // for errors: "add x"
	since  int                      // the minor version needed
	fields func(*protocol.Encoder)  // the request after its number
	body   func(io.Writer) error    // upload, in frames
	whole  bool                     // a cut-off body is something that the server would refuse
	chunk  func([]byte) error       // takes what the server writes
	reply  func(*protocol.Decoder)  // reads the reply after Last
	bulk   func(*wire.Reader) error // reads what follows the reply and has no length
	obs    Observer                 // instead of the connection's
	file   *os.File                 // handed over with the request; nil: none
}

// do runs one operation.
func (c *Conn) do(ctx context.Context, k *call) error {
	if err := c.run(ctx, k); err != nil {
		return fmt.Errorf("%s: %w", k.what, err)
	}
	return nil
}

func (c *Conn) run(ctx context.Context, k *call) error {
	if !c.answer.Serves(k.op) || c.answer.Version < protocol.Minor(k.since) {
		return fmt.Errorf("daemon %q, protocol %s: %w", c.answer.Name, c.answer.Version, ErrUnsupported)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, c.err)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	stop := c.closeWhenDone(ctx)
	err := c.exchange(k)
	if stop() || context.Cause(ctx) == nil {
		return c.cause(ctx, err)
	}
	c.end(context.Cause(ctx))
	if err == nil {
		return nil
	}
	return context.Cause(ctx)
}

// closeWhenDone closes the stream when ctx ends before stop is called.
// stop reports whether it came first.
func (c *Conn) closeWhenDone(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.Close() })
}

// cause turns what a closed stream says into why it was closed.
func (c *Conn) cause(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if why := context.Cause(ctx); why != nil {
		return why
	}
	select {
	case <-c.closed:
		if c.err != nil && !errors.Is(err, c.err) {
			return fmt.Errorf("%w: %w", err, c.err)
		}
	default:
	}
	return err
}

// end makes the session unusable.
func (c *Conn) end(why error) {
	if c.err == nil {
		c.err = why
	}
	c.Close()
}

func (c *Conn) exchange(k *call) error {
	c.out.file = k.file
	c.e.Uint64(uint64(k.op))
	if k.fields != nil {
		k.fields(c.e)
	}
	talk := c.converse
	if k.body != nil {
		talk = c.upload
	}
	if err := talk(k); err != nil {
		return err
	}
	return c.reply(k)
}

// converse sends the request and reads the messages.
func (c *Conn) converse(k *call) error {
	if err := c.e.Flush(); err != nil {
		return c.brokenOff(k, err)
	}
	return c.messages(k)
}

// brokenOff ends the session because a request could not be written. If the daemon has said why, it returns that.
func (c *Conn) brokenOff(k *call, err error) error {
	c.err = err
	said := c.messages(k)
	if _, ok := errors.AsType[*protocol.Error](said); !ok {
		return c.lost(err)
	}
	c.Close()
	return said
}

func (c *Conn) reply(k *call) error {
	c.d.Reset(protocol.MaxReply)
	if k.reply != nil {
		k.reply(c.d)
	}
	if err := c.d.Broken(); err != nil {
		return c.lost(err)
	}
	if err := c.d.Err(); err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	if k.bulk == nil {
		return nil
	}
	if err := k.bulk(c.d.Wire()); err != nil {
		c.end(err)
		return err
	}
	return nil
}

// lost ends the session because the stream broke.
func (c *Conn) lost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the daemon closed the connection: %w", err)
	}
	c.end(err)
	return err
}

// messages reads the server's messages up to Last or Error.
func (c *Conn) messages(k *call) error {
	obs := k.obs
	if obs == nil {
		obs = c.opts.Observer
	}
	var failed error
	for {
		c.d.Reset(protocol.MaxReply)
		m := c.d.Message()
		if err := c.d.Broken(); err != nil {
			return c.lost(err)
		}
		switch m.Kind {
		case protocol.KindLast:
			return failed
		case protocol.KindError:
			return m.Err
		case protocol.KindRead:
			return c.lost(errors.New("the daemon asks for data that this operation has not"))
		case protocol.KindResult:
			if obs != nil && m.Result != protocol.ResHeartbeat {
				obs.Message(m)
			}
		case protocol.KindWrite:
			if k.chunk != nil && failed == nil {
				failed = k.chunk(m.Data)
			}
		default:
			if obs != nil {
				obs.Message(m)
			}
		}
	}
}
