package disk

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/store"
	"cairn/store/meta"
)

// Lease keeps objects and their closures from being deleted while somebody works with them.
//
// A lease without a time to live dies with the process. One with it is persisted, survives a
// restart, and dies at its expiry, so that a crash never pins anything for ever.
type Lease struct {
	s     *Store
	owner string

	mu      sync.Mutex // guards the rest; before Store.mu and graph.mu
	paths   map[store.Path]struct{}
	expires time.Time // zero: with the process
	over    bool
}

// LeaseInfo describes a lease.
type LeaseInfo struct {
	Owner   string
	Expires time.Time // zero: with the process
	Paths   []store.Path
}

// Lease returns a new lease. With a time to live, the lease that owner has already is returned,
// if any, its life prolonged.
func (s *Store) Lease(owner string, ttl time.Duration) *Lease {
	l := &Lease{s: s, owner: owner, paths: map[store.Path]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ttl > 0 {
		l.expires = time.Now().Add(ttl)
		for old := range s.leases {
			if old.owner == owner && !old.expires.IsZero() {
				l = old
			}
		}
	}
	s.leases[l] = struct{}{}
	if ttl > 0 {
		l.expires = time.Now().Add(ttl)
	}
	return l
}

// Hold adds paths, which need not be valid yet. When it returns without error, no collection will
// delete those that are valid now or become valid later. The error is that of persisting a lease with a
// time to live; in this process the paths are held nevertheless.
func (l *Lease) Hold(paths ...store.Path) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return fmt.Errorf("lease of %s has ended", l.owner)
	}
	var added []meta.Digest
	for _, p := range paths {
		if p.Dir() != l.s.layout.Dir {
			return fmt.Errorf("hold %s: it is of another store", p)
		}
		if _, ok := l.paths[p]; !ok {
			l.paths[p] = struct{}{}
			added = append(added, meta.DigestOf(p))
		}
	}
	l.s.graph.hold(added...)
	if l.expires.IsZero() || len(added) == 0 {
		return nil
	}
	return l.persist()
}

// Renew moves the expiry of a lease with a time to live.
func (l *Lease) Renew(ttl time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.expires.IsZero() {
		return nil
	}
	l.s.mu.Lock()
	l.expires = time.Now().Add(ttl)
	l.s.mu.Unlock()
	return l.persist()
}

// persist writes the lease's row. The caller holds mu.
func (l *Lease) persist() error {
	var b meta.Batch
	b.PutLease(&meta.Lease{Owner: l.owner, Expires: l.expires.Unix(), Paths: l.list()})
	return l.s.db.Commit(&b)
}

func (l *Lease) list() []store.Path {
	paths := make([]store.Path, 0, len(l.paths))
	for p := range l.paths {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, store.Path.Compare)
	return paths
}

// Release ends the lease. It may be called more than once.
func (l *Lease) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	l.over = true
	var ds []meta.Digest
	for p := range l.paths {
		ds = append(ds, meta.DigestOf(p))
	}
	l.s.graph.release(ds...)
	l.s.mu.Lock()
	delete(l.s.leases, l)
	l.s.mu.Unlock()
	if l.expires.IsZero() {
		return
	}
	var b meta.Batch
	b.DeleteLease(l.owner)
	if err := l.s.db.Commit(&b); err != nil {
		l.s.log.Warn("an ended lease stays until its expiry if the process dies", "owner", l.owner, "error", err)
	}
}

// Leases returns the leases there are, and ends those that have expired.
func (s *Store) Leases() []LeaseInfo {
	var infos []LeaseInfo
	for _, l := range s.liveLeases() {
		l.mu.Lock()
		infos = append(infos, LeaseInfo{Owner: l.owner, Expires: l.expires, Paths: l.list()})
		l.mu.Unlock()
	}
	slices.SortFunc(infos, func(a, b LeaseInfo) int {
		if a.Owner < b.Owner {
			return -1
		}
		return 1
	})
	return infos
}

// liveLeases ends expired leases and returns the others.
func (s *Store) liveLeases() []*Lease {
	now := time.Now()
	var live, dead []*Lease
	s.mu.Lock()
	for l := range s.leases {
		if !l.expires.IsZero() && l.expires.Before(now) {
			dead = append(dead, l)
		} else {
			live = append(live, l)
		}
	}
	s.mu.Unlock()
	for _, l := range dead {
		l.Release()
	}
	return live
}

// loadLeases takes up the leases that outlived the last process.
func (s *Store) loadLeases() error {
	var over meta.Batch
	err := s.db.Leases(func(m *meta.Lease) error {
		expires := time.Unix(m.Expires, 0)
		if expires.Before(time.Now()) {
			over.DeleteLease(m.Owner)
			return nil
		}
		l := &Lease{s: s, owner: m.Owner, expires: expires, paths: map[store.Path]struct{}{}}
		for _, p := range m.Paths {
			l.paths[p] = struct{}{}
			s.graph.hold(meta.DigestOf(p))
		}
		s.leases[l] = struct{}{}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.db.Commit(&over); err != nil {
		s.log.Warn("expired leases stay in the database", "error", err)
	}
	return nil
}

type leaseKey struct{}

// WithLease returns a context with which additions are held by l before they become valid, so that no
// collection can come between an addition and its lease.
func WithLease(ctx context.Context, l *Lease) context.Context {
	return context.WithValue(ctx, leaseKey{}, l)
}

// holdFor holds a path that is being added: by the context's lease, and until the returned function is called.
func (s *Store) holdFor(ctx context.Context, p store.Path) func() {
	if l, ok := ctx.Value(leaseKey{}).(*Lease); ok && l.s == s {
		if err := l.Hold(p); err != nil {
			s.log.Warn("lease does not hold an addition", "path", p.String(), "error", err)
		}
	}
	d := meta.DigestOf(p)
	s.graph.hold(d)
	return func() { s.graph.release(d) }
}
