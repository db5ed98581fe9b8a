// Package daemon serves a store to clients, Nix's and our own, over the worker protocol.
//
// # Sessions
//
// A connection is a session: one goroutine that takes requests from the table in ops.go, one
// after the other. A request runs like this:
//
//	fields are read ──▶ rights ──▶ work ──▶ Last + reply          session goes on
//	   │broken            │no        │fails
//	   ▼                  ▼          ▼
//	Error, close        Error ──▶ the rest of a framed upload is read      session goes on
//
// An error is sent at once, before the rest of an upload is read; the client stops sending.
// An error where the position in the stream is lost ends the session.
//
// While work runs, messages to the client (log lines, activities, progress) go through the
// session's tunnel: producers never wait, a goroutine writes, and a client that reads too
// slowly loses log lines, which it is told. A client that hangs up during work is noticed
// (hangup.go) and cancels the work's context; a build dies when the last who wanted it is gone.
//
// # Rights
//
// The peer of a unix socket is known by its credentials. Once, when it connects, the access list says what it may do
// (package archive has the verbs; access.go adds the rules that Nix's settings are). Root and the
// daemon's own user may do everything. The table says which verb an operation takes; what an operation may
// do besides, its handler asks for: to repair, to delete, to see others, to override settings, to add without proof.
// The list is read again when its file changes: rights hold for new sessions, keys at once. A list that is wrong allows nobody
// anything but root.
//
// A client may give rights away before the handshake (protocol.ReadLimit), never get more.
//
// Whoever lacks the verb import can make a path valid only if the path is
// content-addressed, or was built here, or carries a signature by a key that may
// import. A .drv becomes valid, whoever adds it, only when the outputs that it claims are its own (package disk).
// Anybody may attach signatures; the list decides which count.
// What caches offer is taken by the same rule, whoever asks for it (package substitute); which caches those are, and that one needs no
// signatures, only who may override settings can say.
//
// A builder that requires "recursive-nix" has a session of another kind (inside.go), with a table of its own, in which nothing
// exists but what the build may know.
//
// # Keeping alive
//
// What a session adds, builds or asks for with AddTempRoot is leased to it until it ends, so that
// a collection cannot take it before the client has made a root.
//
// # Generations of clients
//
// All versions from 1.10 on are served, and what each of them sends and gets is in versions_test.go, byte by byte. Realisations have
// two names: by hash for clients before 2.35, by the derivation's path for those since (realisation.go). Both are
// recorded as soon as both are known, and what was registered by one is found by the other, except when the derivation was not
// valid here at any time between, so that nobody could know that the two are the same.
//
// # When the store is deleted
//
// Whoever removes the directories of the store or of its state wants another store. The next connection waits at the Door while the
// old server, builder and store are closed, and is served from a new, empty store.
//
// # When space is low
//
// With the setting min-free the daemon collects garbage by itself (lowspace.go).
//
// # Bounds
//
// Connections are limited, in all and per user; one request costs at most protocol.MaxRequest
// bytes of memory, all large ones together maxMemory (memory.go), a waiting message queue a few MiB; contents are streamed.
// A client that pauses in the middle of a request loses its session after Options.MaxStall. One whose request is refused before its end is
// told so; the rest is thrown away for a few seconds, so that it gets to read that.
//
// # Shutdown
//
// Drain stops accepting and closes idle sessions, lets requests finish until its context ends, then cancels
// them and waits. Close is Drain without patience.
//
// Lock order: Server.mu before session.mu; neither is held during work.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"cairn/archive"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store/disk"
)

// Causes with which the work of a request is cancelled.
var (
	ErrHangup   = errors.New("the client has hung up")
	ErrShutdown = errors.New("the daemon is shutting down")
)

// Defaults of Options.
const (
	DefaultMaxConnections = 1000
	DefaultMaxStall       = 5 * time.Minute
)

// Options are the choices of a server. The zero value is right for tests and root.
type Options struct {
	// Version is the text that the handshake shows; the default is "cairn".
	Version string
	// ACL is the file that says who may do what; the default is "acl" in the layout's ConfDir.
	ACL string
	// SigningKey is the file with the secret key of exports; the default is "signing-key.sec" there.
	SigningKey string
	// Rights, unless they are none, are what every peer may do, whoever it is and whatever the ACL says.
	Rights archive.Verbs
	// Settings are what sessions start with, and rules beside the ACL; the default is settings.Defaults.
	Settings *settings.Settings
	// Withhold are features that are neither announced nor served, as if this were an older daemon; the default is none.
	Withhold []protocol.Feature
	// MaxConnections limits sessions; a user who is not trusted may have half of them.
	MaxConnections int
	// MaxStall is how long a client may pause in the middle of a request; the default is DefaultMaxStall.
	MaxStall time.Duration
	// Logger is told of sessions and their errors; the default is silence.
	Logger *slog.Logger
}

// Server serves a store.
type Server struct {
	store    *disk.Store
	build    *build.Builder
	hashes   *hashes
	opts     Options
	settings *settings.Settings // never changed
	features []protocol.Feature // announced to those who may have them
	access   *access
	log      *slog.Logger
	began    time.Time
	ids      atomic.Uint64 // of activities
	memory   atomic.Int64  // MiB that large requests have reserved
	departed atomic.Uint64 // sessions that have ended
	low      *lowSpace     // nil: nothing is collected by itself

	ctx    context.Context // of all work; ends with ErrShutdown
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // sessions

	mu        sync.Mutex // guards what follows
	draining  bool
	listeners map[net.Listener]bool
	sessions  map[*session]bool
	users     map[int]int // sessions by uid
}

