package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"cairn/archive"
	"cairn/archive/wire"
	"cairn/daemon/protocol"
	"cairn/store"
	"cairn/store/disk"
)

// readBuffer is a session's share of memory while it does nothing.
const readBuffer = 32 << 10

// handshakeTime is how long a client may take to say who it is.
const handshakeTime = 30 * time.Second

// refusalTime is the same for one who will be refused, and holds a connection until then.
const refusalTime = 5 * time.Second

// lingerTime is how long a client may go on with a request that nobody reads any more.
const lingerTime = 5 * time.Second

// session is one connection.
type session struct {
	server *Server
	ctx    context.Context // of all work
	peer   Peer
	rights archive.Verbs // decided once, when it begins
	conn   io.ReadWriteCloser
	d      *protocol.Decoder
	e      *protocol.Encoder
	tunnel *tunnel
	lease  *disk.Lease // of what was added and what AddTempRoot named
	held   int
	set    choices
	memory memory
	beat   *time.Timer       // of the next sign of life; nil: nobody wants one
	within atomic.Bool       // a request
	upload *wire.FrameReader // of the request under way
	sent   *disk.Lease       // of what its reply is made of; nil: nothing
	passed descriptors

	mu     sync.Mutex // guards what follows
	busy   string     // the operation under way
	since  time.Time
	ending bool     // no request is begun any more
	ended  []func() // called at the end
}

// session runs a session to its end. A client that leaves between requests is no error.
func (s *Server) session(ctx context.Context, rw io.ReadWriteCloser, peer Peer) error {
	x := &session{server: s, ctx: ctx, peer: peer, conn: rw, set: choices{Settings: s.settings, level: protocol.LevelInfo}, memory: memory{all: &s.memory}}
	if peer.inside != nil {
		x.set.Settings = peer.inside.Settings()
	}
	rights, refused := s.rightsOf(peer)
	if x.rights = rights; refused == nil {
		refused = s.enter(x)
	}
	defer x.end()
	format, err := x.handshake(refused)
	if err != nil {
		return err
	}
	s.log.Debug("session", "uid", peer.UID, "pid", peer.PID, "rights", x.rights.String(), "protocol", format.Version, "features", format.Features)
	x.lease = s.store.Lease(fmt.Sprintf("session of uid %d pid %d", peer.UID, peer.PID), 0)
	if peer.inside == nil {
		s.welcome(peer)
	}
	for {
		more, err := x.next()
		if err != nil || !more {
			return err
		}
	}
}

// welcome makes the directories of a user who is here for the first time, as nix-daemon does.
func (s *Server) welcome(peer Peer) {
	u, err := user.LookupId(strconv.Itoa(peer.UID))
	if err != nil {
		return
	}
	layout := s.store.Layout()
	if err := layout.AddUser(u.Username, peer.UID); err != nil {
		s.log.Warn("user has no directories", "error", err)
	}
}

// end closes the connection and lets go of what the session kept.
func (x *session) end() {
	x.mu.Lock()
	x.ending = true
	ended := x.ended
	x.mu.Unlock()
	x.conn.Close()
	x.passed.drop()
	for _, f := range ended {
		f()
	}
	if x.lease != nil {
		x.lease.Release()
	}
	x.server.leave(x)
}

// onEnd has f called when the session ends, at once if it has.
func (x *session) onEnd(f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = append(x.ended, f)
}

// handshake greets the client, or tells it why it is refused.
func (x *session) handshake(refused error) (protocol.Format, error) {
	if c, ok := x.conn.(net.Conn); ok {
		limit := handshakeTime
		if refused != nil {
			limit = refusalTime
		}
		c.SetDeadline(time.Now().Add(limit))
		defer c.SetDeadline(time.Time{})
	}
	hello := protocol.Server{
		Dir: x.server.store.Dir(), Name: x.server.opts.Version, Features: x.features(), Trust: protocol.NotTrusted,
	}
	in := bufio.NewReaderSize((*patient)(x), readBuffer)
	if err := x.lower(in); err != nil {
		return protocol.Format{}, fmt.Errorf("handshake: %w", err)
	}
	if x.rights == archive.All {
		hello.Trust = protocol.Trusted
	}
	r, w := wire.NewReader(in), wire.NewWriter(x.conn)
	f, err := hello.Handshake(r, w)
	if err != nil {
		return f, fmt.Errorf("handshake: %w", err)
	}
	x.d, x.e = protocol.NewDecoder(r, f), protocol.NewEncoder(w, f)
	x.d.Reserve = x.memory.take
	x.passed.wanted = f.Has(protocol.FeatureDescriptor)
	x.tunnel = newTunnel(x.e)
	if f.Has(protocol.FeatureHeartbeat) {
		x.beat = time.AfterFunc(time.Hour, x.heartbeat)
		x.beat.Stop()
	}
	if err := x.answer(refused, nil); err != nil {
		return f, fmt.Errorf("handshake: %w", err)
	}
	return f, refused
}

