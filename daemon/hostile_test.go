package daemon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/archive"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

func socketpair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// recorder remembers what is written.
type recorder struct {
	net.Conn
	mu      sync.Mutex
	written bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.written.Write(p)
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// requests are sessions of a client: one operation each, and all of them together.
func requests(t testing.TB, r *rig, version protocol.Version) map[string][]byte {
	t.Helper()
	ctx := context.Background()
	a := addText(t, r.dial(), "a", "hello")
	nothing, err := store.DefaultDir.Path(baseB + ".drv")
	if err != nil {
		t.Fatal(err)
	}
	contents := narOf(t, "x")
	ca := &store.Info{NarHash: store.SHA256.Sum(contents), NarSize: int64(len(contents))}
	ca.CA = store.ContentAddress{Method: store.Recursive, Hash: ca.NarHash}
	if ca.Path, err = store.DefaultDir.ContentPath("x", ca.CA, store.References{}); err != nil {
		t.Fatal(err)
	}
	drv := &derivation.Derivation{Name: "n", System: "none", Builder: "/bin/sh", Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}}}
	id := store.DrvOutput{Drv: ca.NarHash, Output: "out"}
	target := []protocol.Target{{Path: nothing, Outputs: protocol.All()}}
	ops := map[string]func(*client.Conn){
		"Add":     func(c *client.Conn) { c.Add(ctx, ca, bytes.NewReader(contents)) },
		"AddFrom": func(c *client.Conn) { c.AddFrom(ctx, []*store.Info{a}, r.store) },
		"AddToStore": func(c *client.Conn) {
			c.AddToStore(ctx, "y", store.Flat, store.SHA1, []store.Path{a.Path}, strings.NewReader("y"))
		},
		"NAR":         func(c *client.Conn) { c.NAR(ctx, a.Path, io.Discard) },
		"Info":        func(c *client.Conn) { c.Info(ctx, a.Path) },
		"ValidPaths":  func(c *client.Conn) { c.ValidPaths(ctx, []store.Path{a.Path, nothing}) },
		"Referrers":   func(c *client.Conn) { c.Referrers(ctx, a.Path) },
		"Derivers":    func(c *client.Conn) { c.Derivers(ctx, a.Path) },
		"Digest":      func(c *client.Conn) { c.PathFromDigest(ctx, a.Path.Digest()) },
		"All":         func(c *client.Conn) { c.AllPaths(ctx) },
		"Build":       func(c *client.Conn) { c.Build(ctx, target, client.Normal, nil) },
		"BuildDrv":    func(c *client.Conn) { c.BuildDerivation(ctx, nothing, drv, client.Normal, nil) },
		"Missing":     func(c *client.Conn) { c.Missing(ctx, target, nil) },
		"OutputMap":   func(c *client.Conn) { c.OutputMap(ctx, nothing) },
		"Ensure":      func(c *client.Conn) { c.Ensure(ctx, a.Path) },
		"Realisation": func(c *client.Conn) { c.Realisation(ctx, id) },
		"Register":    func(c *client.Conn) { c.RegisterDrvOutput(ctx, store.Realisation{ID: id, OutPath: a.Path}) },
		"SetOptions": func(c *client.Conn) {
			c.SetOptions(ctx, &protocol.Options{Overrides: map[string]string{"timeout": "3", "cores": "x"}})
		},
		"TempRoot":  func(c *client.Conn) { c.AddTempRoot(ctx, nothing) },
		"Indirect":  func(c *client.Conn) { c.AddIndirectRoot(ctx, "relative") },
		"FindRoots": func(c *client.Conn) { c.FindRoots(ctx) },
		"Collect": func(c *client.Conn) {
			c.CollectGarbage(ctx, &protocol.GCOptions{Action: protocol.GCReturnDead, Paths: []store.Path{nothing}, MaxFreed: 1})
		},
		"Collect2":  func(c *client.Conn) { c.Collect(ctx, &protocol.GCRequest{DryRun: true}, nil) },
		"Why":       func(c *client.Conn) { c.Why(ctx, a.Path) },
		"Status":    func(c *client.Conn) { c.Status(ctx) },
		"Closure":   func(c *client.Conn) { c.Closure(ctx, []store.Path{a.Path}) },
		"Import":    func(c *client.Conn) { c.ImportBundle(ctx, bytes.NewReader(bundleOf(t, r, a))) },
		"Export":    func(c *client.Conn) { c.ExportBundle(ctx, []store.Path{a.Path}, true, io.Discard) },
		"FollowLog": func(c *client.Conn) { c.FollowLog(ctx, nothing, io.Discard) },
		"Sign":      func(c *client.Conn) { c.AddSignatures(ctx, a.Path, []string{"x:y"}) },
		"Verify":    func(c *client.Conn) { c.Verify(ctx, false, false, nil) },
	}
	recorded := map[string][]byte{}
	for name, op := range ops {
		conn := &recorder{Conn: r.pipe(daemon.Peer{UID: 1234})}
		c, err := client.New(ctx, conn, &client.Options{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		op(c)
		c.Close()
		recorded[name] = conn.written.Bytes()
	}
	return recorded
}

// bundleOf is a bundle of an object, signed by nobody that is known.
func bundleOf(t testing.TB, r *rig, info *store.Info) []byte {
	t.Helper()
	key, err := archive.GenerateKey("unknown-1")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := archive.WriteBundle(context.Background(), &b, key, store.DefaultDir, []*store.Info{info}, r.store); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// play sends bytes, hangs up, and waits until the session has ended.
func (r *rig) play(t testing.TB, b []byte) {
	t.Helper()
	server, conn := socketpair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.server.ServeConn(context.Background(), server, daemon.Peer{UID: 1234, GID: 1234})
	}()
	go func() {
		conn.Write(b)
		conn.(*net.UnixConn).CloseWrite()
	}()
	io.Copy(io.Discard, conn)
	conn.Close()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("session does not end after %d bytes: %q", len(b), b)
	}
}

