package compat

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// programVariable makes this program our command line.
const programVariable = "COMPAT_PROGRAM"

// startProgram runs our program until stop, which returns what it said.
func startProgram(t *testing.T, env []string, args ...string) (stop func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(env, programVariable+"=1")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		defer cancel()
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("daemon: %v\n%s", err, log.String())
		}
		return log.String()
	}
}

// TestStoreDeletedUnderDaemon does what the test suite of Nix does between its tests.
func TestStoreDeletedUnderDaemon(t *testing.T) {
	need(t)
	root := t.TempDir()
	os.Chmod(root, 0o755)
	in := func(name string) string { return filepath.Join(root, name) }
	for _, d := range []string{"store", "var", "conf", "home"} {
		if err := os.Mkdir(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(in("conf/nix.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + in("home"), "NIX_STORE_DIR=" + in("store"), "NIX_STATE_DIR=" + in("var"), "NIX_LOG_DIR=" + in("var/log"),
		"NIX_LOCALSTATE_DIR=" + in("var"), "NIX_CONF_DIR=" + in("conf"), "NIX_DAEMON_SOCKET_PATH=" + in("socket"), "NIX_REMOTE=daemon", "NIX_PATH=",
		"XDG_CACHE_HOME=" + in("home"), "TERM=dumb", "LC_ALL=C",
	}
	nix := func(argv ...string) (string, error) {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env, cmd.Dir = env, root
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	mustNix := func(argv ...string) string {
		t.Helper()
		out, err := nix(argv...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
		return out[strings.LastIndex(out, "\n")+1:]
	}
	if err := os.WriteFile(in("t.nix"), []byte(talkers), 0o644); err != nil {
		t.Fatal(err)
	}
	mustInit := exec.Command(os.Args[0], "init")
	mustInit.Env = append(env, programVariable+"=1")
	if out, err := mustInit.CombinedOutput(); err != nil {
		t.Fatalf("cairn init: %v\n%s", err, out)
	}
	stop := startProgram(t, env, "daemon")
	for range 100 {
		if _, err := os.Stat(in("socket")); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	for round := range 3 {
		out := mustNix("nix-build", "t.nix", "-A", "long", "--no-out-link")
		if _, err := os.Stat(out); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for _, d := range []string{"store", "var"} {
			removeAll(in(d))
			if round > 0 {
				if err := os.Mkdir(in(d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, err := nix("nix-store", "--check-validity", out); err == nil {
			t.Errorf("round %d: %s is valid in an empty store: %s", round, out, got)
		}
		if got := mustNix("nix-store", "--gc", "--print-dead"); strings.Contains(got, in("store")) {
			t.Errorf("round %d: the new store has %s", round, got)
		}
	}
	log := stop()
	if n := strings.Count(log, "the store has been deleted"); n != 3 {
		t.Errorf("%d stores were made\n%s", n, log)
	}
	if strings.Contains(log, "level=ERROR") || strings.Contains(log, "BUG") {
		t.Errorf("log:\n%s", log)
	}
}
