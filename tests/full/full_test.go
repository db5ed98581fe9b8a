// Package full fills the disk of a running daemon, in every way that there is, and checks that nothing is lost.
//
// The store and its state are on a small file system, tmpfs or ext4, and the daemon is a process of its own. It is filled by
// additions, by builds, by another program to the last byte, and by files without content until no inode is left.
// Each time
//
//   - work is refused or fails with an error that says what is full and what to do, and the daemon goes on,
//   - everything acknowledged is valid, and can be read,
//   - the daemon, killed with SIGKILL while the disk is full, starts,
//   - a collection makes room though the disk is full, and the same daemon works again.
//
// At the end every object is verified. The database alone is written to while the disk is full again and again, and opened where processes
// that died have left it full (rotate_test.go). Then its file systems become read-only, forbidden, or go down (broken_test.go). It needs root, to mount.
package full

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
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/client"
	"cairn/client/cli"
	"cairn/client/config"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/derivation"
	"cairn/derivation/eval"
	"cairn/store"
	"cairn/store/disk"
)

// TestMain lets the test binary be cairn as well. The tests run with mounts of their own: a copy of ours, which any process beside us gets
// that makes itself mounts of its own, would keep a file system that we have unmounted.
func TestMain(m *testing.M) {
	sandbox.Init()
	config.Init()
	switch os.Getenv("CAIRN_FULL_ROLE") {
	case "cli":
		os.Exit(cli.Main(os.Args))
	case "writer":
		os.Exit(write(os.Args[1], os.Args[2]))
	case "":
		if err := ownMounts(); !errors.Is(err, unix.EPERM) { // who may not mount skips
			fmt.Fprintln(os.Stderr, "run with own mounts:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// ownMounts runs the tests again, in this process, with mounts that no other process has a copy of. It returns only why it cannot.
func ownMounts() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), "CAIRN_FULL_ROLE=tests"))
}

func TestFull(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind)
			r.start(t)
			t.Run("additions", r.additions)
			t.Run("builds", r.builds)
			t.Run("other program", r.otherProgram)
			t.Run("inodes", r.inodes)
			t.Run("automatic", r.automatic)
			r.verify(t)
		})
	}
}

// rig is a daemon and a store on a small disk.
type rig struct {
	root   string
	layout disk.Layout
	daemon *exec.Cmd
	log    *os.File
	count  int // objects so far, which makes each another one
	kept   []store.Path
}

func newRig(t *testing.T, kind string) *rig {
	t.Helper()
	r := &rig{root: mount(t, kind)}
	var err error
	if r.layout, err = disk.NewLayout(r.root, func(string) string { return "" }); err != nil {
		t.Fatal(err)
	}
	if r.log, err = os.Create(filepath.Join(t.TempDir(), "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.daemon != nil {
			r.daemon.Process.Kill()
			r.daemon.Wait()
		}
		r.log.Close()
	})
	r.cairn(t, "init", "--root", r.root)
	return r
}

// The size of the disk: room for the database's reserve, and for something besides.
const (
	diskSize   = 320 << 20
	diskInodes = 3072
)

// mount mounts an empty file system.
func mount(t *testing.T, kind string) string {
	t.Helper()
	dir := t.TempDir()
	if err := mountAt(t, kind, dir); err != nil {
		if os.Getenv("CAIRN_CI") == "1" {
			t.Fatal(err)
		}
		t.Skipf("%v; run as root: sudo make full", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			unix.Unmount(dir, unix.MNT_DETACH)
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func mountAt(t *testing.T, kind, dir string) error {
	if kind == "tmpfs" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,nr_inodes=%d", diskSize, diskInodes)); err != nil {
			return fmt.Errorf("mount a small tmpfs: %w", err)
		}
		return nil
	}
	f, err := os.CreateTemp("/dev/shm", "cairn-full-") // in memory, where a flush costs little
	if err != nil {
		return err
	}
	image := f.Name()
	f.Close()
	t.Cleanup(func() { os.Remove(image) })
	if err := os.Truncate(image, diskSize); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-m", "0", "-N", fmt.Sprint(diskInodes), image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

func (r *rig) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "CAIRN_FULL_ROLE=cli")
	return cmd
}

func (r *rig) cairn(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.command(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("cairn %s: %v\n%s\n%s", strings.Join(args, " "), err, out, r.said())
	}
	return string(out)
}

