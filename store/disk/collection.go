package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// Set is a set of object numbers.
type Set []uint64

// NewSet returns an empty set of numbers below n.
func NewSet(n int) Set { return make(Set, (n+63)/64) }

// Has reports whether id is in the set.
func (t Set) Has(id uint32) bool { return int(id/64) < len(t) && t[id/64]&(1<<(id%64)) != 0 }

// Add adds id, and reports whether it is new.
func (t Set) Add(id uint32) bool {
	if t.Has(id) {
		return false
	}
	t[id/64] |= 1 << (id % 64)
	return true
}

// Snapshot is the reference graph at a moment. Objects have numbers; those that were deleted since
// keep theirs.
type Snapshot struct {
	s     *Store
	nodes []*node
}

// Snapshot returns the graph as it is now. It copies a pointer for each object.
func (s *Store) Snapshot() *Snapshot {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	return s.snapshot()
}

func (s *Store) snapshot() *Snapshot {
	return &Snapshot{s: s, nodes: append([]*node(nil), s.graph.nodes...)}
}

// Len returns the number above all objects.
func (t *Snapshot) Len() int { return len(t.nodes) }

// Has reports whether a number is that of an object.
func (t *Snapshot) Has(id uint32) bool { return int(id) < len(t.nodes) && t.nodes[id] != nil }

// Path returns the path of an object.
func (t *Snapshot) Path(id uint32) store.Path { return t.s.path(t.nodes[id]) }

// Size returns the size of an object's archive.
func (t *Snapshot) Size(id uint32) int64 { return t.nodes[id].narSize }

// References returns what an object refers to, except itself. The slice must not be changed.
func (t *Snapshot) References(id uint32) []uint32 {
	if !t.Has(id) {
		return nil
	}
	return t.nodes[id].refs
}

// Find returns the number of a path.
func (t *Snapshot) Find(p store.Path) (uint32, bool) {
	d, ok := meta.ParseDigest(p.Digest())
	if !ok {
		return 0, false
	}
	id, ok := t.find(d)
	return id, ok && t.nodes[id].name == p.Name()
}

func (t *Snapshot) find(d meta.Digest) (uint32, bool) {
	t.s.graph.mu.RLock()
	defer t.s.graph.mu.RUnlock()
	n := t.s.graph.row(d)
	if n == nil || int(n.id) >= len(t.nodes) || t.nodes[n.id] != n {
		return 0, false
	}
	return n.id, true
}

// keptAtOnce is for how many objects Kept waits for memory together.
const keptAtOnce = 64

// Kept appends to ids what objects refer to, without themselves, and with derivers the valid derivations that made them.
func (t *Snapshot) Kept(objects []uint32, derivers bool, ids []uint32) []uint32 {
	var some [keptAtOnce]*node
	var made [keptAtOnce]meta.Digest
	for group := range slices.Chunk(objects, keptAtOnce) {
		nodes := some[:0]
		for _, id := range group {
			if t.Has(id) {
				nodes = append(nodes, t.nodes[id])
			}
		}
		ds := made[:0]
		for _, n := range nodes {
			ids = append(ids, n.refs...)
			if derivers && n.deriver != (meta.Digest{}) {
				ds = append(ds, n.deriver)
			}
		}
		ids = t.findEach(ds, some[:len(ds)], ids)
	}
	return ids
}

// findEach appends the numbers of the digests that have one. It uses found.
func (t *Snapshot) findEach(ds []meta.Digest, found []*node, ids []uint32) []uint32 {
	if len(ds) == 0 {
		return ids
	}
	t.s.graph.mu.RLock()
	defer t.s.graph.mu.RUnlock()
	t.s.graph.digests.findEach(t.s.graph.nodes, ds, found)
	for _, n := range found {
		if n != nil && int(n.id) < len(t.nodes) && t.nodes[n.id] == n {
			ids = append(ids, n.id)
		}
	}
	return ids
}

// Outputs returns the numbers of the valid outputs of a derivation.
func (t *Snapshot) Outputs(id uint32) ([]uint32, error) {
	if !t.Has(id) || !t.nodes[id].isDrv {
		return nil, nil
	}
	rows, err := t.s.db.Outputs(t.nodes[id].digest)
	if err != nil {
		return nil, err
	}
	var ids []uint32
	for _, r := range rows {
		if out, ok := t.Find(r.Path); ok {
			ids = append(ids, out)
		}
	}
	return ids, nil
}

// Collection is a garbage collection: a snapshot, and the promise that whatever is added or held
// from its beginning on is not deleted by it, closure included.
//
//	marking ──Seal──▶ sweeping ──End──▶ over
//
// While marking, objects that are added or held are put on a list, whose closures Seal has
// marked. While sweeping, what becomes held is kept with all of its closure that is not marked.
// So additions never wait for more than that. Objects newer than the snapshot are never deleted, and
// what they refer to is on the list.
type Collection struct {
	*Snapshot
	g        *graph
	derivers bool

	// Guarded by graph.mu:
	grey     []*node
	sweeping bool
	live     Set
}

