package meta

import (
	"sync"

	"github.com/dgraph-io/badger/v4"
)

// Versions. Badger could number transactions by itself, and wait before each reading until all that have a number are there: five
// messages between goroutines for each transaction, and three for each reading. Here one goroutine writes, and knows what
// is acknowledged, so it numbers them: who reads sees all that was acknowledged when the reading began, and nothing else. Of what
// was overwritten or deleted since, Badger keeps what the oldest reading may ask for.

// reads is at which versions somebody reads, and how many do.
type reads struct {
	mu sync.Mutex // guards at, and changes of DB.acknowledged
	at map[uint64]int
}

// snapshot returns a transaction that reads what is acknowledged now. Release ends it.
func (d *DB) snapshot() *badger.Txn {
	d.reads.mu.Lock()
	defer d.reads.mu.Unlock()
	version := d.acknowledged.Load()
	d.reads.at[version]++
	return d.badger.NewTransactionAt(version, false)
}

func (d *DB) release(txn *badger.Txn) {
	txn.Discard()
	d.reads.mu.Lock()
	defer d.reads.mu.Unlock()
	version := txn.ReadTs()
	if d.reads.at[version]--; d.reads.at[version] == 0 {
		delete(d.reads.at, version)
	}
}

// view calls fn with what is acknowledged now.
func (d *DB) view(fn func(*badger.Txn) error) error {
	if d.badger.IsClosed() {
		return ErrClosed
	}
	txn := d.snapshot()
	defer d.release(txn)
	return fn(txn)
}

// acknowledge has readings that begin from now on see the transaction with that version.
func (d *DB) acknowledge(version uint64) {
	d.reads.mu.Lock()
	defer d.reads.mu.Unlock()
	d.acknowledged.Store(version)
	oldest := version
	for v := range d.reads.at {
		oldest = min(oldest, v)
	}
	d.badger.SetDiscardTs(oldest)
}
