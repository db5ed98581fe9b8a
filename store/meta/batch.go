package meta

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"cairn/store"
	"cairn/store/failpoint"
)

// rowOverhead is what a row counts for besides key and value: Badger limits their number, too.
const rowOverhead = 100

// Batch is a list of changes that become durable together. The zero value is empty.
type Batch struct {
	rows []row
	size int
	adds bool
	err  error
}

// row is a change; a nil value deletes.
type row struct{ key, value []byte }

// maxRecord is Badger's threshold: it keeps longer values outside of journals and tables.
const maxRecord = 1<<20 - 1

func (b *Batch) put(key, value []byte) {
	if len(value) > maxRecord {
		b.fail(fmt.Errorf("record of %d bytes: %w", len(value), ErrTooLarge))
	}
	b.adds = true
	b.rows = append(b.rows, row{key, value})
	b.size += len(key) + len(value) + rowOverhead
}

func (b *Batch) remove(key []byte) {
	b.rows = append(b.rows, row{key, nil})
	b.size += len(key) + rowOverhead
}

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// Size returns the number of bytes that count towards DB.MaxBatch.
func (b *Batch) Size() int { return b.size }

// Append adds the changes of c after those of b.
func (b *Batch) Append(c *Batch) {
	b.rows = append(b.rows, c.rows...)
	b.size += c.size
	b.adds = b.adds || c.adds
	if c.err != nil {
		b.fail(c.err)
	}
}

// PutObject adds or replaces an object.
func (b *Batch) PutObject(d Digest, o *Object) {
	v, err := o.encode()
	if err != nil {
		b.fail(fmt.Errorf("encode row of %s: %w", d, err))
		return
	}
	b.put(objectKey(d), v)
}

// PutRealisation adds or replaces a realisation.
func (b *Batch) PutRealisation(r *store.Realisation) {
	v, err := encodeRealisation(r)
	if err != nil {
		b.fail(fmt.Errorf("encode realisation %s: %w", r.ID, err))
		return
	}
	b.put(realisationKey(r.ID), v)
	b.put(realisedByKey(DigestOf(r.OutPath), r.ID), []byte{})
}

// DeleteRealisation removes a realisation of the object out.
func (b *Batch) DeleteRealisation(id store.DrvOutput, out Digest) {
	b.remove(realisationKey(id))
	b.remove(realisedByKey(out, id))
}

// PutOutput says that the output of derivation drv is the object out;
// realised tells that only a realisation says so, so that the row goes with the object, and stays without the derivation;
// signatures are of that realisation.
func (b *Batch) PutOutput(drv Digest, output string, out store.Path, realised bool, signatures ...string) {
	v := []byte{recordVersion, 0}
	if realised {
		v[1] |= flagRealised
	}
	if len(signatures) > 0 {
		v[1] |= flagSigned
	}
	v, err := appendString(v, out.Base())
	if err == nil && len(signatures) > 0 {
		v, err = appendStrings(v, signatures)
	}
	if err != nil {
		b.fail(err)
		return
	}
	b.put(outputKey(drv, output), v)
	b.put(deriverKey(DigestOf(out), drv, output), []byte{})
}

func (b *Batch) deleteOutput(drv Digest, output string, out Digest) {
	b.remove(outputKey(drv, output))
	b.remove(deriverKey(out, drv, output))
}

// PutLease adds or replaces a lease.
func (b *Batch) PutLease(l *Lease) {
	v, err := l.encode()
	if err != nil {
		b.fail(fmt.Errorf("encode lease of %q: %w", l.Owner, err))
		return
	}
	b.put(leaseKey(l.Owner), v)
}

// DeleteLease removes a lease.
func (b *Batch) DeleteLease(owner string) { b.remove(leaseKey(owner)) }

type request struct {
	batch *Batch
	reply chan error
}

// MaxBatch returns the size limit of a batch.
func (d *DB) MaxBatch() int { return int(d.opts.MemTableSize / 8) }

