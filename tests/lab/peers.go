package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// peerPackages are the programs of other people that talk to our daemon, in the newest releases that Debian has.
var peerPackages = []string{"nix-bin", "guix"}

// peersVersion changes whenever makePeers does.
const peersVersion = "1"

// Peers returns a tree with Debian sid's nix and guix to chroot into, making it if it is not cached:
// about 40 seconds and 900 MB.
// Its packages are unpacked and not configured: nothing in it was ever run, and there are no services.
// What a chroot needs beside (proc, dev, the files to work on) is bound into it by the caller, in a mount namespace.
func Peers(ctx context.Context, log io.Writer) (string, error) {
	return cached("sid-peers", peersVersion+"\n"+strings.Join(peerPackages, "\n"), func(tmp string) error {
		if log != nil {
			fmt.Fprintf(log, "lab: unpacking Debian sid's nix and guix in %s, once; about 40 s\n", CacheDir())
		}
		return makePeers(ctx, tmp)
	})
}

func makePeers(ctx context.Context, root string) error {
	if err := debootstrap(ctx, "sid", root, "--foreign", "--include="+strings.Join(peerPackages, ",")); err != nil {
		return err
	}
	if err := unpackRest(ctx, root); err != nil {
		return err
	}
	return preparePeers(root)
}

// unpackRest unpacks what debootstrap's first stage has only fetched and checked.
func unpackRest(ctx context.Context, root string) error {
	var archives []string
	paths, err := os.ReadFile(filepath.Join(root, "debootstrap/debpaths"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(paths)) {
		if f := strings.Fields(line); len(f) == 2 {
			archives = append(archives, filepath.Join(root, f[1]))
		}
	}
	for _, deb := range archives {
		if err := run(ctx, "dpkg-deb", "--extract", deb, root); err != nil {
			return err
		}
	}
	return nil
}

// preparePeers adds what configured packages would have, and removes what no program reads.
func preparePeers(root string) error {
	for _, name := range []string{"debootstrap", "var/cache/apt", "var/lib/apt", "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/include", "proc"} {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"proc", "gnu/store", "var/guix"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n",
		"etc/group":         "root:x:0:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
		"etc/hosts":         "127.0.0.1 localhost\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// debootstrap runs debootstrap, which checks the archive's signatures, with this machine's mirror.
func debootstrap(ctx context.Context, suite, root string, options ...string) error {
	mirror, err := Mirror("/etc/apt")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "debootstrap", append(append([]string{"--variant=minbase"}, options...), suite, root, mirror)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "TMPDIR=/tmp")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("debootstrap: %w: %s", err, out[max(0, len(out)-2000):])
	}
	return nil
}
