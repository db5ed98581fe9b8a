package disk

import (
	"cairn/store"
	"cairn/store/meta"
)

// BreakDatabase makes every later commit of a store fail.
func BreakDatabase(s *Store) { s.db.Close() }

// NoExchange makes a store replace trees as on a file system that cannot exchange names.
func NoExchange(s *Store) { s.noExchange = true }

// SealOf returns the seal in the row of an object.
func SealOf(s *Store, p store.Path) (meta.Seal, error) {
	o, err := s.db.Object(meta.DigestOf(p))
	if err != nil {
		return meta.Seal{}, err
	}
	return o.Seal, nil
}

// BreakSeal gives an object a seal that is not its own.
func BreakSeal(s *Store, p store.Path) error {
	o, err := s.db.Object(meta.DigestOf(p))
	if err != nil {
		return err
	}
	o.Seal[0]++
	var b meta.Batch
	b.PutObject(meta.DigestOf(p), o)
	return s.db.Commit(&b)
}
