package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/daemon/settings"
	"cairn/store"
)

// socketName is where a builder that requires "recursive-nix" finds its daemon, in its directory.
const socketName = ".nix-socket"

// ServeFunc serves clients within a build until ctx ends, and returns when none is served any more.
type ServeFunc func(ctx context.Context, l net.Listener, r *Restriction)

// ServeInside says who serves the builders that require "recursive-nix". It is called before anything is built.
func (b *Builder) ServeInside(f ServeFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inside = f
}

// Restriction is what a client within a build may see: the closure of the build's inputs, and what it has added or built itself.
// What is added is an input of the build from then on: it is held, the builder sees it, and its outputs may refer to it.
type Restriction struct {
	a    *attempt
	base map[store.Path]bool // never changed

	adding sync.Mutex // held while something is being added
	mu     sync.Mutex // guards the rest
	added  map[store.Path]bool
	box    *sandbox.Box
}

// Drv returns the derivation whose build this is.
func (r *Restriction) Drv() store.Path { return r.a.key.drv }

// UID returns the host's id of the builder.
func (r *Restriction) UID() int { return int(r.a.uid) }

// Settings returns those of the build.
func (r *Restriction) Settings() *settings.Settings { return r.a.b.settings }

// Allows reports whether the build may know of an object.
func (r *Restriction) Allows(p store.Path) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.base[p] || r.added[p]
}

// Paths returns all that the build may know of, sorted.
func (r *Restriction) Paths() []store.Path {
	r.mu.Lock()
	defer r.mu.Unlock()
	return store.SortPaths(slices.Concat(slices.Collect(maps.Keys(r.base)), slices.Collect(maps.Keys(r.added))))
}

// Add makes valid objects and their closures inputs of the build.
func (r *Restriction) Add(paths ...store.Path) error {
	r.adding.Lock()
	defer r.adding.Unlock()
	if err := r.a.lease.Hold(paths...); err != nil {
		return err
	}
	closure, err := r.a.b.store.Closure(paths...)
	if err != nil {
		return err
	}
	if err := r.a.b.sound(paths); err != nil {
		return err
	}
	for _, p := range closure {
		if r.Allows(p) {
			continue
		}
		if err := r.show(p); err != nil {
			return fmt.Errorf("show %s to the build of '%s': %w", p, r.a.key.drv, err)
		}
		r.mu.Lock()
		r.added[p] = true
		r.mu.Unlock()
	}
	return nil
}

// Context returns ctx for requests of the build's clients. They cannot wait for what waits for the build.
func (r *Restriction) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, insideKey{}, r.a.job)
}

type insideKey struct{}

// Lend gives the build's place to what the builder asks for until the function that it returns has been called, which waits for
// another place.
func (r *Restriction) Lend(ctx context.Context) (back func() error) {
	r.a.seat.lend()
	return func() error { return r.a.seat.back(ctx) }
}

// show lets the running builder see an object: mounted or, by a daemon without the power to mount, copied.
func (r *Restriction) show(p store.Path) error {
	root, err := os.OpenRoot(r.a.dir("store"))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.RemoveAll(p.Base()); err != nil {
		return err
	}
	real := r.a.b.store.RealPath(p)
	fi, err := os.Lstat(real)
	if err != nil {
		return err
	}
	switch {
	case fi.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(real)
		if err != nil {
			return err
		}
		return root.Symlink(target, p.Base())
	case os.Geteuid() != 0:
		return r.copy(p)
	case fi.IsDir():
		err = root.Mkdir(p.Base(), 0o755)
	default:
		err = root.WriteFile(p.Base(), nil, 0o444)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	box := r.box
	r.mu.Unlock()
	err = box.Mount(sandbox.Mount{Source: real, Target: p.String()})
	if errors.Is(err, errors.ErrUnsupported) {
		if err := root.RemoveAll(p.Base()); err != nil {
			return err
		}
		return r.copy(p)
	}
	return err
}

// copy gives the builder a copy of its own, which it could change: that is its own damage.
func (r *Restriction) copy(p store.Path) error {
	return copyTree(r.a.b.store.RealPath(p), filepath.Join(r.a.dir("store"), p.Base()))
}

// open is called when the builder's sandbox is there.
func (r *Restriction) open(box *sandbox.Box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.box = box
}

// runRecursive runs a builder with a daemon of its own. What it added is among the inputs afterwards.
func (a *attempt) runRecursive(ctx context.Context, spec *sandbox.Spec) (sandbox.Status, error) {
	a.b.mu.Lock()
	serve := a.b.inside
	a.b.mu.Unlock()
	if serve == nil {
		return sandbox.Status{}, failure(protocol.InputRejected, "'%s' requires the feature 'recursive-nix', but there is no daemon here to serve its builder", a.key.drv)
	}
	l, err := a.listenInside()
	if err != nil {
		return sandbox.Status{}, fmt.Errorf("listen for the builder: %w", err)
	}
	r := &Restriction{a: a, base: map[store.Path]bool{}, added: map[store.Path]bool{}}
	for _, p := range a.inputs {
		r.base[p] = true
	}
	serving, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { serve(serving, l, r) })
	st, err := a.b.boxes.RunOpen(ctx, spec, a.log, r.open)
	stop()
	l.Close()
	wg.Wait()
	a.inputs = append(a.inputs, store.SortPaths(slices.Collect(maps.Keys(r.added)))...)
	return st, err
}

// listenInside makes the socket in the builder's directory, whose real name may be too long for one.
func (a *attempt) listenInside() (net.Listener, error) {
	dir, err := unix.Open(a.dir("build"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir, socketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name means something else then
	err = os.Chmod(name, 0o600)
	if err == nil && os.Geteuid() == 0 {
		err = os.Lchown(name, int(a.uid), int(a.uid))
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// awaitInside is await, for requests of ordinary clients and of builders.
func (b *Builder) awaitInside(ctx context.Context, jobs map[jobKey]*job) error {
	outer, ok := ctx.Value(insideKey{}).(*job)
	if !ok {
		return b.await(ctx, jobs)
	}
	b.mu.Lock()
	err := b.waitInside(outer, jobs)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	defer b.doneInside(outer, jobs)
	return b.await(ctx, jobs)
}

// leadsTo reports whether a job cannot end before another has. The caller holds mu.
func (c *core) leadsTo(from, to *job, seen map[*job]bool) bool {
	if from == to {
		return true
	}
	if from.ended || seen[from] {
		return false
	}
	seen[from] = true
	next := slices.Concat(from.deps, from.after, slices.Collect(maps.Keys(from.inner)))
	if from.child != nil {
		next = append(next, from.child)
	}
	return slices.ContainsFunc(next, func(n *job) bool { return c.leadsTo(n, to, seen) })
}

// waitInside notes that a build waits for jobs that its builder has asked for, unless one of them waits for it. The caller holds mu.
func (c *core) waitInside(outer *job, jobs map[jobKey]*job) error {
	for _, j := range jobs {
		if c.leadsTo(j, outer, map[*job]bool{}) {
			return fmt.Errorf("'%s' cannot be built within the build of '%s', which it waits for", j.key.drv, outer.key.drv)
		}
	}
	if outer.inner == nil {
		outer.inner = map[*job]int{}
	}
	for _, j := range jobs {
		outer.inner[j]++
	}
	return nil
}

// doneInside takes back what waitInside has noted.
func (c *core) doneInside(outer *job, jobs map[jobKey]*job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range jobs {
		if outer.inner[j]--; outer.inner[j] <= 0 {
			delete(outer.inner, j)
		}
	}
}
