package build

import (
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"cairn/daemon/sandbox"
)

// DefaultSandboxPaths gives builders a /bin/sh when the host has one: a static busybox, which needs
// nothing else of the host, or the host's own /bin/sh with its libraries.
// Derivations in the wild expect that file and no other; where there is none, only they fail.
func DefaultSandboxPaths() map[string]string {
	for _, shell := range []string{"/usr/bin/busybox", "/bin/busybox", "/usr/lib/klibc/bin/sh", "/bin/sh"} {
		f, err := elf.Open(shell)
		if err != nil {
			continue
		}
		static := interpreter(f) == ""
		f.Close()
		if static || shell == "/bin/sh" {
			return map[string]string{"/bin/sh": shell}
		}
	}
	return map[string]string{}
}

// hostPaths are the sandbox paths with what they need, found once.
type hostPaths struct {
	want  map[string]string
	once  sync.Once
	found []sandbox.Mount
	err   error
}

func (h *hostPaths) mounts() ([]sandbox.Mount, error) {
	h.once.Do(func() {
		seen := map[string]string{}
		for _, target := range slices.Sorted(maps.Keys(h.want)) {
			if err := addHostPath(seen, target, h.want[target]); err != nil {
				h.err = fmt.Errorf("sandbox path %s=%s: %w", target, h.want[target], err)
				return
			}
		}
		for _, target := range slices.Sorted(maps.Keys(seen)) {
			h.found = append(h.found, sandbox.Mount{Source: seen[target], Target: target})
		}
	})
	return h.found, h.err
}

func addHostPath(seen map[string]string, target, source string) error {
	if _, ok := seen[target]; ok {
		return nil
	}
	if !filepath.IsAbs(target) || filepath.Clean(target) != target {
		return errors.New("target is not an absolute clean path")
	}
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return err
	}
	seen[target] = real
	f, err := elf.Open(real)
	if err != nil {
		return nil // a directory, a script: no libraries
	}
	defer f.Close()
	return addLibraries(seen, f)
}

func addLibraries(seen map[string]string, f *elf.File) error {
	interp := interpreter(f)
	if interp != "" {
		if err := addHostPath(seen, interp, interp); err != nil {
			return err
		}
	}
	needed, err := f.DynString(elf.DT_NEEDED)
	if err != nil {
		return nil
	}
	for _, lib := range needed {
		path, err := findLibrary(f, lib)
		if err != nil {
			return err
		}
		if err := addHostPath(seen, path, path); err != nil {
			return err
		}
	}
	return nil
}

// findLibrary looks where the loader would.
func findLibrary(f *elf.File, lib string) (string, error) {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, _ := f.DynString(tag)
		for _, p := range paths {
			dirs = append(dirs, strings.Split(p, ":")...)
		}
	}
	triplet := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu", elf.EM_386: "i386-linux-gnu"}[f.Machine]
	dirs = append(dirs, "/lib/"+triplet, "/usr/lib/"+triplet, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	for _, d := range dirs {
		if !filepath.IsAbs(d) {
			continue
		}
		path := filepath.Join(d, lib)
		if g, err := elf.Open(path); err == nil {
			same := g.Machine == f.Machine
			g.Close()
			if same {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("library %s: %w", lib, os.ErrNotExist)
}

func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err == nil {
			return strings.TrimRight(string(b), "\x00")
		}
	}
	return ""
}
