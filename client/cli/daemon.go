package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/client/peer"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/remote"
	"cairn/daemon/settings"
	"cairn/store/disk"
)

type daemonOptions struct {
	engineOptions
	stdio  bool
	socket string
	store  string // URI
}

func newDaemonCmd(env *Env) *cobra.Command {
	o := &daemonOptions{}
	cmd := &cobra.Command{
		Use:     "daemon [--stdio | --socket FILE]",
		GroupID: "service",
		Short:   "Own the store and serve it to clients",
		Long: `Own the store and serve it: to our own commands and to Nix's programs, which find
the socket through NIX_DAEMON_SOCKET_PATH or NIX_REMOTE. Nix's programs go around any
daemon when they may write the store's state, as root may: set NIX_REMOTE=daemon for
them. Who asks is known from the socket, and the access list says what they may do
('cairn acl --help').

Settings are Nix's: nix.conf in the configuration directory (NIX_CONF_DIR), the user's
files, NIX_CONFIG, and the options of this command, which come last. 'cairn config show'
lists them all, with where each value comes from.

When the directories of the store and of its state are deleted while it runs, the
next client finds an empty store. Objects without the database that knows them are
left alone: the daemon ends, and does not start until there is one.

With SIGTERM it takes no new connections, lets requests finish for up to two
minutes, and exits. Under systemd it says when it is ready.

--no-durability is for stores that are thrown away, in tests and on memory: nothing is
flushed to the disk. It is faster, and after a power cut anything may be lost or
damaged. The next daemon without it brings everything to the disk before it serves.

With --stdio it serves one client on standard input and output: through the running
daemon if there is one, else by itself. --rights lowers what that client may do, for
example in the command of an authorized_keys file. Without --stdio it is what every
client may do, whoever it is.`,
		Example: `  cairn daemon
  cairn daemon --root /dev/shm/try --no-durability
  cairn daemon --root ~/try --max-jobs 4 --option substituters=https://cache.example.org
  cairn daemon --stdio --rights connect,add
  NIX_REMOTE=unix:///cairn/var/daemon-socket/socket nix-store --store-dir /cairn/store -qR …`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDaemon(cmd.Context(), env, o) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.stdio, "stdio", false, "serve one client on standard input and output")
	f.StringVar(&o.store, "store", "", "the store that `URI` names, in Nix's form: daemon, unix:///SOCKET, local?root=DIR or DIR")
	f.StringVar(&o.socket, "socket", "", "listen at `FILE` instead of the store's own place")
	f.StringArrayVar(&o.options, "option", nil, "a setting of nix.conf, `NAME=VALUE`; may be given more than once")
	for _, flag := range []struct{ name, setting, usage string }{
		{"max-jobs", "max-jobs", "`N` builds at a time; auto: one per processor"},
		{"cores", "cores", "`N` processors for one build; 0: all"},
		{"timeout", "timeout", "longest build, in `SECONDS`; 0: no limit"},
		{"max-silent", "max-silent-time", "longest silence of a builder, in `SECONDS`; 0: no limit"},
	} {
		f.Func(flag.name, flag.usage, func(v string) error { return o.setOption(flag.setting + "=" + v) })
	}
	f.BoolFunc("keep-failed", "keep the directories of failed builds", func(string) error { return o.setOption("keep-failed=true") })
	f.BoolVar(&o.noDurability, "no-durability", false, "flush nothing to the disk: for stores to throw away")
	setRights := func(v archive.Verbs) func(string) error {
		return func(string) error { o.rights = v; return nil }
	}
	f.Func("rights", "what clients may do at most, `VERBS` of the access list", func(text string) (err error) {
		if o.rights, err = archive.ParseVerbs(text); err == nil && o.rights == 0 {
			err = errors.New("a client without rights cannot even connect")
		}
		return err
	})
	f.BoolFunc("force-untrusted", "the same as --rights default, as Nix calls it", setRights(archive.Ordinary))
	f.BoolFunc("force-trusted", "the same as --rights all, as Nix calls it", setRights(archive.All))
	f.BoolFunc("default-trust", "let the access list decide, which is the default", setRights(0))
	cmd.AddCommand(newDaemonStatusCmd(env))
	cmd.MarkFlagsMutuallyExclusive("stdio", "socket")
	cmd.MarkFlagsMutuallyExclusive("rights", "force-untrusted", "force-trusted", "default-trust")
	return cmd
}

