package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"cairn/store/meta"
)

// SweepStrays deletes what is named like an object, or like a lock of one, and has no row: others' processes leave
// such things. What somebody adds or deletes just now stays. It returns how much that freed.
func (s *Store) SweepStrays(ctx context.Context) (freed int64, err error) {
	names, err := s.Unknown()
	if err != nil {
		return 0, fmt.Errorf("sweep strays: %w", err)
	}
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return freed, err
		}
		n, err := s.sweepStray(name)
		freed += n
		if err != nil {
			return freed, fmt.Errorf("sweep stray %s: %w", name, err)
		}
	}
	os.Remove(filepath.Join(s.layout.RealDir, trashName)) // if it is empty
	return freed, nil
}

func (s *Store) sweepStray(name string) (int64, error) {
	p, err := s.layout.Dir.Path(name)
	if err != nil {
		return 0, nil // not ours
	}
	d := meta.DigestOf(p)
	if !s.locks.try(d) {
		return 0, nil
	}
	defer s.locks.unlock([]meta.Digest{d})
	if s.hasRow(name) {
		return 0, nil
	}
	s.log.Info("delete what is no object", "name", name)
	return s.deleteTree(s.RealPath(p))
}
