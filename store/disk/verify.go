package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/meta"
)

// Problem is something that Verify found wrong with a path.
type Problem struct {
	Path store.Path
	Err  error
}

// VerifyOptions say what is looked at; nil means that every path exists and its references are valid.
type VerifyOptions struct {
	Contents bool         // read every object and compare its hash
	Paths    []store.Path // only these; default all
	Workers  int          // default: as many as processors
}

// VerifyResult counts what was looked at.
type VerifyResult struct {
	Paths    int
	Bytes    int64 // of archives read
	Problems int
}

// Verify checks valid paths and calls report, one call at a time, for each thing that is wrong.
// The error is for a verification that could not be finished. Paths deleted meanwhile are no problem.
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
	v := verification{s: s, contents: o.Contents, report: report}
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range o.Workers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(nodes) {
					return nil
				}
				if err := v.check(ctx, nodes[i]); err != nil {
					return err
				}
			}
		})
	}
	err = g.Wait()
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
		d, ok := meta.ParseDigest(p.Digest())
		if !ok || s.graph.byDigest[d] == nil {
			return nil, notValid(p)
		}
		nodes = append(nodes, s.graph.byDigest[d])
	}
	return nodes, nil
}

type verification struct {
	s        *Store
	contents bool
	report   func(Problem)

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
	size, err := v.object(ctx, p, n)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.result.Paths++
	v.result.Bytes += size
	if err != nil && !v.gone(n) {
		v.result.Problems++
		if v.report != nil {
			v.report(Problem{p, err})
		}
	}
	return nil
}

func (v *verification) gone(n *node) bool {
	v.s.graph.mu.RLock()
	defer v.s.graph.mu.RUnlock()
	return n.gone
}

func (v *verification) object(ctx context.Context, p store.Path, n *node) (int64, error) {
	o, err := v.s.db.Object(n.digest)
	if err != nil {
		return 0, err
	}
	for _, r := range o.References {
		if v.s.graph.lookup(r) == nil && r != n.digest {
			return 0, fmt.Errorf("refers to %s, which is not valid", r)
		}
	}
	if _, err := os.Lstat(v.s.RealPath(p)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("has disappeared from the store: %w", err)
		}
		return 0, err
	}
	if !v.contents {
		return 0, nil
	}
	c := counter{h: store.SHA256.New()}
	if err := nar.Dump(contextWriter{ctx, &c}, v.s.RealPath(p)); err != nil {
		return c.n, err
	}
	if want, got := store.NewHash(store.SHA256, o.NarHash[:]), store.NewHash(store.SHA256, c.h.Sum(nil)); got != want {
		return c.n, fmt.Errorf("contents have %s, registered is %s: %w", got, want, store.ErrHashMismatch)
	}
	return c.n, nil
}
