// Package bench compares cairn with Debian's nix, side by side in one run, and prints ratios.
//
// Each side is its own daemon, started by its own program, with a store of its own on one tmpfs; the client is nix's, the same for both.
// Sides alternate, so that whatever else the machine does meanwhile meets both. Figures are medians, with the least and the greatest behind them.
// Needs root and nix: make bench.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rounds says how often each figure is measured, or skips the test.
func rounds(t *testing.T) int {
	t.Helper()
	n, _ := strconv.Atoi(os.Getenv("CAIRN_BENCH"))
	if os.Getenv("CAIRN_CI") == "1" {
		n = max(n, 1)
	}
	if n <= 0 {
		t.Skip("takes minutes; enable with: make bench")
	}
	if _, err := exec.LookPath("nix-daemon"); err != nil || os.Getuid() != 0 {
		t.Fatal("needs root and nix (make deps)")
	}
	return n
}

// arena is a tmpfs with a directory for each side.
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

// side is a daemon and what its clients need to reach it.
type side struct {
	t    *testing.T
	name string
	dir  string
	env  []string
}

const conf = `experimental-features = nix-command ca-derivations
sandbox = true
sandbox-paths = /bin/sh=/bin/busybox
build-users-group =
substituters =
max-jobs = 2
`

// start starts a side's daemon. Its log is shown when the test fails.
func start(t *testing.T, root, name string, daemon ...string) *side {
	t.Helper()
	s := &side{t: t, name: name, dir: filepath.Join(root, name)}
	socket := filepath.Join(s.dir, "socket")
	s.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "LC_ALL=C", "NIX_PATH=", "NIX_REMOTE=daemon", "NIX_DAEMON_SOCKET_PATH=" + socket,
		"NIX_STORE_DIR=" + filepath.Join(s.dir, "store"), "NIX_STATE_DIR=" + filepath.Join(s.dir, "var"),
		"NIX_LOG_DIR=" + filepath.Join(s.dir, "log"), "NIX_CONF_DIR=" + filepath.Join(s.dir, "conf"),
	}
	for _, d := range []string{"store", "var", "conf"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "conf", "nix.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon[0], daemon[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, log, log
	if name == "nix" {
		cmd.Env = append(slices.Clone(s.env), "NIX_REMOTE=")
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("%s: log of the daemon:\n%s", name, text)
		}
	})
	for range 200 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return s
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: the daemon does not listen", name)
	return nil
}

// sides starts nix's daemon and ours.
func sides(t *testing.T) []*side {
	t.Helper()
	root := arena(t)
	cairn := filepath.Join(root, "cairn-program")
	build := exec.Command("go", "build", "-trimpath", "-o", cairn, "cairn")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cairn: %v\n%s", err, out)
	}
	init := exec.Command(cairn, "init")
	ours := filepath.Join(root, "cairn")
	init.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + ours, "NIX_STORE_DIR=" + filepath.Join(ours, "store"), "NIX_STATE_DIR=" + filepath.Join(ours, "var"),
		"NIX_LOG_DIR=" + filepath.Join(ours, "log"), "NIX_CONF_DIR=" + filepath.Join(ours, "conf"),
	}
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("cairn init: %v\n%s", err, out)
	}
	return []*side{start(t, root, "nix", "nix-daemon", "--daemon"), start(t, root, "cairn", cairn, "daemon")}
}

// run runs a client and returns what it printed and how long it took.
func (s *side) run(argv ...string) (string, time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = s.env
	var errs strings.Builder
	cmd.Stderr = &errs
	begin := time.Now()
	out, err := cmd.Output()
	took := time.Since(begin)
	if err != nil {
		s.t.Fatalf("%s: %s: %v\n%.4000s", s.name, argv[0], err, errs.String())
	}
	return string(out), took
}

// sample is one kind of work, as often as it was measured.
type sample []time.Duration

func (m sample) median() time.Duration {
	s := slices.Sorted(slices.Values(m))
	return s[len(s)/2]
}

// per shows the median for one of n things, with the range.
func (m sample) per(n int) string {
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(n) }
	return fmt.Sprintf("%6.2f ms (%.2f–%.2f)", ms(m.median()), ms(slices.Min(m)), ms(slices.Max(m)))
}

// record appends a figure to the file that CAIRN_BENCH_JSON names, one JSON object per line.
func record(t *testing.T, work string, n int, nix, cairn sample) {
	t.Helper()
	name := os.Getenv("CAIRN_BENCH_JSON")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = json.NewEncoder(f).Encode(map[string]any{"work": work, "size": n, "nix": nix, "cairn": cairn, "ratio": float64(nix.median()) / float64(cairn.median())})
	if err != nil {
		t.Fatal(err)
	}
}
