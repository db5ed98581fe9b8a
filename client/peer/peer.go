// Package peer reaches stores of other machines, and other stores of this one, by URI.
//
//	ssh-ng://[user@]host[:port]   the worker protocol (package client) with "nix-daemon --stdio" or "cairn daemon --stdio" there
//	ssh://[user@]host[:port]      the serve protocol (package client/legacy) with "nix-store --serve --write" or "cairn serve --legacy"
//	unix:///socket                the worker protocol at a socket
//	daemon                        the daemon of this machine
//
// The parameters remote-program, remote-store, ssh-key, base64-ssh-public-host-key and compress are Nix's, as is
// the environment variable NIX_SSHOPTS. As with Nix, ssh://localhost and ssh-ng://localhost start the program without ssh.
//
// # Why the ssh program, once per connection
//
// Package deploy/ssh opens many channels through one master; here one stream lives as long as one store is used. A process of its
// own has a standard error of its own, on which the serve protocol sends build logs, takes NIX_SSHOPTS as people
// write them for Nix, and when it is killed nothing is left of the connection.
//
// # A dead machine
//
// is noticed in bounded time, whatever it does not answer:
//
//   - ssh asks for signs of life itself (ServerAliveInterval) and ends when there is none;
//   - dialing, handshake included, has Options.Connect;
//   - any read or write that lasts longer than Options.Silence ends the connection. Our own daemons send a heartbeat
//     (protocol.FeatureHeartbeat) while they work, so that the limit holds during builds, too. Others say nothing while a
//     builder is silent: then the limit does not hold during builds and downloads, and ssh's own signs of life are what there is.
package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"cairn/client"
	"cairn/client/legacy"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// Defaults of Options.
const (
	DefaultConnect = 15 * time.Second
	DefaultSilence = 30 * time.Second
)

// Options are how peers are reached. The zero value works.
type Options struct {
	Dir        store.Dir     // the store directory; default: store.DefaultDir
	Socket     string        // of the daemon of this machine, for "daemon"
	SSH        string        // program; default: ssh
	SSHOptions string        // NIX_SSHOPTS: options for ssh, separated by blanks
	Connect    time.Duration // until the handshake is over; default: DefaultConnect
	Silence    time.Duration // longest time without a sign of life; default: DefaultSilence
	Observer   client.Observer
	// CheckSignatures makes the peer check signatures of what is added even though it trusts us. The serve protocol cannot.
	CheckSignatures bool
}

func (o *Options) program() string        { return cmp.Or(o.SSH, "ssh") }
func (o *Options) connect() time.Duration { return cmp.Or(o.Connect, DefaultConnect) }
func (o *Options) silence() time.Duration { return cmp.Or(o.Silence, DefaultSilence) }

// endpoint is what both protocols can do.
type endpoint interface {
	store.ReadWriter
	Close() error
	ValidPaths(ctx context.Context, paths []store.Path) ([]store.Path, error)
	Obtain(ctx context.Context, paths []store.Path) ([]store.Path, error)
	Closure(ctx context.Context, paths []store.Path) ([]*store.Info, error)
	AddFrom(ctx context.Context, infos []*store.Info, from store.Reader) error
}

// Conn is a connection to a peer.
type Conn struct {
	endpoint
	address Address
	worker  *client.Conn // one of these two is nil
	serve   *legacy.Conn
	process *process // nil for sockets
	stream  *stream
	beats   bool // the peer gives signs of life while it works
}

// Dial connects to a peer. opts may be nil.
func Dial(ctx context.Context, a Address, opts *Options) (*Conn, error) {
	if opts == nil {
		opts = &Options{}
	}
	c := &Conn{address: a}
	rw, err := c.open(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a, err)
	}
	c.stream = &stream{ReadWriteCloser: rw}
	err = within(ctx, opts.connect(), func(ctx context.Context) error { return c.greet(ctx, opts) })
	if err != nil {
		rw.Close()
		return nil, fmt.Errorf("connect to %s: %w", a, err)
	}
	c.stream.limit.Store(int64(opts.silence()))
	return c, nil
}

