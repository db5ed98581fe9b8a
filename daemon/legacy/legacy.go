// Package legacy serves the protocol of "nix-store --serve" on a stream: what Nix's ssh:// stores, nix-copy-closure and
// older build farms speak.
//
// It is a mouth: a session translates commands into operations of one connection to the daemon (package client), whose rights
// are those of the user that ssh logged in. Whether the session may change anything is Options.Write besides.
//
//	handshake ──▶ command ──▶ fields are read ──▶ work ──▶ answer ──▶ next command
//	                              │bad              │fails
//	                              ▼                 ▼
//	                        Serve returns the error; the caller writes it to standard error and exits
//
// The protocol has no error replies but those of builds, and no messages: what builders print goes to Options.Log.
// While a build runs, the next byte of the client is awaited; when the stream ends instead, the build is cancelled.
//
// Requests have the bounds of package protocol; archives are streamed.
package legacy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/archive/wire"
	"cairn/client"
	"cairn/daemon/protocol"
)

// ErrReadOnly says that the session must not change the store.
var ErrReadOnly = errors.New("this needs --write")

// errGone is why a build is cancelled.
var errGone = errors.New("the client has hung up")

// Options are the choices of a session. The zero value reads only.
type Options struct {
	Write   bool             // allow what changes the store
	Log     io.Writer        // gets what builders print; default: nobody
	Version protocol.Version // announced; default: protocol.ServeNewest
}

// session is one client.
type session struct {
	conn  *client.Conn
	opts  Options
	in    *bufio.Reader
	d     *protocol.Decoder
	e     *protocol.Encoder
	ahead chan struct{} // closed when nobody waits for the client's next byte
}

// Serve serves one client until it leaves, which is no error, and closes rw then. conn stays open.
func Serve(ctx context.Context, rw io.ReadWriteCloser, conn *client.Conn, opts *Options) error {
	defer rw.Close()
	stop := context.AfterFunc(ctx, func() { rw.Close() })
	defer stop()
	s := &session{conn: conn, in: bufio.NewReaderSize(rw, 64<<10)}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.Log == nil {
		s.opts.Log = io.Discard
	}
	r, w := wire.NewReader(s.in), wire.NewWriter(rw)
	format, err := protocol.ServeHandshake(r, w, conn.Dir(), s.opts.Version)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	s.d, s.e = protocol.NewDecoder(r, format), protocol.NewEncoder(w, format)
	for {
		more, err := s.next(ctx)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return cause
		}
		if err != nil || !more {
			return err
		}
	}
}

// next serves one command.
func (s *session) next(ctx context.Context) (bool, error) {
	if s.ahead != nil {
		<-s.ahead
	}
	n, err := s.d.Wire().Uint64()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read command: %w", err)
	}
	cmd := find(protocol.ServeCommand(n))
	if cmd == nil {
		return false, fmt.Errorf("unknown serve command %d", n)
	}
	if cmd.writes && !s.opts.Write {
		return false, fmt.Errorf("%s: %w", cmd.name, ErrReadOnly)
	}
	s.d.Reset(protocol.MaxRequest)
	if err := cmd.run(s, ctx); err != nil {
		return false, fmt.Errorf("%s: %w", cmd.name, err)
	}
	return true, s.e.Flush()
}

// attended returns a context that ends when the client hangs up before stop is called.
func (s *session) attended(ctx context.Context) (attended context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.ahead = make(chan struct{})
	go func() {
		defer close(s.ahead)
		if _, err := s.in.Peek(1); err != nil {
			cancel(errGone)
		}
	}()
	return ctx, func() { cancel(nil) }
}
