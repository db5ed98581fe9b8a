package disk

import (
	"errors"
	"fmt"

	"cairn/store"
	"cairn/store/meta"
)

// Twins returns the valid objects that have the same archive as one that has a row, sorted, without those that are known to be damaged.
func (s *Store) Twins(p store.Path) ([]store.Path, error) {
	want, err := s.db.Object(meta.DigestOf(p))
	if errors.Is(err, meta.ErrNotFound) {
		return nil, notValid(p)
	}
	var twins []store.Path
	for _, n := range s.Snapshot().nodes {
		if n == nil || err != nil || n.narSize != want.NarSize || n.digest == meta.DigestOf(p) {
			continue
		}
		q := s.path(n)
		var o *meta.Object
		if o, err = s.db.Object(n.digest); errors.Is(err, meta.ErrNotFound) {
			err = nil // deleted meanwhile
			continue
		}
		if err == nil && o.NarHash == want.NarHash && s.IsValid(q) && s.Damage(q) == nil {
			twins = append(twins, q)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("find what is equal to %s: %w", p, err)
	}
	return store.SortPaths(twins), nil
}