// Commit makes a batch durable, together with others that wait.
func (d *DB) Commit(b *Batch) error {
	if b.err != nil {
		return b.err
	}
	if len(b.rows) == 0 {
		return nil
	}
	if b.size > d.MaxBatch() {
		return fmt.Errorf("commit %d rows: %w", len(b.rows), ErrTooLarge)
	}
	r := &request{batch: b, reply: make(chan error, 1)}
	d.mu.RLock()
	if d.closed {
		d.mu.RUnlock()
		return ErrClosed
	}
	d.requests <- r
	d.mu.RUnlock()
	return <-r.reply
}

// run is the committing goroutine: it takes one request, all that wait behind it and fit, and
// commits them in one transaction.
func (d *DB) run() {
	defer close(d.done)
	var next *request
	for {
		r, ok := next, true
		if next = nil; r == nil {
			if r, ok = <-d.requests; !ok {
				return
			}
		}
		group, size := []*request{r}, r.batch.size
	gather:
		for {
			select {
			case q, ok := <-d.requests:
				if !ok {
					break gather
				}
				if size += q.batch.size; size > d.MaxBatch() {
					next = q
					break gather
				}
				group = append(group, q)
			default:
				break gather
			}
		}
		d.commitGroup(group)
	}
}

// commitGroup commits requests together; those that add are refused first when space is short.
func (d *DB) commitGroup(group []*request) {
	unwritable := d.broken
	if unwritable == nil {
		unwritable = d.writable()
	}
	if unwritable != nil {
		for _, r := range group {
			r.reply <- fmt.Errorf("commit: %w", unwritable)
		}
		return
	}
	_, full := d.Room(0)
	kept := group[:0]
	for _, r := range group {
		if r.batch.adds && full != nil {
			r.reply <- fmt.Errorf("commit: %w", full)
			continue
		}
		kept = append(kept, r)
	}
	if len(kept) == 0 {
		return
	}
	err := error(nil)
	if full != nil {
		err = d.roomToShrink()
	}
	if err == nil {
		err = d.roomToCommit()
	}
	if err == nil {
		err = d.commit(kept)
	}
	for _, r := range kept {
		r.reply <- err
	}
	d.lookAfter()
}

func (d *DB) commit(group []*request) error {
	err := d.transact(func(txn *badger.Txn, objects *int64) error {
		for _, r := range group {
			d.filling.rows += int64(r.batch.size)
			for _, w := range r.batch.rows {
				if err := write(txn, w, objects); err != nil {
					return err
				}
			}
		}
		return failpoint.Err("meta/commit/begin")
	})
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	failpoint.Hit("meta/commit/durable")
	return nil
}

// transact makes durable what fn writes, and notes that it is. There is never more than one at a time: journals are judged
// by that (journal.go).
func (d *DB) transact(fn func(txn *badger.Txn, objects *int64) error) error {
	version := d.acknowledged.Load()
	txn := d.badger.NewTransactionAt(version, true)
	defer txn.Discard()
	objects := d.objects
	if err := fn(txn, &objects); err != nil {
		return err
	}
	row := binary.LittleEndian.AppendUint64(nil, version)
	row = binary.LittleEndian.AppendUint64(row, uint64(objects))
	if err := txn.Set(settingKey(commitName), row); err != nil {
		return err
	}
	d.filling.rows += 2 * rowOverhead
	if err := txn.CommitAt(version+1, nil); err != nil {
		return d.unknown(err)
	}
	d.acknowledge(version + 1)
	d.objects = objects
	select {
	case d.committed <- struct{}{}:
	default:
	}
	return nil
}

func write(txn *badger.Txn, w row, objects *int64) error {
	if w.key[0] == tableObjects {
		change, err := changeOf(txn, w)
		if err != nil {
			return err
		}
		*objects += change
	}
	err := error(nil)
	if w.value == nil {
		err = txn.Delete(w.key)
	} else {
		err = txn.Set(w.key, w.value)
	}
	if errors.Is(err, badger.ErrTxnTooBig) {
		return ErrTooLarge
	}
	return err
}

// changeOf returns how many objects more there are after a change. Only those are deleted that there are, which is not looked up again: a lookup
// costs more than all else that a deletion does here.
func changeOf(txn *badger.Txn, w row) (int64, error) {
	if w.value == nil {
		return -1, nil
	}
	_, err := txn.Get(w.key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return 1, nil
	}
	return 0, err
}
