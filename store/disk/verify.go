package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/meta"
)

// ProblemKind is what is wrong with an object.
type ProblemKind string

// The kinds.
const (
	Modified   ProblemKind = "modified"   // its files are not those that were registered
	Vanished   ProblemKind = "vanished"   // it has no files
	Dangling   ProblemKind = "dangling"   // something that it refers to is not valid
	Unreadable ProblemKind = "unreadable" // its files cannot be read
)

var errVanished = errors.New("has disappeared from the store")

// Problem is something that Verify found wrong with a path.
type Problem struct {
	Path      store.Path
	Kind      ProblemKind
	Want, Got store.Hash // of Modified; Got is zero when the files are no object at all
	Err       error
}

// VerifyOptions say what is looked at; nil means that every path exists and its references are valid.
type VerifyOptions struct {
	Contents bool             // read every object and compare its hash
	Paths    []store.Path     // only these; default all
	Workers  int              // default: as many as processors
	Limit    int64            // bytes of archives that are read per second, by all workers together; 0: no limit
	Progress func(read int64) // called after each path with the bytes that were read of it, perhaps by several goroutines at once; nil is allowed
}

// VerifyResult counts what was looked at.
type VerifyResult struct {
	Paths    int
	Bytes    int64 // of archives read
	Problems int
}

