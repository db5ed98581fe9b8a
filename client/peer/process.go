package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// process is a program whose standard input and output are a stream. What it says on standard error goes to a
// writer that can be replaced, and its last lines into the error with which the stream ends.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	dir    string        // of the host key; empty: none
	ended  chan struct{} // closed when the program and its standard error have ended
	status error
	close  sync.Once
	log    atomic.Pointer[io.Writer]

	mu   sync.Mutex // guards said
	said []string
}

// lastWords is how many lines of standard error an error shows.
const lastWords = 10

// farewell is how long a program may take to end when its input has.
const farewell = 2 * time.Second

// start starts the program of an address, by ssh or, for localhost, without.
func start(a Address, o *Options) (*process, error) {
	p := &process{ended: make(chan struct{})}
	argv := []string{"/bin/sh", "-c", a.command(o.Dir)}
	if !a.here() {
		var err error
		if argv, err = p.ssh(a, o); err != nil {
			return nil, err
		}
	}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errRead, errWrite, err := os.Pipe()
	if err != nil {
		outRead.Close()
		outWrite.Close()
		return nil, err
	}
	p.in, p.out, p.cmd.Stdout, p.cmd.Stderr = in, outRead, outWrite, errWrite
	err = p.cmd.Start()
	outWrite.Close()
	errWrite.Close()
	if err != nil {
		outRead.Close()
		errRead.Close()
		p.forget()
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go p.attend(errRead)
	return p, nil
}

// ssh is the command line of ssh, as Nix's, with what keeps a dead machine from being waited for. NIX_SSHOPTS
// come first, because ssh takes the first of two.
func (p *process) ssh(a Address, o *Options) ([]string, error) {
	argv := append([]string{o.program(), a.Host, "-x", "-T"}, strings.Fields(o.SSHOptions)...)
	if a.User != "" {
		argv = append(argv, "-l", a.User)
	}
	if a.Port != 0 {
		argv = append(argv, "-p", strconv.Itoa(a.Port))
	}
	if a.Key != "" {
		argv = append(argv, "-i", a.Key, "-oIdentitiesOnly=yes")
	}
	if a.Compress {
		argv = append(argv, "-C")
	}
	if a.HostKey != "" {
		dir, err := os.MkdirTemp("", "cairn-hostkey-*")
		if err != nil {
			return nil, err
		}
		p.dir = dir
		file := filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(file, []byte("* "+a.HostKey+"\n"), 0o600); err != nil {
			return nil, err
		}
		argv = append(argv, "-oUserKnownHostsFile="+file, "-oGlobalKnownHostsFile=/dev/null", "-oStrictHostKeyChecking=yes")
	}
	alive := max(1, int(o.silence().Seconds())/3)
	argv = append(argv, "-oBatchMode=yes", "-oConnectTimeout="+strconv.Itoa(int(o.connect().Seconds())),
		"-oServerAliveInterval="+strconv.Itoa(alive), "-oServerAliveCountMax=3")
	return append(argv, "--", a.command(o.Dir)), nil
}

// attend reads standard error to its end and waits for the program.
func (p *process) attend(stderr io.ReadCloser) {
	defer close(p.ended)
	defer p.forget()
	r := bufio.NewReaderSize(stderr, 64<<10)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			p.hear(strings.TrimRight(string(line), "\r\n"))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
	}
	stderr.Close()
	p.status = p.cmd.Wait()
}

func (p *process) hear(line string) {
	if w := p.log.Load(); w != nil && *w != nil {
		io.WriteString(*w, line+"\n")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said = append(p.said, line); len(p.said) > lastWords {
		p.said = p.said[1:]
	}
}

// hearken makes a writer get what the program says on standard error; nil: nobody.
func (p *process) hearken(w io.Writer) { p.log.Store(&w) }

// forget removes the host key's file.
func (p *process) forget() {
	if p.dir != "" {
		os.RemoveAll(p.dir)
	}
}

// Read reads the program's standard output. Its end is an error that says why.
func (p *process) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if n > 0 || err == nil {
		return n, nil
	}
	if errors.Is(err, os.ErrClosed) {
		return 0, err
	}
	select {
	case <-p.ended:
	case <-time.After(farewell):
	}
	return 0, p.why()
}

// why says how the program ended.
func (p *process) why() error {
	p.mu.Lock()
	said := strings.Join(p.said, "\n")
	p.mu.Unlock()
	how := "the connection was closed"
	select {
	case <-p.ended:
		if p.status != nil {
			how = strings.TrimPrefix(p.status.Error(), "exit status 255") // that is ssh's own, which has said why
		}
	default:
	}
	if said != "" && how != "" {
		how += ": "
	}
	return &ended{how + said}
}

// ended is the end of a program's output before its time.
type ended struct{ text string }

func (e *ended) Error() string { return e.text }
func (e *ended) Unwrap() error { return io.ErrUnexpectedEOF }

// Write writes to the program's standard input.
func (p *process) Write(b []byte) (int, error) { return p.in.Write(b) }

// Close ends the program's input and, if it goes on, the program and its children.
func (p *process) Close() error {
	p.close.Do(func() {
		p.in.Close()
		p.out.Close()
		select {
		case <-p.ended:
		case <-time.After(farewell):
			syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
			select {
			case <-p.ended:
			case <-time.After(farewell): // a child has left the group and keeps standard error open
			}
		}
	})
	return nil
}

// stream ends a connection on which a read or a write takes too long.
type stream struct {
	io.ReadWriteCloser
	limit atomic.Int64 // nanoseconds; 0: none
	dead  atomic.Bool
}

// ErrSilent says that the other side gave no sign of life in time.
var ErrSilent = errors.New("no sign of life")

func (s *stream) watch(what func([]byte) (int, error), b []byte) (int, error) {
	limit := time.Duration(s.limit.Load())
	if limit > 0 {
		defer time.AfterFunc(limit, func() {
			s.dead.Store(true)
			s.ReadWriteCloser.Close()
		}).Stop()
	}
	n, err := what(b)
	if err != nil && s.dead.Load() {
		err = fmt.Errorf("%w for %v", ErrSilent, limit)
	}
	return n, err
}

// Read reads within the limit.
func (s *stream) Read(b []byte) (int, error) { return s.watch(s.ReadWriteCloser.Read, b) }

// Write writes within the limit.
func (s *stream) Write(b []byte) (int, error) { return s.watch(s.ReadWriteCloser.Write, b) }

// within runs f with another limit; 0: none.
func (s *stream) within(limit time.Duration, f func() error) error {
	limit = time.Duration(s.limit.Swap(int64(limit)))
	defer s.limit.Store(int64(limit))
	return f()
}

// within runs f with a context that ends when dialing takes too long.
func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	return f(ctx)
}
