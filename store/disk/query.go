package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/meta"
)

// Info returns what is known of a valid path.
func (s *Store) Info(ctx context.Context, p store.Path) (*store.Info, error) {
	if !s.graph.valid(p) {
		return nil, notValid(p)
	}
	return s.rowInfo(p)
}

// rowInfo returns what is known of a path that has a row.
func (s *Store) rowInfo(p store.Path) (*store.Info, error) {
	d := meta.DigestOf(p)
	o, err := s.db.Object(d)
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return nil, fmt.Errorf("info of %s: %w", p, err)
	}
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	n := s.graph.row(d)
	if err != nil || n == nil {
		return nil, notValid(p)
	}
	refs := s.around(n, n.refs)
	return &store.Info{
		Path:         p,
		NarHash:      store.NewHash(store.SHA256, o.NarHash[:]),
		NarSize:      o.NarSize,
		References:   refs,
		Deriver:      o.Deriver,
		RegisteredAt: o.RegisteredAt,
		Ultimate:     o.Ultimate,
		Signatures:   o.Signatures,
		CA:           o.CA,
	}, nil
}

func notValid(p store.Path) error { return fmt.Errorf("path %s: %w", p, store.ErrNotValid) }

// NAR writes the archive of a valid path, unless it is known to be damaged (Damage).
func (s *Store) NAR(ctx context.Context, p store.Path, w io.Writer) error {
	if p.IsZero() {
		return notValid(p)
	}
	d := meta.DigestOf(p)
	s.graph.hold(d)
	defer s.graph.release(d)
	if !s.graph.valid(p) {
		return notValid(p)
	}
	if err := s.Damage(p); err != nil {
		return err
	}
	return nar.DumpAt(contextWriter{ctx, w}, int(s.dir.Fd()), p.Base())
}

type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// IsValid reports whether p is valid.
func (s *Store) IsValid(p store.Path) bool { return s.graph.valid(p) }

// ValidPaths returns those of ps that are valid, in their order.
func (s *Store) ValidPaths(ps []store.Path) []store.Path {
	var valid []store.Path
	for _, p := range ps {
		if s.IsValid(p) {
			valid = append(valid, p)
		}
	}
	return valid
}

// All yields the paths that were valid when the iteration began.
func (s *Store) All() iter.Seq[store.Path] {
	return func(yield func(store.Path) bool) {
		for _, n := range s.Snapshot().nodes {
			if n != nil && !yield(s.path(n)) {
				return
			}
		}
	}
}

// Count returns the number of valid paths and of the references between them.
func (s *Store) Count() (paths, references int) {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	return s.graph.digests.count, s.graph.edges
}

// Size returns the bytes of the archives of paths that have a row, or of all.
func (s *Store) Size(paths []store.Path) (bytes int64) {
	if paths == nil {
		for _, n := range s.Snapshot().nodes {
			if n != nil {
				bytes += n.narSize
			}
		}
	}
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	for _, p := range paths {
		if n := s.graph.rowOf(p); n != nil {
			bytes += n.narSize
		}
	}
	return bytes
}

// node returns the node of a valid path. The caller holds graph.mu.
func (s *Store) node(p store.Path) (*node, error) {
	d, ok := meta.ParseDigest(p.Digest())
	if !ok {
		return nil, notValid(p)
	}
	n := s.graph.find(d)
	if n == nil || n.name != p.Name() {
		return nil, notValid(p)
	}
	return n, nil
}

// sorted returns the paths of nodes. The caller holds graph.mu.
func (s *Store) sorted(ids []uint32, more ...*node) []store.Path {
	ps := make([]store.Path, 0, len(ids)+len(more))
	for _, id := range ids {
		ps = append(ps, s.path(s.graph.nodes[id]))
	}
	for _, n := range more {
		ps = append(ps, s.path(n))
	}
	slices.SortFunc(ps, store.Path.Compare)
	return ps
}

// References returns what p refers to, sorted, itself included if so.
func (s *Store) References(p store.Path) ([]store.Path, error) {
	return s.neighbours(p, s.graph.refsOf)
}

// Referrers returns what refers to p, sorted, itself included if so.
func (s *Store) Referrers(p store.Path) ([]store.Path, error) {
	return s.neighbours(p, s.graph.referrers)
}

