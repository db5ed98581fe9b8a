package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A store that is opened with Options.NoSync has a mark, an empty file of this name in the state directory: what it has made
// valid may not be on the disk. Whoever opens it next without NoSync brings everything to the disk first, and then removes the mark.
// If the machine has lost power in between, that comes too late, which a verification finds out; hence the warning.
const unsyncedName = "no-durability"

// Durable reports whether what is valid survives a power cut: not with Options.NoSync.
func (s *Store) Durable() bool { return !s.opts.NoSync }

// heedMark makes what this store does now agree with the mark.
func (s *Store) heedMark() error {
	mark := filepath.Join(s.layout.StateDir, unsyncedName)
	if s.opts.NoSync {
		s.log.Warn("nothing is flushed: after a power cut, or when the machine crashes, any object and the database may be lost or damaged",
			"store", s.layout.RealDir)
		return os.WriteFile(mark, nil, 0o644)
	}
	if absent(mark) {
		return nil
	}
	s.log.Warn("the store was used without durability; if the machine has crashed since, 'cairn store verify' says what is damaged",
		"store", s.layout.RealDir)
	return errors.Join(s.flushAll(), os.Remove(mark))
}

// flushAll brings the file systems of the store and of its state to the disk.
func (s *Store) flushAll() error {
	for _, f := range []*os.File{s.dir, s.lock} {
		if err := retry(func() error { return unix.Syncfs(int(f.Fd())) }); err != nil {
			return fmt.Errorf("flush %s: %w", f.Name(), err)
		}
	}
	return nil
}