// said is the end of what the daemon said.
func (r *rig) said() string {
	b, _ := os.ReadFile(r.log.Name())
	begin := max(0, len(b)-4000)
	if died := bytes.LastIndex(b, []byte("unexpected fault address")); died >= 0 {
		begin = died
	}
	return string(b[begin:min(len(b), begin+4000)])
}

// start starts the daemon and waits until it listens.
func (r *rig) start(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"daemon", "--root", r.root, "--option", "sandbox-paths=/bin/busybox", "--max-jobs", "1"}, args...)
	r.daemon = r.command(context.Background(), args...)
	r.daemon.Stderr = r.log
	if err := r.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", r.layout.SocketPath); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("daemon does not listen:\n%s", r.said())
}

// restart kills the daemon and starts it again.
func (r *rig) restart(t *testing.T, args ...string) {
	t.Helper()
	r.alive(t)
	r.daemon.Process.Kill()
	r.daemon.Wait()
	r.start(t, args...)
}

// alive checks that the daemon has not died by itself.
func (r *rig) alive(t *testing.T) {
	t.Helper()
	var status unix.WaitStatus
	if pid, err := unix.Wait4(r.daemon.Process.Pid, &status, unix.WNOHANG, nil); pid != 0 {
		t.Fatalf("daemon has died: %v %v\n%s", status, err, r.said())
	}
}

func (r *rig) dial(t *testing.T) *client.Conn {
	t.Helper()
	c, err := client.Dial(t.Context(), r.layout.SocketPath, nil)
	if err != nil {
		t.Fatalf("dial: %v\n%s", err, r.said())
	}
	return c
}

// add adds an object of some size that no other is like.
func (r *rig) add(c *client.Conn, size int) (store.Path, error) {
	r.count++
	data := io.MultiReader(strings.NewReader(fmt.Sprintf("%d\n", r.count)), io.LimitReader(zeros{}, int64(size)))
	info, err := c.AddToStore(context.Background(), fmt.Sprintf("object-%d", r.count), store.Flat, store.SHA256, nil, data)
	if err != nil {
		return store.Path{}, err
	}
	return info.Path, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// keep adds an object that stays, with a root.
func (r *rig) keep(t *testing.T, c *client.Conn) {
	t.Helper()
	p, err := r.add(c, 1000)
	if err != nil {
		t.Fatalf("add: %v\n%s", err, r.said())
	}
	if err := c.AddPermRoot(t.Context(), p, filepath.Join(r.layout.StateDir, "gcroots", p.Name())); err != nil {
		t.Fatalf("add root: %v", err)
	}
	r.kept = append(r.kept, p)
}

// fill adds objects of a size until the store takes no more, and returns them.
func (r *rig) fill(t *testing.T, c *client.Conn, size int) []store.Path {
	t.Helper()
	var added []store.Path
	for range 100_000 {
		p, err := r.add(c, size)
		if err != nil {
			r.refused(t, err)
			return added
		}
		added = append(added, p)
	}
	t.Fatal("the disk does not get full")
	return nil
}

// refused checks that an error is what a full disk should give: what is full, and what to do.
func (r *rig) refused(t *testing.T, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), r.root) || !strings.Contains(err.Error(), "collect garbage or") {
		t.Errorf("error of a full disk: %v\n%s", err, r.said())
	}
	r.alive(t)
}

// valid checks that paths are valid and can be read.
func (r *rig) valid(t *testing.T, c *client.Conn, paths []store.Path) {
	t.Helper()
	valid, err := c.ValidPaths(t.Context(), paths)
	if err != nil || len(valid) != len(paths) {
		t.Fatalf("%d of %d acknowledged paths are valid (%v)\n%s", len(valid), len(paths), err, r.said())
	}
	for _, p := range paths {
		if err := c.NAR(t.Context(), p, io.Discard); err != nil {
			t.Fatalf("read %s: %v", p, err)
		}
	}
}

// collect makes room, while the disk is full, and adds something.
func (r *rig) collect(t *testing.T, garbage []store.Path) {
	t.Helper()
	r.delete(t, garbage)
	c := r.dial(t)
	defer c.Close()
	r.valid(t, c, r.kept)
	r.keep(t, c) // serves again, without a restart
}

