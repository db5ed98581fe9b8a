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
	"cairn/store"
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

	mu    sync.Mutex       // guards the rest
	known map[string]needs // of settings' paths, by target and real source
}

// needs are a program and its libraries.
type needs struct {
	program os.FileInfo
	mounts  map[string]string // target → source
}

// maxKnown bounds how many programs are remembered.
const maxKnown = 1000

// add adds a path as addHostPath does, which it remembers while the program is the same file and its libraries are there.
func (h *hostPaths) add(seen map[string]string, target, source string) error {
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return err
	}
	fi, err := os.Stat(real)
	if err != nil {
		return err
	}
	key := target + "=" + real
	h.mu.Lock()
	n, ok := h.known[key]
	h.mu.Unlock()
	if !ok || !n.holds(fi) {
		n = needs{fi, map[string]string{}}
		if err := addHostPath(n.mounts, target, real); err != nil {
			return err
		}
		h.remember(key, n)
	}
	for target, source := range n.mounts {
		if _, ok := seen[target]; !ok {
			seen[target] = source
		}
	}
	return nil
}

func (n *needs) holds(fi os.FileInfo) bool {
	if !os.SameFile(n.program, fi) || !n.program.ModTime().Equal(fi.ModTime()) || n.program.Size() != fi.Size() {
		return false
	}
	for _, source := range n.mounts {
		if _, err := os.Lstat(source); err != nil {
			return false
		}
	}
	return true
}

func (h *hostPaths) remember(key string, n needs) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil || len(h.known) >= maxKnown {
		h.known = map[string]needs{}
	}
	h.known[key] = n
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

// hostMounts are what the setting sandbox-paths shows to builders, and then what of the usual paths lies elsewhere:
//
//	target              the same outside
//	target=source
//	…?                  unless it is missing
//
// A source in the store brings its closure, which is held as long as the build runs.
func (a *attempt) hostMounts() ([]sandbox.Mount, error) {
	seen := map[string]string{}
	var roots []store.Path
	for _, word := range a.b.settings.SandboxPaths {
		p, err := a.addSettingPath(seen, word)
		if err != nil {
			return nil, fmt.Errorf("sandbox path %s: %w", word, err)
		}
		if !p.IsZero() {
			roots = append(roots, p)
		}
	}
	if err := a.addClosure(seen, roots); err != nil {
		return nil, fmt.Errorf("sandbox paths: %w", err)
	}
	usual, err := a.b.shell.mounts()
	if err != nil {
		return nil, err
	}
	for _, m := range usual {
		if !covered(seen, m.Target) {
			seen[m.Target] = m.Source
		}
	}
	list := make([]sandbox.Mount, 0, len(seen))
	for _, target := range slices.Sorted(maps.Keys(seen)) {
		list = append(list, sandbox.Mount{Source: seen[target], Target: target})
	}
	return list, nil
}

// covered reports whether a target or a directory above it is there.
func covered(seen map[string]string, target string) bool {
	for ; target != "/"; target = filepath.Dir(target) {
		if _, ok := seen[target]; ok {
			return true
		}
	}
	return false
}

// addSettingPath adds what one word of sandbox-paths says, and returns the object that its source lies in, if any.
func (a *attempt) addSettingPath(seen map[string]string, word string) (store.Path, error) {
	text, optional := strings.CutSuffix(word, "?")
	target, source, ok := strings.Cut(text, "=")
	if !ok {
		source = target
	}
	if !filepath.IsAbs(target) || filepath.Clean(target) != target || target == "/" {
		return store.Path{}, errors.New("target is not an absolute clean path")
	}
	p, rest, err := a.b.store.Dir().Within(source)
	if err != nil {
		err := a.b.shell.add(seen, target, source)
		if optional && errors.Is(err, os.ErrNotExist) {
			return store.Path{}, nil
		}
		return store.Path{}, err
	}
	if !a.b.store.IsValid(p) {
		if optional {
			return store.Path{}, nil
		}
		return store.Path{}, fmt.Errorf("%s: %w", p, store.ErrNotValid)
	}
	if target != p.String() {
		seen[target] = filepath.Join(a.b.store.RealPath(p), rest)
	}
	return p, nil
}

// addClosure adds objects and all that they refer to, but what the builder sees anyway.
func (a *attempt) addClosure(seen map[string]string, roots []store.Path) error {
	if len(roots) == 0 {
		return nil
	}
	if err := a.lease.Hold(roots...); err != nil {
		return err
	}
	closure, err := a.b.store.Closure(roots...)
	if err != nil {
		return err
	}
	if err := a.b.sound(roots); err != nil {
		return err
	}
	for _, p := range closure {
		if !slices.Contains(a.inputs, p) {
			seen[p.String()] = a.b.store.RealPath(p)
		}
	}
	return nil
}
