package disk

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"cairn/store/meta"
)

// keyed is a set of locks, one for each object that somebody is making or deleting.
type keyed struct {
	mu    sync.Mutex // guards locks; held for moments only
	locks map[meta.Digest]*keyedLock
}

type keyedLock struct {
	held    chan struct{} // full while held
	waiters int           // holder included
}

// lock waits for the locks of all objects, in one order for everybody, and returns what gives them back.
func (k *keyed) lock(ctx context.Context, ds ...meta.Digest) (func(), error) {
	ds = slices.Clone(ds)
	slices.SortFunc(ds, func(a, b meta.Digest) int { return bytes.Compare(a[:], b[:]) })
	ds = slices.Compact(ds)
	for i, d := range ds {
		l := k.enter(d)
		select {
		case l.held <- struct{}{}:
		case <-ctx.Done():
			k.leave(d)
			k.unlock(ds[:i])
			return nil, context.Cause(ctx)
		}
	}
	return func() { k.unlock(ds) }, nil
}

// try takes the lock of an object when nobody has it.
func (k *keyed) try(d meta.Digest) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks[d] != nil {
		return false
	}
	k.init()
	l := &keyedLock{held: make(chan struct{}, 1), waiters: 1}
	l.held <- struct{}{}
	k.locks[d] = l
	return true
}

func (k *keyed) init() {
	if k.locks == nil {
		k.locks = map[meta.Digest]*keyedLock{}
	}
}

func (k *keyed) enter(d meta.Digest) *keyedLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.init()
	l := k.locks[d]
	if l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.locks[d] = l
	}
	l.waiters++
	return l
}

func (k *keyed) leave(d meta.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.locks[d]; l.waiters > 1 {
		l.waiters--
		return
	}
	delete(k.locks, d)
}

func (k *keyed) unlock(ds []meta.Digest) {
	for _, d := range ds {
		k.mu.Lock()
		l := k.locks[d]
		k.mu.Unlock()
		<-l.held
		k.leave(d)
	}
}
