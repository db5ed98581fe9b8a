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
	mu     sync.Mutex        // guards the rest; held while a server starts
	server *server           // nil: none was needed yet
	wanted chan chan started // of the thread that starts servers; nil: there is none
	closed bool
	thread sync.WaitGroup
}

// server is a running fork server.
type server struct {
	hello
	mu     sync.Mutex // guards socket
	socket int        // -1: closed
}

// started is a server, or why there is none.
type started struct {
	server *server
	err    error
}

// start has a server start a sandbox. A server that cannot be reached has died, before it could take the request.
func (l *Launcher) start(spec *Spec, log, status int) error {
	var dead *server
	for {
		s, err := l.get(dead)
		if err != nil {
			return err
		}
		err = s.start(spec, log, status)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case dead != nil || !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET):
			return err
		default:
			dead = s
		}
	}
}

func (s *server) start(spec *Spec, log, status int) error {
	p := newImage(uintptr(s.base))
	defer p.drop()
	if err := p.layOut(spec, privileged()); err != nil {
		return err
	}
	file, err := memoryFile(p.image)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	size := []uint64{uint64(len(p.image))}
	if size[0] > maxImage {
		return &SetupError{Step: StepExecute, Text: fmt.Sprintf("arguments, environment and mounts take more than %d bytes", maxImage)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket < 0 {
		return unix.EPIPE
	}
	if err := unix.Sendmsg(s.socket, bytesOf(size), unix.UnixRights(file, log, status), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("sandbox: ask the fork server: %w", err)
	}
	return nil
}

// close ends the server.
func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	unix.Close(s.socket)
	s.socket = -1
}

// memoryFile returns an open file without a name.
func memoryFile(data []byte) (int, error) {
	fd, err := unix.MemfdCreate("sandbox", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("sandbox: make a memory file: %w", err)
	}
	for at := 0; at < len(data); {
		n, err := unix.Pwrite(fd, data[at:], int64(at))
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("sandbox: write a memory file: %w", err)
		}
		at += n
	}
	return fd, nil
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
		l.server.close()
		l.server = nil
	}
	if l.wanted == nil {
		l.wanted = make(chan chan started)
		l.thread.Go(func() { own(l.wanted) })
	}
	reply := make(chan started)
	l.wanted <- reply
	r := <-reply
	l.server = r.server
	return r.server, r.err
}

// own starts servers, one after the other, each when it is wanted and the one before has ended. Death signals come when the thread ends
// that has started a process, and builders count as children of the one that has started their server: all servers
// are started by one thread, which lives as long as the launcher.
func own(wanted <-chan chan started) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for reply := range wanted {
		s, err := startServer()
		reply <- started{s, err}
		if err == nil {
			reap(int(s.pid))
		}
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
	if err := cmd.Run(); err != nil {
		unix.Close(ends[0])
		return nil, &SetupError{Step: "start the fork server", Text: plain(err), Hint: hint(err)}
	}
	greeting := make([]hello, 1)
	if n, err := unix.Read(ends[0], bytesOf(greeting)); err != nil || n != len(bytesOf(greeting)) {
		unix.Close(ends[0])
		return nil, &SetupError{Step: "start the fork server", Text: "it does not answer"}
	}
	return &server{hello: greeting[0], socket: ends[0]}, nil
}

// reap waits for a child.
func reap(pid int) (unix.WaitStatus, *unix.Rusage) {
	var status unix.WaitStatus
	usage := &unix.Rusage{}
	for {
		if _, err := unix.Wait4(pid, &status, 0, usage); !errors.Is(err, unix.EINTR) {
			return status, usage
		}
	}
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
		l.server.close()
	}
	if l.wanted != nil {
		close(l.wanted)
	}
	l.thread.Wait()
	return nil
}
