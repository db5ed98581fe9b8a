package legacy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/client"
	clientlegacy "cairn/client/legacy"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/legacy"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	os.Exit(m.Run())
}

// newDaemon returns what dials a daemon with a store of its own.
func newDaemon(t testing.TB) func(testing.TB) *client.Conn {
	t.Helper()
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(layout); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(context.Background(), layout, &disk.Options{NoSync: true})
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
	return func(t testing.TB) *client.Conn {
		t.Helper()
		ours, theirs := net.Pipe()
		go server.ServeConn(context.Background(), theirs, daemon.Peer{Trusted: true})
		c, err := client.New(context.Background(), ours, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// session is a client of a served session, and how that ended.
type session struct {
	*clientlegacy.Conn
	log  *safeBuffer
	done chan error
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func open(t testing.TB, conn *client.Conn, write bool, version protocol.Version) *session {
	t.Helper()
	ours, theirs := net.Pipe()
	s := &session{log: &safeBuffer{}, done: make(chan error, 1)}
	go func() {
		s.done <- legacy.Serve(context.Background(), theirs, conn, &legacy.Options{Write: write, Log: s.log})
	}()
	var err error
	if s.Conn, err = clientlegacy.New(context.Background(), ours, &clientlegacy.Options{Version: version}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// again is a connection that is made anew for every operation, because a refusal ends a session.
type again struct {
	t    *testing.T
	dial func(testing.TB) *client.Conn
}

func (a again) with(f func(s *session) error) error {
	s := open(a.t, a.dial(a.t), true, 0)
	err := f(s)
	s.Close()
	return sentinel(errors.Join(err, <-s.done))
}

// sentinel gives the errors of a session, which are text on standard error, their meaning.
func sentinel(err error) error {
	for _, s := range []error{store.ErrNotValid, store.ErrHashMismatch, store.ErrUntrusted} {
		if err != nil && strings.Contains(err.Error(), s.Error()) {
			return errors.Join(err, s)
		}
	}
	return err
}

func (a again) Info(ctx context.Context, p store.Path) (i *store.Info, err error) {
	err = a.with(func(s *session) error { i, err = s.Info(ctx, p); return err })
	return i, err
}

func (a again) NAR(ctx context.Context, p store.Path, w io.Writer) error {
	return a.with(func(s *session) error { return s.NAR(ctx, p, w) })
}

func (a again) Add(ctx context.Context, i *store.Info, r io.Reader) error {
	return a.with(func(s *session) error { return s.Add(ctx, i, r) })
}

// TestConformance runs the suite of stores through client, server and daemon.
func TestConformance(t *testing.T) {
	dial := newDaemon(t)
	storetest.Run(t, func(t *testing.T) store.ReadWriter { return again{t, dial} })
}

func addText(t testing.TB, c *client.Conn, name, text string, refs ...store.Path) *store.Info {
	t.Helper()
	info, err := c.AddToStore(context.Background(), name, store.Text, store.SHA256, refs, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestQueries(t *testing.T) {
	dial := newDaemon(t)
	conn := dial(t)
	a := addText(t, conn, "a", "a")
	b := addText(t, conn, "b", "b", a.Path)
	nothing, err := store.DefaultDir.Path("00000000000000000000000000000000-x")
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dial(t), false, 0)
	for name, f := range map[string]func(context.Context, []store.Path) ([]store.Path, error){"valid": s.ValidPaths, "obtain": s.Obtain} {
		if got, err := f(t.Context(), []store.Path{a.Path, b.Path, nothing}); err != nil || len(got) != 2 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	infos, err := s.Closure(t.Context(), []store.Path{b.Path})
	if err != nil || len(infos) != 2 || infos[0].Path != a.Path || infos[1].CA != b.CA || infos[1].NarHash != b.NarHash || infos[1].NarSize != b.NarSize {
		t.Errorf("closure: %v, %v", infos, err)
	}
	if _, err := s.Info(t.Context(), nothing); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("info of nothing: %v", err)
	}
	if err := s.NAR(t.Context(), nothing, io.Discard); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("archive of nothing: %v", err)
	}
	if err := s.Add(t.Context(), a, bytes.NewReader(narOf(t, "a"))); err == nil {
		t.Error("a session that may only read has written")
	}
	if err := <-s.done; !errors.Is(err, legacy.ErrReadOnly) {
		t.Errorf("session ended with %v", err)
	}
	if _, err := s.ValidPaths(t.Context(), nil); !errors.Is(err, clientlegacy.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func narOf(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := nar.DumpString(&b, []byte(text), false); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAddFrom copies a chain in one stream, and then what cannot be copied.
func TestAddFrom(t *testing.T) {
	from, to := newDaemon(t)(t), newDaemon(t)
	var infos []*store.Info
	var refs []store.Path
	for i := range 50 {
		info := addText(t, from, "n", strings.Repeat("x", i*100), refs...)
		infos, refs = append(infos, info), []store.Path{info.Path}
	}
	s := open(t, to(t), true, 0)
	if err := s.AddFrom(t.Context(), infos, from); err != nil {
		t.Fatal(err)
	}
	if got, err := s.ValidPaths(t.Context(), []store.Path{infos[0].Path, infos[49].Path}); err != nil || len(got) != 2 {
		t.Errorf("copied: %v, %v", got, err)
	}
	bad := *addText(t, from, "bad", "bad")
	bad.NarHash = store.SHA256.Sum(nil)
	if err := s.AddFrom(t.Context(), []*store.Info{&bad}, from); err == nil {
		t.Error("a wrong hash was taken")
	}
	if err := <-s.done; err == nil || !strings.Contains(err.Error(), "hash") {
		t.Errorf("session ended with %v", err)
	}
}

// script is a derivation that runs a shell script.
func script(t testing.TB, name, text string) (store.Path, *derivation.Derivation) {
	t.Helper()
	if err := sandbox.Available(); err != nil {
		if os.Getenv("CAIRN_CI") == "1" {
			t.Fatal(err)
		}
		t.Skipf("no sandbox: %v; enable with: sudo make root", err)
	}
	d := &derivation.Derivation{
		Name: name, System: map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH], Builder: "/bin/sh",
		Args: []string{"-c", text}, Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}}, Env: map[string]string{},
	}
	if err := derivation.NewHashes(nil).FillOutputs(d, store.DefaultDir); err != nil {
		t.Fatal(err)
	}
	p, err := d.Path(store.DefaultDir)
	if err != nil {
		t.Fatal(err)
	}
	return p, d
}

// TestBuild builds with each version of the protocol.
func TestBuild(t *testing.T) {
	dial := newDaemon(t)
	for minor := 5; minor <= 8; minor++ {
		version := protocol.ServeMinor(minor)
		s := open(t, dial(t), true, version)
		if s.Version() != version {
			t.Errorf("version %s, want %s", s.Version(), version)
		}
		n := string(rune('0' + minor))
		path, d := script(t, "n"+n, "echo says; echo $out "+n+" > $out")
		r, err := s.BuildDerivation(t.Context(), path, d, nil)
		if err != nil || r.Status != protocol.Built || s.log.String() != "says\n" {
			t.Errorf("%s: %+v, %v, log %q", version, r, err, s.log.String())
			continue
		}
		if out := r.Outputs["out"].OutPath; out.IsZero() != (minor < 6) {
			t.Errorf("%s: outputs %v", version, r.Outputs)
		}
		path, d = script(t, "bad", "exit 3")
		if r, err = s.BuildDerivation(t.Context(), path, d, &protocol.ServeOptions{Timeout: 100}); err != nil || r.Status != protocol.PermanentFailure {
			t.Errorf("%s: %+v, %v", version, r, err)
		}
	}
}

// TestHangUp holds that a build ends when its client leaves.
func TestHangUp(t *testing.T) {
	dial := newDaemon(t)
	s := open(t, dial(t), true, 0)
	path, d := script(t, "endless", "echo begun; sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for !strings.Contains(s.log.String(), "begun") {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	if _, err := s.BuildDerivation(ctx, path, d, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case err := <-s.done:
		if err == nil {
			t.Error("the session ended well")
		}
	case <-time.After(30 * time.Second):
		t.Error("the build goes on")
	}
}

// raw is a session in bytes, without the handshake.
func raw(write func(*protocol.Encoder)) []byte {
	var b bytes.Buffer
	e := protocol.NewEncoder(wire.NewWriter(&b), protocol.Format{Dir: store.DefaultDir, Version: protocol.ServeNewest})
	write(e)
	e.Flush()
	return b.Bytes()
}

// TestExport goes through the commands that our client does not send.
func TestExport(t *testing.T) {
	dial := newDaemon(t)
	conn := dial(t)
	a := addText(t, conn, "a", "a")
	b := addText(t, conn, "b", "b", a.Path)
	answer := exchange(t, dial(t), raw(func(e *protocol.Encoder) {
		e.Uint64(uint64(protocol.ServeExportPaths))
		e.Uint64(0)
		e.Paths([]store.Path{a.Path, b.Path})
	}))
	n := 0
	if err := archive.ReadExport(bytes.NewReader(answer), store.DefaultDir, func(*store.Info, io.Reader) error { n++; return nil }); err != nil || n != 2 {
		t.Errorf("export of %d objects, %v", n, err)
	}
	other := newDaemon(t)
	got := exchange(t, other(t), append(binary.LittleEndian.AppendUint64(nil, uint64(protocol.ServeImportPaths)), answer...))
	if !bytes.Equal(got, binary.LittleEndian.AppendUint64(nil, 1)) {
		t.Errorf("import answered %x", got)
	}
	if valid, err := other(t).IsValid(t.Context(), b.Path); err != nil || !valid {
		t.Errorf("imported: %v, %v", valid, err)
	}
	got = exchange(t, dial(t), raw(func(e *protocol.Encoder) {
		e.Uint64(uint64(protocol.ServeBuildPaths))
		e.Texts([]string{a.Path.String()})
		e.ServeOptions(&protocol.ServeOptions{})
	}))
	if !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("build of what is there answered %x", got)
	}
}

// exchange sends a session and returns what comes back after the handshake.
func exchange(t testing.TB, conn *client.Conn, requests []byte) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	go legacy.Serve(context.Background(), theirs, conn, &legacy.Options{Write: true})
	defer ours.Close()
	ours.SetDeadline(time.Now().Add(time.Minute))
	if _, err := protocol.ServeGreet(wire.NewReader(ours), wire.NewWriter(ours), store.DefaultDir, 0); err != nil {
		t.Fatal(err)
	}
	go ours.Write(requests)
	var answer []byte
	b := make([]byte, 1<<16)
	for {
		ours.SetReadDeadline(time.Now().Add(time.Second)) // the end of an answer is not marked
		n, err := ours.Read(b)
		answer = append(answer, b[:n]...)
		if err != nil {
			return answer
		}
	}
}

// FuzzSession gives the server whole sessions.
func FuzzSession(f *testing.F) {
	dial := newDaemon(f)
	conn := dial(f)
	a := addText(f, conn, "a", "a")
	hello := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 0x390c9deb), uint64(protocol.ServeNewest))
	drv := &derivation.Derivation{Name: "n", System: "none", Builder: "/bin/sh", Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}}}
	path, err := drv.Path(store.DefaultDir)
	if err != nil {
		f.Fatal(err)
	}
	var export bytes.Buffer
	if err := archive.WriteExport(context.Background(), &export, conn, []store.Path{a.Path}); err != nil {
		f.Fatal(err)
	}
	number := func(e *protocol.Encoder, n protocol.ServeCommand) { e.Uint64(uint64(n)) }
	sessions := []func(e *protocol.Encoder){
		func(e *protocol.Encoder) { number(e, 1); e.Bool(true); e.Bool(true); e.Paths([]store.Path{a.Path}) },
		func(e *protocol.Encoder) { number(e, 2); e.Paths([]store.Path{a.Path}) },
		func(e *protocol.Encoder) { number(e, 3); e.Path(a.Path) },
		func(e *protocol.Encoder) { number(e, 4); e.Wire().Write(export.Bytes()) },
		func(e *protocol.Encoder) { number(e, 5); e.Uint64(0); e.Paths([]store.Path{a.Path}) },
		func(e *protocol.Encoder) {
			number(e, 6)
			e.Texts([]string{path.String()})
			e.ServeOptions(&protocol.ServeOptions{})
		},
		func(e *protocol.Encoder) { number(e, 7); e.Bool(true); e.Paths([]store.Path{a.Path}) },
		func(e *protocol.Encoder) {
			number(e, 8)
			e.Path(path)
			e.BasicDerivation(drv)
			e.ServeOptions(&protocol.ServeOptions{})
		},
		func(e *protocol.Encoder) {
			number(e, 9)
			for _, s := range []string{a.Path.String(), "", a.NarHash.Hex()} {
				e.Text(s)
			}
			e.Paths(nil)
			e.Uint64(0)
			e.Uint64(uint64(a.NarSize))
			e.Bool(true)
			e.TextSet(nil)
			e.Text(a.CA.String())
			e.Wire().Write(narOf(f, "a"))
		},
	}
	all := hello
	for _, s := range sessions {
		f.Add(append(bytes.Clone(hello), raw(s)...))
		all = append(bytes.Clone(all), raw(s)...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		rw := &monologue{Reader: bytes.NewReader(data)}
		legacy.Serve(ctx, rw, dial(t), &legacy.Options{Write: true, Log: io.Discard})
		if ctx.Err() != nil {
			t.Error("the session hangs")
		}
		if valid, err := dial(t).IsValid(context.Background(), a.Path); err != nil || !valid {
			t.Errorf("afterwards: %v, %v", valid, err)
		}
	})
}

// monologue is a client that says what it says and hears nothing.
type monologue struct{ io.Reader }

func (monologue) Write(p []byte) (int, error) { return len(p), nil }
func (monologue) Close() error                { return nil }