// delete collects until garbage is gone: a session holds what it has added until it is over, which a daemon notices when it gets to it.
func (r *rig) delete(t *testing.T, garbage []store.Path) {
	t.Helper()
	c := r.dial(t)
	defer c.Close()
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := c.Collect(t.Context(), &protocol.GCRequest{}, nil); err != nil {
			t.Fatalf("collect: %v\n%s", err, r.said())
		}
		r.alive(t)
		left, err := c.ValidPaths(t.Context(), garbage)
		if err != nil {
			t.Fatalf("%v\n%s", err, r.said())
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("collections leave %d of %d objects\n%s", len(left), len(garbage), r.said())
		}
	}
}

// cycle is what follows when the disk is full of what was added: killed, started, collected.
func (r *rig) cycle(t *testing.T, c *client.Conn, added []store.Path) {
	t.Helper()
	r.valid(t, c, added)
	r.valid(t, c, r.kept)
	c.Close()
	r.restart(t)
	c = r.dial(t)
	r.valid(t, c, added)
	c.Close()
	r.collect(t, added)
}

// additions fills the disk with objects, large ones and then small ones.
func (r *rig) additions(t *testing.T) {
	c := r.dial(t)
	r.keep(t, c)
	added := r.fill(t, c, 4<<20)
	added = append(added, r.fill(t, c, 100)...)
	if len(added) < 10 {
		t.Errorf("only %d objects fit", len(added))
	}
	if _, err := r.build(t, c, "echo > $out"); err == nil {
		t.Error("a build began though nothing can be added")
	} else {
		r.refused(t, err)
	}
	r.cycle(t, c, added)
}

// build builds a script in the sandbox and returns its output.
func (r *rig) build(t *testing.T, c *client.Conn, script string) (store.Path, error) {
	t.Helper()
	target, err := r.recipe(c, script)
	if err != nil {
		return store.Path{}, err
	}
	results, err := c.Build(t.Context(), []protocol.Target{target}, client.Normal, nil)
	if err != nil {
		return store.Path{}, err
	}
	return outcome(results[0])
}

func outcome(r *protocol.BuildResult) (store.Path, error) {
	if !r.Status.OK() {
		return store.Path{}, errors.New(r.Error)
	}
	for _, o := range r.Outputs {
		return o.OutPath, nil
	}
	return store.Path{}, errors.New("no output")
}

// recipe adds a derivation.
func (r *rig) recipe(c *client.Conn, script string) (protocol.Target, error) {
	r.count++
	drv := &derivation.Derivation{
		Name:    fmt.Sprintf("built-%d", r.count),
		Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}},
		System:  eval.System(), Builder: "/bin/busybox", Args: []string{"sh", "-c", script},
		Env: map[string]string{"out": derivation.Placeholder("out"), "n": fmt.Sprint(r.count)},
	}
	info, err := c.AddToStore(context.Background(), drv.Name+".drv", store.Text, store.SHA256, nil, bytes.NewReader(drv.ATerm()))
	if err != nil {
		return protocol.Target{}, err
	}
	return protocol.Target{Path: info.Path, Outputs: protocol.All()}, nil
}

// builds fills the disk by a build, after another of the same request has been done.
func (r *rig) builds(t *testing.T) {
	c := r.dial(t)
	var targets []protocol.Target
	for _, script := range []string{
		"echo $n > $out",
		"/bin/busybox dd if=/dev/zero of=$out bs=1M", // ends when the disk is full
		"echo $n > $out",
	} {
		target, err := r.recipe(c, script)
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, target)
	}
	first, err := c.Build(t.Context(), targets[:1], client.Normal, nil)
	if err != nil {
		t.Fatal(err)
	}
	done, err := outcome(first[0])
	if err != nil {
		t.Fatalf("%v\n%s", err, r.said())
	}
	results, err := c.Build(t.Context(), targets, client.Normal, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := outcome(results[1]); err == nil || !strings.Contains(err.Error(), "No space left") && !strings.Contains(err.Error(), "no space left") {
		t.Errorf("a build that fills the disk: %v", err)
	}
	r.alive(t)
	r.valid(t, c, []store.Path{done})
	if _, err := r.build(t, c, "echo $n > $out"); err != nil {
		t.Errorf("build after one that filled the disk: %v", err)
	}
	c.Close()
	r.collect(t, []store.Path{done})
}

