package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/store"
	"cairn/store/disk"
)

// activatedVariable makes this program a daemon that systemd has given its socket.
const activatedVariable = "DAEMON_TEST_ACTIVATED"

func TestMain(m *testing.M) {
	sandbox.Init()
	if os.Getenv(activatedVariable) != "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		l, err := daemon.Listen(disk.Layout{SocketPath: "/nowhere/socket"})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(l.Addr(), os.Getenv("LISTEN_FDS") == "")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// rig is a daemon on a store of its own.
type rig struct {
	t      testing.TB
	layout disk.Layout
	store  *disk.Store
	build  *build.Builder
	server *daemon.Server
	socket string
}

// start runs a daemon. When the test ends, the store must verify clean and no goroutine be left.
func start(t testing.TB, opts *daemon.Options) *rig {
	t.Helper()
	before, _ := goroutines()
	root, err := os.MkdirTemp("", "cairnd")
	if err != nil {
		t.Fatal(err)
	}
	layout, err := disk.NewLayout(root, nil)
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
	r := &rig{t: t, layout: layout, store: s, build: build.New(s, nil), socket: layout.SocketPath}
	r.server = daemon.New(s, r.build, opts)
	l, err := daemon.Listen(layout)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		r.server.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		r.build.Close()
		_, err := s.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) {
			t.Errorf("verify: %s: %v", p.Path, p.Err)
		})
		if err != nil {
			t.Errorf("verify: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
		removeAll(root)
		settle(t, before)
	})
	return r
}

func removeAll(root string) {
	filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	os.RemoveAll(root)
}

