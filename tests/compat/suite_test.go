package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/tests/lab"
)

// suite are the functional tests of nix 2.8 that go through a daemon, run with ours in its place. The scripts are nix's own, from Debian's
// source package, and are not changed but for a line in withoutHost.
var suite = strings.Fields(`
	add.sh binary-cache-build-remote.sh brotli.sh build-dry.sh build.sh case-hack.sh check-refs.sh check-reqs.sh
	compression-levels.sh dependencies.sh export-graph.sh export.sh fetchurl.sh filter-source.sh fixed.sh function-trace.sh gc-runtime.sh gc.sh
	hash.sh import-derivation.sh local-store.sh logging.sh misc.sh nar-access.sh nix-build.sh nix-channel.sh nix-copy-ssh.sh nix-profile.sh
	nix-shell.sh nix_path.sh pass-as-file.sh placeholders.sh post-hook.sh readfile-context.sh recursive.sh secure-drv-outputs.sh shell.sh signing.sh
	ssh-relay.sh store-ping.sh structured-attrs.sh substitute-with-invalid-ca.sh suggestions.sh user-envs.sh why-depends.sh zstd.sh
	ca/build-with-garbage-path.sh ca/build.sh ca/duplicate-realisation-in-closure.sh ca/gc.sh ca/import-derivation.sh ca/nix-copy.sh ca/nix-run.sh
	ca/nix-shell.sh ca/post-hook.sh ca/recursive.sh ca/signatures.sh
`)

// Not in the list, of what a stock daemon passes there:
//
//	gc-concurrent.sh impure-derivations.sh     builders write to files of the host, as nix lets them without a sandbox
//	optimise-store.sh                          a client switches auto-optimise-store on for itself; here it is the daemon's setting
//	multiple-outputs.sh remote-store.sh        change or read the database of nix's own store behind the daemon

// withoutHost are scripts that check that a builder sees other objects of the host's store, which it does only without a sandbox: that line is left out.
var withoutHost = map[string]string{"recursive.sh": "[[ -e $unreachable ]]"}

// suiteVersion is what the suite's templates are told.
const suiteVersion = "2.8.0"

func TestNixSuite(t *testing.T) {
	need(t)
	source, err := lab.NixSource(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("", "ns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(root) })
	if err := os.Chmod(root, 0o755); err != nil { // file: URLs are read as everybody may
		t.Fatal(err)
	}
	daemon := suiteDaemon(t, root)
	scripts := filepath.Join(root, "tests")
	if err := prepareSuite(filepath.Join(source, "tests"), scripts); err != nil {
		t.Fatal(err)
	}
	for _, name := range suite {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runSuite(t, root, scripts, daemon, name)
		})
	}
}

// suiteDaemon makes the directory from which the suite takes the daemon: a nix-daemon that is ours.
func suiteDaemon(t *testing.T, root string) string {
	t.Helper()
	program := filepath.Join(root, "real", "nix-daemon")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "cairn")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cairn: %v\n%s", err, out)
	}
	bin := filepath.Join(root, "package", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	// The suite's builders are scripts for the host's bash and coreutils.
	wrapper := fmt.Sprintf(`#!/bin/bash
export NIX_CONFIG="$NIX_CONFIG
sandbox-paths = /bin /usr /lib /lib64 /etc/alternatives $TEST_ROOT/shared? $TEST_ROOT/test-home?
version-text = %s"
exec %s "$@"
`, suiteVersion, program)
	if err := os.WriteFile(filepath.Join(bin, "nix-daemon"), []byte(wrapper), 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(bin)
}

// prepareSuite copies the scripts and fills in their templates.
func prepareSuite(from, to string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	values := strings.NewReplacer("@bindir@", "/usr/bin", "@coreutils@", "/usr/bin", "@dot@", "", "@bash@", "/bin/bash",
		"@sandbox_shell@", "/bin/busybox", "@PACKAGE_VERSION@", suiteVersion, "@system@", "x86_64-linux")
	for _, name := range []string{"common.sh", "config.nix", "ca/config.nix"} {
		text, err := os.ReadFile(filepath.Join(to, name+".in"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), []byte(values.Replace(string(text))), 0o644); err != nil {
			return err
		}
	}
	for name, line := range withoutHost {
		text, err := os.ReadFile(filepath.Join(to, name))
		if err != nil {
			return err
		}
		if !bytes.Contains(text, []byte(line)) {
			return fmt.Errorf("%s has no line %q", name, line)
		}
		if err := os.WriteFile(filepath.Join(to, name), bytes.Replace(text, []byte(line), nil, 1), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// runSuite runs one script. The suite's own way to say that it cannot run here is exit status 99.
func runSuite(t *testing.T, root, scripts, daemon, name string) {
	id := strings.ReplaceAll(strings.TrimSuffix(name, ".sh"), "/", "-")
	env := append(os.Environ(), "TMPDIR="+filepath.Join(root, id), "TEST_NAME=x", "NIX_CLIENT_PACKAGE=", "NIX_REMOTE_=", "LC_ALL=C")
	if err := os.MkdirAll(filepath.Join(root, id, "nix-test"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var log bytes.Buffer
	script := func(dir, file, pkg string) error {
		cmd := exec.CommandContext(ctx, "bash", "-e", file)
		cmd.Dir, cmd.Env = dir, append(env, "NIX_DAEMON_PACKAGE="+pkg)
		cmd.Stdout, cmd.Stderr = &log, &log
		cmd.WaitDelay = 5 * time.Second
		return cmd.Run()
	}
	err := script(scripts, "init.sh", "")
	if err == nil {
		err = script(filepath.Join(scripts, filepath.Dir(name)), filepath.Base(name), daemon)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() == 99:
		t.Errorf("the script thinks that it cannot run here:\n%s", tail(log.String()))
	default:
		t.Errorf("%v\n%s", err, tail(log.String()))
	}
}

// tail is the end of a long text.
func tail(text string) string { return text[max(0, len(text)-6000):] }
