package disk

import (
	"sync"

	"cairn/store/meta"
)

// An object's seal is the BLAKE3 hash of its archive, which was taken of the same bytes as its SHA-256 hash, so that it says
// the same of them, in half of the time. What is one file has it from the pool when it comes; everything else when it is read for the first time
// (verify.go). A seal that is wrong costs a second reading, and nothing else.

// leastSealed is the size of an archive in bytes below which SHA-256 is as fast.
const leastSealed = 16 << 10

// sealsSaved is how many seals are written to the database together. Those that are lost are learnt again.
const sealsSaved = 512

// seals are what reading has found, until they are in the database.
type seals struct {
	s  *Store
	mu sync.Mutex // guards of
	of map[meta.Digest]reading
}

// reading is the two hashes of what was read.
type reading struct {
	narHash [32]byte
	seal    meta.Seal
}

// add notes the seal of an object.
func (t *seals) add(d meta.Digest, narHash [32]byte, seal meta.Seal) {
	t.mu.Lock()
	if t.of == nil {
		t.of = map[meta.Digest]reading{}
	}
	t.of[d] = reading{narHash, seal}
	many := len(t.of) >= sealsSaved
	t.mu.Unlock()
	if many {
		t.save()
	}
}

// save writes what was noted. What somebody else is busy with goes without.
func (t *seals) save() {
	t.mu.Lock()
	list := t.of
	t.of = nil
	t.mu.Unlock()
	for len(list) > 0 {
		var batch meta.Batch
		var locked []meta.Digest
		for d, v := range list {
			if batch.Size() > t.s.db.MaxBatch()/2 {
				break
			}
			delete(list, d)
			if t.s.locks.try(d) {
				locked = append(locked, d)
				t.put(&batch, d, v)
			}
		}
		err := t.s.db.Commit(&batch)
		t.s.locks.unlock(locked)
		if err != nil {
			t.s.log.Debug("seals are not saved", "error", err)
			return
		}
	}
}

// put adds the row of an object with its seal to a batch, if it still is what was read.
func (t *seals) put(batch *meta.Batch, d meta.Digest, v reading) {
	o, err := t.s.db.Object(d)
	if err != nil || o.NarHash != v.narHash {
		return
	}
	o.Seal = v.seal
	var b meta.Batch
	if b.PutObject(d, o); batch.Size()+b.Size() <= t.s.db.MaxBatch() {
		batch.Append(&b)
	}
}
