package full

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
)

// TestBroken has file systems below a running daemon fail in other ways than by being full: the store directory and that of the roots
// become read-only, the store directory may not be written, and the file system of the state goes down as after an I/O error.
// Each time what is there can be read, what cannot be done is refused with what is wrong and where, the daemon goes on,
// and it works again when the cause has gone: without a restart, but for a file system that has to be checked first.
func TestBroken(t *testing.T) {
	r := newRig(t, "ext4")
	roots := filepath.Join(r.layout.StateDir, "gcroots")
	for _, dir := range []string{r.layout.RealDir, roots} {
		bind(t, dir)
	}
	r.start(t)
	c := r.dial(t)
	r.keep(t, c)
	c.Close()
	t.Run("store", func(t *testing.T) {
		r.broken(t, "read-only", r.layout.RealDir, func(t *testing.T, broken bool) { readOnly(t, r.layout.RealDir, broken) })
	})
	t.Run("permission", func(t *testing.T) {
		r.broken(t, "not permitted", r.layout.RealDir, func(t *testing.T, broken bool) { immutable(t, r.layout.RealDir, broken) })
	})
	t.Run("roots", func(t *testing.T) { r.brokenRoots(t, roots) })
	t.Run("state", r.brokenState)
	r.verify(t)
}

// broken breaks the store directory, looks, and mends it.
func (r *rig) broken(t *testing.T, what, where string, set func(t *testing.T, broken bool)) {
	c := r.dial(t)
	defer c.Close()
	garbage := r.garbage(t)
	target := r.target(t)
	set(t, true)
	r.refuses(t, c, what, where, garbage, target)
	set(t, false)
	r.keep(t, c)
	r.collectOne(t, garbage)
	r.valid(t, c, r.kept)
}

// garbage adds something that nothing keeps, when the session that added it is over.
func (r *rig) garbage(t *testing.T) store.Path {
	t.Helper()
	adder := r.dial(t)
	p, err := r.add(adder, 1000)
	adder.Close()
	if err != nil {
		t.Fatal(err)
	}
	c := r.dial(t)
	defer c.Close()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		chains, err := c.Why(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if len(chains) == 0 {
			return p
		}
	}
	t.Fatalf("something keeps %s", p)
	return p
}

// target adds a derivation.
func (r *rig) target(t *testing.T) protocol.Target {
	t.Helper()
	c := r.dial(t)
	defer c.Close()
	target, err := r.recipe(c, "echo $n > $out")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddPermRoot(t.Context(), target.Path, filepath.Join(r.layout.StateDir, "gcroots", target.Path.Name())); err != nil {
		t.Fatal(err)
	}
	return target
}

// refuses checks that nothing can be changed, and all can be read.
func (r *rig) refuses(t *testing.T, c *client.Conn, what, where string, garbage store.Path, target protocol.Target) {
	t.Helper()
	wrong := func(verb string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), where) {
			t.Errorf("%s: %v", verb, err)
		}
		r.alive(t)
	}
	for _, size := range []int{10, 2 << 20} {
		_, err := r.add(c, size)
		wrong("add", err)
	}
	results, err := c.Build(t.Context(), []protocol.Target{target}, client.Normal, nil)
	if err == nil {
		_, err = outcome(results[0])
	}
	wrong("build", err)
	_, err = c.Collect(t.Context(), &protocol.GCRequest{Paths: []store.Path{garbage}}, nil)
	wrong("collect", err)
	r.valid(t, c, r.kept)
}

// collectOne deletes an object.
func (r *rig) collectOne(t *testing.T, p store.Path) {
	t.Helper()
	c := r.dial(t)
	defer c.Close()
	if _, err := c.Collect(t.Context(), &protocol.GCRequest{}, nil); err != nil {
		t.Fatalf("collect: %v\n%s", err, r.said())
	}
	if valid, err := c.ValidPaths(t.Context(), []store.Path{p}); err != nil || len(valid) > 0 {
		t.Errorf("%s is there after a collection, %v", p, err)
	}
}

// brokenRoots makes roots read-only: none can be added, but a collection goes on, though one that is stale or has expired stays.
func (r *rig) brokenRoots(t *testing.T, dir string) {
	c := r.dial(t)
	defer c.Close()
	if err := c.AddIndirectRoot(t.Context(), "/nowhere/result"); err != nil {
		t.Fatal(err)
	}
	garbage := r.garbage(t)
	readOnly(t, dir, true)
	_, err := c.AddRoot(t.Context(), &protocol.AddRootRequest{Path: r.kept[0], Name: "x"})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("add root: %v", err)
	}
	r.collectOne(t, garbage)
	readOnly(t, dir, false)
	if _, err := c.AddRoot(t.Context(), &protocol.AddRootRequest{Path: r.kept[0], Name: "x"}); err != nil {
		t.Error(err)
	}
}

// brokenState has the file system go down, as ext4 does when it meets an error: until it is mounted again nothing can be written.
func (r *rig) brokenState(t *testing.T) {
	garbage := r.garbage(t)
	c := r.dial(t)
	r.keep(t, c)
	target := r.target(t)
	unix.Sync() // after which the next write to a page that is mapped asks the file system
	if err := unix.Mount("", r.root, "", unix.MS_REMOUNT, "abort"); err != nil {
		t.Fatalf("have %s go down: %v", r.root, err)
	}
	r.refuses(t, c, "read-only", r.root, garbage, target)
	c.Close()
	r.alive(t)
	r.repair(t)
}

// repair ends the daemon, has the file system checked, and starts it again.
func (r *rig) repair(t *testing.T) {
	t.Helper()
	if err := r.daemon.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := time.AfterFunc(10*time.Second, func() {
		t.Errorf("the daemon does not end")
		r.daemon.Process.Kill()
	})
	r.daemon.Wait()
	ended.Stop()
	device, err := exec.Command("findmnt", "-no", "SOURCE", r.root).Output()
	if err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(string(device))
	loop, err := os.Open(dev) // keeps the loop device
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	for _, dir := range []string{filepath.Join(r.layout.StateDir, "gcroots"), r.layout.RealDir, r.root} {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatalf("unmount %s: %v", dir, err)
		}
	}
	if out, err := exec.Command("e2fsck", "-fy", dev).CombinedOutput(); err != nil && r.exitAbove(err, 1) {
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
	if err := unix.Mount(dev, r.root, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	c := r.dial(t)
	defer c.Close()
	r.valid(t, c, r.kept)
	r.keep(t, c)
}

// exitAbove reports whether a program ended with more than a code: e2fsck's 1 says that it has mended.
func (r *rig) exitAbove(err error, code int) bool {
	failed, ok := errors.AsType[*exec.ExitError](err)
	return !ok || failed.ExitCode() > code
}

// bind makes a directory a mount of its own.
func bind(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

func readOnly(t *testing.T, dir string, on bool) {
	t.Helper()
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND)
	if on {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", dir, "", flags, ""); err != nil {
		t.Fatalf("remount %s: %v", dir, err)
	}
}

// immutable forbids everybody, root as well, to make or remove anything in a directory.
func immutable(t *testing.T, dir string, on bool) {
	t.Helper()
	flag := map[bool]string{true: "+i", false: "-i"}[on]
	if out, err := exec.Command("chattr", flag, dir).CombinedOutput(); err != nil {
		t.Fatalf("chattr %s: %v: %s", flag, err, out)
	}
}
