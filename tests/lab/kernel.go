package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrNoKernel says that there is no kernel for hosts yet and that making one takes too long to do it unasked.
var ErrNoKernel = errors.New("no kernel for lab hosts; make one once, 6 to 14 minutes: go run ./tests/lab/labctl kernel")

// kernelPackages are the programs that building the kernel takes, and the packages they are in.
var kernelPackages = []program{
	{"make", "make"}, {"gcc", "gcc"}, {"flex", "flex"}, {"bison", "bison"}, {"bc", "bc"}, {"xz", "xz-utils"}, {"strip", "binutils"}, {"gpgv", "gpgv"},
}

const (
	kernelSuite   = "sid" // the release whose kernel source is built
	kernelKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

//go:embed kernel.config
var kernelConfig string

// Kernel returns the kernel of hosts that have one of their own: the one that CAIRN_LAB_KERNEL names,
// the one in the folder shared beside the repository, or the one built from Debian's source and cached.
// If there is none it builds one, or without build returns [ErrNoKernel].
func Kernel(ctx context.Context, build bool, log io.Writer) (string, error) {
	if runtime.GOARCH != "amd64" {
		return "", fmt.Errorf("kernel for lab hosts: there is none for %s", runtime.GOARCH)
	}
	if err := os.MkdirAll(CacheDir(), 0o755); err != nil {
		return "", err
	}
	if file := givenKernel(); file != "" {
		return unpackKernel(ctx, file)
	}
	key := sha256.Sum256([]byte(kernelSuite + "\n" + kernelConfig))
	kernel := filepath.Join(CacheDir(), fmt.Sprintf("linux-%x", key[:6]))
	if exists(kernel) {
		return kernel, nil
	}
	if !build {
		return "", ErrNoKernel
	}
	if err := installed(kernelPackages); err != nil {
		return "", fmt.Errorf("build kernel: %w", err)
	}
	lock, err := lockFile(kernel+".lock", unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if exists(kernel) {
		return kernel, nil
	}
	if log != nil {
		fmt.Fprintf(log, "lab: building the kernel of hosts in %s, once; 6 to 14 minutes\n", CacheDir())
	}
	if err := buildKernel(ctx, kernel); err != nil {
		return "", fmt.Errorf("build kernel %s: %w", kernel, err)
	}
	return kernel, nil
}

// givenKernel is a kernel that somebody made already, or "".
func givenKernel() string {
	if file := os.Getenv("CAIRN_LAB_KERNEL"); file != "" {
		return file
	}
	dir, err := os.Getwd()
	for err == nil && dir != "/" && !exists(filepath.Join(dir, "go.mod")) {
		dir = filepath.Dir(dir)
	}
	if file := filepath.Join(dir, "../shared/lab/linux-uml.xz"); exists(file) {
		return file
	}
	return ""
}

// unpackKernel returns a program: file itself, or what its contents unpack to in the cache.
func unpackKernel(ctx context.Context, file string) (string, error) {
	if filepath.Ext(file) != ".xz" {
		return filepath.Abs(file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read kernel: %w", err)
	}
	key := sha256.Sum256(b)
	kernel := filepath.Join(CacheDir(), fmt.Sprintf("linux-%x", key[:6]))
	if exists(kernel) {
		return kernel, nil
	}
	return kernel, replace(kernel, 0o755, func(tmp *os.File) error {
		cmd := exec.CommandContext(ctx, "xz", "-dc")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(b), tmp
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("unpack kernel %s (apt-get install xz-utils, if xz is missing): %w", file, err)
		}
		return nil
	})
}

// replace makes a file whole or not at all.
func replace(path string, mode os.FileMode, fill func(*os.File) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = fill(tmp)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// buildKernel builds from the newest source package of kernelSuite, which apt's archive key vouches for.
func buildKernel(ctx context.Context, kernel string) error {
	dir, err := os.MkdirTemp(CacheDir(), ".kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	deb, err := fetchSource(ctx, dir)
	if err != nil {
		return fmt.Errorf("fetch source: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel.config"), []byte(kernelConfig), 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", compileKernel, "sh", deb)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile: %v: %s", err, out[max(0, len(out)-2000):])
	}
	return os.Rename(filepath.Join(dir, "linux"), kernel)
}

// compileKernel makes the file linux from the source package $1. Leaving out what is not compiled halves the unpacking.
const compileKernel = `set -eu; export LC_ALL=C
dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards -f - './usr/src/linux-source-*.tar.xz' | xz -dc | tar -x --exclude='*/Documentation/*' --exclude='*/tools/testing/*' -f -
rm "$1"; cd linux-source-*; mkdir -p Documentation; : > Documentation/Kconfig
make -s ARCH=um defconfig
./scripts/kconfig/merge_config.sh -m .config ../kernel.config
make -s ARCH=um olddefconfig
make -s ARCH=um -j"$(nproc)" linux
strip -o ../linux linux`
