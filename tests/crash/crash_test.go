// Package crash kills the daemon at random moments under load and checks the store afterwards.
//
// In each round a daemon process and a driver process (driver_test.go) run; the daemon is
// killed with SIGKILL after a random time. Then the store is opened, which recovers it, and
//
//   - every path that it calls valid has the hash that it was registered with,
//   - everything acknowledged and still rooted is valid,
//   - nothing else is visible in the store directory.
//
// CAIRN_CRASH is the number of rounds; the default is 5. make crash N=200
package crash

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/client/cli"
	"cairn/client/config"
	"cairn/daemon/sandbox"
	"cairn/store"
	"cairn/store/disk"
)

// TestMain lets the test binary be the daemon and the driver as well.
func TestMain(m *testing.M) {
	sandbox.Init()
	config.Init()
	switch os.Getenv("CAIRN_CRASH_ROLE") {
	case "cli":
		os.Exit(cli.Main(os.Args))
	case "driver":
		layout, err := disk.NewLayout(os.Args[1], noEnv)
		if err == nil {
			err = drive(layout, os.Args[2], os.Args[3])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func noEnv(string) string { return "" }

func TestKill(t *testing.T) {
	rounds := 5
	if s := os.Getenv("CAIRN_CRASH"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("CAIRN_CRASH: %v", err)
		}
		rounds = n
	}
	r := newRig(t)
	for i := range rounds {
		r.round(t)
		if t.Failed() {
			t.Fatalf("round %d of %d", i+1, rounds)
		}
	}
	t.Logf("%d kills; acknowledged: %s; verified: %d valid paths in all rounds, of which %d rooted; strays seen: 0",
		rounds, r.counts(), r.verified, r.rooted)
}

// rig is the store under test.
type rig struct {
	root, bundles, journal string
	layout                 disk.Layout
	verified, rooted       int
	verbs                  map[string]int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := tempDir(t)
	r := &rig{root: filepath.Join(dir, "r"), bundles: filepath.Join(dir, "bundles"), journal: filepath.Join(dir, "journal")}
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
func (r *rig) makeBundles(t *testing.T, source string) {
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

// process is this test binary in another role.
func process(ctx context.Context, role string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "CAIRN_CRASH_ROLE="+role)
	return cmd
}

func (r *rig) cairn(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := process(t.Context(), "cli", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cairn %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}

// round runs daemon and driver, kills the daemon, and checks.
func (r *rig) round(t *testing.T) {
	t.Helper()
	var log bytes.Buffer
	daemon := process(t.Context(), "cli", "daemon", "--root", r.root)
	daemon.Stderr = &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	r.await(t, &log)
	var driverLog bytes.Buffer
	driver := process(t.Context(), "driver", r.root, r.bundles, r.journal)
	driver.Stderr = &driverLog
	if err := driver.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	daemon.Wait()
	if err := driver.Wait(); err != nil || driverLog.Len() > 0 {
		t.Errorf("driver: %v\n%s\ndaemon:\n%s", err, driverLog.String(), log.String())
	}
	r.check(t)
}

// await waits until the daemon listens.
func (r *rig) await(t *testing.T, log *bytes.Buffer) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", r.layout.SocketPath); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("daemon does not listen:\n%s", log.String())
}

// check opens the store as the next daemon would.
func (r *rig) check(t *testing.T) {
	t.Helper()
	s, err := disk.Open(t.Context(), r.layout, nil)
	if err != nil {
		t.Fatalf("open after kill: %v", err)
	}
	defer s.Close()
	valid := map[string]bool{}
	for p := range s.All() {
		valid[p.Base()] = true
		r.verified++
	}
	r.verify(t, s)
	rooted := r.replay(t)
	for _, p := range rooted {
		r.rooted++
		if !valid[p.Base()] {
			t.Errorf("%s was acknowledged and rooted, and is lost", p)
		}
	}
	entries, err := os.ReadDir(r.layout.RealDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !valid[e.Name()] && e.Name() != ".links" && e.Name() != ".trash" {
			t.Errorf("%s is in the store directory and not valid", e.Name())
		}
	}
}

// verify checks references and contents of everything.
func (r *rig) verify(t *testing.T, s *disk.Store) {
	t.Helper()
	_, err := s.Verify(t.Context(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("%s: %v", p.Path, p.Err) })
	if err != nil {
		t.Errorf("verify: %v", err)
	}
}

// replay reads the journal and returns what is rooted, by link.
func (r *rig) replay(t *testing.T) map[string]store.Path {
	t.Helper()
	f, err := os.Open(r.journal)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rooted := map[string]store.Path{}
	r.verbs = map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("journal: %v", err)
		}
		r.verbs[e.Verb]++
		switch e.Verb {
		case "root":
			rooted[e.Link] = e.Path
		case "unroot":
			delete(rooted, e.Link)
		}
	}
	return rooted
}

func (r *rig) counts() string {
	return fmt.Sprintf("%d added, %d built, %d imported, %d collections", r.verbs["add"], r.verbs["build"], r.verbs["import"], r.verbs["collect"])
}
