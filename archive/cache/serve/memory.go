package serve

import (
	"sync"
	"sync/atomic"
	"time"

	"cairn/store"
)

// described is an object's description, as it is sent.
type described struct {
	info *store.Info
	text string
	tag  string
	at   time.Time
}

// memory is the descriptions that were asked for lately: what was used since half of the limit was reached last, and
// what was used in the time before that.
type memory struct {
	half int

	mu         sync.Mutex // guards what follows
	young, old map[string]*described
}

func newMemory(limit int) *memory {
	return &memory{half: max(limit/2, 1), young: map[string]*described{}, old: map[string]*described{}}
}

// get returns what is known by a digest and is newer than since, or nil.
func (m *memory) get(digest string, since time.Time) *described {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.young[digest]
	if d == nil {
		if d = m.old[digest]; d != nil {
			m.add(digest, d)
		}
	}
	if d == nil || d.at.Before(since) {
		return nil
	}
	return d
}

func (m *memory) put(digest string, d *described) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(digest, d)
}

func (m *memory) add(digest string, d *described) {
	if len(m.young) >= m.half {
		m.young, m.old = map[string]*described{}, m.young
	}
	m.young[digest] = d
}

func (m *memory) forget(digest string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.young, digest)
	delete(m.old, digest)
}

// onceFlag is true once.
type onceFlag struct{ set atomic.Bool }

func (f *onceFlag) first() bool { return !f.set.Swap(true) }
