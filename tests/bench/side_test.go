package bench

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/store"
)

// arena is a tmpfs for everything that a test writes.
func arena(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		syscall.Unmount(dir, syscall.MNT_DETACH)
		os.Remove(dir)
	})
	return dir
}

// program builds cairn, once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "bench-program")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "cairn")
	build := exec.Command("go", "build", "-trimpath", "-o", file, "cairn")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	return file, build.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built {
		if file, err := program(); err == nil {
			os.RemoveAll(filepath.Dir(file))
		}
	}
	os.Exit(code)
}

// built says that there is a program to remove.
var built bool

// side is a daemon, and what its clients need to reach it.
type side struct {
	t      *testing.T
	name   string
	dir    string    // of everything that is its own
	store  store.Dir // as it is part of paths
	real   string    // where the objects are
	socket string
	state  string
	conf   string
	cairn  string // the program, for cairn's side
	env    []string
	cmd    *exec.Cmd
}

const conf = `experimental-features = nix-command ca-derivations
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=/bin/busybox
build-users-group =
substituters =
max-jobs = 2
`

// newSide makes the directories of a side called name. With a twin it has the twin's store directory, and sees its own files there.
func newSide(t *testing.T, root, name string, twin *side) *side {
	t.Helper()
	dir := filepath.Join(root, name)
	s := &side{
		t: t, name: name, dir: dir, store: store.Dir(filepath.Join(dir, "store")), real: filepath.Join(dir, "store"),
		socket: filepath.Join(dir, "socket"), state: filepath.Join(dir, "var"), conf: filepath.Join(dir, "conf"),
	}
	if twin != nil {
		s.store = twin.store
	}
	s.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "LC_ALL=C", "NIX_PATH=", "NIX_REMOTE=daemon", "NIX_DAEMON_SOCKET_PATH=" + s.socket,
		"NIX_STORE_DIR=" + string(s.store), "NIX_STATE_DIR=" + s.state, "NIX_LOG_DIR=" + filepath.Join(dir, "log"), "NIX_CONF_DIR=" + s.conf,
	}
	for _, d := range []string{s.real, s.state, s.conf} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.conf, "nix.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// startNix starts nix's daemon.
func startNix(t *testing.T, root, name string) *side {
	t.Helper()
	return newSide(t, root, name, nil).startNix()
}

func (s *side) startNix() *side {
	s.t.Helper()
	s.start("nix-daemon", "--daemon")
	return s
}

// startCairn starts our daemon.
func startCairn(t *testing.T, root, name string) *side {
	t.Helper()
	return newSide(t, root, name, nil).startCairn()
}

func (s *side) startCairn() *side {
	s.t.Helper()
	built = true
	file, err := program()
	if err != nil {
		s.t.Fatalf("build cairn: %v", err)
	}
	s.cairn = file
	s.run(s.inside(file, "init")...)
	s.start(file, "daemon")
	return s
}

// twin starts a second daemon of the same kind for the same store directory.
func (s *side) twin() *side {
	s.t.Helper()
	twin := newSide(s.t, filepath.Dir(s.dir), s.name+"-2", s)
	if s.cairn != "" {
		return twin.startCairn()
	}
	return twin.startNix()
}

// start starts the daemon. Its log is shown when the test fails.
func (s *side) start(argv ...string) {
	s.t.Helper()
	argv = s.inside(argv...)
	log, err := os.Create(filepath.Join(s.dir, "daemon.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = slices.Clone(s.env), log, log
	if s.cairn == "" {
		cmd.Env = append(cmd.Env, "NIX_REMOTE=")
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	s.t.Cleanup(func() {
		s.stop()
		log.Close()
		if text, _ := os.ReadFile(log.Name()); s.t.Failed() {
			s.t.Logf("%s: log of the daemon:\n%s", s.name, text)
		}
	})
	s.awaitSocket()
}

// inside makes a command see the side's own objects in the store directory.
func (s *side) inside(argv ...string) []string {
	if s.real == string(s.store) {
		return argv
	}
	return append([]string{"unshare", "-m", "sh", "-c", `mount --bind "$0" "$1" && shift && exec "$@"`, s.real, string(s.store)}, argv...)
}

func (s *side) awaitSocket() {
	s.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", s.socket); err == nil {
			c.Close()
			return
		}
	}
	s.t.Fatalf("%s: the daemon does not listen", s.name)
}

// stop ends the daemon, if it runs.
func (s *side) stop() {
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGTERM)
		s.cmd.Wait()
		s.cmd = nil
	}
}

// client is a command of a side that is not yet running, and what it writes to standard error.
func (s *side) client(ctx context.Context, argv ...string) (*exec.Cmd, *strings.Builder) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = s.env, s.dir
	errs := new(strings.Builder)
	cmd.Stderr = errs
	return cmd, errs
}

// run runs a client and returns what it printed and how long it took.
func (s *side) run(argv ...string) (string, time.Duration) {
	s.t.Helper()
	var out strings.Builder
	took := s.pipe(nil, &out, argv...)
	return out.String(), took
}

// pipe runs a client between a reader and a writer, which may be files.
func (s *side) pipe(in io.Reader, out io.Writer, argv ...string) time.Duration {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Minute)
	defer cancel()
	cmd, errs := s.client(ctx, argv...)
	cmd.Stdin, cmd.Stdout = in, out
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		s.t.Fatalf("%s: %s: %v\n%.4000s", s.name, strings.Join(argv[:min(len(argv), 4)], " "), err, errs)
	}
	return took
}

// fails runs a client that must fail, and returns all that it writes.
func (s *side) fails(argv ...string) string {
	s.t.Helper()
	cmd, errs := s.client(s.t.Context(), argv...)
	cmd.Stdout = errs
	if err := cmd.Run(); err == nil {
		s.t.Fatalf("%s: %s does not fail", s.name, strings.Join(argv, " "))
	}
	return errs.String()
}

// do runs nix's command or ours.
func (s *side) do(nix, cairn []string) (string, time.Duration) {
	s.t.Helper()
	return s.run(s.command(nix, cairn)...)
}

// command is nix's or ours.
func (s *side) command(nix, cairn []string) []string {
	if s.cairn == "" {
		return nix
	}
	return append([]string{s.cairn}, cairn...)
}

// collect empties the store of what has no root, outside of any time.
func (s *side) collect() {
	s.t.Helper()
	s.do(collectNix, collectCairn)
}

// Commands that collect. Nix is told to be quiet, since it names each object that it deletes.
var (
	collectNix   = []string{"nix-store", "--gc", "--quiet"}
	collectCairn = []string{"gc"}
)

// objects is how many there are in the store directory, valid or not.
func (s *side) objects() int {
	s.t.Helper()
	entries, err := os.ReadDir(s.real)
	if err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			n++
		}
	}
	return n
}

// expect fails unless there are n objects in the store directory.
func (s *side) expect(n int) {
	s.t.Helper()
	if got := s.objects(); got != n {
		s.t.Fatalf("%s: %d objects in the store directory, not %d", s.name, got, n)
	}
}
