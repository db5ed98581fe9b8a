package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"cairn/client"
	"cairn/store"
	"cairn/store/disk"
)

// errNoDaemon says that nobody listens at the socket.
var errNoDaemon = errors.New("no daemon is running")

// session is a connection to the daemon of a layout.
type session struct {
	*client.Conn
	layout disk.Layout
	dial   func(context.Context) (*client.Conn, error) // another connection to the same daemon
	end    func() error
}

// Close ends the connection, and the daemon if this process runs it.
func (s *session) Close() error {
	return errors.Join(s.Conn.Close(), s.end())
}

func (e *Env) layout() (disk.Layout, error) {
	root := e.Root
	if root != "" {
		root = e.path(root)
	}
	return disk.NewLayout(root, e.Getenv)
}

// elsewhere reports whether the command line or the environment names a store of its own,
// for which a command may be the daemon itself.
func (e *Env) elsewhere() bool {
	return e.Root != "" || e.Getenv("NIX_STATE_DIR") != ""
}

// connect reaches the daemon at the socket; without one, and for a store elsewhere, it starts one in this process.
func (e *Env) connect(ctx context.Context) (*session, error) {
	layout, err := e.layout()
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (*client.Conn, error) {
		return client.Dial(ctx, layout.SocketPath, &client.Options{Dir: layout.Dir})
	}
	conn, err := dial(ctx)
	switch {
	case err == nil:
		return &session{Conn: conn, layout: layout, dial: dial, end: func() error { return nil }}, nil
	case !nobodyListens(err):
		return nil, err
	case !e.elsewhere():
		return nil, hinted(fmt.Errorf("connect to %s: %w", layout.SocketPath, errNoDaemon),
			"as root: 'cairn init --daemon' installs and starts it; --root DIR works without one")
	}
	return e.connectInside(ctx, layout, &engineOptions{})
}

// connectAny reaches the daemon, or is one, also for the machine's own store, as Nix's programs would.
func (e *Env) connectAny(ctx context.Context, o *engineOptions) (*session, error) {
	s, err := e.connect(ctx)
	if !errors.Is(err, errNoDaemon) {
		return s, err
	}
	layout, err := e.layout()
	if err != nil {
		return nil, err
	}
	return e.connectInside(ctx, layout, o)
}

func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.EINVAL)
}

// connectInside runs a daemon in this process for one connection.
func (e *Env) connectInside(ctx context.Context, layout disk.Layout, o *engineOptions) (*session, error) {
	if _, err := os.Stat(layout.StateDir); errors.Is(err, fs.ErrNotExist) {
		return nil, hinted(fmt.Errorf("open store: %w", err), "'cairn init --root %s' makes it", e.Root)
	}
	eng, err := openEngine(ctx, layout, e.Getenv, o)
	if err != nil {
		return nil, err
	}
	var served sync.WaitGroup
	dial := func(ctx context.Context) (*client.Conn, error) {
		ours, theirs := net.Pipe()
		served.Go(func() { eng.server.ServeConn(context.WithoutCancel(ctx), theirs, self()) })
		conn, err := client.New(ctx, ours, &client.Options{Dir: layout.Dir})
		if err != nil {
			return nil, errors.Join(err, ours.Close())
		}
		return conn, nil
	}
	end := func() error {
		served.Wait()
		return eng.close()
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return &session{Conn: conn, layout: layout, dial: dial, end: end}, nil
}

// storePath understands what a person calls a store object: its path, its place below --root,
// a link to it, or a file inside it. The rest is what follows the object's own path.
func (s *session) storePath(env *Env, arg string) (path store.Path, rest string, err error) {
	return env.storePath(s.layout, arg)
}

// storePath is that of a session, before there is one.
func (e *Env) storePath(layout disk.Layout, arg string) (path store.Path, rest string, err error) {
	dir := layout.Dir
	if strings.HasPrefix(arg, dir.String()+"/") {
		return dir.Within(arg)
	}
	name := e.path(arg)
	for range 40 {
		for _, top := range []string{layout.RealDir, dir.String()} {
			if below, ok := strings.CutPrefix(name, top+"/"); ok {
				return dir.Within(dir.String() + "/" + below)
			}
		}
		target, err := os.Readlink(name)
		if err != nil {
			return store.Path{}, "", fmt.Errorf("%q is neither a path below %s nor a link to one", arg, dir)
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(name), target)
		}
		name = filepath.Clean(target)
	}
	return store.Path{}, "", fmt.Errorf("%q: %w", arg, syscall.ELOOP)
}

// object is storePath for commands that want a whole object.
func (s *session) object(env *Env, arg string) (store.Path, error) {
	return env.object(s.layout, arg)
}

func (e *Env) object(layout disk.Layout, arg string) (store.Path, error) {
	p, rest, err := e.storePath(layout, arg)
	if err == nil && rest != "" {
		err = hinted(fmt.Errorf("%q is inside a store object", arg), "the object is %s", p)
	}
	return p, err
}

func (s *session) objects(env *Env, args []string) ([]store.Path, error) {
	list := make([]store.Path, len(args))
	for i, a := range args {
		p, err := s.object(env, a)
		if err != nil {
			return nil, err
		}
		list[i] = p
	}
	return list, nil
}

// withSession runs fn on a connection.
func (e *Env) withSession(ctx context.Context, fn func(*session) error) error {
	s, err := e.connect(ctx)
	if err != nil {
		return err
	}
	err = fn(s)
	if end := s.Close(); err == nil && end != nil && !errors.Is(end, net.ErrClosed) {
		return end
	}
	return err
}