func (s *Store) neighbours(p store.Path, steps func(*node) []uint32) ([]store.Path, error) {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	n, err := s.node(p)
	if err != nil {
		return nil, err
	}
	return s.around(n, steps(n)), nil
}

// around returns what a node refers to or is referred to by, itself included if so. The caller holds graph.mu.
func (s *Store) around(n *node, ids []uint32) []store.Path {
	if n.self {
		return s.sorted(ids, n)
	}
	return s.sorted(ids)
}

// Closure returns the paths and everything they reach through references, references first.
func (s *Store) Closure(ps ...store.Path) ([]store.Path, error) {
	return s.paths(s.reach(ps, s.graph.refsOf))
}

// ReferrersClosure returns the paths and everything that reaches them, referrers first.
func (s *Store) ReferrersClosure(ps ...store.Path) ([]store.Path, error) {
	return s.paths(s.reach(ps, s.graph.referrersOf))
}

// Dependents returns what reaches an object through references, itself excluded, referrers first, whether its files are there or not.
func (s *Store) Dependents(p store.Path) []store.Path {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	n := s.graph.rowOf(p)
	if n == nil {
		return nil
	}
	nodes := s.graph.walk([]*node{n}, s.graph.referrersOf)
	all, _ := s.paths(nodes, nil)
	return all[:max(len(all)-1, 0)]
}

// reach returns the nodes of valid paths and what their steps lead to, as walk does. A path that is deleted meanwhile is
// not valid: what is deleted goes before its references.
func (s *Store) reach(ps []store.Path, steps func(*node) []uint32) ([]*node, error) {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	from := make([]*node, len(ps))
	for i, p := range ps {
		n, err := s.node(p)
		if err != nil {
			return nil, err
		}
		from[i] = n
	}
	order := s.graph.walk(from, steps)
	for i, n := range from {
		if n.gone {
			return nil, notValid(ps[i])
		}
	}
	return order, nil
}

// paths returns the paths of nodes.
func (s *Store) paths(nodes []*node, err error) ([]store.Path, error) {
	if err != nil {
		return nil, err
	}
	out := make([]store.Path, len(nodes))
	for i, n := range nodes {
		out[i] = s.path(n)
	}
	return out, nil
}

// TopoSort returns the given valid paths without doubles, references first.
func (s *Store) TopoSort(ps []store.Path) ([]store.Path, error) {
	closure, err := s.reach(ps, s.graph.refsOf)
	if err != nil {
		return nil, err
	}
	wanted := make(map[meta.Digest]bool, len(ps))
	for _, p := range ps {
		wanted[meta.DigestOf(p)] = true
	}
	return s.paths(slices.DeleteFunc(closure, func(n *node) bool { return !wanted[n.digest] }), nil)
}

// PathFromDigest returns the valid path that starts with the 32 digits.
func (s *Store) PathFromDigest(digits string) (store.Path, bool) {
	d, ok := meta.ParseDigest(digits)
	if !ok {
		return store.Path{}, false
	}
	n := s.graph.lookup(d)
	if n == nil {
		return store.Path{}, false
	}
	return s.path(n), true
}

// maxSignatures is how many signatures a path may have.
const maxSignatures = 1000

// AddSignatures adds signatures to a valid path.
func (s *Store) AddSignatures(ctx context.Context, p store.Path, signatures []string) error {
	if p.IsZero() {
		return notValid(p)
	}
	d := meta.DigestOf(p)
	unlock, err := s.locks.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	if !s.IsValid(p) {
		return notValid(p)
	}
	o, err := s.db.Object(d)
	if err != nil {
		return fmt.Errorf("add signatures to %s: %w", p, err)
	}
	o.Signatures = sortedTexts(append(o.Signatures, signatures...))
	if len(o.Signatures) > maxSignatures {
		return fmt.Errorf("add signatures to %s: it would have %d, the limit is %d", p, len(o.Signatures), maxSignatures)
	}
	var b meta.Batch
	b.PutObject(d, o)
	if err := s.db.Commit(&b); err != nil {
		return fmt.Errorf("add signatures to %s: %w", p, err)
	}
	return nil
}