// open makes the stream.
func (c *Conn) open(ctx context.Context, opts *Options) (io.ReadWriteCloser, error) {
	var socket string
	switch c.address.Scheme {
	case SSH, SSHNG:
		p, err := start(c.address, opts)
		c.process = p
		if err != nil {
			return nil, err
		}
		return p, nil
	case Socket:
		socket = c.address.Path
	case Auto:
		socket = opts.Socket
	}
	if socket == "" {
		return nil, errors.New("no socket is known")
	}
	name, release, err := client.SocketName(socket)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", name)
}

func (c *Conn) greet(ctx context.Context, opts *Options) (err error) {
	if c.address.Scheme == SSH {
		c.serve, err = legacy.New(ctx, c.stream, &legacy.Options{Dir: opts.Dir})
		c.endpoint = c.serve
		return err
	}
	features := []protocol.Feature{protocol.FeatureCairn, protocol.FeatureDeleteReferrers, protocol.FeatureHeartbeat}
	c.worker, err = client.New(ctx, c.stream, &client.Options{Dir: opts.Dir, Features: features, Observer: opts.Observer, CheckSignatures: opts.CheckSignatures})
	if err != nil {
		return err
	}
	c.endpoint, c.beats = c.worker, c.worker.Server().Has(protocol.FeatureHeartbeat)
	return nil
}

// Close ends the connection and waits for its process.
func (c *Conn) Close() error {
	err := c.endpoint.Close()
	if c.process != nil {
		return c.process.Close()
	}
	return err
}

// Address returns where the peer is.
func (c *Conn) Address() Address { return c.address }

// NARs is client.Conn.NARs.
func (c *Conn) NARs(ctx context.Context, paths []store.Path, next func(store.Path) (io.Writer, error)) error {
	return client.NARs(ctx, c.endpoint, paths, next)
}

// Version says what was agreed on with the peer.
func (c *Conn) Version() string {
	if c.worker != nil {
		return c.worker.Server().Version.String()
	}
	return c.serve.Version().String()
}

// Trusts reports whether the peer takes our word for what we add and build: it says so, or it does not speak of it.
func (c *Conn) Trusts() bool {
	return c.worker == nil || c.worker.Server().Trust != protocol.NotTrusted
}

// grace is how much longer than the peer itself a build's limits are waited for.
const grace = time.Minute

// long runs what may take its time. Unless the peer gives signs of life, the limit of silence is another one, or none.
func (c *Conn) long(silence time.Duration, f func() error) error {
	if c.beats {
		return f()
	}
	return c.stream.within(silence, f)
}

// patience is the limits with which a build is waited for at a peer that gives no signs of life: those that it knows itself, and
// a little more.
func (c *Conn) patience(ctx context.Context, l Limits) (context.Context, context.CancelFunc, time.Duration) {
	var silence time.Duration
	if l.MaxSilent > 0 && c.worker != nil { // the serve protocol has logs elsewhere
		silence = l.MaxSilent + grace
	}
	if l.Timeout == 0 {
		return ctx, func() {}, silence
	}
	limit := l.Timeout + grace
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: the build is not over after %v, though the peer should end it after %v", ErrSilent, limit, l.Timeout))
	return ctx, cancel, silence
}

// Obtain returns those of the paths that are valid, after the peer has fetched from its caches what it could.
func (c *Conn) Obtain(ctx context.Context, paths []store.Path) (valid []store.Path, err error) {
	err = c.long(0, func() error {
		valid, err = c.endpoint.Obtain(ctx, paths)
		return err
	})
	return valid, err
}

// Realisation returns the path that an output of a derivation is known to have. Only the worker protocol tells.
func (c *Conn) Realisation(ctx context.Context, id store.DrvOutput) (store.Realisation, bool, error) {
	if c.worker == nil {
		return store.Realisation{}, false, nil
	}
	return c.worker.Realisation(ctx, id)
}

