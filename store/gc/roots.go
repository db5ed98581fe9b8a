package gc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/disk"
)

// Kind says what sort of root keeps an object.
type Kind string

// The kinds.
const (
	KindLink      Kind = "link"
	KindNamed     Kind = "named"
	KindProfile   Kind = "profile"
	KindTemporary Kind = "temporary"
	KindLease     Kind = "lease"
	KindProcess   Kind = "process"
)

// Root is something that keeps an object.
type Root struct {
	Kind   Kind       `json:"kind"`
	Link   string     `json:"link"` // path of the link, owner of the lease, place in /proc
	Target store.Path `json:"target"`
	UID    int        `json:"uid,omitempty"`  // the owner of a named root
	Name   string     `json:"name,omitempty"` // of a named root
	Until  time.Time  `json:"until,omitzero"` // when a named root or a lease expires; zero: never, or with the process
}

func (r Root) String() string { return string(r.Kind) + " " + r.Link }

// maxHops is how many links are followed from a root to the store.
const maxHops = 16

// systemLinks name the system that runs and the one that the machine booted with: their generations may be
// deleted while their programs and files are in use.
var systemLinks = []string{"/run/current-system", "/run/booted-system"}

// Roots returns the roots there are, also those whose target is not valid.
func Roots(ctx context.Context, s *disk.Store) ([]Root, error) {
	roots, err := findRoots(ctx, s, true)
	if err != nil {
		return nil, fmt.Errorf("find roots: %w", err)
	}
	return roots, nil
}

func findRoots(ctx context.Context, s *disk.Store, processes bool) ([]Root, error) {
	f := &finder{ctx: ctx, s: s, layout: s.Layout(), now: time.Now()}
	if err := f.tree(KindLink, filepath.Join(f.layout.StateDir, "gcroots")); err != nil {
		return nil, err
	}
	if err := f.tree(KindProfile, filepath.Join(f.layout.StateDir, "profiles")); err != nil {
		return nil, err
	}
	for _, link := range systemLinks {
		if err := f.link(KindLink, filepath.Join("/", f.layout.Root, link)); err != nil {
			return nil, err
		}
	}
	if err := f.temporary(); err != nil {
		return nil, err
	}
	for _, l := range s.Leases() {
		for _, p := range l.Paths {
			f.roots = append(f.roots, Root{Kind: KindLease, Link: l.Owner, Target: p, Until: l.Expires})
		}
	}
	if processes {
		if err := f.processes(); err != nil {
			return nil, err
		}
	}
	return f.roots, nil
}

type finder struct {
	ctx    context.Context
	s      *disk.Store
	layout disk.Layout
	now    time.Time
	roots  []Root
}

func (f *finder) add(kind Kind, link string, p store.Path) {
	f.roots = append(f.roots, Root{Kind: kind, Link: link, Target: p})
}

// tree looks for roots in a directory and those below it.
func (f *finder) tree(kind Kind, dir string) error {
	if err := context.Cause(f.ctx); err != nil {
		return err
	}
	entries, err := readDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch e.Type() {
		case fs.ModeDir:
			err = f.tree(kind, name)
		case fs.ModeSymlink:
			if r, ok := f.layout.ParseNamedRoot(name); ok {
				err = f.named(r)
			} else {
				err = f.link(kind, name)
			}
		case 0:
			if p, err := f.layout.Dir.Path(e.Name()); err == nil {
				f.add(kind, name, p)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func unreadable(err error) error {
	return fmt.Errorf("%w; it may be a root: make it readable or remove it", err)
}

// link follows a link until it points into the store. The root's name is the last link: for an indirect
// root, that of its user.
func (f *finder) link(kind Kind, link string) error {
	at := link
	for range maxHops {
		target, err := os.Readlink(at)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return f.stale(link)
		}
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) { // leads nowhere, for anybody
			return nil
		}
		if errors.Is(err, unix.EINVAL) { // a file or directory that is no link
			return nil
		}
		if err != nil {
			return unreadable(err)
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		if p, ok := f.object(target); ok {
			f.add(kind, at, p)
			return nil
		}
		at = target
	}
	return nil
}

// object returns the object that a path is at or below, by its logical or its real name.
func (f *finder) object(path string) (store.Path, bool) {
	path = filepath.Clean(path)
	if p, _, err := f.layout.Dir.Within(path); err == nil {
		return p, true
	}
	if rest, ok := cutDir(path, f.layout.RealDir); ok {
		if p, _, err := f.layout.Dir.Within(string(f.layout.Dir) + "/" + rest); err == nil {
			return p, true
		}
	}
	return store.Path{}, false
}

func cutDir(path, dir string) (string, bool) {
	if len(path) > len(dir) && path[:len(dir)] == dir && path[len(dir)] == '/' {
		return path[len(dir)+1:], true
	}
	return "", false
}

// named adds a named root unless it has expired. It is a link of ours, and leads to its object at once; if somebody else
// made it, it is one like others.
func (f *finder) named(r disk.NamedRoot) error {
	if r.Expired(f.now) {
		return nil
	}
	target, err := os.Readlink(r.Link)
	if err == nil {
		if p, ok := f.object(target); ok {
			f.roots = append(f.roots, Root{Kind: KindNamed, Link: r.Link, Target: p, UID: r.UID, Name: r.Name, Until: r.Expires})
			return nil
		}
	}
	return f.link(KindLink, r.Link)
}

// stale removes an automatic root whose target is gone, if that can be: it keeps nothing. Others may be meant to come back.
func (f *finder) stale(link string) error {
	auto := filepath.Join(f.layout.StateDir, "gcroots", "auto")
	if filepath.Dir(link) != auto {
		return nil
	}
	err := os.Remove(link)
	for _, fine := range []error{fs.ErrNotExist, fs.ErrPermission, unix.EROFS} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	return err
}

// readDir lists a directory, which need not be there.
func readDir(dir string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, unreadable(err)
	}
	return entries, nil
}

// temporary reads the files in which clients list what they are using, and removes those of dead ones.
func (f *finder) temporary() error {
	dir := filepath.Join(f.layout.StateDir, "temproots")
	entries, err := readDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		if !f.inUse(name, pid) {
			os.Remove(name)
			continue
		}
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return unreadable(err)
		}
		for text := range bytes.SplitSeq(data, []byte{0}) {
			if p, ok := f.object(string(text)); ok {
				f.add(KindTemporary, name, p)
			}
		}
	}
	return nil
}

// inUse reports whether a client lives, or somebody holds a lock on its file.
func (f *finder) inUse(name string, pid int) bool {
	if err := unix.Kill(pid, 0); err == nil || errors.Is(err, unix.EPERM) {
		return true
	}
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}
