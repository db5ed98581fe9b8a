package meta

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// unknown is for a transaction that Badger could not write: its rows are in memory, and perhaps in the journal, so that only the next
// opening tells whether they count. Until then nothing more is written.
func (d *DB) unknown(err error) error {
	d.broken = fmt.Errorf("%w: %s: %w; mend the file system and restart the daemon", ErrBroken, d.dir, err)
	return d.broken
}

// closable reports why Badger, which tries for ever to write what it has in memory, must be left open.
func (d *DB) closable() error {
	if d.broken != nil {
		return d.broken
	}
	return d.writable()
}
