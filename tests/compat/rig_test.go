// Package compat runs Debian's nix client against our daemon and against its own store, and compares.
//
// Both stores have the same logical directory, so that paths are comparable. Ours lies elsewhere; the
// client sees it in the right place because it runs in a mount namespace of its own, where the real directory is
// bound over the logical one. Needs root and nix (make deps).
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
	"testing"

	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/sandbox"
	"cairn/store"
	"cairn/store/disk"
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
	os.Exit(m.Run())
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
	env   []string
	dir   string // logical store directory
	real  string // where it is
	state string
	conn  string   // socket of the daemon, if it is ours
	work  string   // current directory
	as    []string // what runs commands as somebody else
	store *disk.Store
}

// world is two stores with one name.
type world struct {
	root         string
	dir          string // the logical store directory
	theirs, ours *side
}

const conf = `experimental-features = nix-command ca-derivations
sandbox = false
build-users-group =
substituters =
max-jobs = 2
`

func newWorld(t *testing.T) *world {
	t.Helper()
	need(t)
	root, err := os.MkdirTemp("", "compat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	w := &world{root: root, dir: filepath.Join(root, "store")}
	w.theirs = w.side(t, "nix")
	w.theirs.real = w.dir
	w.theirs.env = append(w.theirs.env, "NIX_REMOTE=local")
	w.ours = w.side(t, "cairn")
	w.ours.real = filepath.Join(root, "cairn", "store")
	w.startDaemon(t)
	return w
}

func (w *world) side(t *testing.T, name string) *side {
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
		"NIX_LOCALSTATE_DIR=" + s.state, "XDG_CACHE_HOME=" + filepath.Join(base, "cache"),
	}
	return s
}

func (w *world) startDaemon(t *testing.T) {
	t.Helper()
	s := w.ours
	layout := disk.Layout{
		Dir: store.Dir(w.dir), RealDir: s.real, StateDir: s.state, LogDir: filepath.Join(s.state, "log"),
		SocketPath: filepath.Join(w.root, "s"), ConfDir: filepath.Join(w.root, "cairn", "conf"),
	}
	if err := disk.Init(layout); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(context.Background(), layout, &disk.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	b := build.New(d, nil)
	server := daemon.New(d, b, nil)
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
		if _, err := d.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("verify: %s: %v", p.Path, p.Err) }); err != nil {
			t.Errorf("verify: %v", err)
		}
		d.Close()
	})
	s.store, s.conn = d, layout.SocketPath
	s.env = append(s.env, "NIX_REMOTE=daemon", "NIX_DAEMON_SOCKET_PATH="+layout.SocketPath)
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

// try runs a command with the side's store in its place.
func (s *side) try(stdin []byte, argv ...string) output {
	s.t.Helper()
	argv = append(slices.Clone(s.as), argv...)
	script := `mount --bind "$1" "$2" && shift 2 && exec "$@"`
	args := append([]string{"-m", "--propagation", "private", "sh", "-c", script, "sh", s.real, s.dir}, argv...)
	if s.real == s.dir {
		args = append([]string{"-m", "--propagation", "private"}, argv...)
	}
	cmd := exec.Command("unshare", args...)
	cmd.Env, cmd.Dir, cmd.Stdin = s.env, s.work, bytes.NewReader(stdin)
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