// TestStopInTheMiddle cuts every request at every word.
func TestStopInTheMiddle(t *testing.T) {
	r := start(t, nil)
	for _, version := range []protocol.Version{protocol.Minor(38), protocol.Minor(34)} {
		for name, b := range requests(t, r, version) {
			step := max(8, len(b)/200&^7)
			for n := 0; n < len(b); n += step {
				r.play(t, b[:n])
				r.play(t, b[:n+3])
			}
			if t.Failed() {
				t.Fatalf("in %s", name)
			}
		}
	}
	addText(t, r.dial(), "after", "all")
}

// TestNumbersOutOfRange replaces every word of every request by hostile numbers.
func TestNumbersOutOfRange(t *testing.T) {
	r := start(t, nil)
	for name, b := range requests(t, r, protocol.Minor(38)) {
		step := max(8, len(b)/60&^7)
		for n := 0; n+8 <= len(b); n += step {
			for _, v := range []uint64{1 << 63, 1<<64 - 1, 1 << 32, 1 << 20, 7} {
				bad := bytes.Clone(b)
				binary.LittleEndian.PutUint64(bad[n:], v)
				r.play(t, bad)
			}
		}
		if t.Failed() {
			t.Fatalf("in %s", name)
		}
	}
	addText(t, r.dial(), "after", "all")
}

// TestGarbageSessions sends noise, at the beginning and after a good handshake.
func TestGarbageSessions(t *testing.T) {
	r := start(t, nil)
	var hello bytes.Buffer
	for _, v := range []uint64{0x6e697863, uint64(protocol.Minor(34)), 0, 0} {
		binary.Write(&hello, binary.LittleEndian, v)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	for range 8 {
		seed := rnd.Uint64()
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 1))
			for range 60 {
				noise := make([]byte, rnd.IntN(4000))
				for i := range noise {
					if noise[i] = byte(rnd.Uint32()); rnd.IntN(8) > 0 {
						noise[i] = 0
					}
				}
				r.play(t, noise)
				r.play(t, append(bytes.Clone(hello.Bytes()), noise...))
			}
		})
	}
	wg.Wait()
	if n := len(r.server.Status(true).Sessions); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// TestSilentClients say nothing, or half a word, and disturb nobody.
func TestSilentClients(t *testing.T) {
	r := start(t, nil)
	for range 20 {
		conn := r.pipe(daemon.Peer{UID: 1234})
		conn.Write([]byte("cxin"))
	}
	c := r.dial()
	for i := range 20 {
		addText(t, c, fmt.Sprint("n", i), "x")
	}
}

