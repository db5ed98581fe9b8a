package gc_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/base32"
	"cairn/store/disk"
	"cairn/store/gc"
	"cairn/store/profile"
	"cairn/store/storetest"
)

type rig struct {
	testing.TB
	*disk.Store
	layout disk.Layout
}

func newRig(t testing.TB) *rig {
	t.Helper()
	l, err := disk.NewLayout(storetest.TempDir(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(l); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(context.Background(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) {
			t.Errorf("verify %s: %v", p.Path, p.Err)
		}); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &rig{t, s, l}
}

func (r *rig) text(name string, refs ...store.Path) store.Path {
	r.Helper()
	info, err := r.AddStream(context.Background(), name, store.Text, store.SHA256, refs, strings.NewReader(name+fmt.Sprint(refs)))
	if err != nil {
		r.Fatal(err)
	}
	return info.Path
}

func (r *rig) collect(opts gc.Options) gc.Result {
	r.Helper()
	res, err := gc.Collect(context.Background(), r.Store, opts)
	if err != nil {
		r.Fatal(err)
	}
	return res
}

func (r *rig) link(target, link string) {
	r.Helper()
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		r.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		r.Fatal(err)
	}
}

// wantValid checks which of the given paths are valid.
func (r *rig) wantValid(want bool, ps ...store.Path) {
	r.Helper()
	for _, p := range ps {
		if r.IsValid(p) != want {
			r.Errorf("%s valid: %v", p.Name(), !want)
		}
	}
}

func TestRoots(t *testing.T) {
	r := newRig(t)
	names := []string{"direct", "nested", "indirect", "far", "file", "profile", "user", "temp", "leased", "relative", "below", "running", "booted"}
	ps := map[string]store.Path{}
	for _, n := range names {
		ps[n] = r.text("top-"+n, r.text("base-"+n))
	}
	dead := r.text("dead")
	roots := filepath.Join(r.layout.StateDir, "gcroots")
	home := t.TempDir()
	r.link(ps["direct"].String(), filepath.Join(roots, "direct"))
	r.link(ps["nested"].String(), filepath.Join(roots, "a", "b", "nested"))
	r.link(ps["indirect"].String(), filepath.Join(home, "result"))
	if err := r.AddIndirectRoot(filepath.Join(home, "result")); err != nil {
		t.Fatal(err)
	}
	r.link(ps["far"].String(), filepath.Join(home, "far2"))
	r.link("far2", filepath.Join(home, "far1"))
	if err := r.AddIndirectRoot(filepath.Join(home, "far1")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(roots, ps["file"].Base()), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p := profile.Open(filepath.Join(r.layout.StateDir, "profiles", "system"))
	if _, err := p.New(ps["profile"].String()); err != nil {
		t.Fatal(err)
	}
	r.link(ps["user"].String(), filepath.Join(r.layout.StateDir, "profiles", "per-user", "me", "profile-1-link"))
	temproots := filepath.Join(r.layout.StateDir, "temproots")
	if err := os.WriteFile(filepath.Join(temproots, fmt.Sprint(os.Getpid())), []byte(ps["temp"].String()+"\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(temproots, "999999999")
	if err := os.WriteFile(stale, []byte(dead.String()+"\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := r.Lease("somebody", 0)
	defer l.Release()
	if err := l.Hold(ps["leased"]); err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(roots, r.RealPath(ps["relative"]))
	if err != nil {
		t.Fatal(err)
	}
	r.link(rel, filepath.Join(roots, "relative"))
	r.link(ps["below"].String()+"/etc/passwd", filepath.Join(roots, "below"))
	r.link(ps["running"].String(), filepath.Join(r.layout.Root, "run", "current-system"))
	r.link(ps["booted"].String(), filepath.Join(r.layout.Root, "run", "booted-system"))
	r.link(filepath.Join(home, "gone"), filepath.Join(roots, "auto", "0123"))
	r.link("loop", filepath.Join(roots, "loop"))
	r.link(home, filepath.Join(roots, "directory"))

	found, err := gc.Roots(t.Context(), r.Store)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !slices.ContainsFunc(found, func(root gc.Root) bool { return root.Target == ps[n] }) {
			t.Errorf("no root for %s", n)
		}
		chains, err := gc.Why(t.Context(), r.Store, r.text("base-"+n))
		if err != nil || len(chains) == 0 || len(chains[0].Paths) != 2 || chains[0].Paths[0] != ps[n] {
			t.Errorf("why %s: %v, %v", n, chains, err)
		}
	}
	res := r.collect(gc.Options{Action: gc.DeleteDead})
	if !slices.Equal(res.Paths, []store.Path{dead}) || res.BytesFreed <= 0 {
		t.Errorf("collected %+v", res)
	}
	for _, n := range names {
		r.wantValid(true, ps[n], r.text("base-"+n))
	}
	for _, gone := range []string{stale, filepath.Join(roots, "auto", "0123")} {
		if _, err := os.Lstat(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	// An indirect root goes when its user removes the link.
	if err := os.Remove(filepath.Join(home, "result")); err != nil {
		t.Fatal(err)
	}
	r.collect(gc.Options{Action: gc.DeleteDead})
	r.wantValid(false, ps["indirect"])
	sum := sha1.Sum([]byte(filepath.Join(home, "result")))
	if _, err := os.Lstat(filepath.Join(roots, "auto", base32.Encode(sum[:]))); err == nil {
		t.Error("the automatic root is still there")
	}
}

func TestPermRoot(t *testing.T) {
	r := newRig(t)
	a, b := r.text("a"), r.text("b")
	home := t.TempDir()
	for p, link := range map[store.Path]string{a: filepath.Join(home, "result"), b: filepath.Join(r.layout.StateDir, "gcroots", "sub", "b")} {
		for range 2 {
			if err := r.AddPermRoot(p, link); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(home, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.AddPermRoot(a, filepath.Join(home, "file")); err == nil {
		t.Error("a file is replaced by a root")
	}
	r.collect(gc.Options{Action: gc.DeleteDead})
	r.wantValid(true, a, b)
}

func TestNamedRoots(t *testing.T) {
	r := newRig(t)
	held, over := r.text("held"), r.text("over")
	for p, root := range map[store.Path]disk.NamedRoot{held: {UID: 7, Name: "h", Expires: time.Now().Add(time.Hour)}, over: {UID: 7, Name: "o", Expires: time.Now().Add(time.Hour)}} {
		root.Path = p
		if _, err := r.AddNamedRoot(root); err != nil {
			t.Fatal(err)
		}
	}
	r.wantValid(true, held, over)
	chains, err := gc.Why(t.Context(), r.Store, over)
	if err != nil || len(chains) != 1 {
		t.Fatalf("%v, %v", chains, err)
	}
	if w := chains[0].Root.Who(); chains[0].Root.Kind != gc.KindNamed || w.UID != 7 || time.Until(w.Until) < 50*time.Minute || time.Since(w.Since) > time.Minute {
		t.Errorf("%+v is of %+v", chains[0].Root, w)
	}
	dir := filepath.Dir(chains[0].Root.Link)
	if err := os.Rename(chains[0].Root.Link, filepath.Join(dir, "o@1000")); err != nil { // as if the hour had passed
		t.Fatal(err)
	}
	if res := r.collect(gc.Options{Action: gc.DeleteDead, DryRun: true}); !slices.Equal(res.Paths, []store.Path{over}) {
		t.Errorf("a dry run would delete %v", res.Paths)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("roots after a dry run: %v, %v", entries, err)
	}
	r.collect(gc.Options{Action: gc.DeleteDead})
	r.wantValid(true, held)
	r.wantValid(false, over)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("roots after a collection: %v, %v", entries, err)
	}
}

func TestProcessRoots(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	exe, env, open, gone := r.text("exe"), r.text("env"), r.text("open"), r.text("gone")
	program := exec.Command("sleep", "60")
	program.Env = []string{"X=a:" + env.String() + "/bin:b"}
	f, err := os.Open(r.RealPath(open))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	program.Dir = dir
	program.ExtraFiles = []*os.File{f}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		program.Process.Kill()
		program.Wait()
	}()
	l := r.Lease("test", 0)
	if err := l.Hold(exe); err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	r.collect(gc.Options{Action: gc.DeleteDead})
	r.wantValid(true, env, open, exe)
	r.wantValid(false, gone)
	chains, err := gc.Why(t.Context(), r.Store, env)
	if err != nil || len(chains) != 1 || chains[0].Root.Kind != gc.KindProcess || chains[0].Root.Link != fmt.Sprintf("/proc/%d/environ", program.Process.Pid) {
		t.Errorf("why: %v, %v", chains, err)
	}
}

func TestActions(t *testing.T) {
	r := newRig(t)
	base := r.text("base")
	live := r.text("live", base)
	d1 := r.text("dead1", base)
	d2 := r.text("dead2", d1)
	r.link(live.String(), filepath.Join(r.layout.StateDir, "gcroots", "live"))
	sorted := func(ps ...store.Path) []store.Path { return store.SortPaths(ps) }
	if got := r.collect(gc.Options{Action: gc.ReturnLive}); !slices.Equal(got.Paths, sorted(base, live)) {
		t.Errorf("live: %v", got.Paths)
	}
	if got := r.collect(gc.Options{Action: gc.ReturnDead}); !slices.Equal(got.Paths, sorted(d1, d2)) {
		t.Errorf("dead: %v", got.Paths)
	}
	if got := r.collect(gc.Options{Action: gc.DeleteDead, DryRun: true}); !slices.Equal(got.Paths, []store.Path{d2, d1}) || got.BytesFreed == 0 {
		t.Errorf("dry run: %+v", got)
	}
	r.wantValid(true, base, live, d1, d2)
	_, err := gc.Collect(t.Context(), r.Store, gc.Options{Action: gc.DeleteSpecific, Paths: []store.Path{base}})
	if !errors.Is(err, gc.ErrAlive) || !strings.Contains(err.Error(), "gcroots/live -> "+live.String()) {
		t.Errorf("delete what is alive: %v", err)
	}
	_, err = gc.Collect(t.Context(), r.Store, gc.Options{Action: gc.DeleteSpecific, Paths: []store.Path{base}, IgnoreRoots: true})
	if !errors.Is(err, gc.ErrAlive) {
		t.Errorf("delete what is referred to: %v", err)
	}
	if got := r.collect(gc.Options{Action: gc.DeleteSpecific, Paths: []store.Path{d1}}); !slices.Equal(got.Paths, []store.Path{d2, d1}) {
		t.Errorf("delete specific: %v", got.Paths)
	}
	if got := r.collect(gc.Options{Action: gc.DeleteSpecific, Paths: []store.Path{live}, IgnoreRoots: true}); !slices.Equal(got.Paths, []store.Path{live}) {
		t.Errorf("delete in spite of roots: %v", got.Paths)
	}
	_, err = gc.Collect(t.Context(), r.Store, gc.Options{Action: gc.DeleteSpecific, Paths: []store.Path{d1}})
	if !errors.Is(err, store.ErrNotValid) {
		t.Errorf("delete what is not valid: %v", err)
	}
}

func TestMaxFreed(t *testing.T) {
	r := newRig(t)
	for n := range 100 {
		r.text(fmt.Sprint("x", n))
	}
	var last gc.Event
	res := r.collect(gc.Options{Action: gc.DeleteDead, MaxFreed: 1, Progress: func(e gc.Event) { last = e }})
	if len(res.Paths) == 0 || len(res.Paths) > 50 {
		t.Errorf("deleted %d of 100 for one byte", len(res.Paths))
	}
	if last.Phase != gc.PhaseSweep || last.Done != len(res.Paths) || last.Total != 100 || last.Bytes != res.BytesFreed {
		t.Errorf("last event %+v", last)
	}
}

func TestKeepDerivations(t *testing.T) {
	for _, test := range []struct {
		opts      gc.Options
		root      string
		out, drv  bool
		otherName string
	}{
		{opts: gc.Options{}, root: "out", out: true, drv: true},
		{opts: gc.Options{DropDerivations: true}, root: "out", out: true, drv: false},
		{opts: gc.Options{}, root: "drv", out: false, drv: true},
		{opts: gc.Options{KeepOutputs: true}, root: "drv", out: true, drv: true},
	} {
		r := newRig(t)
		drv := r.text("some.drvlike") // a plain file is enough: who made what is in the output's row
		dir, err := r.Store.TempDir()
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		tree := filepath.Join(dir, "out")
		if err := os.WriteFile(tree, []byte("out"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := r.Dir().Path("0123456789abcdfghijklmnpqrsvwxyz-out")
		if err != nil {
			t.Fatal(err)
		}
		info := &store.Info{Path: out, NarHash: fileHash("out"), Deriver: drv}
		if err := r.Register(t.Context(), []disk.Output{{Info: info, TempPath: tree}}); err != nil {
			t.Fatal(err)
		}
		if err := r.LinkOutput(t.Context(), drv, "out", out); err != nil {
			t.Fatal(err)
		}
		target := map[string]store.Path{"out": out, "drv": drv}[test.root]
		r.link(target.String(), filepath.Join(r.layout.StateDir, "gcroots", "x"))
		test.opts.Action = gc.DeleteDead
		r.collect(test.opts)
		r.wantValid(test.out, out)
		r.wantValid(test.drv, drv)
	}
}

// TestUnreadableRootStops looks at roots as an ordinary user who may not see where one leads.
func TestUnreadableRootStops(t *testing.T) {
	r := newRig(t)
	secret := t.TempDir()
	r.link(r.text("keep").String(), filepath.Join(secret, "result"))
	if err := r.AddIndirectRoot(filepath.Join(secret, "result")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(secret, 0); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(secret, 0o700)
	var err error
	asUser(func() { _, err = gc.Roots(t.Context(), r.Store) })
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "make it readable") {
		t.Errorf("got %v", err)
	}
}

// asUser runs fn with the file system rights of an ordinary user.
func asUser(fn func()) {
	if os.Geteuid() != 0 {
		fn()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlock it: the thread ends with the goroutine
		unix.Setfsgid(65534)
		unix.Setfsuid(65534)
		fn()
	})
	wg.Wait()
}

// TestConcurrent collects all the time while others add chains of objects, each held by a lease as long as its
// adder wants it, and check that nothing of it goes.
func TestConcurrent(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var adders, collectors sync.WaitGroup
	collected := 0
	collectors.Go(func() {
		for ctx.Err() == nil {
			res, err := gc.Collect(context.Background(), r.Store, gc.Options{Action: gc.DeleteDead, NoProcesses: true})
			if err != nil {
				t.Error(err)
				return
			}
			collected += len(res.Paths)
		}
	})
	for w := range 4 {
		adders.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for n := 0; ctx.Err() == nil; n++ {
				addChain(t, r, rnd)
			}
		})
	}
	adders.Wait()
	collectors.Wait()
	if collected == 0 {
		t.Error("nothing was ever collected")
	}
	t.Logf("collected %d objects meanwhile", collected)
}

// addChain adds a chain of objects from a small stock of names, so that adders meet each other and
// the collector, and checks that all of it stays while it is held.
func addChain(t *testing.T, r *rig, rnd *rand.Rand) {
	l := r.Lease("adder", 0)
	defer l.Release()
	ctx := disk.WithLease(context.Background(), l)
	var chain []store.Path
	for range 1 + rnd.IntN(4) {
		var refs []store.Path
		if len(chain) > 0 {
			refs = chain[len(chain)-1:]
		}
		name := fmt.Sprint("c", rnd.IntN(5))
		info, err := r.AddStream(ctx, name, store.Text, store.SHA256, refs, strings.NewReader(name))
		if err != nil {
			t.Error(err)
			return
		}
		chain = append(chain, info.Path)
	}
	for _, p := range chain {
		if !r.IsValid(p) {
			t.Errorf("%s went away while it was held", p)
		}
		if _, err := os.Lstat(r.RealPath(p)); err != nil {
			t.Error(err)
		}
	}
}

// TestStraysAreCollected checks that what other programs leave in the store directory goes, and what is not named like an object stays.
func TestStraysAreCollected(t *testing.T) {
	r := newRig(t)
	kept := r.text("kept")
	lease := r.Lease("test", 0)
	defer lease.Release()
	if err := lease.Hold(kept); err != nil {
		t.Fatal(err)
	}
	stray := r.RealPath(kept) + ".lock"
	foreign := filepath.Join(r.Layout().RealDir, "foreign")
	for range 2 { // the second after a collection that found the directory clean
		for _, name := range []string{stray, foreign} {
			if err := os.WriteFile(name, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r.collect(gc.Options{Action: gc.DeleteDead})
		if _, err := os.Lstat(stray); !os.IsNotExist(err) {
			t.Errorf("stray: %v", err)
		}
		time.Sleep(150 * time.Millisecond) // for the file system's clock
		r.collect(gc.Options{Action: gc.DeleteDead})
	}
	for _, name := range []string{r.Store.RealPath(kept), foreign} {
		if _, err := os.Lstat(name); err != nil {
			t.Error(err)
		}
	}
}

// TestOlderThan: what is young stays, and what it refers to, however old that is.
func TestOlderThan(t *testing.T) {
	s := newRig(t).Store
	add := func(name string, age time.Duration, refs ...store.Path) store.Path {
		archive := storetest.File(name + fmt.Sprint(refs))
		info := storetest.Source(s.Dir(), name, archive, refs...)
		info.RegisteredAt = time.Now().Add(-age).Unix()
		if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
			t.Fatal(err)
		}
		return info.Path
	}
	needed := add("needed", 48*time.Hour)
	add("young", 0, needed)
	old := add("old", 48*time.Hour)
	r, err := gc.Collect(t.Context(), s, gc.Options{Action: gc.DeleteDead, OlderThan: time.Now().Add(-24 * time.Hour), NoProcesses: true})
	if err != nil || !slices.Equal(r.Paths, []store.Path{old}) {
		t.Errorf("deleted %v (%v), want only %s", r.Paths, err, old)
	}
}