// Collect begins a collection; others wait until it ends. With keepDerivations, what is kept
// keeps the derivation that made it.
func (s *Store) Collect(ctx context.Context, keepDerivations bool) (*Collection, error) {
	s.liveLeases() // ends those that have expired
	if err := s.beginDeletion(ctx); err != nil {
		return nil, err
	}
	g := s.graph
	g.mu.Lock()
	defer g.mu.Unlock()
	c := &Collection{Snapshot: s.snapshot(), g: g, derivers: keepDerivations}
	g.epoch++
	g.collection = c
	for d := range g.held {
		if n := g.row(d); n != nil {
			c.keep(n)
		}
	}
	return c, nil
}

// keep saves a node. The caller holds graph.mu.
func (c *Collection) keep(n *node) {
	if !c.sweeping {
		if n.kept != c.g.epoch {
			n.kept = c.g.epoch
			c.grey = append(c.grey, n)
		}
		return
	}
	stack := []*node{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if n == nil || n.gone || !c.dead(n) {
			continue
		}
		n.kept = c.g.epoch
		for _, r := range n.refs {
			stack = append(stack, c.g.nodes[r])
		}
		if c.derivers && n.deriver != (meta.Digest{}) {
			stack = append(stack, c.g.row(n.deriver))
		}
	}
}

// dead reports whether a node may be deleted. The caller holds graph.mu.
func (c *Collection) dead(n *node) bool { return n.kept != c.g.epoch && !c.live.Has(n.id) }

// Seal ends the marking: live is what the caller has marked, and mark must add the closure of further
// objects to it.
func (c *Collection) Seal(live Set, mark func(live Set, from []uint32) error) error {
	for {
		c.g.mu.Lock()
		grey := c.grey
		c.grey = nil
		if len(grey) == 0 {
			c.live, c.sweeping = live, true
			c.g.mu.Unlock()
			return nil
		}
		from := make([]uint32, 0, len(grey))
		for _, n := range grey {
			from = append(from, n.id)
		}
		c.g.mu.Unlock()
		if err := mark(live, from); err != nil {
			return err
		}
	}
}

// End ends the collection.
func (c *Collection) End() {
	c.g.mu.Lock()
	c.g.collection = nil
	c.g.mu.Unlock()
	c.g.recycle()
	<-c.s.deletions
}

