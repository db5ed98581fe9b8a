package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/archive/wire"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	os.Exit(m.Run())
}

// TestConformance runs the suite over a pipe to a daemon, with new and old protocol.
func TestConformance(t *testing.T) {
	for name, version := range map[string]protocol.Version{"1.38": protocol.Minor(38), "1.34": protocol.Minor(34)} {
		t.Run(name, func(t *testing.T) {
			server := serve(t)
			storetest.Run(t, func(t *testing.T) store.ReadWriter {
				c, err := client.New(t.Context(), pipe(t, server), &client.Options{Version: version})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if version < protocol.Minor(38) {
					return old{c}
				}
				return c
			})
		})
	}
}

// old gives errors of a daemon that sends only text their meaning, as far as the text has it.
type old struct{ *client.Conn }

func (o old) Add(ctx context.Context, i *store.Info, r io.Reader) error {
	return sentinel(o.Conn.Add(ctx, i, r))
}

func (o old) NAR(ctx context.Context, p store.Path, w io.Writer) error {
	return sentinel(o.Conn.NAR(ctx, p, w))
}

func sentinel(err error) error {
	for _, s := range []error{store.ErrNotValid, store.ErrHashMismatch, store.ErrUntrusted} {
		if err != nil && strings.Contains(err.Error(), s.Error()) {
			return errors.Join(err, s)
		}
	}
	return err
}

func serve(t *testing.T) *daemon.Server {
	t.Helper()
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(layout); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), layout, &disk.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	b := build.New(s, nil)
	server := daemon.New(s, b, nil)
	t.Cleanup(func() {
		server.Close()
		b.Close()
		s.Close()
		filepath.WalkDir(layout.RealDir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(name, 0o700) // or an ordinary user could not delete it
			}
			return nil
		})
	})
	return server
}

// pipe connects a trusted peer over an unbuffered pipe, which shows whoever waits for the other side.
func pipe(t *testing.T, s *daemon.Server) net.Conn {
	t.Helper()
	a, b := net.Pipe()
	go s.ServeConn(context.Background(), a, daemon.Peer{Trusted: true})
	return b
}

// script is a server that says what it is told to and reads nothing.
type script struct {
	io.Reader
	io.Writer
}

func (script) Close() error { return nil }

func scripted(t *testing.T, write func(*protocol.Encoder)) io.ReadWriteCloser {
	t.Helper()
	var b bytes.Buffer
	e := protocol.NewEncoder(wire.NewWriter(&b), protocol.Format{Dir: store.DefaultDir, Version: protocol.Minor(34)})
	e.Uint64(0x6478696f)
	e.Uint64(uint64(protocol.Minor(34)))
	e.Text("2.8.0")
	e.Message(&protocol.Message{Kind: protocol.KindLast})
	write(e)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	return script{&b, io.Discard}
}

func TestHostileServers(t *testing.T) {
	for name, c := range map[string]struct {
		write func(*protocol.Encoder)
		err   string
	}{
		"silence":   {func(e *protocol.Encoder) {}, "closed the connection"},
		"unknown":   {func(e *protocol.Encoder) { e.Uint64(12345) }, "unknown kind"},
		"long list": {func(e *protocol.Encoder) { e.Message(&protocol.Message{Kind: protocol.KindLast}); e.Uint64(1 << 60) }, "memory budget"},
		"long text": {func(e *protocol.Encoder) {
			e.Message(&protocol.Message{Kind: protocol.KindLast})
			e.Uint64(1)
			e.Uint64(1 << 60)
		}, "longer than allowed"},
		"foreign path": {func(e *protocol.Encoder) {
			e.Message(&protocol.Message{Kind: protocol.KindLast})
			e.Texts([]string{"/etc/passwd"})
		}, "not below the store"},
		"asks for data": {func(e *protocol.Encoder) { e.Message(&protocol.Message{Kind: protocol.KindRead, Size: 10}) }, "asks for data"},
		"an error": {func(e *protocol.Encoder) {
			e.Message(&protocol.Message{Kind: protocol.KindError, Err: &protocol.Error{Text: "no, thanks"}})
		}, "no, thanks"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := client.New(t.Context(), scripted(t, c.write), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.AllPaths(t.Context()); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want an error with %q", err, c.err)
			}
		})
	}
}

