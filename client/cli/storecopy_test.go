package cli_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/client"
	"cairn/client/cli"
	"cairn/store"
	"cairn/store/disk"
)

// countedStore is a store with its daemon, and a line to it that counts turns.
type countedStore struct {
	root   string
	layout disk.Layout
	line   *line
}

func mustRun(t *testing.T, args ...string) {
	t.Helper()
	if code, _, stderr := run(t, args...); code != 0 {
		t.Fatalf("cairn %s: exit %d\n%s", strings.Join(args, " "), code, stderr)
	}
}

func newCountedStore(t *testing.T) *countedStore {
	t.Helper()
	s := &countedStore{root: t.TempDir()}
	var err error
	if s.layout, err = disk.NewLayout(s.root, nil); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "init", "--root", s.root)
	ctx, stop := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		env := &cli.Env{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard, Getenv: func(string) string { return "" }, Dir: "/"}
		cli.Run(ctx, env, []string{"daemon", "--root", s.root, "--no-durability"})
	})
	t.Cleanup(func() { stop(); ended.Wait() })
	s.line = newLine(t, s.layout.SocketPath)
	return s
}

// dial connects without the line, once the daemon listens.
func (s *countedStore) dial(t *testing.T) *client.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		c, err := client.Dial(ctx, s.layout.SocketPath, &client.Options{Dir: s.layout.Dir})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// chain adds n objects, each of which refers to the one before.
func (s *countedStore) chain(t *testing.T, n int) store.Path {
	t.Helper()
	c := s.dial(t)
	var last []store.Path
	for i := range n {
		info, err := c.AddToStore(t.Context(), fmt.Sprintf("of-%d", n), store.Text, store.SHA256, last, strings.NewReader(fmt.Sprint(i, last)))
		if err != nil {
			t.Fatal(err)
		}
		last = []store.Path{info.Path}
	}
	return last[0]
}

// line passes connections on to a socket. It counts how often the far side answers after the near side has spoken: what each costs is a
// round trip.
type line struct {
	socket string

	mu    sync.Mutex // guards what follows
	near  bool       // spoke last
	turns int
}

func newLine(t *testing.T, to string) *line {
	t.Helper()
	l := &line{socket: filepath.Join(t.TempDir(), "line")}
	name, release, err := client.SocketName(l.socket)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", name)
	release()
	if err != nil {
		t.Fatal(err)
	}
	var joined sync.WaitGroup
	joined.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			joined.Go(func() { l.join(near, to) })
		}
	})
	t.Cleanup(func() { listener.Close(); joined.Wait() })
	return l
}

func (l *line) join(near net.Conn, to string) {
	defer near.Close()
	name, release, err := client.SocketName(to)
	if err != nil {
		return
	}
	far, err := net.Dial("unix", name)
	release()
	if err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(&spoken{far, l, true}, near)
		far.(*net.UnixConn).CloseWrite()
	})
	io.Copy(&spoken{near, l, false}, far)
	near.Close()
	both.Wait()
	far.Close()
}

// spoken is what one side says.
type spoken struct {
	io.Writer
	line *line
	near bool
}

func (s *spoken) Write(p []byte) (int, error) {
	s.line.mu.Lock()
	if s.line.near && !s.near {
		s.line.turns++
	}
	s.line.near = s.near
	s.line.mu.Unlock()
	return s.Writer.Write(p)
}

// count returns how many turns f takes.
func (l *line) count(f func()) int {
	l.mu.Lock()
	before := l.turns
	l.mu.Unlock()
	f()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turns - before
}

// maxTurns is how many round trips a copy may take: the handshake's two, one for each question, and a few that the daemon may begin.
const maxTurns = 8

// TestCopyInFewTurns copies closures of two sizes over a line that counts round trips. Their number must not depend on the size, so
// that distance costs a copy of thousands of objects no more than one of few.
func TestCopyInFewTurns(t *testing.T) {
	for _, flag := range []string{"--to", "--from"} {
		t.Run(flag, func(t *testing.T) {
			near, far := newCountedStore(t), newCountedStore(t)
			from, to := near, far
			if flag == "--from" {
				from, to = far, near
			}
			into := to.dial(t)
			for _, n := range []int{5, 300} {
				root := from.chain(t, n)
				turns := far.line.count(func() {
					mustRun(t, "store", "copy", "--quiet", "--no-check-sigs", "--root", near.root, flag, "unix://"+far.line.socket, root.String())
				})
				if valid, err := into.IsValid(t.Context(), root); err != nil || !valid {
					t.Fatalf("%d objects: the last has arrived: %t, %v", n, valid, err)
				}
				t.Logf("%d objects took %d turns", n, turns)
				if turns == 0 || turns > maxTurns {
					t.Errorf("%d objects took %d turns, want 1 to %d", n, turns, maxTurns)
				}
			}
		})
	}
}