// beginDeletion waits until no other deletion runs, and nothing is held for its links. Receiving from deletions ends it.
func (s *Store) beginDeletion(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := s.settleLinks(ctx); err != nil {
		return err
	}
	select {
	case s.deletions <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Deleted is an object that is gone.
type Deleted struct {
	Path  store.Path
	Freed int64 // bytes on disk
}

// Delete deletes a batch of objects, unless they are no longer dead. The batches of a collection must
// come in an order in which no object comes before those that refer to it.
// When it returns an error, some may be gone.
func (c *Collection) Delete(ids []uint32) ([]Deleted, error) {
	var all []Deleted
	for len(ids) > 0 {
		n := min(len(ids), c.s.atOnce())
		deleted, err := c.deleteSome(ids[:n])
		all = append(all, deleted...)
		if err != nil {
			return all, err
		}
		ids = ids[n:]
	}
	return all, nil
}

func (c *Collection) deleteSome(ids []uint32) ([]Deleted, error) {
	nodes := make([]*node, 0, len(ids))
	for _, id := range ids {
		if c.Has(id) {
			nodes = append(nodes, c.nodes[id])
		}
	}
	return c.s.delete(nodes, func(nodes []*node) []*node {
		var dead []*node
		for _, n := range nodes {
			if !n.gone && c.dead(n) {
				dead = append(dead, n)
			}
		}
		return dead
	})
}

// A deletion that has the store for itself takes many objects at once, in one transaction, and several processors. While there are additions, which
// wait for its transactions and share its processors, it takes few and one.
const (
	manyAtOnce = 1000
	fewAtOnce  = 200
	quietFor   = 50 * time.Millisecond // without an addition: the store is a deletion's own
)

// adding reports whether there are additions now.
func (s *Store) adding() bool { return time.Since(s.begun) < time.Duration(s.added.Load())+quietFor }

// atOnce is how many objects are deleted together.
func (s *Store) atOnce() int {
	if s.adding() {
		return fewAtOnce
	}
	return manyAtOnce
}

// deleters is how many goroutines unlink files.
func (s *Store) deleters() int {
	if s.adding() {
		return 1
	}
	return min(runtime.GOMAXPROCS(0)*2, 8)
}

// Delete deletes the given valid paths whatever roots there are. It refuses, with ErrAlive, paths that
// are held, being added again, or referred to by paths that are not given.
func (s *Store) Delete(ctx context.Context, paths []store.Path) ([]Deleted, error) {
	s.liveLeases()
	if err := s.beginDeletion(ctx); err != nil {
		return nil, err
	}
	defer func() { s.graph.recycle(); <-s.deletions }()
	order, err := s.TopoSort(paths)
	if err != nil {
		return nil, err
	}
	var nodes []*node
	for i := len(order) - 1; i >= 0; i-- {
		if n := s.graph.lookup(meta.DigestOf(order[i])); n != nil {
			nodes = append(nodes, n)
		}
	}
	var refused error
	deleted, err := s.delete(nodes, func(free []*node) []*node {
		if refused = s.refuse(nodes, free); refused != nil {
			return nil
		}
		return free
	})
	return deleted, errors.Join(refused, err)
}

// refuse returns why nodes cannot be deleted. The caller holds graph.mu.
func (s *Store) refuse(nodes, free []*node) error {
	mine := map[uint32]bool{}
	for _, n := range free {
		mine[n.id] = true
	}
	for _, n := range nodes {
		if !mine[n.id] || s.graph.held[n.digest] > 0 {
			return fmt.Errorf("delete %s: %w by work in progress", s.path(n), ErrAlive)
		}
		for _, r := range s.graph.referrers(n) {
			if !mine[r] {
				return fmt.Errorf("delete %s: %w by %s", s.path(n), ErrAlive, s.path(s.graph.nodes[r]))
			}
		}
	}
	return nil
}

// delete takes nodes, referrers first, from the graph, then from the database, then from the disk.
// Choose has the last word, under graph.mu; nodes that somebody is adding again are not offered.
func (s *Store) delete(nodes []*node, choose func([]*node) []*node) ([]Deleted, error) {
	var locked []*node
	for _, n := range nodes {
		if s.locks.try(n.digest) {
			locked = append(locked, n)
		}
	}
	defer func() {
		for _, n := range locked {
			s.locks.unlock([]meta.Digest{n.digest})
		}
	}()
	s.graph.mu.Lock()
	if c := s.graph.collection; c != nil {
		s.keepBusy(c, nodes, locked)
	}
	chosen := choose(locked)
	s.graph.remove(chosen)
	s.graph.mu.Unlock()
	if len(chosen) == 0 {
		return nil, nil
	}
	failpoint.Hit("disk/delete/chosen")
	if left, err := s.deleteRows(chosen); err != nil {
		s.graph.mu.Lock()
		s.graph.restore(left)
		s.graph.mu.Unlock()
		s.clean.Store(nil) // the others are strays
		return nil, err
	}
	failpoint.Hit("disk/delete/rows")
	return s.deleteTrees(chosen)
}

// keepBusy keeps what somebody is adding again right now. The caller holds graph.mu.
func (s *Store) keepBusy(c *Collection, nodes, locked []*node) {
	if len(nodes) == len(locked) {
		return
	}
	mine := map[*node]bool{}
	for _, n := range locked {
		mine[n] = true
	}
	for _, n := range nodes {
		if !mine[n] {
			c.keep(n)
		}
	}
}

// deleteRows deletes rows in as many transactions as they need. It returns the nodes that still have theirs
// when it fails.
func (s *Store) deleteRows(nodes []*node) ([]*node, error) {
	var batch meta.Batch
	f := s.db.Forget()
	defer f.Close()
	start := 0
	for i, n := range nodes {
		var b meta.Batch
		if err := f.Object(&b, n.digest, n.isDrv, n.isOut); err != nil {
			return nodes[start:], fmt.Errorf("delete %s: %w", s.path(n), err)
		}
		if batch.Size()+b.Size() > s.db.MaxBatch() {
			if err := s.db.Commit(&batch); err != nil {
				return nodes[start:], fmt.Errorf("delete rows: %w", err)
			}
			batch, start = meta.Batch{}, i
		}
		batch.Append(&b)
	}
	if err := s.db.Commit(&batch); err != nil {
		return nodes[start:], fmt.Errorf("delete rows: %w", err)
	}
	return nil, nil
}

// deleteTrees removes objects without rows from the disk, several at a time.
func (s *Store) deleteTrees(nodes []*node) ([]Deleted, error) {
	deleted := make([]Deleted, len(nodes))
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	workers := s.deleters()
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(nodes); i += workers {
				p := s.path(nodes[i])
				freed, err := s.deleteTree(p)
				failpoint.Hit("disk/delete/removed")
				deleted[i], errs[i] = Deleted{p, freed}, err
			}
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err != nil {
		s.clean.Store(nil) // what stayed is a stray
	}
	return deleted, err
}

// deleteTree unlinks a file at once, and moves a directory out of the way first, so that nobody sees
// half of it.
func (s *Store) deleteTree(p store.Path) (int64, error) {
	at, path := int(s.dir.Fd()), s.RealPath(p)
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(at, p.Base(), &st, unix.AT_SYMLINK_NOFOLLOW) })
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		freed, err := unlinkAt(at, p.Base(), &st)
		if st.Nlink > 1 {
			s.pool.events.Add(1)
		}
		if err != nil {
			return 0, &os.PathError{Op: "unlink", Path: path, Err: err}
		}
		return freed, nil
	}
	trashed, err := s.toTrash(path)
	switch {
	case err == nil:
		path = trashed
	case !errors.Is(noSpace(err), ErrNoSpace): // for a trash; what has no row may as well go piece by piece
		return 0, err
	}
	failpoint.Hit("disk/delete/trashed")
	defer s.pool.events.Add(1)
	return removeTree(path)
}