// drainTime is how long requests may go on after SIGTERM.
const drainTime = 2 * time.Minute

func runDaemon(ctx context.Context, env *Env, o *daemonOptions) error {
	if err := env.chooseStore(o.store); err != nil {
		return &usageError{err}
	}
	layout, err := env.layout()
	if err != nil {
		return err
	}
	if o.socket != "" {
		layout.SocketPath = env.path(o.socket)
	}
	if o.stdio {
		return daemonStdio(ctx, env, layout, o)
	}
	o.log = env.Stderr
	daemon.SpareProcessors(env.Getenv)
	heap := daemon.TendHeap(env.Getenv)
	defer heap.Close()
	h := &house{open: func() (*engine, error) { return openEngine(ctx, layout, env.Getenv, &o.engineOptions) }}
	if h.eng, err = h.open(); err != nil {
		return err
	}
	heap.Opened()
	return errors.Join(serve(ctx, env, layout, h), h.eng.close())
}

// house is where one engine lives after the other: when the store's directories are deleted, the next client finds an
// empty store.
type house struct {
	open func() (*engine, error)
	door *daemon.Door

	mu     sync.Mutex // guards what follows; held while engines change
	eng    *engine
	ending bool
}

// run serves until the end of the listener.
func (h *house) run(ctx context.Context) error {
	for {
		err := h.eng.server.Serve(ctx, h.door.Listener(h.eng.store.Deleted))
		if !h.door.Waits() {
			return err
		}
		if err := h.renew(); err != nil {
			return errors.Join(err, h.door.Close())
		}
	}
}

// renew replaces an engine whose store is gone. What its sessions do cannot succeed, so that they are cancelled.
func (h *house) renew() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending {
		return daemon.ErrShutdown
	}
	layout := h.eng.store.Layout()
	h.eng.log.Warn("the store has been deleted; making an empty one", "store", layout.RealDir, "state", layout.StateDir)
	if err := h.eng.close(); err != nil {
		h.eng.log.Warn("close the deleted store", "error", err)
	}
	if err := disk.Init(layout); err != nil {
		return err
	}
	eng, err := h.open()
	if err != nil {
		return err
	}
	h.eng = eng
	return nil
}

func (h *house) drain(ctx context.Context) error {
	h.mu.Lock()
	h.ending = true
	eng := h.eng
	h.mu.Unlock()
	err := eng.server.Drain(ctx)
	h.door.Close() // of a server that was never there
	return err
}

// serve runs the house at its socket until ctx ends, then drains.
func serve(ctx context.Context, env *Env, layout disk.Layout, h *house) error {
	listener, err := daemon.Listen(layout)
	if err != nil {
		return err
	}
	if err := notify(env.Getenv, "READY=1"); err != nil {
		return errors.Join(err, listener.Close())
	}
	h.door = daemon.NewDoor(listener)
	env.note("listening at %s", listener.Addr())
	served := make(chan error, 1)
	go func() { served <- h.run(context.WithoutCancel(ctx)) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	notifyErr := notify(env.Getenv, "STOPPING=1")
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	return errors.Join(notifyErr, h.drain(limit), <-served)
}

// daemonStdio joins standard input and output with the daemon, or is the daemon.
func daemonStdio(ctx context.Context, env *Env, layout disk.Layout, o *daemonOptions) error {
	rw := &stdio{Reader: env.Stdin, Writer: env.Stdout}
	conn, err := dialDaemon(ctx, layout, o.rights)
	if err == nil {
		return join(rw, conn)
	}
	if !nobodyListens(err) {
		return fmt.Errorf("connect to the daemon: %w", err)
	}
	most := o.rights
	o.rights = 0 // of everybody
	eng, err := openEngine(ctx, layout, env.Getenv, &o.engineOptions)
	if err != nil {
		return err
	}
	peer := self()
	peer.Limit = most
	err = eng.server.ServeConn(ctx, rw, peer)
	return errors.Join(err, eng.close())
}

// self is this process as a peer of its own daemon.
func self() daemon.Peer {
	return daemon.Peer{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), Trusted: true}
}

