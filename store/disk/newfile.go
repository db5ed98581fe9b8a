package disk

import (
	"context"
	"errors"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// A tree whose path follows from its contents has just been written by somebody, who waits for it, and most of its files are new to the pool.
// They come into it when the object is valid and its peer has been told: as long as they do not, others with the same file get one of their own,
// which becomes a link then. What a crash keeps from the pool Optimise finds. Whoever counts links, or deletes objects, waits until
// none are to be made (settleLinks), and so does the next such tree, which is often much the same.

const (
	maxNewFiles = 1 << 16 // of a tree; others come into the pool at once
	maxNewTrees = 4       // that wait; the links of others are made before their peer is told
)

// newFiles are the files of a tree that the pool did not have.
type newFiles struct {
	mu   sync.Mutex // guards list and at
	list []newFile
	at   map[[32]byte]string // where each is in the tree, by its key
}

// newFile is a file below an object.
type newFile struct {
	key  [32]byte
	path string
}

// add notes a file that is going to be made, and returns the path of an earlier one with the same key. It reports false
// when there are too many.
func (n *newFiles) add(f newFile) (twin string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	twin = n.at[f.key]
	if len(n.list) >= maxNewFiles {
		return twin, false
	}
	if n.at == nil {
		n.at = map[[32]byte]string{}
	}
	n.list = append(n.list, f)
	if twin == "" {
		n.at[f.key] = f.path
	}
	return twin, true
}

// instead has others with its key take a file instead of one that they cannot link to.
func (n *newFiles) instead(f newFile) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at[f.key] = f.path
}

// makeNew makes a small file that comes into the pool later, unless the pool or the tree has it.
func (t *tree) makeNew(to slot, at int, name string, h *nar.Header, data []byte) error {
	linked, err := t.pool.take(to, at, name, func(fd int) (bool, error) { return holds(fd, h.Executable, data) })
	if linked || err != nil {
		return err
	}
	f := newFile{to.key, h.Path}
	twin, ok := t.later.add(f)
	if twin != "" && unix.Linkat(int(t.s.dir.Fd()), filepath.Join(filepath.Base(t.temp), twin), at, name, 0) == nil {
		return nil // both become links of what others may give the pool meanwhile
	}
	if err := t.maker.Make(at, name, h.Executable, data); err != nil {
		return err
	}
	if twin != "" { // which has no room for links, or is not made yet
		t.later.instead(f)
	}
	if !ok {
		_, err = t.give(to, at, name)
	}
	return err
}

// linking is an object whose files are to become links, or somebody who waits until those before are.
type linking struct {
	path    store.Path
	files   *newFiles     // nil: Optimise finds them
	settled chan struct{} // closed when it is their turn
}

// linkNew has the new files of a valid tree come into the pool.
func (s *Store) linkNew(p store.Path, t *tree) {
	if t.later == nil || len(t.later.list) == 0 {
		return
	}
	l := linking{path: p, files: t.later}
	select {
	case s.linkings <- l:
	default:
		s.link(context.Background(), l)
	}
}

// settleLinks waits until the links of objects that are valid now are made.
func (s *Store) settleLinks(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case s.linkings <- linking{settled: done}:
	case <-s.stop:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.wait(ctx, done)
}

// untilStop returns a context that ends when the store is closed.
func (s *Store) untilStop() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	s.wg.Go(func() {
		<-s.stop
		cancel()
	})
	return ctx
}

// linkLoop is the goroutine that makes links of files that are there.
func (s *Store) linkLoop(ctx context.Context) {
	for {
		select {
		case l := <-s.linkings:
			s.link(ctx, l)
		case l := <-s.optimising:
			s.link(ctx, l)
		case <-s.stop:
			s.linkLast(ctx)
			return
		}
	}
}

// linkLast makes the links of new files that nobody has made yet.
func (s *Store) linkLast(ctx context.Context) {
	for {
		select {
		case l := <-s.linkings:
			s.link(ctx, l)
		default:
			return
		}
	}
}

// link makes the links of an object. Those that cannot be made are left to Optimise.
func (s *Store) link(ctx context.Context, l linking) {
	var err error
	switch {
	case l.settled != nil:
		close(l.settled)
	case l.files != nil:
		err = s.poolNew(l)
	default:
		_, err = s.Optimise(ctx, &OptimiseOptions{Paths: []store.Path{l.path}, Workers: 1})
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrNotValid) {
		s.log.Warn("a new object is not optimised", "path", l.path.String(), "error", err)
	}
}

// poolNew brings the new files of an object into the pool, and makes those that it has meanwhile links. It waits for nobody, so that
// nobody who has the object's lock waits for it in vain.
func (s *Store) poolNew(l linking) error {
	d := meta.DigestOf(l.path)
	s.graph.hold(d)
	defer s.graph.release(d)
	if !s.locks.try(d) {
		return nil
	}
	defer s.locks.unlock([]meta.Digest{d})
	if !s.graph.valid(l.path) {
		return nil
	}
	w := &linker{op: &optimisation{s: s}, real: s.RealPath(l.path)}
	for _, f := range l.files.list {
		if err := w.pool(f); err != nil {
			return errors.Join(err, w.close())
		}
	}
	return w.close()
}

// pool makes a file the pool's entry, or a link to that if there is one.
func (w *linker) pool(f newFile) error {
	s := w.op.s
	to, err := s.pool.slot(f.key)
	if err != nil {
		return err
	}
	given, err := s.pool.give(to, int(s.dir.Fd()), filepath.Join(filepath.Base(w.real), f.path))
	if given || err != nil {
		failpoint.Hit("disk/pool/entered")
		return err
	}
	c := candidate{path: f.path, key: store.NewHash(store.BLAKE3, f.key[:])}
	if err := unix.Lstat(filepath.Join(w.real, f.path), &c.st); err != nil {
		return err
	}
	return w.link(&c)
}
