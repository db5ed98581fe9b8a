package build_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/daemon/build"

	"cairn/store/disk"
)

// TestDaemonKilled kills a process with kill -9 while its builder runs: the builder dies, too, nothing is
// valid, nothing is left after the next start.
func TestDaemonKilled(t *testing.T) {
	if root := os.Getenv("CAIRN_TEST_KILLED"); root != "" {
		runKilled(t, root)
		return
	}
	newRig(t, nil) // skips where there is no sandbox
	root := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDaemonKilled$")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_KILLED="+root)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	marker := filepath.Join(root, "started")
	wait(t, "the builder runs", func() bool { _, err := os.Stat(marker); return err == nil })
	if n := sleepers(); n != 1 {
		t.Fatalf("%d builders are running", n)
	}
	cmd.Process.Kill()
	cmd.Wait()
	wait(t, "the builder is dead", func() bool { return sleepers() == 0 })
	s, err := disk.Open(t.Context(), killedLayout(t, root), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for p := range s.All() {
		if !p.IsDerivation() {
			t.Errorf("%s is valid", p)
		}
	}
	entries, _ := os.ReadDir(s.Layout().RealDir)
	for _, e := range entries {
		if p, err := s.Dir().Path(e.Name()); e.Name() != ".trash" && e.Name() != ".links" && (err != nil || !s.IsValid(p)) {
			t.Errorf("%s was left", e.Name())
		}
	}
}

func killedLayout(t *testing.T, root string) disk.Layout {
	l, err := disk.NewLayout(root, func(name string) string {
		return map[string]string{"NIX_STORE_DIR": "/nix/store"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const sleeper = "sleep 98765"

func sleepers() (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if strings.HasPrefix(strings.ReplaceAll(string(b), "\x00", " "), sleeper) {
			n++
		}
	}
	return n
}

func runKilled(t *testing.T, root string) {
	l := killedLayout(t, root)
	if err := disk.Init(l); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{TB: t, ctx: t.Context(), layout: l, store: s, hashes: s.Hashes()}
	r.build = build.New(s, &build.Options{SandboxPaths: map[string]string{"/bin/sh": busybox(t)}})
	d := r.add(drv{name: "killed", outputs: []string{"out", "dev"}, script: "mkdir $out $dev; touch $out/x; echo started; " + sleeper})
	begun := build.ObserverFunc(func(e build.Event) {
		if e.Kind == build.Line {
			os.WriteFile(filepath.Join(root, "started"), nil, 0o644)
		}
	})
	_, err = r.build.Build(context.Background(), all(d), build.Normal, begun)
	fmt.Println(err)
}