// TestStalledUpload blocks others who add the same for a while only.
func TestStalledUpload(t *testing.T) {
	r := start(t, &daemon.Options{MaxStall: 300 * time.Millisecond})
	contents := narOf(t, strings.Repeat("x", 200_000))
	info := &store.Info{NarHash: store.SHA256.Sum(contents), NarSize: int64(len(contents))}
	info.CA = store.ContentAddress{Method: store.Recursive, Hash: info.NarHash}
	var err error
	if info.Path, err = store.DefaultDir.ContentPath("x", info.CA, store.References{}); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	stalled := make(chan error, 1)
	go func() { stalled <- r.stranger().Add(t.Context(), info, pr) }()
	if _, err := pw.Write(contents[:150_000]); err != nil {
		t.Fatal(err)
	}
	again := *info
	if err := r.dial().Add(t.Context(), &again, bytes.NewReader(contents)); err != nil {
		t.Errorf("add the same: %v", err)
	}
	pw.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-stalled; err == nil {
		t.Error("the stalled upload succeeds")
	}
}

// TestLargeRequestsShareMemory floods the daemon with texts that never end.
func TestLargeRequestsShareMemory(t *testing.T) {
	r := start(t, nil)
	var wg sync.WaitGroup
	refused := make(chan string, 100)
	var conns []net.Conn
	for range 30 {
		conn := r.pipe(daemon.Peer{Trusted: true})
		conns = append(conns, conn)
		wg.Go(func() {
			c := rawOn(t, conn, 34)
			c.e.Uint64(uint64(protocol.OpQueryValidPaths))
			c.e.Uint64(1 << 20)
			for range 3500 { // 13 MiB, and then nothing
				c.e.Text(strings.Repeat("x", 4000))
			}
			c.e.Flush() // which fails when the answer came long before
			if m := c.d.Message(); m.Kind == protocol.KindError {
				refused <- m.Err.Error()
			}
		})
	}
	for range 5 {
		if why := <-refused; !strings.Contains(why, protocol.ErrBusy.Error()) {
			t.Errorf("refused with %q", why)
		}
	}
	info := addText(t, r.dial(), "a", "small requests go on")
	if info == nil {
		t.Error("no info")
	}
	for _, conn := range conns {
		conn.Close()
	}
	wg.Wait()
}

// TestTooLargeRequest sends more than a request may have, over all kinds of streams: the client is told so, although it reads only after it has
// written everything, and neither side waits for the other.
func TestTooLargeRequest(t *testing.T) {
	r := start(t, nil)
	p, err := store.DefaultDir.Path(baseB + ".drv")
	if err != nil {
		t.Fatal(err)
	}
	targets := slices.Repeat([]protocol.Target{{Path: p, Outputs: protocol.All()}}, 1<<20)
	serve := func(a io.ReadWriteCloser) chan error {
		done := make(chan error, 1)
		go func() { done <- r.server.ServeConn(context.Background(), a, daemon.Peer{Trusted: true}) }()
		return done
	}
	for name, connect := range map[string]func() (io.ReadWriteCloser, chan error){
		"socket": func() (io.ReadWriteCloser, chan error) {
			a, b := socketpair(t)
			return b, serve(a)
		},
		"memory": func() (io.ReadWriteCloser, chan error) {
			a, b := net.Pipe()
			return b, serve(a)
		},
		"stdio": func() (io.ReadWriteCloser, chan error) {
			in, toServer := pipeOf(t)
			fromServer, out := pipeOf(t)
			done := make(chan error, 1)
			go func() { done <- r.server.ServeStdio(context.Background(), in, out) }()
			return duplex{fromServer, toServer}, done
		},
	} {
		t.Run(name, func(t *testing.T) {
			stream, done := connect()
			c, err := client.New(t.Context(), stream, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Missing(t.Context(), targets, nil); err == nil || !strings.Contains(err.Error(), "budget of 64 MiB; ask for less") {
				t.Errorf("the client learns %v", err)
			}
			c.Close()
			if err := <-done; !errors.Is(err, protocol.ErrTooMuch) {
				t.Errorf("the session ends with %v", err)
			}
		})
	}
}

func pipeOf(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// FuzzSession sends anything after the handshake, in any version, to a live daemon.
func FuzzSession(f *testing.F) {
	r := start(f, nil)
	ours := dialect{38, []protocol.Feature{protocol.FeatureCairn}}
	dialects := append([]dialect{ours}, hostileDialects...)
	hello, _ := ours.hello("")
	for _, b := range requests(f, r, protocol.Minor(38)) {
		f.Add(uint8(0), b[min(len(b), len(hello)):])
	}
	known := newFacts(f, r, r.dial())
	for i, d := range hostileDialects {
		for _, x := range known.exchanges(d) {
			if d.minor >= x.since && d.minor < x.until {
				f.Add(uint8(i+1), bytesOf(x.op, x.request))
			}
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		hello, _ := dialects[int(which)%len(dialects)].hello("")
		r.play(t, append(hello, b...))
	})
}
