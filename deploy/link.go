package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"cairn/archive/wire"
	"cairn/deploy/ssh"
	"cairn/store"
)

// link is a connection to a machine with an agent at its end.
type link struct {
	ssh    *ssh.Conn
	stream *ssh.Session
	in     *wire.Reader
	out    *wire.Writer
	event  func(*Reply)

	mu   sync.Mutex // held for a request and its reply
	stop chan struct{}
	idle sync.WaitGroup // the goroutine that says something when nothing else is said
}

// runAgent starts the agent, as root, unless the program is not there: then it says what kind of machine it is.
// Its arguments are the program and its own.
const runAgent = `p=$1; [ -x "$p" ] || { uname -sm >&2; exit 90; }; shift
if [ "$(id -u)" = 0 ]; then exec "$p" serve --from "$SSH_CONNECTION"; fi
exec sudo -n -- "$p" serve --from "$SSH_CONNECTION"`

// absentError says that the machine has no such program.
type absentError struct{ machine string } // uname -sm

func (e *absentError) Error() string { return "the program is not there" }

// startAgent starts the program at path as the agent.
func startAgent(ctx context.Context, conn *ssh.Conn, path string, event func(*Reply)) (*link, error) {
	stream, err := conn.Stream(ctx, "sh", "-c", runAgent, "sh", path)
	if err != nil {
		return nil, err
	}
	l := &link{ssh: conn, stream: stream, in: wire.NewReader(stream), out: wire.NewWriter(stream), event: event, stop: make(chan struct{})}
	if err := skipNoise(l.in); err != nil {
		if !errors.Is(err, io.EOF) {
			stream.Close()
			return nil, fmt.Errorf("start agent: %w", err)
		}
		return nil, l.ended(conn.Target().User, stream.Wait())
	}
	l.idle.Go(l.ping)
	return l, nil
}

// ended explains why an agent ended that should not have.
func (l *link) ended(user string, err error) error {
	exit, ok := errors.AsType[*ssh.ExitError](err)
	switch {
	case err == nil:
		return errors.New("the agent ended without a word")
	case ok && exit.Status == 90:
		return &absentError{lastLine(exit.Stderr)}
	case ok:
		return sudoError(user, exit)
	}
	return err
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// sudoError tells sudo's refusals from other failures.
func sudoError(user string, e *ssh.ExitError) error {
	if user == "" {
		user = "the user"
	}
	says := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(e.Stderr, w) {
				return true
			}
		}
		return false
	}
	switch {
	case says("password is required", "terminal is required", "no tty present", "must have a tty"):
		return hinted(fmt.Errorf("become root: %w: %s", ErrSudoPassword, lastLine(e.Stderr)),
			"on the machine, let %s run commands without one: a file in /etc/sudoers.d with \"%s ALL=(root) NOPASSWD: ALL\"; or connect as root", user, user)
	case says("not in the sudoers file", "is not allowed to", "may not run sudo", "sudo: not found", "sudo: command not found"):
		return hinted(fmt.Errorf("become root: %w: %s", ErrSudoRefused, lastLine(e.Stderr)),
			"on the machine, install sudo and let %s run commands with it, or connect as root", user)
	}
	return e
}

// ask sends a request and waits for its answer.
func (l *link) ask(q *Request) (*Reply, error) { return l.askWith(q, nil) }

// askWith sends what body writes after the request. An answer may come before all of it is sent.
func (l *link) askWith(q *Request, body func(io.Writer) error) (*Reply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := writeMessage(l.out, q); err != nil {
		return nil, l.lost(q.Op, err)
	}
	if body == nil {
		return l.answer(q.Op)
	}
	sent := make(chan error, 1)
	go func() {
		frames := wire.NewFrameWriter(l.out)
		if err := body(frames); err != nil {
			l.stream.Close() // the agent must not take the part for the whole
			sent <- err
			return
		}
		sent <- frames.Close()
	}()
	p, err := l.answer(q.Op)
	if err != nil {
		l.stream.Close() // a refusal: what is still to be sent is not wanted
	}
	if e := <-sent; e != nil && (err == nil || !errors.As(err, new(*remoteError))) {
		return nil, fmt.Errorf("%s: %w", q.Op, e)
	}
	return p, err
}

func (l *link) answer(op string) (*Reply, error) {
	for {
		p, err := ReadReply(l.in)
		switch {
		case err != nil:
			return nil, l.lost(op, err)
		case p.Done && p.Error != nil:
			return nil, &remoteError{*p.Error}
		case p.Done:
			return p, nil
		}
		l.event(p)
	}
}

// lost finds out why the stream broke.
func (l *link) lost(op string, err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		l.stream.Close()
	}
	if why := l.stream.Wait(); why != nil {
		err = why
	}
	return fmt.Errorf("%s: %w", op, err)
}

// ping keeps the agent from taking us for gone.
func (l *link) ping() {
	tick := time.NewTicker(silence / 4)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
			if _, err := l.ask(&Request{Op: "ping"}); err != nil {
				return
			}
		}
	}
}

// close ends the agent and the connection.
func (l *link) close() {
	close(l.stop)
	l.stream.Close()
	l.ssh.Close()
	l.idle.Wait()
}

// sink is the machine's store, as package ship wants it.
type sink struct {
	link *link
	root store.Path
}

func (s sink) Missing(_ context.Context, paths []store.Path) ([]store.Path, error) {
	q := &Request{Op: "missing", System: s.root.String()}
	for _, p := range paths {
		q.Paths = append(q.Paths, p.String())
	}
	r, err := s.link.ask(q)
	if err != nil {
		return nil, err
	}
	return parsePaths(s.root.Dir(), r.Paths)
}

func (s sink) ImportBundle(_ context.Context, r io.Reader) ([]store.Path, error) {
	reply, err := s.link.askWith(&Request{Op: "import"}, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return parsePaths(s.root.Dir(), reply.Paths)
}

func parsePaths(dir store.Dir, texts []string) ([]store.Path, error) {
	paths := make([]store.Path, len(texts))
	for i, s := range texts {
		p, err := dir.ParsePath(s)
		if err != nil {
			return nil, err
		}
		paths[i] = p
	}
	return paths, nil
}
