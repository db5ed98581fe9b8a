package disk

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// Lease keeps objects and their closures from being deleted while somebody works with them.
//
// A lease without a time to live dies with the process. One with it is persisted, survives a
// restart, and dies at its expiry, so that a crash never pins anything for ever.
type Lease struct {
	s     *Store
	owner string

	mu    sync.Mutex // guards paths and over; before Store.mu and graph.mu
	paths map[store.Path]struct{}
	over  bool

	expires time.Time // guarded by Store.mu; zero: with the process
}

// LeaseInfo describes a lease.
type LeaseInfo struct {
	Owner   string
	Expires time.Time // zero: with the process
	Paths   []store.Path
}

// Lease returns a new lease. With a time to live, the lease that owner has already is returned,
// if any, and lives at least so long from now.
func (s *Store) Lease(owner string, ttl time.Duration) *Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	expires := time.Now().Add(ttl)
	if ttl <= 0 {
		expires = time.Time{}
	}
	for old := range s.leases {
		if ttl > 0 && old.owner == owner && !old.expires.IsZero() {
			if expires.After(old.expires) {
				old.expires = expires
			}
			return old
		}
	}
	l := &Lease{s: s, owner: owner, paths: map[store.Path]struct{}{}, expires: expires}
	s.leases[l] = struct{}{}
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
	for _, p := range paths {
		if p.Dir() != l.s.layout.Dir {
			return fmt.Errorf("hold %q: it is of another store", p)
		}
	}
	var added []meta.Digest
	for _, p := range paths {
		if _, ok := l.paths[p]; !ok {
			l.paths[p] = struct{}{}
			added = append(added, meta.DigestOf(p))
		}
	}
	l.s.graph.hold(added...)
	if len(added) == 0 {
		return nil
	}
	return l.persist()
}

// Renew makes a lease with a time to live expire so long from now.
func (l *Lease) Renew(ttl time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.deadline().IsZero() {
		return nil
	}
	l.s.mu.Lock()
	l.expires = time.Now().Add(ttl)
	l.s.mu.Unlock()
	return l.persist()
}

func (l *Lease) deadline() time.Time {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.expires
}

// persist writes the row of a lease with a time to live. The caller holds mu.
func (l *Lease) persist() error {
	expires := l.deadline()
	if expires.IsZero() {
		return nil
	}
	var b meta.Batch
	b.PutLease(&meta.Lease{Owner: l.owner, Expires: expires.Unix(), Paths: l.list()})
	if err := l.s.db.Commit(&b); err != nil {
		return err
	}
	failpoint.Hit("disk/lease/persisted")
	return nil
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
func (l *Lease) Release() { l.end(func() bool { return true }) }

// end ends the lease if it is to end, which is asked under Store.mu.
func (l *Lease) end(want func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.mu.Lock()
	persisted := !l.expires.IsZero()
	if l.over || !want() {
		l.s.mu.Unlock()
		return
	}
	l.over = true
	delete(l.s.leases, l)
	l.s.mu.Unlock()
	var ds []meta.Digest
	for p := range l.paths {
		ds = append(ds, meta.DigestOf(p))
	}
	l.s.graph.release(ds...)
	if !persisted {
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
		infos = append(infos, LeaseInfo{Owner: l.owner, Expires: l.deadline(), Paths: l.list()})
		l.mu.Unlock()
	}
	slices.SortFunc(infos, func(a, b LeaseInfo) int { return strings.Compare(a.Owner, b.Owner) })
	return infos
}

// liveLeases ends expired leases and returns the others.
func (s *Store) liveLeases() []*Lease {
	now := time.Now()
	var live, dead []*Lease
	s.mu.Lock()
	for l := range s.leases {
		if l.expired(now) {
			dead = append(dead, l)
		} else {
			live = append(live, l)
		}
	}
	s.mu.Unlock()
	for _, l := range dead {
		l.end(func() bool { return l.expired(now) })
	}
	return live
}

// expired is called under Store.mu.
func (l *Lease) expired(now time.Time) bool { return !l.expires.IsZero() && l.expires.Before(now) }

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

// LeaseOf returns the lease of a context that WithLease made, or nil.
func LeaseOf(ctx context.Context) *Lease {
	l, _ := ctx.Value(leaseKey{}).(*Lease)
	return l
}

// holdFor holds paths that are being added: by the context's lease, and until the returned function is called.
func (s *Store) holdFor(ctx context.Context, ps ...store.Path) func() {
	if l, ok := ctx.Value(leaseKey{}).(*Lease); ok && l.s == s {
		if err := l.Hold(ps...); err != nil {
			s.log.Warn("lease does not hold an addition", "paths", fmt.Sprint(ps), "error", err)
		}
	}
	ds := make([]meta.Digest, len(ps))
	for i, p := range ps {
		ds[i] = meta.DigestOf(p)
	}
	s.graph.hold(ds...)
	return func() { s.graph.release(ds...) }
}
