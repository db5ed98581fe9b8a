package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"cairn/client"
	"cairn/store/disk"
)

// firstFD is the first file descriptor that systemd passes.
const firstFD = 3

// Listen returns the socket that systemd passed (LISTEN_FDS, LISTEN_PID), or else makes the
// layout's socket, with mode 0666: rights are by peer credentials. A socket whose daemon is gone is
// replaced; one that answers is an error.
func Listen(layout disk.Layout) (net.Listener, error) {
	if l, err := activated(); l != nil || err != nil {
		return l, err
	}
	path := layout.SocketPath
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	name, release, err := client.SocketName(path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	defer release()
	if err := removeStale(path, name); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return &socket{UnixListener: l, path: path}, nil
}

// socket is a listener that removes its path, which the kernel may know under a shorter name.
type socket struct {
	*net.UnixListener
	path   string
	closed sync.Once
}

// Close stops listening and removes the socket.
func (s *socket) Close() error {
	err := net.ErrClosed
	s.closed.Do(func() { err = errors.Join(os.Remove(s.path), s.UnixListener.Close()) })
	return err
}

// removeStale removes a socket that nobody listens at.
func removeStale(path, name string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is in the way and is no socket; move it away", path)
	}
	c, err := net.Dial("unix", name)
	if err == nil {
		c.Close()
		return fmt.Errorf("another daemon listens at %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("look who listens at %s: %w", path, err)
	}
	return os.Remove(path)
}

// activated returns the socket that systemd passed, or nil.
func activated() (net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n := os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if n != "1" {
		return nil, fmt.Errorf("socket activation passed %q sockets, wanted is 1", n)
	}
	f := os.NewFile(firstFD, "socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("use the socket of socket activation: %w", err)
	}
	return l, nil
}