// New returns a server of s. opts may be nil. Builder and store outlive the server.
func New(s *disk.Store, b *build.Builder, opts *Options) *Server {
	if opts == nil {
		opts = &Options{}
	}
	srv := &Server{
		store: s, build: b, hashes: &hashes{store: s}, opts: *opts, log: opts.Logger, began: time.Now(),
		listeners: map[net.Listener]bool{}, sessions: map[*session]bool{}, users: map[int]int{},
	}
	srv.setDefaults()
	srv.features = announced(srv.opts.Withhold)
	srv.access = &access{file: srv.opts.ACL, settings: srv.settings, log: srv.log}
	srv.ctx, srv.cancel = context.WithCancelCause(context.Background())
	b.ServeInside(srv.serveInside)
	srv.low = newLowSpace(srv)
	return srv
}

func (s *Server) setDefaults() {
	conf := s.store.Layout().ConfDir
	s.opts.Version = cmpText(s.opts.Version, "cairn")
	s.opts.ACL = cmpText(s.opts.ACL, filepath.Join(conf, "acl"))
	s.opts.SigningKey = cmpText(s.opts.SigningKey, filepath.Join(conf, "signing-key.sec"))
	if s.settings = s.opts.Settings; s.settings == nil {
		s.settings = settings.Defaults()
	}
	if s.opts.MaxConnections <= 0 {
		s.opts.MaxConnections = DefaultMaxConnections
	}
	if s.opts.MaxStall <= 0 {
		s.opts.MaxStall = DefaultMaxStall
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
}

// Serve accepts connections until Drain, Close or the end of ctx; that is no error.
// It does not wait for the sessions; Drain and Close do.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if !s.listen(l) {
		l.Close()
		return nil
	}
	defer s.unlisten(l)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			s.accept(c)
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		default:
			s.log.Warn("accept connection", "error", err)
			select {
			case <-time.After(100 * time.Millisecond): // no file descriptors, perhaps
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining {
		s.listeners[l] = true
	}
	return !s.draining
}

func (s *Server) unlisten(l net.Listener) {
	l.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// accept starts the session of a connection.
func (s *Server) accept(c net.Conn) {
	if !s.track() {
		c.Close()
		return
	}
	go func() {
		defer s.wg.Done()
		s.serve(c)
	}()
}

// track counts a session that Drain waits for, unless there is a Drain.
func (s *Server) track() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining {
		s.wg.Add(1)
	}
	return !s.draining
}

// serve is the life of an accepted connection.
func (s *Server) serve(c net.Conn) {
	peer, err := peerOf(c)
	if err != nil {
		s.log.Warn("refuse connection", "error", err)
		c.Close()
		return
	}
	if err := s.session(s.ctx, c, peer); err != nil {
		s.log.Info("session ended", "uid", peer.UID, "pid", peer.PID, "error", err)
	}
}

// ServeConn serves one session and closes the connection. Only the end of ctx, of the server or a broken
// stream is an error.
func (s *Server) ServeConn(ctx context.Context, rw io.ReadWriteCloser, peer Peer) error {
	if !s.track() {
		return errors.Join(ErrShutdown, rw.Close())
	}
	defer s.wg.Done()
	work, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		cancel(context.Cause(ctx))
		rw.Close()
	})
	defer stop()
	err := s.session(work, rw, peer)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// stdio is a stream of two files.
type stdio struct {
	in, out *os.File
}

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s stdio) Close() error                { return errors.Join(s.in.Close(), s.out.Close()) }

// ServeStdio serves one session with a trusted peer on two files, as "daemon --stdio" does for ssh-ng.
func (s *Server) ServeStdio(ctx context.Context, in, out *os.File) error {
	return s.ServeConn(ctx, stdio{in, out}, Peer{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getppid(), Trusted: true})
}

// enter counts a session in, or says why it cannot be.
func (s *Server) enter(x *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch uid := x.peer.UID; {
	case s.draining:
		return ErrShutdown
	case len(s.sessions) >= s.opts.MaxConnections:
		return fmt.Errorf("the daemon has %d connections, which is its limit; try again later", len(s.sessions))
	case x.rights != archive.All && s.users[uid] >= max(1, s.opts.MaxConnections/2):
		return fmt.Errorf("user %d has %d connections to the daemon, which is the limit; try again later", uid, s.users[uid])
	}
	s.sessions[x] = true
	s.users[x.peer.UID]++
	return nil
}

func (s *Server) leave(x *session) {
	s.departed.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.sessions[x] {
		return
	}
	delete(s.sessions, x)
	if s.users[x.peer.UID]--; s.users[x.peer.UID] == 0 {
		delete(s.users, x.peer.UID)
	}
}

// Drain stops accepting, closes idle sessions and waits for the others' requests.
// When ctx ends first it cancels them, waits all the same, and returns the context's cause.
func (s *Server) Drain(ctx context.Context) error {
	s.stopAccepting()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		s.cancel(ErrShutdown)
		s.low.wait()
		return nil
	case <-ctx.Done():
	}
	s.cancel(ErrShutdown)
	s.hangUp()
	<-done
	s.low.wait()
	return context.Cause(ctx)
}

// Close ends all sessions and waits for them.
func (s *Server) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Drain(ctx)
	return nil
}

func (s *Server) stopAccepting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for l := range s.listeners {
		l.Close()
	}
	for x := range s.sessions {
		x.closeIfIdle()
	}
}

// grace is how long a cancelled request may take to send its error.
const grace = 2 * time.Second

// hangUp closes all connections, those with cancelled work after a moment in which it can answer.
func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.sessions {
		x := x
		timer := time.AfterFunc(grace, func() { x.conn.Close() })
		x.onEnd(func() { timer.Stop() })
	}
}