func TestServerThatRefuses(t *testing.T) {
	var b bytes.Buffer
	e := protocol.NewEncoder(wire.NewWriter(&b), protocol.Format{Version: protocol.Minor(34)})
	e.Uint64(0x6478696f)
	e.Uint64(uint64(protocol.Minor(34)))
	e.Text("2.8.0")
	e.Message(&protocol.Message{Kind: protocol.KindError, Err: &protocol.Error{Text: "go away"}})
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.New(t.Context(), script{&b, io.Discard}, nil); err == nil || !strings.Contains(err.Error(), "go away") {
		t.Errorf("got %v", err)
	}
	if _, err := client.New(t.Context(), script{strings.NewReader("SSH-2.0-OpenSSH_10.0\r\n"), io.Discard}, nil); !errors.Is(err, protocol.ErrNoPeer) {
		t.Errorf("got %v", err)
	}
}

// TestObserverHearsInOrder delivers log lines and activities.
func TestObserverHearsInOrder(t *testing.T) {
	var heard []string
	obs := client.ObserverFunc(func(m *protocol.Message) { heard = append(heard, m.Text) })
	conn, err := client.New(t.Context(), scripted(t, func(e *protocol.Encoder) {
		e.Message(&protocol.Message{Kind: protocol.KindNext, Text: "one"})
		e.Message(&protocol.Message{Kind: protocol.KindStart, ID: 1, Text: "two"})
		e.Message(&protocol.Message{Kind: protocol.KindNext, Text: "three"})
		e.Message(&protocol.Message{Kind: protocol.KindLast})
		e.Texts(nil)
	}), &client.Options{Observer: obs})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.AllPaths(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(heard, " "); got != "one two three" {
		t.Errorf("heard %q", got)
	}
}

// FuzzServer lets a server say anything to operations of every shape.
func FuzzServer(f *testing.F) {
	f.Add(uint8(0), []byte("stla\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		conn, err := client.New(t.Context(), scripted(t, func(e *protocol.Encoder) { e.Wire().Write(b) }), nil)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := store.DefaultDir.Path("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a.drv")
		ctx := t.Context()
		switch which % 9 {
		case 0:
			conn.AllPaths(ctx)
		case 1:
			conn.Info(ctx, p)
		case 2:
			conn.NAR(ctx, p, io.Discard)
		case 3:
			conn.AddToStore(ctx, "x", store.Text, store.SHA256, nil, strings.NewReader("x"))
		case 4:
			conn.Build(ctx, []protocol.Target{{Path: p, Outputs: protocol.All()}}, client.Normal, nil)
		case 5:
			conn.Missing(ctx, nil, nil)
		case 6:
			conn.FindRoots(ctx)
		case 7:
			conn.CollectGarbage(ctx, &protocol.GCOptions{})
		case 8:
			conn.OutputMap(ctx, p)
		}
		conn.Close()
	})
}

// TestManyValidPaths asks about more paths than one request has room for.
func TestManyValidPaths(t *testing.T) {
	c, err := client.New(t.Context(), pipe(t, serve(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 800_000
	paths := make([]store.Path, 0, n+2)
	add := func(text string) store.Path {
		info, err := c.AddToStore(t.Context(), "text", store.Text, store.SHA256, nil, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return info.Path
	}
	first, last := add("first"), add("last")
	paths = append(paths, first)
	for i := range n {
		p, err := store.DefaultDir.Path(fmt.Sprintf("00000000000000000000000000000000-object-number-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	valid, err := c.ValidPaths(t.Context(), append(paths, last))
	if err != nil || !slices.Equal(valid, store.SortPaths([]store.Path{first, last})) {
		t.Errorf("got %v, %v", valid, err)
	}
}