// otherProgram has another program fill the disk to the last byte, while additions go on, before the daemon starts, and again
// after the ballast has been given up.
func (r *rig) otherProgram(t *testing.T) {
	c := r.dial(t)
	var added []store.Path
	for range 20 {
		p, err := r.add(c, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		added = append(added, p)
	}
	defer r.unhog(t)
	full := make(chan error, 1)
	go func() { full <- hog(filepath.Join(r.root, "hog-1")) }()
	added = append(added, r.fill(t, c, 100)...)
	if err := <-full; !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if _, err := r.add(c, 100); err == nil {
		t.Error("added something to a disk without a free byte")
	} else {
		r.refused(t, err)
	}
	r.valid(t, c, added)
	c.Close()
	r.restart(t)
	hog(filepath.Join(r.root, "hog-2")) // what the ballast was
	c = r.dial(t)
	r.valid(t, c, added)
	if _, err := r.add(c, 100); err == nil {
		t.Error("added something to a disk without a free byte")
	} else {
		r.refused(t, err)
	}
	c.Close()
	r.delete(t, added) // with the reserve, which is all that is left
	r.unhog(t)
	c = r.dial(t)
	r.keep(t, c)
	c.Close()
}

// hog writes until there is no space.
func hog(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 64<<10); ; {
		if _, err := f.Write(block); err != nil && len(block) > 1 {
			block = block[:len(block)/2]
		} else if err != nil {
			return err
		}
	}
}

func (r *rig) unhog(t *testing.T) {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(r.root, "hog-*"))
	for _, name := range names {
		if err := os.RemoveAll(name); err != nil {
			t.Error(err)
		}
	}
}

// inodes uses up all inodes, by additions and then by another program.
func (r *rig) inodes(t *testing.T) {
	c := r.dial(t)
	added := r.fill(t, c, 1)
	r.valid(t, c, r.kept)
	if _, err := r.add(c, 1); err == nil || !strings.Contains(err.Error(), "inodes") {
		t.Errorf("error of a disk without inodes: %v", err)
	}
	defer r.unhog(t)
	dir := filepath.Join(r.root, "hog-inodes")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
		if err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
		f.Close()
	}
	_, err := r.add(c, 1)
	r.refused(t, err)
	r.cycle(t, c, added)
}

// automatic lets the daemon make room by itself, many times what the disk holds, and checks that it does
// not try again and again when it cannot.
func (r *rig) automatic(t *testing.T) {
	r.restart(t, "--option", "min-free=50%", "--option", "max-free=65%", "--option", "min-free-check-interval=1")
	for range 100 {
		c := r.dial(t)
		if _, err := r.add(c, 5<<20); err != nil {
			t.Fatalf("%v\n%s", err, r.said())
		}
		c.Close()
	}
	st := r.status(t)
	if a := st.Automatic; a == nil || a.Runs == 0 || a.BytesFreed < 4<<20 || a.Error != "" || a.Next != nil {
		t.Errorf("after 500 MiB on a disk of %d MiB: %+v\n%s", st.Space.TotalBytes>>20, a, r.said())
	}
	c := r.dial(t) // keeps all that it adds
	defer c.Close()
	r.valid(t, c, r.kept)
	var held []store.Path
	for st = r.status(t); st.Automatic.Next == nil && len(held) < 50; st = r.status(t) {
		p, err := r.add(c, 5<<20)
		if err != nil {
			t.Fatalf("%v\n%s", err, r.said())
		}
		held = append(held, p)
	}
	runs := r.status(t).Automatic.Runs
	time.Sleep(2500 * time.Millisecond) // in which it looks twice
	if a := r.status(t).Automatic; a.Runs != runs || a.Next == nil {
		t.Errorf("a collection that cannot help was repeated: %d runs, then %+v", runs, a)
	}
	r.valid(t, c, held)
}

func (r *rig) status(t *testing.T) *protocol.DaemonStatus {
	t.Helper()
	c := r.dial(t)
	defer c.Close()
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// verify reads every object of the store.
func (r *rig) verify(t *testing.T) {
	t.Helper()
	c := r.dial(t)
	defer c.Close()
	r.valid(t, c, r.kept)
	if out := r.cairn(t, "store", "verify", "--root", r.root); strings.Contains(out, "error") {
		t.Error(out)
	}
	t.Logf("%d objects made, %d kept", r.count, len(r.kept))
}
