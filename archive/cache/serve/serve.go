// Package serve is a binary cache made on the fly: the objects of a store over HTTP, for Nix's clients and ours, read-only.
//
//	/nix-cache-info                     what this is
//	/<digest>.narinfo                   an object, signed with our keys besides the signatures it has
//	/<digest>.ls                        what is in it
//	/nar/<digest>-<NarHash>.nar         its archive, with ranges
//	/nar/<digest>-<NarHash>.nar.zst     its archive, packed while it is sent
//	/log/<derivation>                   build log
//	/realisations/<id>.doi              which path an output has
//	/build-trace-v2/<drv>/<output>.doi  the same, by the derivation's path
//	/metrics                            counters for Prometheus
//
// Archives have their hash in their name, so that they never change; each answer has an ETag and is not sent again
// to whoever has it. An object's description is kept in memory with its signatures and asked for again after
// Options.Fresh; what is not there is always asked for. Packed archives have no FileHash, because nobody knows it
// before they are packed.
//
// Everything is bounded: the number of connections, the number of archives under way (others wait a little, then
// get 503), the time a client may take to ask and to take what it asked for. A stream that breaks in the middle ends
// the connection, so that no client takes a part for the whole.
//
// Whoever can reach the server can read every object in the store: it listens on loopback unless told otherwise, and
// encryption and passwords are for a proxy in front of it.
package serve

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/store"
)

// ErrWithheld says that an object is there and not given away. For clients it is not there, and the log says why.
var ErrWithheld = errors.New("not served")

// Source is the store that is served. It is used by many requests at a time. What is not there is store.ErrNotValid.
type Source interface {
	store.Reader
	// ByDigest describes the object with a digest.
	ByDigest(ctx context.Context, digest string) (*store.Info, error)
	// Log writes a build log.
	Log(ctx context.Context, drv store.Path, w io.Writer) error
	// Realisation returns what is known of an output.
	Realisation(ctx context.Context, id store.DrvOutput) (*store.Realisation, error)
	// Output returns the path of an output by the derivation's path.
	Output(ctx context.Context, drv store.Path, output string) (store.Path, error)
}

// Options are the choices of a server. The zero value works.
type Options struct {
	Keys        []archive.SecretKey
	Priority    int                 // 0: 30
	Compression archive.Compression // that narinfos tell; zstd or none; empty: zstd

	Fresh       time.Duration // how long a description is believed; 0: 10 s
	Remembered  int           // descriptions that are kept; 0: 32768
	Streams     int           // archives, listings and logs at a time; 0: 64
	Connections int           // 0: 1024
	Patience    time.Duration // for a client to take the next piece; 0: 60 s

	Logger *slog.Logger // nil: discard
}

// Server serves a store. It is an http.Handler.
type Server struct {
	dir     store.Dir
	source  Source
	opts    Options
	info    string
	objects *memory
	streams chan struct{}
	counts  *counters
}

// queue is how long a request waits for its turn to stream.
const queue = 5 * time.Second

// New returns a server of a store.
func New(dir store.Dir, source Source, opts *Options) *Server {
	s := &Server{dir: dir, source: source, counts: newCounters()}
	if opts != nil {
		s.opts = *opts
	}
	o := &s.opts
	o.Priority = cmp.Or(o.Priority, 30)
	o.Compression = cmp.Or(o.Compression, archive.Zstd)
	o.Fresh = cmp.Or(o.Fresh, 10*time.Second)
	o.Remembered = cmp.Or(o.Remembered, 32<<10)
	o.Streams = cmp.Or(o.Streams, 64)
	o.Connections = cmp.Or(o.Connections, 1024)
	o.Patience = cmp.Or(o.Patience, time.Minute)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s.info = (&cache.Info{StoreDir: dir, WantMassQuery: true, Priority: o.Priority}).Text()
	s.objects = newMemory(o.Remembered)
	s.streams = make(chan struct{}, o.Streams)
	return s
}

// Serve answers on a listener, which it closes, until ctx ends; then it lets requests finish for as long as grace.
func (s *Server) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(limitConnections(l, s.opts.Connections)) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := server.Shutdown(limit)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	<-served
	return err
}

// limited is a listener with at most so many connections open.
type limited struct {
	net.Listener
	slots chan struct{}
}

func limitConnections(l net.Listener, n int) net.Listener {
	return &limited{l, make(chan struct{}, n)}
}

// Accept waits for a slot only after there is a connection, so that closing the listener always ends it.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotted{Conn: c, slots: l.slots}, nil
		default:
			c.Close() // one too many
		}
	}
}

// slotted frees its slot when it is closed first.
type slotted struct {
	net.Conn
	slots  chan struct{}
	closed onceFlag
}

func (c *slotted) Close() error {
	if c.closed.first() {
		<-c.slots
	}
	return c.Conn.Close()
}
