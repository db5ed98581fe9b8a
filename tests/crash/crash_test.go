// Package crash kills the daemon under load and checks the store afterwards.
//
// A daemon process and a driver process run (driver_test.go): TestKill kills the daemon with SIGKILL at random moments, TestPoints
// at the failpoints of package failpoint, each of them under every load that comes past it (load_test.go, engine_test.go), and
// again while the next start recovers the store. Then (check_test.go) the store is opened, and
//
//   - every path that it calls valid has the hash that it was registered with, and references that are valid,
//   - everything acknowledged and still rooted is valid; roots, leases and generations are as they were acknowledged,
//   - nothing else is visible in the store directory, the pool of links, the roots,
//   - a collection keeps all of that, and the next load works.
//
// TestErrors has the failpoints that stand for an error of the operating system return one; the daemon goes on.
// TestPower cuts the power of hosts with a kernel of their own, on ext4, XFS and btrfs (power_test.go).
//
// CAIRN_CRASH is the number of kills of TestKill; TestPoints has a seed for 20 of them. make crash N=200
package crash

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/client/cli"
	"cairn/client/config"
	"cairn/daemon/sandbox"
	"cairn/store/disk"
)

// TestMain lets the test binary be the daemon and the driver as well.
func TestMain(m *testing.M) {
	sandbox.Init()
	config.Init()
	role := os.Getenv("CAIRN_CRASH_ROLE")
	if role == "" {
		code := m.Run()
		os.RemoveAll(plainDir)
		os.Exit(code)
	}
	if err := play(role); err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
}

// play is the process in another role than the test's.
func play(role string) error {
	if err := arm(os.Getenv("CAIRN_CRASH_POINTS")); err != nil {
		return err
	}
	switch role {
	case "cli":
		os.Exit(cli.Main(os.Args))
	case "power":
		return powerHost()
	}
	layout, err := disk.NewLayout(os.Args[1], noEnv)
	if err != nil {
		return err
	}
	return drive(layout, os.Args[2], os.Args[3], loadNamed(os.Args[4]), os.Stderr)
}

func noEnv(string) string { return "" }

// rounds is how often something is done: what CAIRN_CRASH says.
func rounds(t *testing.T, otherwise int) int {
	t.Helper()
	s := os.Getenv("CAIRN_CRASH")
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("CAIRN_CRASH: %v", err)
	}
	return n
}

// TestKill kills at random moments.
func TestKill(t *testing.T) {
	n := rounds(t, 5)
	r := newRig(t, plainProgram(t))
	for i := range n {
		r.round(t)
		if t.Failed() {
			t.Fatalf("round %d of %d", i+1, n)
		}
	}
	t.Logf("%d kills at random moments; acknowledged: %s; lost 0; verified: %d valid paths in all rounds, of which %d rooted; strays seen: 0",
		n, r.counts(), r.verified, r.rooted)
}

// rig is the store under test.
type rig struct {
	program                string // which is daemon and driver
	root, bundles, journal string
	layout                 disk.Layout
	verified, rooted       int
	powerCut               bool // what nobody has flushed may be lost
	verbs                  map[string]int
}

func newRig(t *testing.T, program string) *rig {
	t.Helper()
	dir := tempDir(t)
	r := &rig{program: program, root: filepath.Join(dir, "r"), bundles: filepath.Join(dir, "bundles"), journal: filepath.Join(dir, "journal")}
	var err error
	if r.layout, err = disk.NewLayout(r.root, noEnv); err != nil {
		t.Fatal(err)
	}
	r.cairn(t, "", "init", "--root", r.root)
	r.makeBundles(t, filepath.Join(dir, "s"))
	return r
}