// settle waits until there are no more goroutines than before.
func settle(t testing.TB, before int) {
	t.Helper()
	var dump string
	for range 100 {
		var n int
		if n, dump = goroutines(); n <= before {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("more than %d goroutines are left:\n%s", before, dump)
}

// goroutines counts all but those of the runtime's signals, which fuzzing starts.
func goroutines() (int, string) {
	buf := make([]byte, 4<<20)
	dump := string(buf[:runtime.Stack(buf, true)])
	n := 0
	for g := range strings.SplitSeq(dump, "\n\n") {
		if !strings.Contains(g, "os/signal.") {
			n++
		}
	}
	return n, dump
}

// dial connects as root.
func (r *rig) dial() *client.Conn {
	r.t.Helper()
	c, err := client.Dial(context.Background(), r.socket, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// pipe connects as somebody over a socket pair.
func (r *rig) pipe(peer daemon.Peer) net.Conn {
	r.t.Helper()
	a, b := socketpair(r.t)
	go r.server.ServeConn(context.Background(), a, peer)
	r.t.Cleanup(func() { b.Close() })
	return b
}

// stranger connects as an untrusted user.
func (r *rig) stranger() *client.Conn {
	r.t.Helper()
	c, err := client.New(context.Background(), r.pipe(daemon.Peer{UID: 1234, GID: 1234}), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func narOf(t testing.TB, contents string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := nar.DumpString(&b, []byte(contents), false); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// inputAddressed describes an object that proves nothing.
func inputAddressed(t testing.TB, base string, archive []byte, refs ...store.Path) *store.Info {
	t.Helper()
	p, err := store.DefaultDir.Path(base)
	if err != nil {
		t.Fatal(err)
	}
	return &store.Info{Path: p, NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive)), References: refs}
}

const (
	baseA = "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a"
	baseB = "2bj8pdj5hdiqgbcr2z9k8wg6vvjxzbj6-b"
)

func addText(t testing.TB, c *client.Conn, name, contents string, refs ...store.Path) *store.Info {
	t.Helper()
	info, err := c.AddToStore(context.Background(), name, store.Text, store.SHA256, refs, strings.NewReader(contents))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestAddAndQuery(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	ctx := t.Context()
	a := addText(t, c, "a", "hello")
	b := addText(t, c, "b", "uses "+a.Path.String(), a.Path)
	got, err := c.Info(ctx, b.Path)
	if err != nil || got.NarHash != b.NarHash || len(got.References) != 1 || got.References[0] != a.Path || got.CA.IsZero() {
		t.Errorf("info: %+v, %v", got, err)
	}
	if refs, err := c.Referrers(ctx, a.Path); err != nil || len(refs) != 1 || refs[0] != b.Path {
		t.Errorf("referrers: %v, %v", refs, err)
	}
	if p, err := c.PathFromDigest(ctx, a.Path.Digest()); err != nil || p != a.Path {
		t.Errorf("path from digest: %v, %v", p, err)
	}
	if all, err := c.AllPaths(ctx); err != nil || len(all) != 2 {
		t.Errorf("all: %v, %v", all, err)
	}
	if infos, err := c.Closure(ctx, []store.Path{b.Path}); err != nil || len(infos) != 2 || infos[0].Path != a.Path {
		t.Errorf("closure: %v, %v", infos, err)
	}
	var out bytes.Buffer
	if err := c.NAR(ctx, a.Path, &out); err != nil || !bytes.Equal(out.Bytes(), narOf(t, "hello")) {
		t.Errorf("nar: %q, %v", out.Bytes(), err)
	}
	missing, _ := store.DefaultDir.Path(baseA)
	if _, err := c.Info(ctx, missing); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("info of nothing: %v", err)
	}
	if err := c.NAR(ctx, missing, io.Discard); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("nar of nothing: %v", err)
	}
	valid, err := c.ValidPaths(ctx, []store.Path{missing, a.Path})
	if err != nil || len(valid) != 1 || valid[0] != a.Path {
		t.Errorf("valid paths: %v, %v", valid, err)
	}
}

func TestClosureOfForeignDaemonIsWalked(t *testing.T) {
	r := start(t, nil)
	c, err := client.Dial(t.Context(), r.socket, &client.Options{Version: protocol.Minor(34)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a := addText(t, c, "a", "hello")
	b := addText(t, c, "b", "x", a.Path)
	d := addText(t, c, "d", "x", a.Path, b.Path)
	infos, err := c.Closure(t.Context(), []store.Path{d.Path, a.Path})
	if err != nil || len(infos) != 3 || infos[0].Path != a.Path || infos[1].Path != b.Path {
		t.Errorf("closure: %v, %v", infos, err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrUnsupported) {
		t.Errorf("status of an old daemon: %v", err)
	}
}

func TestAddFrom(t *testing.T) {
	from, to := start(t, nil), start(t, nil)
	c, d := from.dial(), to.dial()
	a := addText(t, c, "a", "hello")
	b := addText(t, c, "b", "uses "+a.Path.String(), a.Path)
	infos, err := c.Closure(t.Context(), []store.Path{b.Path})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.AddFrom(t.Context(), infos, c); err != nil {
		t.Fatal(err)
	}
	got, err := d.Info(t.Context(), b.Path)
	if err != nil || got.NarHash != b.NarHash {
		t.Errorf("info: %+v, %v", got, err)
	}
}

// TestAddFromManyAtOnce copies a chain and a heap, with one lie among them.
func TestAddFromManyAtOnce(t *testing.T) {
	from, to := start(t, nil), start(t, nil)
	c, d := from.dial(), to.dial()
	var infos []*store.Info
	for i := range 100 {
		var refs []store.Path
		if i > 0 {
			refs = []store.Path{infos[i-1].Path, infos[i/2].Path}
		}
		infos = append(infos, addText(t, c, "n", strings.Repeat(fmt.Sprint(i), 1+i%3*100_000), refs...))
	}
	if err := d.AddFrom(t.Context(), infos, c); err != nil {
		t.Fatal(err)
	}
	if all, err := d.AllPaths(t.Context()); err != nil || len(all) != 100 {
		t.Errorf("%d paths, %v", len(all), err)
	}
	third := start(t, nil).dial()
	lie := *infos[50]
	lie.NarHash = infos[0].NarHash
	infos[50] = &lie
	if err := third.AddFrom(t.Context(), infos, c); !errors.Is(err, store.ErrHashMismatch) {
		t.Errorf("with a lie: %v", err)
	}
	if valid, err := third.IsValid(t.Context(), lie.Path); err != nil || valid {
		t.Errorf("the lie is valid: %v, %v", valid, err)
	}
	if valid, err := third.IsValid(t.Context(), infos[99].Path); err != nil || valid {
		t.Errorf("what refers to the lie is valid: %v, %v", valid, err)
	}
}

// TestEarlyErrorKeepsTheSession uploads much more than fits into any buffer, in vain.
func TestEarlyErrorKeepsTheSession(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	missing, _ := store.DefaultDir.Path(baseA)
	endless := io.LimitReader(zeros{}, 1<<40)
	began := time.Now()
	_, err := c.AddToStore(t.Context(), "x", store.Flat, store.SHA256, []store.Path{missing}, endless)
	if !errors.Is(err, store.ErrNotValid) {
		t.Errorf("add: %v", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("the refusal took %v", d)
	}
	addText(t, c, "a", "the session goes on")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestFailingSource(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	cut := errors.New("source is cut")
	full := narOf(t, strings.Repeat("x", 100_000))
	info := inputAddressed(t, baseA, full)
	err := c.Add(t.Context(), info, io.MultiReader(bytes.NewReader(full[:50_000]), failing{cut}))
	if !errors.Is(err, cut) {
		t.Errorf("add: %v", err)
	}
	addText(t, c, "a", "the session goes on")
	_, err = c.AddToStore(t.Context(), "x", store.Flat, store.SHA256, nil, io.MultiReader(strings.NewReader("half"), failing{cut}))
	if !errors.Is(err, cut) {
		t.Errorf("add: %v", err)
	}
	if _, err := c.AllPaths(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after a cut that the daemon cannot see: %v", err)
	}
	all, err := r.dial().AllPaths(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("paths: %v, %v", all, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestTrust(t *testing.T) {
	r := start(t, nil)
	c := r.stranger()
	ctx := t.Context()
	if c.Trusted() {
		t.Error("a stranger is trusted")
	}
	contents := narOf(t, "x")
	info := inputAddressed(t, baseA, contents)
	if err := c.Add(ctx, info, bytes.NewReader(contents)); !errors.Is(err, store.ErrUntrusted) {
		t.Errorf("unsigned: %v", err)
	}
	key, err := archive.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	info.Signatures = []string{key.SignInfo(info)}
	if err := c.Add(ctx, info, bytes.NewReader(contents)); !errors.Is(err, store.ErrUntrusted) {
		t.Errorf("signed by somebody: %v", err)
	}
	if _, err := archive.Authorize(filepath.Join(r.layout.ConfDir, "acl"), key.Public(), archive.Import); err != nil {
		t.Fatal(err)
	}
	changed := *info
	changed.References = []store.Path{info.Path}
	if err := c.Add(ctx, &changed, bytes.NewReader(contents)); !errors.Is(err, store.ErrUntrusted) {
		t.Errorf("signature of something else: %v", err)
	}
	if err := c.Add(ctx, info, bytes.NewReader(narOf(t, "y"))); !errors.Is(err, store.ErrHashMismatch) {
		t.Errorf("other contents: %v", err)
	}
	info.Ultimate = true
	if err := c.Add(ctx, info, bytes.NewReader(contents)); err != nil {
		t.Errorf("signed by an authorized key: %v", err)
	}
	if got, err := c.Info(ctx, info.Path); err != nil || got.Ultimate {
		t.Errorf("info: %+v, %v", got, err)
	}
	liar := inputAddressed(t, baseB, contents)
	liar.CA = store.ContentAddress{Method: store.Recursive, Hash: liar.NarHash}
	if err := c.Add(ctx, liar, bytes.NewReader(contents)); err == nil {
		t.Error("a content address that does not make the path is accepted")
	}
	if err := c.AddSignatures(ctx, info.Path, []string{"x:" + strings.Repeat("A", 86) + "=="}); err != nil {
		t.Errorf("add signature that counts for nothing: %v", err)
	}
	if err := c.AddPermRoot(ctx, info.Path, "/tmp/root"); !errors.Is(err, protocol.ErrNotAllowed) {
		t.Errorf("perm root: %v", err)
	}
	if _, err := c.Build(ctx, nil, client.Repair, nil); !errors.Is(err, protocol.ErrNotAllowed) {
		t.Errorf("repair: %v", err)
	}
	id := store.DrvOutput{Drv: store.SHA256.Sum(nil), Output: "out"}
	real := store.Realisation{ID: id, OutPath: info.Path}
	if err := c.RegisterDrvOutput(ctx, real); !errors.Is(err, store.ErrUntrusted) {
		t.Errorf("realisation: %v", err)
	}
	real.Signatures = []string{key.SignRealisation(&real)}
	if err := c.RegisterDrvOutput(ctx, real); err != nil {
		t.Errorf("signed realisation: %v", err)
	}
	if got, ok, err := c.Realisation(ctx, id); err != nil || !ok || got.OutPath != info.Path {
		t.Errorf("realisation: %+v, %v, %v", got, ok, err)
	}
}

func TestDerivationMustClaimItsOwnOutputs(t *testing.T) {
	r := start(t, nil)
	out := string(store.DefaultDir) + "/" + baseA
	evil := `Derive([("out","` + out + `","","")],[],[],"x86_64-linux","/bin/sh",[],[("out","` + out + `")])`
	for name, c := range map[string]*client.Conn{"root": r.dial(), "stranger": r.stranger()} {
		if _, err := c.AddToStore(t.Context(), "a.drv", store.Text, store.SHA256, nil, strings.NewReader(evil)); err == nil || !strings.Contains(err.Error(), "should be") {
			t.Errorf("%s: add text: %v", name, err)
		}
		archived := narOf(t, evil)
		hash := store.SHA256.Sum([]byte(evil))
		p, err := store.DefaultDir.TextPath("a.drv", hash, nil)
		if err != nil {
			t.Fatal(err)
		}
		info := &store.Info{Path: p, NarHash: store.SHA256.Sum(archived), NarSize: int64(len(archived)), CA: store.ContentAddress{Method: store.Text, Hash: hash}}
		if err := c.Add(t.Context(), info, bytes.NewReader(archived)); err == nil || !strings.Contains(err.Error(), "should be") {
			t.Errorf("%s: add nar: %v", name, err)
		}
		if _, err := c.AddToStore(t.Context(), "a.drv", store.Recursive, store.SHA256, nil, bytes.NewReader(archived)); err == nil {
			t.Errorf("%s: recursive: accepted", name)
		}
		if valid, err := c.IsValid(t.Context(), p); err != nil || valid {
			t.Errorf("%s: valid: %v, %v", name, valid, err)
		}
	}
}

func TestBundle(t *testing.T) {
	from, to := start(t, nil), start(t, nil)
	c, d := from.dial(), to.stranger()
	a := addText(t, c, "a", "hello")
	b := addText(t, c, "b", "uses "+a.Path.String(), a.Path)
	if err := c.ExportBundle(t.Context(), []store.Path{b.Path}, true, io.Discard); err == nil || !strings.Contains(err.Error(), "generate-key") {
		t.Errorf("export without a key: %v", err)
	}
	key, err := archive.GenerateKey("from-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := key.WriteFile(filepath.Join(from.layout.ConfDir, "signing-key.sec")); err != nil {
		t.Fatal(err)
	}
	var bundle bytes.Buffer
	if err := c.ExportBundle(t.Context(), []store.Path{b.Path}, true, &bundle); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ImportBundle(t.Context(), bytes.NewReader(bundle.Bytes())); !errors.Is(err, archive.ErrUnauthorized) || !strings.Contains(err.Error(), "from-1") {
		t.Errorf("unknown signer: %v", err)
	}
	if _, err := archive.Authorize(filepath.Join(to.layout.ConfDir, "acl"), key.Public(), archive.Import); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{bundle.Len() - 1, bundle.Len() / 2, bundle.Len() * 3 / 4} {
		bad := bytes.Clone(bundle.Bytes())
		bad[at] ^= 1
		if _, err := d.ImportBundle(t.Context(), bytes.NewReader(bad)); err == nil {
			t.Errorf("a flipped bit at %d is accepted", at)
		}
		if all, err := d.AllPaths(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("after a bad bundle: %v, %v", all, err)
		}
	}
	got, err := d.ImportBundle(t.Context(), bytes.NewReader(bundle.Bytes()))
	if err != nil || len(got) != 2 {
		t.Fatalf("import: %v, %v", got, err)
	}
	if info, err := d.Info(t.Context(), b.Path); err != nil || info.NarHash != b.NarHash || info.Ultimate {
		t.Errorf("info: %+v, %v", info, err)
	}
	if again, err := d.ImportBundle(t.Context(), bytes.NewReader(bundle.Bytes())); err != nil || len(again) != 2 {
		t.Errorf("import again: %v, %v", again, err)
	}
}

func TestGarbage(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	ctx := t.Context()
	a := addText(t, c, "a", "hello")
	b := addText(t, c, "b", "bye")
	other := r.dial()
	res, err := other.Collect(ctx, &protocol.GCRequest{}, nil)
	if err != nil || len(res.Paths) != 0 {
		t.Errorf("collected what a session has added: %+v, %v", res, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(a.Path.String(), link); err != nil {
		t.Fatal(err)
	}
	if err := c.AddIndirectRoot(ctx, link); err != nil {
		t.Fatal(err)
	}
	chains, err := other.Why(ctx, a.Path)
	if err != nil || len(chains) == 0 {
		t.Errorf("why: %+v, %v", chains, err)
	}
	roots, err := other.FindRoots(ctx)
	if err != nil || len(roots) < 2 {
		t.Errorf("roots: %+v, %v", roots, err)
	}
	c.Close()
	waitFor(t, func() bool {
		s, err := other.Status(ctx)
		return err == nil && s.Connections == 1
	})
	res, err = other.Collect(ctx, &protocol.GCRequest{DryRun: true}, nil)
	if err != nil || len(res.Paths) != 1 || res.Paths[0] != b.Path {
		t.Errorf("dry run: %+v, %v", res, err)
	}
	old, err := other.CollectGarbage(ctx, &protocol.GCOptions{Action: protocol.GCDeleteDead, MaxFreed: protocol.NoLimit})
	if err != nil || len(old.Paths) != 1 || old.Paths[0] != b.Path || old.BytesFreed == 0 {
		t.Errorf("collect: %+v, %v", old, err)
	}
	if _, err := other.CollectGarbage(ctx, &protocol.GCOptions{Action: protocol.GCDeleteDead, IgnoreLiveness: true}); !errors.Is(err, protocol.ErrNotAllowed) {
		t.Errorf("ignore liveness: %v", err)
	}
	if _, err := other.CollectGarbage(ctx, &protocol.GCOptions{Action: protocol.GCDeleteSpecific, Paths: []store.Path{a.Path}, MaxFreed: protocol.NoLimit}); err == nil {
		t.Error("a rooted path was deleted")
	}
}

// TestReadingKeepsNothing collects what sessions that go on have read.
func TestReadingKeepsNothing(t *testing.T) {
	r := start(t, nil)
	key, err := archive.GenerateKey("reader-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := key.WriteFile(filepath.Join(r.layout.ConfDir, "signing-key.sec")); err != nil {
		t.Fatal(err)
	}
	ways := map[string]func(ctx context.Context, c *client.Conn, p store.Path) error{
		"NAR": func(ctx context.Context, c *client.Conn, p store.Path) error { return c.NAR(ctx, p, io.Discard) },
		"NARs": func(ctx context.Context, c *client.Conn, p store.Path) error {
			return c.NARs(ctx, []store.Path{p}, func(store.Path) (io.Writer, error) { return io.Discard, nil })
		},
		"ExportBundle": func(ctx context.Context, c *client.Conn, p store.Path) error {
			return c.ExportBundle(ctx, []store.Path{p}, true, io.Discard)
		},
	}
	for name, read := range ways {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			info, err := r.store.AddStream(ctx, name, store.Text, store.SHA256, nil, strings.NewReader(name))
			if err != nil {
				t.Fatal(err)
			}
			c := r.dial()
			if err := read(ctx, c, info.Path); err != nil {
				t.Fatal(err)
			}
			if valid, err := c.IsValid(ctx, info.Path); err != nil || !valid { // the next request: the first is over
				t.Fatalf("valid: %v, %v", valid, err)
			}
			res, err := r.dial().Collect(ctx, &protocol.GCRequest{}, nil)
			if err != nil || !slices.Equal(res.Paths, []store.Path{info.Path}) {
				t.Errorf("collected %+v, %v", res, err)
			}
		})
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("it does not become true")
}

func TestCancelClosesTheConnection(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	go func() {
		pw.Write([]byte("some"))
		cancel()
		pw.CloseWithError(context.Canceled)
	}()
	_, err := c.AddToStore(ctx, "x", store.Flat, store.SHA256, nil, pr)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("add: %v", err)
	}
	if _, err := c.AllPaths(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after cancel: %v", err)
	}
}

func TestLimitOfConnections(t *testing.T) {
	r := start(t, &daemon.Options{MaxConnections: 2})
	r.stranger()
	_, err := client.New(t.Context(), r.pipe(daemon.Peer{UID: 1234, GID: 1234}), nil)
	if err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("second stranger: %v", err)
	}
	r.dial()
	if _, err := client.Dial(t.Context(), r.socket, nil); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("third: %v", err)
	}
}

func TestDrain(t *testing.T) {
	r := start(t, nil)
	idle, busy := r.dial(), r.dial()
	pr, pw := io.Pipe()
	added := make(chan error, 1)
	go func() {
		_, err := busy.AddToStore(context.Background(), "x", store.Flat, store.SHA256, nil, pr)
		added <- err
	}()
	pw.Write(make([]byte, 300_000))
	waitFor(t, func() bool {
		return len(r.server.Status(true).Sessions) == 2 && strings.Contains(fmt.Sprint(r.server.Status(true).Sessions), "AddToStore")
	})
	drained := make(chan error, 1)
	go func() { drained <- r.server.Drain(context.Background()) }()
	waitFor(t, func() bool { return r.server.Status(false).Connections == 1 })
	if _, err := idle.AllPaths(t.Context()); err == nil {
		t.Error("an idle session survives")
	}
	if _, err := client.Dial(t.Context(), r.socket, nil); err == nil {
		t.Error("a new connection is accepted")
	}
	pw.Write(make([]byte, 300_000))
	pw.Close()
	if err := <-added; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if err := <-drained; err != nil {
		t.Errorf("drain: %v", err)
	}
}

func TestSecondDaemonAndStaleSocket(t *testing.T) {
	r := start(t, nil)
	if _, err := daemon.Listen(r.layout); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second: %v", err)
	}
	fi, err := os.Stat(r.socket)
	if err != nil || fi.Mode().Perm() != 0o666 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	l := r.layout
	l.SocketPath = filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: l.SocketPath, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	again, err := daemon.Listen(l)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestSocketActivation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for fds, want := range map[string]string{"1": path + " true\n", "2": "socket activation passed \"2\" sockets, wanted is 1\n"} {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), activatedVariable+"=1", "LISTEN_FDS="+fds)
		cmd.ExtraFiles = []*os.File{f}
		if out, _ := cmd.CombinedOutput(); string(out) != want {
			t.Errorf("%s: %q, want %q", fds, out, want)
		}
	}
}

// TestLongSocketPath goes where the kernel's names for sockets do not reach.
func TestLongSocketPath(t *testing.T) {
	r := start(t, nil)
	l := r.layout
	l.SocketPath = filepath.Join(t.TempDir(), strings.Repeat("long/", 40), "socket")
	listener, err := daemon.Listen(l)
	if err != nil {
		t.Fatal(err)
	}
	go r.server.Serve(t.Context(), listener)
	c, err := client.Dial(t.Context(), l.SocketPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	addText(t, c, "a", "x")
	c.Close()
	listener.Close()
	if _, err := os.Lstat(l.SocketPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

// TestStdio serves a session on two pipes.
func TestStdio(t *testing.T) {
	r := start(t, nil)
	inR, inW := pipeOf(t)
	outR, outW := pipeOf(t)
	done := make(chan error, 1)
	go func() { done <- r.server.ServeStdio(context.Background(), inR, outW) }()
	c, err := client.New(t.Context(), duplex{outR, inW}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Trusted() {
		t.Error("stdio is not trusted")
	}
	addText(t, c, "a", "hello")
	if _, err := c.Verify(t.Context(), true, false, nil); err != nil {
		t.Error(err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
}

type duplex struct{ r, w *os.File }

func (d duplex) Read(p []byte) (int, error)  { return d.r.Read(p) }
func (d duplex) Write(p []byte) (int, error) { return d.w.Write(p) }
func (d duplex) Close() error                { return errors.Join(d.r.Close(), d.w.Close()) }

func TestManyClients(t *testing.T) {
	r := start(t, nil)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			c, err := client.Dial(t.Context(), r.socket, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for j := range 10 {
				text := fmt.Sprintf("%d %d", i%25, j)
				info, err := c.AddToStore(t.Context(), fmt.Sprintf("n%d", j), store.Text, store.SHA256, nil, strings.NewReader(text))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := c.Info(t.Context(), info.Path); err != nil || got.NarHash != info.NarHash {
					t.Errorf("info: %v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	if all, err := r.dial().AllPaths(t.Context()); err != nil || len(all) != 250 {
		t.Errorf("%d paths, %v", len(all), err)
	}
}