// Verify checks valid paths and calls report, one call at a time, for each thing that is wrong.
// The error is for a verification that could not be finished. Paths deleted meanwhile are no problem.
// An object without files is not valid any more, although it keeps its row (see Forget and Replace); one whose files are
// there again, and with Contents as they were, is. What is found is kept (finding.go), and with Contents dropped where it is so no longer.
func (s *Store) Verify(ctx context.Context, opts *VerifyOptions, report func(Problem)) (VerifyResult, error) {
	var o VerifyOptions
	if opts != nil {
		o = *opts
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	nodes, err := s.verifyNodes(o.Paths)
	if err != nil {
		return VerifyResult{}, err
	}
	if s.isClosed() {
		return VerifyResult{}, ErrClosed
	}
	v := verification{s: s, contents: o.Contents, report: report, pace: newPace(o.Limit)}
	if v.progress = o.Progress; v.progress == nil {
		v.progress = func(int64) {}
	}
	defer s.keepFindings()
	err = parallel(ctx, o.Workers, nodes, v.check)
	s.seals.save()
	return v.result, err
}

// verifyNodes returns the nodes of paths, or all, those included that are missing on disk.
func (s *Store) verifyNodes(paths []store.Path) ([]*node, error) {
	var nodes []*node
	if paths == nil {
		for _, n := range s.Snapshot().nodes {
			if n != nil {
				nodes = append(nodes, n)
			}
		}
		return nodes, nil
	}
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	for _, p := range paths {
		n := s.graph.rowOf(p)
		if n == nil {
			return nil, notValid(p)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

type verification struct {
	s        *Store
	contents bool
	report   func(Problem)
	progress func(int64)
	pace     *pace

	mu     sync.Mutex // guards result and serialises report
	result VerifyResult
}

func (v *verification) check(ctx context.Context, n *node) error {
	v.s.graph.hold(n.digest)
	defer v.s.graph.release(n.digest)
	if v.gone(n) {
		return nil
	}
	p := v.s.path(n)
	stood, lost := v.s.standing(p)
	defer stood.close()
	size, problem, err := v.object(ctx, p, n, stood, lost)
	v.progress(size)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err == nil && problem != nil && problem.Kind == Vanished {
		problem, err = v.vanished(ctx, n, problem)
	}
	if err != nil {
		return fmt.Errorf("verify %s: %w", p, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.result.Paths++
	v.result.Bytes += size
	if problem != nil && !v.gone(n) {
		v.result.Problems++
		v.s.note(p, problem, stood)
		if v.report != nil {
			problem.Path = p
			v.report(*problem)
		}
	}
	return nil
}

// vanished looks again, with the lock of who puts files there, and then notes that the object has none.
func (v *verification) vanished(ctx context.Context, n *node, p *Problem) (*Problem, error) {
	unlock, err := v.s.locks.lock(ctx, n.digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Lstat(v.s.RealPath(v.s.path(n))); !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	v.s.graph.mu.Lock()
	defer v.s.graph.mu.Unlock()
	n.missing = true
	return p, nil
}

func (v *verification) gone(n *node) bool {
	v.s.graph.mu.RLock()
	defer v.s.graph.mu.RUnlock()
	return n.gone
}

// object returns how many bytes it read and what is wrong. What stands at the object's name is known, or why that is not.
func (v *verification) object(ctx context.Context, p store.Path, n *node, stood standing, lost error) (int64, *Problem, error) {
	o, err := v.s.db.Object(n.digest)
	if errors.Is(err, meta.ErrNotFound) && v.gone(n) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	if lost != nil {
		if errors.Is(lost, fs.ErrNotExist) {
			return 0, &Problem{Kind: Vanished, Err: errVanished}, nil
		}
		return 0, &Problem{Kind: Unreadable, Err: lost}, nil
	}
	var size int64
	if v.contents || v.s.graph.lookup(n.digest) == nil {
		var problem *Problem
		if size, problem = v.s.inspect(ctx, p, o, stood, v.pace); problem != nil {
			return size, problem, nil
		}
	}
	for _, r := range o.References {
		if v.s.graph.lookup(r) == nil && r != n.digest {
			return size, &Problem{Kind: Dangling, Err: fmt.Errorf("refers to %s, which is not valid", r)}, nil
		}
	}
	v.s.graph.found(n.digest)
	return size, nil, nil
}

// Intact reads a valid object and reports whether its files are those that were registered.
func (s *Store) Intact(ctx context.Context, p store.Path) (bool, error) {
	if !s.graph.valid(p) {
		return false, notValid(p)
	}
	o, err := s.db.Object(meta.DigestOf(p))
	if errors.Is(err, meta.ErrNotFound) {
		return false, notValid(p)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", p, err)
	}
	stood, _ := s.standing(p)
	defer stood.close()
	_, problem := s.inspect(ctx, p, o, stood, nil)
	s.keepFindings()
	switch {
	case context.Cause(ctx) != nil:
		return false, context.Cause(ctx)
	case problem != nil && errors.Is(problem.Err, fs.ErrPermission):
		return false, problem.Err
	}
	return problem == nil, nil
}

// inspect is read, and notes what it finds of what stood there before.
func (s *Store) inspect(ctx context.Context, p store.Path, o *meta.Object, stood standing, at *pace) (int64, *Problem) {
	size, problem := s.read(ctx, p, o, at)
	if context.Cause(ctx) == nil {
		s.note(p, problem, stood)
	}
	return size, problem
}

// read reads an object and says how many bytes that were and what is wrong with them. One that has a seal is compared with
// that, and again with its hash when they differ; another gets its seal.
func (s *Store) read(ctx context.Context, p store.Path, o *meta.Object, at *pace) (int64, *Problem) {
	sealed := o.NarSize >= leastSealed
	sum := fileHashes.Get().(*fileHash)
	defer fileHashes.Put(sum)
	sum.Reset()
	if sealed && o.Seal != (meta.Seal{}) {
		blake := counter{h: sum}
		if err := s.dump(ctx, p, at, &blake); err == nil && o.Seal == meta.Seal(sum.Sum(nil)) {
			return blake.n, nil
		}
		sum.Reset()
	}
	c := counter{h: store.SHA256.New()}
	w := io.Writer(&c)
	if sealed {
		w = io.MultiWriter(&c, sum)
	}
	want := store.NewHash(store.SHA256, o.NarHash[:])
	err := s.dump(ctx, p, at, w)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EIO) {
		return c.n, &Problem{Kind: Unreadable, Want: want, Err: err}
	}
	if err != nil {
		return c.n, &Problem{Kind: Modified, Want: want, Err: err}
	}
	if got := store.NewHash(store.SHA256, c.h.Sum(nil)); got != want {
		return c.n, &Problem{Kind: Modified, Want: want, Got: got, Err: fmt.Errorf("contents have %s, registered is %s: %w", got, want, store.ErrHashMismatch)}
	}
	if sealed {
		s.seals.add(meta.DigestOf(p), o.NarHash, meta.Seal(sum.Sum(nil)))
	}
	return c.n, nil
}

func (s *Store) dump(ctx context.Context, p store.Path, at *pace, w io.Writer) error {
	return nar.DumpAt(contextWriter{ctx, pacedWriter{ctx, at, w}}, int(s.dir.Fd()), p.Base())
}

// Unknown returns the names in the store directory that belong to no row and are not the store's own.
func (s *Store) Unknown() ([]string, error) {
	unknown, _, err := s.unknown()
	return unknown, err
}

// unknown is Unknown, and counts the names that somebody is busy with.
func (s *Store) unknown() (unknown []string, busy int, err error) {
	err = readNames(s.layout.RealDir, func(names []string) error {
		s.graph.mu.RLock()
		known := s.graph.namedEach(names)
		s.graph.mu.RUnlock()
		for i, name := range names {
			switch {
			case strings.HasPrefix(name, ".") || known[i] != nil:
			case s.inTheMaking(name):
				busy++
			default:
				unknown = append(unknown, name)
			}
		}
		return nil
	})
	slices.Sort(unknown)
	return unknown, busy, err
}

func (s *Store) hasRow(name string) bool {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	return s.nodeNamed(name) != nil
}

// inTheMaking reports whether somebody adds or deletes the object of that name right now.
func (s *Store) inTheMaking(name string) bool {
	p, err := s.layout.Dir.Path(name)
	if err != nil {
		return false
	}
	d := meta.DigestOf(p)
	if !s.locks.try(d) {
		return true
	}
	defer s.locks.unlock([]meta.Digest{d})
	return !exists(s.RealPath(p)) || s.hasRow(name) // it came or went between the two questions
}

// Forget deletes the rows of objects that have no files (see Verify), unless something that is valid refers to them,
// and returns those that it forgot. References may be given with what refers to them, in any order.
func (s *Store) Forget(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	if err := s.beginDeletion(ctx); err != nil {
		return nil, err
	}
	defer func() { s.graph.recycle(); <-s.deletions }()
	deleted, err := s.delete(s.missingNodes(paths), func(free []*node) []*node { return s.forgettable(free) })
	forgotten := make([]store.Path, len(deleted))
	for i, d := range deleted {
		forgotten[i] = d.Path
	}
	if err != nil {
		return forgotten, fmt.Errorf("forget what has no files: %w", err)
	}
	return forgotten, nil
}

// missingNodes returns the nodes of paths, referrers first.
func (s *Store) missingNodes(paths []store.Path) []*node {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	var from []*node
	given := map[*node]bool{}
	for _, p := range paths {
		if n := s.graph.rowOf(p); n != nil {
			from = append(from, n)
			given[n] = true
		}
	}
	return slices.DeleteFunc(s.graph.walk(from, s.graph.referrersOf), func(n *node) bool { return !given[n] })
}

// forgettable returns the missing nodes among free that nobody holds and only others of them refer to.
// Referrers come first. The caller holds graph.mu.
func (s *Store) forgettable(free []*node) []*node {
	going := map[uint32]bool{}
	var chosen []*node
	for _, n := range free {
		kept := !n.missing || n.gone || s.graph.held[n.digest] > 0
		for _, r := range s.graph.referrers(n) {
			kept = kept || !going[r]
		}
		if !kept {
			going[n.id] = true
			chosen = append(chosen, n)
		}
	}
	return chosen
}
