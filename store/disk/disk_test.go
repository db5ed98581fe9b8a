package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// newLayout makes a store below a temporary directory.
func newLayout(t testing.TB) disk.Layout {
	t.Helper()
	l, err := disk.NewLayout(storetest.TempDir(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(l); err != nil {
		t.Fatal(err)
	}
	return l
}

// open opens a store, and verifies and closes it when the test ends.
func open(t testing.TB, l disk.Layout) *disk.Store {
	t.Helper()
	s, err := disk.Open(context.Background(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *disk.Store) {
	t.Helper()
	verify(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// verify checks contents, references and that nothing else is in the store directory.
func verify(t testing.TB, s *disk.Store) {
	t.Helper()
	_, err := s.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) {
		t.Errorf("verify %s: %v", p.Path, p.Err)
	})
	if errors.Is(err, disk.ErrClosed) {
		return
	}
	if err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(s.Layout().RealDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == ".trash" || e.Name() == ".links" {
			continue
		}
		p, err := s.Dir().Path(e.Name())
		if err != nil || !s.IsValid(p) {
			t.Errorf("%s is in the store directory and not valid", e.Name())
		}
	}
}

func text(t testing.TB, s *disk.Store, name, contents string, refs ...store.Path) store.Path {
	t.Helper()
	info, err := s.AddStream(context.Background(), name, store.Text, store.SHA256, refs, strings.NewReader(contents))
	if err != nil {
		t.Fatal(err)
	}
	return info.Path
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.ReadWriter { return open(t, newLayout(t)) })
}

func TestLayout(t *testing.T) {
	env := map[string]string{}
	tests := []struct {
		root string
		env  map[string]string
		want disk.Layout
	}{
		{"", nil, disk.Layout{Dir: "/cairn/store", RealDir: "/cairn/store", StateDir: "/cairn/var", LogDir: "/cairn/var/log",
			SocketPath: "/cairn/var/daemon-socket/socket", ConfDir: "/etc/cairn"}},
		{"/r", nil, disk.Layout{Root: "/r", Dir: "/cairn/store", RealDir: "/r/cairn/store", StateDir: "/r/cairn/var", LogDir: "/r/cairn/var/log",
			SocketPath: "/r/cairn/var/daemon-socket/socket", ConfDir: "/r/etc/cairn"}},
		{"", map[string]string{"NIX_STORE_DIR": "/nix/store", "NIX_STATE_DIR": "/s", "NIX_CONF_DIR": "/c", "NIX_DAEMON_SOCKET_PATH": "/sock"},
			disk.Layout{Dir: "/nix/store", RealDir: "/nix/store", StateDir: "/s", LogDir: "/s/log", SocketPath: "/sock", ConfDir: "/c"}},
	}
	for _, test := range tests {
		env = test.env
		got, err := disk.NewLayout(test.root, func(n string) string { return env[n] })
		if err != nil || got != test.want {
			t.Errorf("layout of %q, %v:\n got %+v, %v\nwant %+v", test.root, test.env, got, err, test.want)
		}
	}
	for _, bad := range []string{"relative", "/", "/a/../b"} {
		if _, err := disk.NewLayout("", func(n string) string {
			if n == "NIX_STORE_DIR" {
				return bad
			}
			return ""
		}); err == nil {
			t.Errorf("store directory %q accepted", bad)
		}
	}
}

func TestReopen(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	a := text(t, s, "a", "a")
	b := text(t, s, "b", "b", a)
	if err := s.AddSignatures(t.Context(), b, []string{"k:2", "k:1", "k:2"}); err != nil {
		t.Fatal(err)
	}
	want, err := s.Info(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if _, err := s.AddStream(t.Context(), "late", store.Text, store.SHA256, nil, strings.NewReader("x")); err == nil {
		t.Error("a closed store accepts additions")
	}
	s = open(t, l)
	got, err := s.Info(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || !slices.Equal(got.Signatures, []string{"k:1", "k:2"}) {
		t.Errorf("after reopening:\n got %v\nwant %v", got, want)
	}
	if r, _ := s.Referrers(a); !slices.Equal(r, []store.Path{b}) {
		t.Errorf("referrers after reopening: %v", r)
	}
}

func TestSecondProcess(t *testing.T) {
	l := newLayout(t)
	open(t, l)
	_, err := disk.Open(t.Context(), l, nil)
	if !errors.Is(err, disk.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("got %v, want ErrInUse with our pid", err)
	}
}

func TestStrays(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	kept := text(t, s, "kept", "kept")
	gone := text(t, s, "gone", "gone")
	closeStore(t, s)
	stray := storetest.Source(l.Dir, "stray", storetest.File("stray")).Path
	write := func(name string) {
		t.Helper()
		dir := filepath.Join(l.RealDir, name)
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "sub", "f"), nil, 0o444); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, "sub"), 0o555); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
	}
	write(stray.Base())
	write(".tmp-123-4")
	write(".trash/old")
	write("foreign")
	if err := os.Remove(l.RealPath(gone)); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.IsValid(stray) || s.IsValid(gone) || !s.IsValid(kept) {
		t.Error("validity after the scan is wrong")
	}
	for _, name := range []string{stray.Base(), ".tmp-123-4"} {
		if _, err := os.Lstat(filepath.Join(l.RealDir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there", name)
		}
	}
	if _, err := os.Lstat(filepath.Join(l.RealDir, "foreign")); err != nil {
		t.Error("what is not ours was removed")
	}
	found := 0
	if _, err := s.Verify(t.Context(), nil, func(p disk.Problem) { found++ }); err != nil || found != 1 {
		t.Errorf("verify found %d problems, %v; want the missing object", found, err)
	}
	if text(t, s, "gone", "gone") != gone || !s.IsValid(gone) {
		t.Error("adding a missing object again does not repair it")
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // the trash empties in the background
		left, err := os.ReadDir(filepath.Join(l.RealDir, ".trash"))
		if len(left) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist)) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d trees are left in the trash: %v", len(left), err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAddStream(t *testing.T) {
	s := open(t, newLayout(t))
	big := make([]byte, 5<<20)
	rand.NewChaCha8([32]byte{}).Read(big)
	for _, method := range []store.Method{store.Text, store.Flat, store.Recursive} {
		for _, algo := range []store.Algorithm{store.SHA256, store.SHA1, store.BLAKE3} {
			for _, data := range [][]byte{nil, []byte("small"), big} {
				if method == store.Text && algo != store.SHA256 {
					continue
				}
				archive := storetest.File(string(data))
				in := data
				if method == store.Recursive {
					in = archive
				}
				for range 2 {
					info, err := s.AddStream(t.Context(), "x", method, algo, nil, bytes.NewReader(in))
					if err != nil {
						t.Fatal(err)
					}
					if err := info.CheckContentAddress(); err != nil {
						t.Error(err)
					}
					if info.NarHash != store.SHA256.Sum(archive) || info.NarSize != int64(len(archive)) {
						t.Errorf("%d %s: wrong nar hash or size", method, algo)
					}
				}
			}
		}
	}
	if _, err := s.AddStream(t.Context(), "bad/name", store.Text, store.SHA256, nil, strings.NewReader("")); err == nil {
		t.Error("bad name accepted")
	}
	if _, err := s.AddStream(t.Context(), "x.drv", store.Text, store.SHA256, nil, strings.NewReader("no derivation")); err == nil {
		t.Error("bad derivation accepted")
	}
}

func TestAddFromPath(t *testing.T) {
	s := open(t, newLayout(t))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := s.AddFromPath(t.Context(), "tree", store.Recursive, store.SHA256, store.References{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(s.RealPath(info.Path), "f")); err != nil || string(got) != "data" {
		t.Errorf("got %q, %v", got, err)
	}
	flat, err := s.AddFromPath(t.Context(), "flat", store.Flat, store.SHA256, store.References{}, filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if want := (store.ContentAddress{Method: store.Flat, Hash: store.SHA256.Sum([]byte("data"))}); flat.CA != want {
		t.Errorf("got %s, want %s", flat.CA, want)
	}
	if _, err := s.AddFromPath(t.Context(), "none", store.Recursive, store.SHA256, store.References{}, filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestCanonical checks what objects look like on disk, however they came.
func TestCanonical(t *testing.T) {
	s := open(t, newLayout(t))
	archive := storetest.Tree("canonical")
	added := storetest.Source(s.Dir(), "added", archive)
	if err := s.Add(t.Context(), added, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	built := register(t, s, "built", archive)
	for _, root := range []string{s.RealPath(added.Path), s.RealPath(built), s.RealPath(text(t, s, "t", "t"))} {
		err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := e.Info()
			if err != nil {
				return err
			}
			if !fi.ModTime().Equal(time.Unix(1, 0)) {
				t.Errorf("%s has time %v", p, fi.ModTime())
			}
			if n, err := unix.Llistxattr(p, nil); err == nil && n > 0 {
				t.Errorf("%s has extended attributes", p)
			}
			want := fs.FileMode(0o444)
			if e.IsDir() || filepath.Base(p) == "run" {
				want = 0o555
			}
			if e.Type() != fs.ModeSymlink && fi.Mode().Perm() != want {
				t.Errorf("%s has mode %v, want %v", p, fi.Mode(), want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// register makes an object the way a build does.
func register(t *testing.T, s *disk.Store, name string, archive []byte) store.Path {
	t.Helper()
	o := output(t, s, name, archive)
	if err := s.Register(t.Context(), []disk.Output{o}); err != nil {
		t.Fatal(err)
	}
	return o.Info.Path
}

// setAttribute sets an extended attribute where there are any.
func setAttribute(path string) error {
	err := unix.Setxattr(path, "user.test", []byte("x"), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// output leaves a tree with careless metadata in a temporary directory.
func output(t *testing.T, s *disk.Store, name string, archive []byte, refs ...store.Path) disk.Output {
	t.Helper()
	dir, err := s.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tree := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Join(tree, "bin"), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(tree, "bin", "run"), []byte("#!/bin/sh\ncanonical"), 0o755),
		os.Mkdir(filepath.Join(tree, "empty"), 0o700),
		os.Symlink("bin/run", filepath.Join(tree, "link")),
		os.WriteFile(filepath.Join(tree, "zero"), nil, 0o666),
		os.Chmod(filepath.Join(tree, "bin", "run"), 0o4755),
		setAttribute(filepath.Join(tree, "bin", "run")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	info := storetest.Source(s.Dir(), name, storetest.Tree("canonical"), refs...)
	info.Ultimate = true
	return disk.Output{Info: info, TempPath: tree}
}

func TestRegister(t *testing.T) {
	s := open(t, newLayout(t))
	a := output(t, s, "a", nil)
	b := output(t, s, "b", nil, a.Info.Path)
	b.Info.References = []store.Path{a.Info.Path, b.Info.Path} // itself, too: not content-addressed
	b.Info.CA = store.ContentAddress{}
	store.SortPaths(b.Info.References)
	if err := s.Register(t.Context(), []disk.Output{b, a}); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.References(b.Info.Path); !slices.Equal(got, b.Info.References) {
		t.Errorf("references %v, want %v", got, b.Info.References)
	}
	if got, _ := s.Closure(b.Info.Path); !slices.Equal(got, []store.Path{a.Info.Path, b.Info.Path}) {
		t.Errorf("closure %v", got)
	}
	again := output(t, s, "a", nil)
	if err := s.Register(t.Context(), []disk.Output{again}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(again.TempPath); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the tree of a valid output is still there")
	}
	c, d := output(t, s, "c", nil), output(t, s, "d", nil)
	c.Info.CA, d.Info.CA = store.ContentAddress{}, store.ContentAddress{}
	c.Info.References, d.Info.References = []store.Path{d.Info.Path}, []store.Path{c.Info.Path}
	if err := s.Register(t.Context(), []disk.Output{c, d}); err == nil || s.IsValid(c.Info.Path) {
		t.Error("a circle of outputs is accepted")
	}
}

func TestDelete(t *testing.T) {
	s := open(t, newLayout(t))
	a := text(t, s, "a", "a")
	b := text(t, s, "b", "b", a)
	if _, err := s.Delete(t.Context(), []store.Path{a}); !errors.Is(err, disk.ErrAlive) || !strings.Contains(err.Error(), b.String()) {
		t.Errorf("delete what is referred to: %v", err)
	}
	l := s.Lease("test", 0)
	if err := l.Hold(b); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(t.Context(), []store.Path{a, b}); !errors.Is(err, disk.ErrAlive) {
		t.Errorf("delete what is held: %v", err)
	}
	l.Release()
	deleted, err := s.Delete(t.Context(), []store.Path{a, b})
	if err != nil || len(deleted) != 2 || deleted[0].Path != b {
		t.Errorf("deleted %v, %v", deleted, err)
	}
	if s.IsValid(a) || s.IsValid(b) {
		t.Error("still valid")
	}
	if text(t, s, "a", "a") != a {
		t.Error("cannot be added again")
	}
}

func TestLeasePersists(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	a := text(t, s, "a", "a")
	for _, lease := range []*disk.Lease{s.Lease("short", 0), s.Lease("long", time.Hour), s.Lease("over", time.Millisecond)} {
		if err := lease.Hold(a); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(10 * time.Millisecond)
	closeStore(t, s)
	s = open(t, l)
	infos := s.Leases()
	if len(infos) != 1 || infos[0].Owner != "long" || !slices.Equal(infos[0].Paths, []store.Path{a}) {
		t.Errorf("leases after reopening: %v", infos)
	}
	if _, err := s.Delete(t.Context(), []store.Path{a}); !errors.Is(err, disk.ErrAlive) {
		t.Errorf("delete what is held: %v", err)
	}
	s.Lease("long", time.Hour).Release()
	if _, err := s.Delete(t.Context(), []store.Path{a}); err != nil {
		t.Error(err)
	}
}

func TestRealisations(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	out := text(t, s, "out", "out")
	id := store.DrvOutput{Drv: store.SHA256.Sum([]byte("drv")), Output: "out"}
	dep := store.DrvOutput{Drv: store.SHA256.Sum([]byte("dep")), Output: "lib"}
	r := &store.Realisation{ID: id, OutPath: out, Signatures: []string{"k:b"}, Dependents: map[store.DrvOutput]store.Path{dep: out}}
	if err := s.AddRealisation(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	r.Signatures = []string{"k:a"}
	if err := s.AddRealisation(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, l)
	got, err := s.Realisation(id)
	if err != nil || got.OutPath != out || !slices.Equal(got.Signatures, []string{"k:a", "k:b"}) || got.Dependents[dep] != out {
		t.Errorf("got %+v, %v", got, err)
	}
	if ids, err := s.RealisationsOf(out); err != nil || !slices.Equal(ids, []store.DrvOutput{id}) {
		t.Errorf("got %v, %v", ids, err)
	}
	other := text(t, s, "other", "other")
	if err := s.AddRealisation(t.Context(), &store.Realisation{ID: id, OutPath: other}); err == nil {
		t.Error("a second realisation by another path is accepted")
	}
	if _, err := s.Delete(t.Context(), []store.Path{out}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Realisation(id); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("realisation of a deleted path: %v", err)
	}
	if err := s.AddRealisation(t.Context(), &store.Realisation{ID: id, OutPath: other}); err != nil {
		t.Error(err)
	}
}

func TestConcurrentAddDelete(t *testing.T) {
	s := open(t, newLayout(t))
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for n := range 60 {
				name := fmt.Sprint("x", n%7)
				info, err := s.AddStream(t.Context(), name, store.Text, store.SHA256, nil, strings.NewReader(name))
				if err != nil {
					t.Error(err)
					return
				}
				if w%2 == 0 {
					_, err := s.Delete(t.Context(), []store.Path{info.Path})
					if err != nil && !errors.Is(err, store.ErrNotValid) && !errors.Is(err, disk.ErrAlive) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestCancelledWait(t *testing.T) {
	s := open(t, newLayout(t))
	archive := storetest.Tree("slow")
	info := storetest.Source(s.Dir(), "slow", archive)
	pr, pw := io.Pipe()
	first := make(chan error)
	go func() { first <- s.Add(t.Context(), info, pr) }()
	if _, err := pw.Write(archive[:64]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	again := *info
	if err := s.Add(ctx, &again, bytes.NewReader(archive)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second adder: %v", err)
	}
	pw.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-first; err == nil {
		t.Error("a cut stream was added")
	}
	if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
		t.Error(err)
	}
}

func TestLogIsUsed(t *testing.T) {
	l := newLayout(t)
	if err := os.WriteFile(filepath.Join(l.RealDir, "foreign"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	s, err := disk.Open(t.Context(), l, &disk.Options{Logger: slog.New(slog.NewTextHandler(&b, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if !strings.Contains(b.String(), "foreign") {
		t.Errorf("log does not name the foreign file: %s", b.String())
	}
}
