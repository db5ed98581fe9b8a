package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store/failpoint"
	"cairn/store/meta"
)

// tick is more than the step of any file system's clock: a directory that changed so long ago shows the next change.
const tick = 100 * time.Millisecond

// SweepStrays deletes what is named like an object, or like a lock of one, and has no row: others' processes leave
// such things. What somebody adds or deletes just now stays. It returns how much that freed.
// The directory is not read when it has not changed since it was last found clean.
func (s *Store) SweepStrays(ctx context.Context) (freed int64, err error) {
	changed, err := s.changed()
	if err != nil {
		return 0, fmt.Errorf("sweep strays: %w", err)
	}
	if old := s.clean.Load(); old != nil && *old == changed {
		return 0, nil
	}
	names, busy, err := s.unknown()
	if err != nil {
		return 0, fmt.Errorf("sweep strays: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { // what is not ours
		_, err := s.layout.Dir.Path(name)
		return err != nil
	})
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
	if len(names) == 0 && busy == 0 && time.Since(time.Unix(changed.Unix())) > tick {
		s.clean.Store(&changed)
	}
	os.Remove(filepath.Join(s.layout.RealDir, trashName)) // if it is empty
	return freed, nil
}

// changed returns when the store directory changed last.
func (s *Store) changed() (unix.Timespec, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(s.dir.Fd()), &st) }); err != nil {
		return unix.Timespec{}, &os.PathError{Op: "stat", Path: s.layout.RealDir, Err: err}
	}
	return st.Ctim, nil
}

func (s *Store) sweepStray(name string) (int64, error) {
	p, err := s.layout.Dir.Path(name)
	if err != nil {
		return 0, nil
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
	failpoint.Hit("disk/sweep/stray")
	return s.deleteTree(p)
}