// features are the server's, without what this peer cannot have.
func (x *session) features() []protocol.Feature {
	_, passes := x.conn.(*net.UnixConn)
	inside := x.peer.inside != nil
	return slices.DeleteFunc(slices.Clone(x.server.features), func(f protocol.Feature) bool {
		switch f {
		case protocol.FeatureRealisations, protocol.FeatureDeleteReferrers, protocol.FeatureHeartbeat:
			return false
		case protocol.FeatureDescriptor:
			return inside || !passes
		}
		return inside
	})
}

// lower reads which rights the client wants at most, if it says so before the handshake.
func (x *session) lower(in *bufio.Reader) error {
	most, err := protocol.ReadLimit(in)
	if err == nil && most != 0 {
		x.rights &= most | archive.Connect
	}
	return err
}

// patient reads from a session's connection: without limit for the next request, but not for ever within one,
// because others may wait for what it holds.
type patient session

func (p *patient) Read(b []byte) (int, error) {
	c, ok := p.conn.(net.Conn)
	if !ok || p.d == nil { // the handshake has its own limit
		return p.conn.Read(b)
	}
	if p.within.Load() {
		c.SetReadDeadline(time.Now().Add(p.server.opts.MaxStall))
	} else {
		c.SetReadDeadline(time.Time{})
	}
	read := c.Read
	if uc, ok := c.(*net.UnixConn); ok && p.passed.wanted {
		read = func(b []byte) (int, error) { return p.passed.read(uc, b) }
	}
	n, err := read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the client has sent nothing for %v: %w", p.server.opts.MaxStall, err)
	}
	return n, err
}

// next serves one request. It returns false at the end of the session.
func (x *session) next() (bool, error) {
	n, err := x.d.Wire().Uint64()
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || x.isEnding() {
			return false, nil
		}
		return false, fmt.Errorf("read request: %w", err)
	}
	op := x.find(protocol.Op(n))
	if op == nil {
		err := fmt.Errorf("invalid operation %d", n)
		x.answer(err, nil)
		return false, err
	}
	if !x.begin(op.name) {
		x.answer(ErrShutdown, nil)
		return false, nil
	}
	err = x.request(op)
	x.server.low.nudge()
	if more := x.done(); err == nil && !more {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", op.name, err)
	}
	return true, nil
}

func (x *session) isEnding() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ending
}

// begin marks the session busy, unless it must end.
func (x *session) begin(name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ending {
		return false
	}
	x.busy, x.since = name, time.Now()
	return true
}

// done marks it idle, and reports whether another request may come.
func (x *session) done() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.busy = ""
	return !x.ending
}

// closeIfIdle ends a session between requests, and lets one that works end after this one.
func (x *session) closeIfIdle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ending = true
	if x.busy == "" {
		x.conn.Close()
	}
}

// maxHeld is how many paths a session may keep alive by name.
const maxHeld = 1 << 20

// hold keeps paths alive until the session ends.
func (x *session) hold(ps ...store.Path) error {
	if x.held += len(ps); x.held > maxHeld {
		return fmt.Errorf("keep %d paths: this session keeps %d already, and the limit is %d", len(ps), x.held-len(ps), maxHeld)
	}
	return x.lease.Hold(ps...)
}

// holdToSend keeps paths alive until the request under way is answered: a session that only reads, perhaps for years, keeps nothing.
func (x *session) holdToSend(ps ...store.Path) error {
	if x.sent == nil {
		x.sent = x.server.store.Lease(fmt.Sprintf("reader of uid %d pid %d", x.peer.UID, x.peer.PID), 0)
	}
	return x.sent.Hold(ps...)
}

func (x *session) releaseSent() {
	if x.sent != nil {
		x.sent.Release()
		x.sent = nil
	}
}

