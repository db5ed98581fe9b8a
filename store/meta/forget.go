package meta

import (
	"github.com/dgraph-io/badger/v4"

	"cairn/store"
)

// Forgetter makes the batches that delete objects with all that other tables say of them.
// It reads the database as it was when it was made.
type Forgetter struct {
	db  *DB
	txn *badger.Txn
	it  *badger.Iterator // made when first needed
}

// Forget returns a forgetter, to be closed.
func (d *DB) Forget() *Forgetter { return &Forgetter{db: d, txn: d.snapshot()} }

// Close ends the reading.
func (f *Forgetter) Close() {
	if f.it != nil {
		f.it.Close()
	}
	f.db.release(f.txn)
}

// Object adds to b the deletion of an object that has a row, once; if it is a derivation, of the rows of its outputs that it names itself; if it
// is an output, of its realisations and of what rests on them. What derivations say of an
// output by themselves stays.
func (f *Forgetter) Object(b *Batch, object Digest, isDrv, isOut bool) error {
	b.remove(objectKey(object))
	if isDrv {
		if err := f.outputs(b, object); err != nil {
			return err
		}
	}
	if !isOut {
		return nil
	}
	if err := f.realisations(b, object); err != nil {
		return err
	}
	return f.derivers(b, object)
}

func (f *Forgetter) outputs(b *Batch, drv Digest) error {
	prefix := outputKey(drv, "")
	return f.scan(prefix, func(key, value []byte) error {
		o, err := decodeOutput(f.db.store, string(key[len(prefix):]), value)
		if err == nil && !o.Realised {
			b.deleteOutput(drv, o.Name, DigestOf(o.Path))
		}
		return err
	})
}

func (f *Forgetter) realisations(b *Batch, out Digest) error {
	prefix := append([]byte{tableRealisedBy}, out[:]...)
	return f.scan(prefix, func(key, _ []byte) error {
		rest := key[len(prefix):]
		if len(rest) < 32 {
			return errRecord
		}
		b.DeleteRealisation(store.DrvOutput{Drv: store.NewHash(store.SHA256, rest[:32]), Output: string(rest[32:])}, out)
		return nil
	})
}

// derivers deletes the rows that call object an output because it was realised so.
func (f *Forgetter) derivers(b *Batch, object Digest) error {
	var list []Deriver
	prefix := append([]byte{tableDerivers}, object[:]...)
	err := f.scan(prefix, func(key, _ []byte) error {
		d, err := decodeDeriver(key[len(prefix):])
		list = append(list, d)
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range list {
		o, err := f.db.Output(d.Drv, d.Output)
		if err == nil && o.Realised && DigestOf(o.Path) == object {
			b.deleteOutput(d.Drv, d.Output, object)
		}
	}
	return nil
}

func (f *Forgetter) scan(prefix []byte, fn func(key, value []byte) error) error {
	if f.it == nil {
		f.it = f.txn.NewIterator(badger.IteratorOptions{})
	}
	for f.it.Seek(prefix); f.it.ValidForPrefix(prefix); f.it.Next() {
		item := f.it.Item()
		if err := item.Value(func(v []byte) error { return fn(item.Key(), v) }); err != nil {
			return err
		}
	}
	return nil
}
