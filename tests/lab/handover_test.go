package lab_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/tests/lab"
)

// TestHandOver rolls back from a system made with one cairn to a system made with another: the older one's own
// program makes the switch.
func TestHandOver(t *testing.T) {
	t.Parallel()
	h := lab.New(t, 1, nil).Host("h1")
	for _, version := range []string{"1.0", "2.0"} {
		program, err := os.Open(versioned(t, version))
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Put(t.Context(), "/root/cairn-"+version, program, 0o755); err != nil {
			t.Fatal(err)
		}
		program.Close()
	}
	file := `load("@cairn//base.star", "base_services")
host = system(host_name = args.get("name", "first"), services = base_services)
`
	if err := h.Put(t.Context(), "/root/host.star", strings.NewReader(file), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(want string, argv ...string) {
		t.Helper()
		out, err := h.Run(t.Context(), argv...)
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
		}
	}
	run("", "/root/cairn-1.0", "init", "--daemon")
	run("generation 1 is current", "/root/cairn-1.0", "system", "reconfigure", "/root/host.star")
	run("generation 2 is current", "/root/cairn-2.0", "system", "reconfigure", "/root/host.star", "--arg", "name=second")
	run("second", "hostname")
	out, err := h.Run(t.Context(), "sh", "-c", "/root/cairn-2.0 system roll-back 2>&1")
	if err != nil || !strings.Contains(out, "generation 1 has a cairn of its own") || !strings.Contains(out, "generation 1 is current") {
		t.Fatalf("roll back: %v: %s", err, out)
	}
	run("first", "hostname")
	out, err = h.Run(t.Context(), "sh", "-c", "/root/cairn-2.0 system switch-generation 2 2>&1")
	if err != nil || strings.Contains(out, "a cairn of its own") {
		t.Fatalf("switch by the program that made the system: %v: %s", err, out)
	}
	run("second", "hostname")
}

// versioned builds a cairn that says it has a version.
func versioned(t *testing.T, version string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "cairn-"+version)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w -X cairn/client/cli.Version="+version, "-o", program, "cairn")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build cairn %s: %v: %s", version, err, out)
	}
	return program
}