// request reads, checks, runs and answers. An error ends the session.
func (x *session) request(op *operation) error {
	x.within.Store(true)
	defer x.within.Store(false)
	x.d.Reset(protocol.MaxRequest)
	x.upload = nil
	defer x.memory.release()
	defer x.passed.drop()
	defer x.releaseSent()
	run := op.handle(x)
	framed := op.framed != 0 && x.d.Version >= protocol.Minor(op.framed)
	inline := op.framed != 0 && !framed && (op.pulled == 0 || x.d.Version < protocol.Minor(op.pulled))
	if framed && x.d.Broken() == nil {
		x.upload = wire.NewFrameReader(x.d.Wire())
	}
	var rep reply
	err := x.d.Err()
	lost := x.d.Broken() != nil || err != nil && inline
	if err == nil {
		err = x.need(op.verb, op.name)
		lost = err != nil && inline
	}
	if err == nil {
		rep, err = x.work(op, run)
		lost = err != nil && inline
	}
	if err == nil && framed {
		if err = x.upload.Drain(); err != nil {
			err, lost = fmt.Errorf("read upload: %w", err), true
		}
	}
	if lost {
		return x.breakOff(err)
	}
	if sendErr := x.answer(err, rep); sendErr != nil {
		return sendErr
	}
	if err != nil && framed {
		if err := x.upload.Drain(); err != nil {
			return fmt.Errorf("drain upload: %w", err)
		}
	}
	return nil
}

// breakOff answers a request whose rest nobody reads, and returns why. A client that writes all of its request before it reads would
// wait for ever, or learn no more than that the connection is closed. So what still comes is thrown away for lingerTime, or until the client
// hangs up.
func (x *session) breakOff(why error) error {
	x.memory.release()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(io.Discard, x.conn)
	}()
	over := make(chan struct{})
	timer := time.AfterFunc(lingerTime, func() {
		x.conn.Close()
		close(over)
	})
	defer timer.Stop()
	if err := x.answer(why, nil); err != nil {
		return errors.Join(why, err)
	}
	if c, ok := x.conn.(*net.UnixConn); ok {
		c.CloseWrite() // a client that has read the answer sees that there is no other
	}
	select {
	case <-drained:
	case <-over: // of a pipe, which may be read until the process ends
	}
	return why
}

// work runs a request with the tunnel open, watching the client if it may take long.
func (x *session) work(op *operation, run runner) (reply, error) {
	ctx, cancel := context.WithCancelCause(disk.WithLease(x.ctx, x.lease))
	defer cancel(nil)
	gone := func() { cancel(ErrHangup) }
	x.tunnel.begin(gone)
	if x.beat != nil {
		x.beat.Reset(protocol.HeartbeatTime)
		defer x.beat.Stop()
	}
	stop := func() {}
	if op.long {
		stop = watch(x.conn, gone)
	}
	rep, err := x.run(ctx, op, run)
	stop()
	if sendErr := x.tunnel.end(); sendErr != nil {
		return nil, errors.Join(err, sendErr)
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return rep, err
}

// heartbeat gives a sign of life, and the next one later, while work runs.
func (x *session) heartbeat() {
	if x.tunnel.send(&protocol.Message{Kind: protocol.KindResult, Result: protocol.ResHeartbeat}) {
		x.beat.Reset(protocol.HeartbeatTime)
	}
}

// run turns a bug in one request into the end of that session, not of the daemon.
func (x *session) run(ctx context.Context, op *operation, run runner) (rep reply, err error) {
	defer func() {
		if bug := recover(); bug != nil {
			x.server.log.Error("BUG", "operation", op.name, "panic", bug, "stack", string(debug.Stack()))
			rep, err = nil, fmt.Errorf("BUG in the daemon: %s: %v; see its log", op.name, bug)
		}
	}()
	return run(ctx)
}

// answer sends Last and the reply, or Error.
func (x *session) answer(err error, rep reply) error {
	if err != nil {
		x.e.Message(&protocol.Message{Kind: protocol.KindError, Err: protocol.NewError(err)})
		return x.e.Flush()
	}
	x.e.Message(&protocol.Message{Kind: protocol.KindLast})
	if rep != nil {
		if err := rep(x.e); err != nil {
			return err
		}
	}
	return x.e.Flush()
}