// stdio is standard input and output as one stream.
type stdio struct {
	io.Reader
	io.Writer
}

func (s *stdio) Close() error {
	var err error
	for _, end := range []any{s.Reader, s.Writer} {
		if c, ok := end.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

// join copies both ways until the daemon has closed its side.
func join(local io.ReadWriter, conn *net.UnixConn) error {
	defer conn.Close()
	go func() {
		io.Copy(conn, local)
		conn.CloseWrite()
	}()
	_, err := io.Copy(local, conn)
	return err
}

// engineOptions are a daemon's choices; the zero value works.
type engineOptions struct {
	options []string      // settings, NAME=VALUE, later than all files
	rights  archive.Verbs // of every peer; none: the access list decides
	log     io.Writer     // nil: discard

	noDurability bool // of a throw-away store
}

// setOption remembers a setting of the command line.
func (o *engineOptions) setOption(text string) error {
	o.options = append(o.options, text)
	return nil
}

// settings reads what the daemon of a layout is told.
func (o *engineOptions) settings(layout disk.Layout, getenv func(string) string, logger *slog.Logger) (*settings.Settings, error) {
	s, _, err := o.explain(layout, getenv, logger)
	return s, err
}

// explain also says where each value comes from.
func (o *engineOptions) explain(layout disk.Layout, getenv func(string) string, logger *slog.Logger) (*settings.Settings, settings.Origins, error) {
	s, from, err := settings.Explain(layout.ConfDir, getenv, os.ReadFile, func(text string) { logger.Warn(text) })
	if err != nil {
		return nil, nil, err
	}
	for _, option := range o.options {
		name, value, ok := strings.Cut(option, "=")
		if !ok {
			return nil, nil, fmt.Errorf("option %q is not NAME=VALUE", option)
		}
		if err := s.Set(strings.TrimSpace(name), strings.TrimSpace(value)); err != nil {
			return nil, nil, err
		}
		setting, _ := settings.Find(strings.TrimSpace(name))
		from[setting.Name] = "command line"
	}
	return s, from, nil
}

// engine is a store with the builder and the server on it.
type engine struct {
	store    *disk.Store
	builder  *build.Builder
	machines *remote.Pool
	server   *daemon.Server
	log      *slog.Logger
	closing  sync.Once
}

func openEngine(ctx context.Context, layout disk.Layout, getenv func(string) string, o *engineOptions) (*engine, error) {
	logger := slog.New(slog.DiscardHandler)
	if o.log != nil {
		logger = slog.New(slog.NewTextHandler(o.log, nil))
	}
	set, err := o.settings(layout, getenv, logger)
	if err != nil {
		return nil, err
	}
	s, err := disk.Open(ctx, layout, &disk.Options{Logger: logger, NoSync: o.noDurability, AutoOptimise: set.AutoOptimise, NoDedupe: !set.OptimiseOnAdd,
		Backups: disk.BackupOptions{Interval: set.BackupInterval, Keep: set.BackupKeep},
		Scrub:   disk.ScrubOptions{Interval: set.ScrubInterval, Rate: set.ScrubRate}})
	if err != nil {
		return nil, err
	}
	sshOptions := getenv("NIX_SSHOPTS")
	machines := remote.New(s, &remote.Options{Logger: logger, Peer: peer.Options{SSHOptions: sshOptions, Socket: layout.SocketPath}})
	b := build.New(s, &build.Options{ACL: aclFile(layout), SSHOptions: sshOptions, Logger: logger, Settings: set, Machines: machines})
	srv := daemon.New(s, b, &daemon.Options{Version: cmp.Or(set.VersionText, Version), ACL: aclFile(layout), Rights: o.rights, Settings: set, Logger: logger})
	return &engine{store: s, builder: b, machines: machines, server: srv, log: logger}, nil
}

// close ends all of it, in the order of dependence.
func (g *engine) close() error {
	var err error
	g.closing.Do(func() {
		err = errors.Join(g.server.Close(), g.builder.Close(), g.machines.Close(), g.store.Close())
	})
	return err
}
