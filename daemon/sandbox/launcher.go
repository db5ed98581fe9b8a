package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errClosed says that a Launcher was used after Close.
var errClosed = errors.New("sandbox: the launcher is closed")

// A Launcher starts builders. It is safe for concurrent use; the zero value is ready. It starts its fork server when that is first
// needed, and another one when it has died. It belongs to one owner, who closes it when no builder runs any more.
type Launcher struct {
	mu     sync.Mutex    // guards the rest; held while a server starts
	server *server       // nil: none was needed yet
	wanted chan chan any // of the thread that starts servers; nil: there is none
	closed bool
	thread sync.WaitGroup
}

// server is a running fork server.
type server struct {
	cmd    *exec.Cmd
	socket int
}

// send has a server start a sandbox. A server that cannot be reached has died, before it could take the request.
func (l *Launcher) send(files ...int) error {
	rights := unix.UnixRights(files...)
	var dead *server
	for {
		s, err := l.get(dead)
		if err != nil {
			return err
		}
		err = unix.Sendmsg(s.socket, []byte{0}, rights, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case dead != nil:
			return fmt.Errorf("sandbox: ask the fork server: %w", err)
		default:
			dead = s
		}
	}
}

// get returns a server that is not the dead one.
func (l *Launcher) get(dead *server) (*server, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	if l.server != nil && l.server != dead {
		return l.server, nil
	}
	if l.server != nil {
		l.server.cmd.Process.Kill()
		unix.Close(l.server.socket)
		l.server = nil
	}
	if l.wanted == nil {
		l.wanted = make(chan chan any)
		l.thread.Go(func() { own(l.wanted) })
	}
	reply := make(chan any)
	l.wanted <- reply
	switch r := (<-reply).(type) {
	case *server:
		l.server = r
		return r, nil
	default:
		return nil, r.(error)
	}
}

// own starts servers, one after the other, each when it is wanted and the one before has ended. Death signals come when the thread ends
// that has started a process, and builders count as children of the one that has started their server: all servers
// are started by one thread, which lives as long as the launcher.
func own(wanted <-chan chan any) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for reply := range wanted {
		s, err := startServer()
		if err != nil {
			reply <- err
			continue
		}
		reply <- s
		s.cmd.Wait()
	}
}

func startServer() (*server, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("sandbox: make a socket: %w", err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "socket")
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{serverName},
		Env:         []string{"GOMAXPROCS=1", "GORACE=atexit_sleep_ms=0"},
		Dir:         "/",
		Stderr:      os.Stderr,
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	if err := cmd.Start(); err != nil {
		unix.Close(ends[0])
		return nil, &SetupError{Step: "start the fork server", Text: plain(err), Hint: hint(err)}
	}
	return &server{cmd, ends[0]}, nil
}

// Close ends the server, and waits for it.
func (l *Launcher) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.server != nil {
		unix.Close(l.server.socket)
	}
	if l.wanted != nil {
		close(l.wanted)
	}
	l.thread.Wait()
	return nil
}
