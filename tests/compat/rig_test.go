// Package compat runs real nix clients against our daemon and against their own, and compares.
//
// A world is two stores with one logical directory, so that paths are comparable: theirs, served by the nix-daemon
// of a generation of nix, and ours, served by our daemon in this process. Ours lies elsewhere; the client sees it in
// the right place because it runs in a mount namespace of its own, where the real directory is bound over the logical one.
//
// The generations are Debian's own nix (2.8) and that of Debian sid (2.34), which is unpacked once into
// the lab's cache (lab.Peers) and entered with chroot.
//
// The whole test program runs in a mount namespace: its files are on a tmpfs that goes with it, and the chroot
// sees them at the same place. Needs root, nix and debootstrap (make deps).
package compat

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/client/cli"
	"cairn/client/peer"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/remote"
	"cairn/daemon/sandbox"
	"cairn/daemon/settings"
	"cairn/store"
	"cairn/store/disk"
	"cairn/tests/lab"
)

// proxyVariable makes this program what ssh would be: a way to the daemon's socket.
const proxyVariable = "COMPAT_PROXY"

func TestMain(m *testing.M) {
	sandbox.Init()
	if socket := os.Getenv(proxyVariable); socket != "" {
		if err := proxy(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if name := filepath.Base(os.Args[0]); name == "nix-store" || name == "nix-daemon" {
		os.Exit(cli.Main(os.Args))
	}
	if os.Getenv(programVariable) != "" {
		os.Exit(cli.Main(append([]string{"cairn"}, os.Args[1:]...)))
	}
	if os.Getuid() == 0 {
		if err := ownNamespace(); err != nil {
			fmt.Fprintln(os.Stderr, "compat:", err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if scratch != "" {
		unix.Unmount(scratch, unix.MNT_DETACH)
		os.Remove(scratch)
	}
	os.Exit(code)
}

// namespaceVariable says that this program is in its mount namespace.
const namespaceVariable = "COMPAT_NAMESPACE"

// scratch is the tmpfs of all worlds.
var scratch string

// ownNamespace starts this program again in a mount namespace, which ends with it, however it ends.
func ownNamespace() error {
	if os.Getenv(namespaceVariable) == "" {
		unshare, err := exec.LookPath("unshare")
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		argv := append([]string{"unshare", "--mount", "--propagation", "private", self}, os.Args[1:]...)
		return unix.Exec(unshare, argv, append(os.Environ(), namespaceVariable+"=1"))
	}
	os.Unsetenv(namespaceVariable)
	dir, err := os.MkdirTemp("/tmp", "compat")
	if err != nil {
		return err
	}
	scratch = dir
	return unix.Mount("compat", scratch, "tmpfs", unix.MS_NOSUID, "mode=0755")
}

// generation is a release of nix.
type generation struct {
	name    string
	version string                 // what its daemon calls itself
	system  func() (string, error) // the root directory it is installed in
}

var (
	nix28  = &generation{"2.8", "2.8.0", func() (string, error) { return "", nil }}
	nix234 = &generation{"2.34", "2.34.8", sync.OnceValues(peers)}
)

// generations runs a test with each generation of nix, both at the same time; t itself becomes parallel too.
func generations(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	for _, g := range []*generation{nix28, nix234} {
		t.Run("nix "+g.name, func(t *testing.T) {
			t.Parallel()
			f(t, g.world(t))
		})
	}
}

// need returns the root directory of the generation's system; without one it skips, or fails in CI.
func (g *generation) need(t *testing.T) string {
	t.Helper()
	system, err := g.system()
	switch {
	case err == nil:
	case os.Getenv("CAIRN_CI") == "1":
		t.Fatalf("nix %s: %v", g.name, err)
	default:
		t.Skipf("nix %s: %v; enable with: make deps", g.name, err)
	}
	return system
}

// peers is the chroot of newer programs, with what this system has to show them.
func peers() (string, error) {
	root, err := lab.Peers(context.Background(), os.Stderr)
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"/proc", "/dev", "/tmp"} {
		if err := unix.Mount(dir, root+dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return "", fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	return root, nil
}

// proxy joins standard input and output with a socket.
func proxy(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		io.Copy(c, os.Stdin)
		c.(*net.UnixConn).CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, c)
	return err
}

// need skips, or fails in CI, what cannot run here.
func need(t *testing.T) {
	t.Helper()
	var why string
	if _, err := exec.LookPath("nix-store"); err != nil {
		why = "nix is not installed; enable with: make deps"
	}
	if os.Getuid() != 0 {
		why = "needs root for mount namespaces; enable with: sudo make compat"
	}
	if err := sandbox.Available(); why == "" && err != nil {
		why = "no sandbox: " + err.Error()
	}
	switch {
	case why == "":
	case os.Getenv("CAIRN_CI") == "1":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

// side is a store and the environment in which nix uses it.
type side struct {
	t     *testing.T
	name  string
	root  string // of the system that commands run in; empty: this one
	env   []string
	dir   string // logical store directory
	real  string // where it is
	state string
	conn  string   // socket of the daemon
	work  string   // current directory
	as    []string // what runs commands as somebody else
	store *disk.Store
}

// world is two stores with one name.
type world struct {
	gen          *generation
	root         string
	dir          string // the logical store directory
	theirs, ours *side
}

const conf = `experimental-features = nix-command ca-derivations
sandbox = false
build-users-group =
substituters =
max-jobs = 2
fsync-metadata = false
`

// newWorld returns a world of the oldest generation.
func newWorld(t *testing.T) *world { t.Helper(); return nix28.world(t) }

func (g *generation) world(t *testing.T) *world { t.Helper(); return g.worldWith(t, "") }

// worldWith is a world whose daemons have more in their nix.conf.
func (g *generation) worldWith(t *testing.T, more string) *world {
	t.Helper()
	conf := conf + more
	need(t)
	system := g.need(t)
	root, err := os.MkdirTemp(scratch, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	w := &world{gen: g, root: root, dir: filepath.Join(root, "store")}
	w.theirs = w.side(t, "nix", conf)
	w.theirs.real, w.theirs.root, w.theirs.conn = w.dir, system, filepath.Join(root, "n")
	w.theirs.startDaemon()
	// Our builds are in the sandbox.
	w.ours = w.side(t, "cairn", strings.Replace(conf, "sandbox = false", "sandbox = true", 1))
	w.ours.real, w.ours.root, w.ours.conn = filepath.Join(root, "cairn", "store"), system, filepath.Join(root, "s")
	w.startDaemon(t)
	for _, s := range w.both() {
		s.env = append(s.env, "NIX_REMOTE=daemon", "NIX_DAEMON_SOCKET_PATH="+s.conn)
	}
	return w
}

// local makes their clients open the store themselves, without the daemon.
func (w *world) local() {
	w.theirs.env = append(w.theirs.env, "NIX_REMOTE=local")
}

// startDaemon starts the nix-daemon of the side's own generation.
func (s *side) startDaemon() {
	s.t.Helper()
	// Otherwise the first two connections would race for the database's making.
	init := s.command("nix-store", "--init")
	init.Env = append(init.Env, "NIX_REMOTE=local")
	if out, err := init.CombinedOutput(); err != nil {
		s.t.Fatalf("nix-store --init: %v: %s", err, out)
	}
	cmd := s.command("nix-daemon")
	cmd.Env = append(cmd.Env, "NIX_REMOTE=local", "NIX_DAEMON_SOCKET_PATH="+s.conn)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if s.t.Failed() && errs.Len() > 0 {
			s.t.Logf("nix-daemon: %s", errs.String())
		}
	})
	for range 200 {
		if c, err := net.Dial("unix", s.conn); err == nil {
			c.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.t.Fatal("nix-daemon does not listen")
}

func (w *world) side(t *testing.T, name, conf string) *side {
	t.Helper()
	base := filepath.Join(w.root, name)
	s := &side{t: t, name: name, dir: w.dir, state: filepath.Join(base, "var"), work: filepath.Join(base, "work")}
	for _, d := range []string{w.dir, filepath.Join(base, "conf"), filepath.Join(base, "home"), s.state, s.work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "conf", "nix.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	s.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(base, "home"), "NIX_STORE_DIR=" + w.dir, "NIX_STATE_DIR=" + s.state,
		"NIX_LOG_DIR=" + filepath.Join(s.state, "log"), "NIX_CONF_DIR=" + filepath.Join(base, "conf"), "NIX_PATH=", "LC_ALL=C", "TERM=dumb",
		"NIX_LOCALSTATE_DIR=" + s.state, "XDG_CACHE_HOME=" + filepath.Join(base, "cache"), "GORACE=" + os.Getenv("GORACE"),
	}
	return s
}

func (w *world) startDaemon(t *testing.T) {
	t.Helper()
	s := w.ours
	layout := disk.Layout{
		Dir: store.Dir(w.dir), RealDir: s.real, StateDir: s.state, LogDir: filepath.Join(s.state, "log"),
		SocketPath: s.conn, ConfDir: filepath.Join(w.root, "cairn", "conf"),
	}
	set, err := settings.Load(layout.ConfDir, func(string) string { return "" }, os.ReadFile, func(text string) { t.Logf("nix.conf: %s", text) })
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(layout); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(context.Background(), layout, &disk.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	machines := remote.New(d, &remote.Options{Peer: peer.Options{Silence: 9 * time.Second}, Pause: time.Millisecond})
	b := build.New(d, &build.Options{Settings: set, Machines: machines})
	server := daemon.New(d, b, &daemon.Options{Settings: set, Version: w.gen.version})
	l, err := daemon.Listen(layout)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		b.Close()
		machines.Close()
		if _, err := d.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("verify: %s: %v", p.Path, p.Err) }); err != nil {
			t.Errorf("verify: %v", err)
		}
		d.Close()
	})
	s.store = d
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

// both is the two sides.
func (w *world) both() []*side { return []*side{w.theirs, w.ours} }

// output is what a command left behind.
type output struct {
	out, err string
	code     int
}

// command is argv with the side's store in its place, in the side's system.
func (s *side) command(argv ...string) *exec.Cmd {
	argv = append(slices.Clone(s.as), argv...)
	if s.root != "" {
		argv = append([]string{"unshare", "--root=" + s.root, "--wd=" + s.work}, argv...)
	}
	if s.real != s.dir {
		argv = append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind "$1" "$2" && shift 2 && exec "$@"`, "sh", s.real, s.root + s.dir}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = slices.Clone(s.env), s.work
	return cmd
}

// try runs a command.
func (s *side) try(stdin []byte, argv ...string) output {
	s.t.Helper()
	cmd := s.command(argv...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		s.t.Fatalf("%s: run %v: %v", s.name, argv, err)
	}
	return output{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// run is try for what must succeed; it returns what was printed, without white space around it.
func (s *side) run(argv ...string) string { s.t.Helper(); return s.feed(nil, argv...) }

func (s *side) feed(stdin []byte, argv ...string) string {
	s.t.Helper()
	o := s.try(stdin, argv...)
	if o.code != 0 {
		s.t.Fatalf("%s: %s: exit status %d\n%s%s", s.name, strings.Join(argv, " "), o.code, o.out, o.err)
	}
	return strings.TrimSpace(o.out)
}

// same runs a command on both sides and compares what it prints.
func (w *world) same(t *testing.T, argv ...string) string {
	t.Helper()
	a, b := w.theirs.run(argv...), w.ours.run(argv...)
	if a != b {
		t.Errorf("%s\nnix:   %s\ncairn: %s", strings.Join(argv, " "), a, b)
	}
	return a
}

// file writes a file into the working directories of both sides.
func (w *world) file(t *testing.T, name, contents string) {
	t.Helper()
	for _, s := range w.both() {
		if err := os.WriteFile(filepath.Join(s.work, name), []byte(contents), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// graph is three steps: input-addressed → fixed output → floating content-addressed, with more around them.
func graph() string {
	return fmt.Sprintf(`let
  sh = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; } // extra);
in rec {
  first = sh "first" "echo one > $out; echo building first" {};
  fixed = sh "fixed" "read x < ${first}; echo fixed > $out" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = %q; };
  floating = sh "floating" "read x < ${fixed}; echo \"$x and ${first}\" > $out" { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  self = sh "self" "echo me: $out > $out" { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  onFirst = sh "on-first" "read x < ${first}; echo \"$x\" > $out" { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  onFloating = sh "on-floating" "read x < ${floating}; echo \"$x; ${self}\" > $out" {};
  two = sh "two" "echo out $dev > $out; echo dev > $dev" { outputs = [ "out" "dev" ]; };
  broken = sh "broken" "echo about to fail; exit 3" {};
  needsBroken = sh "needs-broken" "echo ${broken} > $out" {};
  wrong = sh "wrong" "echo other > $out" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = %[1]q; };
}
`, store.SHA256.Sum([]byte("fixed\n")).Hex())
}