// tempDir is on memory where there is some: ext4 slows down after many deletions.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "crash")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(name, 0o700) // or an ordinary user could not delete it
			}
			return nil
		})
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// makeBundles exports chains of objects from a second store, whose key the store under test accepts.
func (r *rig) makeBundles(t tester, source string) {
	t.Helper()
	if err := os.MkdirAll(r.bundles, 0o755); err != nil {
		t.Fatal(err)
	}
	r.cairn(t, "", "init", "--root", source)
	key, err := os.ReadFile(filepath.Join(source, "etc/cairn/signing-key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	r.cairn(t, string(key), "archive", "--root", r.root, "--authorize")
	for i := range 8 {
		args := []string{"store", "add", "--root", source}
		for k := range 1 + i%4 {
			dir := filepath.Join(t.TempDir(), fmt.Sprintf("imported-%d-%d", i, k))
			if err := randomTree(dir); err != nil {
				t.Fatal(err)
			}
			args = append(args, dir)
		}
		paths := strings.Fields(r.cairn(t, "", args...))
		bundle := r.cairn(t, "", append([]string{"archive", "--root", source, "--export", "-r"}, paths...)...)
		if err := os.WriteFile(filepath.Join(r.bundles, fmt.Sprintf("%d.bundle", i)), []byte(bundle), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// thisProgram is this test's own, with the race detector if it has that.
const thisProgram = "/proc/self/exe"

// plainDir is where plain has built; TestMain removes it.
var plainDir string

// plain is this test's program without the race detector and without libraries: a host's kernel can start it, and it is several times
// faster. Who is killed would report no race.
var plain = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := elf.Open(self)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if f.Section(".interp") == nil {
		return self, nil
	}
	if plainDir, err = os.MkdirTemp("", "crash"); err != nil {
		return "", err
	}
	program := filepath.Join(plainDir, "crash.test")
	cmd := exec.Command("go", "test", "-c", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return program, nil
})

func plainProgram(t *testing.T) string {
	t.Helper()
	program, err := plain()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// process is the program in another role than the test's.
func (r *rig) process(ctx context.Context, role string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.program, args...)
	cmd.Env = append(os.Environ(), "CAIRN_CRASH_ROLE="+role)
	return cmd
}

func (r *rig) cairn(t tester, stdin string, args ...string) string {
	t.Helper()
	cmd := r.process(t.Context(), "cli", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cairn %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}

// round runs daemon and driver, kills the daemon after a random time, and checks.
func (r *rig) round(t *testing.T) {
	t.Helper()
	d := r.daemon(t, "")
	defer d.kill()
	done := make(chan string)
	go func() { done <- r.drive(t, "mixed", "") }()
	time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
	d.kill()
	if errs := <-done; errs != "" {
		t.Errorf("driver:\n%s\ndaemon:\n%s", errs, d.log.String())
	}
	r.check(t)
}

// daemonProcess is a daemon that runs, or has ended.
type daemonProcess struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	gone chan struct{} // closed when it has ended
}

// daemon starts a daemon with armed failpoints and waits until it listens or is dead.
func (r *rig) daemon(t tester, points string, settings ...string) *daemonProcess {
	t.Helper()
	args := []string{"daemon", "--root", r.root}
	for _, s := range settings {
		args = append(args, "--option", s)
	}
	d := &daemonProcess{cmd: r.process(t.Context(), "cli", args...), gone: make(chan struct{})}
	d.cmd.Env = append(d.cmd.Env, "CAIRN_CRASH_POINTS="+points)
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.cmd.Wait()
		close(d.gone)
	}()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && !d.dead(); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", r.layout.SocketPath); err == nil {
			c.Close()
			return d
		}
	}
	if !d.killed() {
		d.kill()
		t.Fatalf("daemon does not listen:\n%s", d.log.String())
	}
	return d
}

func (d *daemonProcess) dead() bool {
	select {
	case <-d.gone:
		return true
	default:
		return false
	}
}

// killed reports whether it was killed already.
func (d *daemonProcess) killed() bool { return d.dead() && killed(d.cmd) }

func killed(cmd *exec.Cmd) bool {
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

func (d *daemonProcess) kill() {
	d.cmd.Process.Kill()
	<-d.gone
}

// drive runs a driver to its end and returns what it complains of.
func (r *rig) drive(t tester, load, points string, env ...string) string {
	cmd := r.driver(t, load, points)
	cmd.Env = append(cmd.Env, env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(&errs, err)
	}
	return errs.String()
}

func (r *rig) driver(t tester, load, points string) *exec.Cmd {
	cmd := r.process(t.Context(), "driver", r.root, r.bundles, r.journal, load)
	cmd.Env = append(cmd.Env, "CAIRN_CRASH_POINTS="+points)
	return cmd
}

func (r *rig) counts() string {
	return fmt.Sprintf("%d added, %d built, %d imported, %d collections", r.verbs["add"], r.verbs["build"], r.verbs["import"], r.verbs["collect"])
}