// Keep keeps paths alive at the peer until the connection ends, as far as it can. The serve protocol does so with each question.
func (c *Conn) Keep(ctx context.Context, paths []store.Path) error {
	if c.worker == nil {
		return nil
	}
	return c.worker.AddTempRoots(ctx, paths)
}

// Limits are those of a build.
type Limits struct {
	MaxSilent, Timeout time.Duration
	MaxLog             int64
	KeepFailed         bool
	Substitute         bool // let the peer fetch from its caches
}

// BuildDerivation builds a derivation whose inputs are resolved and valid at the peer. log gets what the builder prints, as lines.
func (c *Conn) BuildDerivation(ctx context.Context, path store.Path, drv *derivation.Derivation, l Limits, log io.Writer) (r *protocol.BuildResult, err error) {
	ctx, cancel, silence := c.patience(ctx, l)
	defer cancel()
	err = c.long(silence, func() error {
		if c.serve != nil {
			c.process.hearken(log)
			defer c.process.hearken(nil)
			r, err = c.serve.BuildDerivation(ctx, path, drv, l.serve())
			return err
		}
		if err := c.worker.SetOptions(ctx, l.worker()); err != nil {
			return err
		}
		r, err = c.worker.BuildDerivation(ctx, path, drv, client.Normal, relay{log})
		return err
	})
	return r, err
}

// Build builds all outputs of a valid derivation, of which the peer need not take our word. Only the worker protocol can.
func (c *Conn) Build(ctx context.Context, drv store.Path, l Limits, log io.Writer) (r *protocol.BuildResult, err error) {
	if c.worker == nil {
		return nil, fmt.Errorf("build %s: %w", drv, client.ErrUnsupported)
	}
	ctx, cancel, silence := c.patience(ctx, l)
	defer cancel()
	err = c.long(silence, func() error {
		if err := c.worker.SetOptions(ctx, l.worker()); err != nil {
			return err
		}
		list, err := c.worker.Build(ctx, []protocol.Target{{Path: drv, Outputs: protocol.All()}}, client.Normal, relay{log})
		if err == nil && len(list) != 1 {
			err = fmt.Errorf("build %s: the peer answered with %d results", drv, len(list))
		}
		if err == nil {
			r = list[0]
		}
		return err
	})
	return r, err
}

func (l Limits) serve() *protocol.ServeOptions {
	return &protocol.ServeOptions{MaxSilent: seconds(l.MaxSilent), Timeout: seconds(l.Timeout), MaxLog: uint64(max(l.MaxLog, 0)), KeepFailed: l.KeepFailed}
}

func (l Limits) worker() *protocol.Options {
	return &protocol.Options{
		KeepFailed: l.KeepFailed, MaxSilent: seconds(l.MaxSilent), UseSubstitutes: l.Substitute, MaxJobs: 1, UseBuildHook: true,
		Overrides: map[string]string{
			"timeout": strconv.FormatUint(seconds(l.Timeout), 10), "max-build-log-size": strconv.FormatInt(max(l.MaxLog, 0), 10), "builders": "",
		},
	}
}

func seconds(d time.Duration) uint64 { return uint64((max(d, 0) + time.Second - 1) / time.Second) }

// relay writes what a build tells as lines of its log.
type relay struct{ w io.Writer }

// Message takes lines and phases.
func (r relay) Message(m *protocol.Message) {
	if m.Kind != protocol.KindResult || len(m.Fields) == 0 || r.w == nil {
		return
	}
	switch text := m.Fields[0].Text; m.Result {
	case protocol.ResBuildLogLine:
		io.WriteString(r.w, text+"\n")
	case protocol.ResSetPhase:
		fmt.Fprintf(r.w, "@nix {\"action\":\"setPhase\",\"phase\":%s}\n", strconv.Quote(text))
	}
}
