package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// probeName is the file to which a byte is written before each transaction.
const probeName = "probe"

// openProbe opens the file for writable. Without room for it, there is none until there is some.
func (d *DB) openProbe() error {
	f, err := os.OpenFile(filepath.Join(d.dir, probeName), os.O_CREATE|os.O_WRONLY, 0o600)
	if full(err) {
		return nil
	}
	d.probe = f
	return err
}

// writable reports whether the database's file system takes writes at all. Badger would learn by SIGBUS that it does not, or
// when a row is already in its memory.
func (d *DB) writable() error {
	if d.probe == nil {
		if err := d.openProbe(); err != nil || d.probe == nil {
			return err
		}
	}
	if _, err := d.probe.WriteAt([]byte{1}, 0); err != nil && !full(err) { // room is another question, which has been asked
		return fmt.Errorf("the database cannot be written: %w; mend the file system, or mount it writable", err)
	}
	return nil
}

func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// unknown is for a transaction that Badger could not write: its rows are in memory, and perhaps in the journal, so that only the next
// opening tells whether they count. Until then nothing more is written. When a file could not be made for want of room, nothing was
// written yet, and the next transaction may succeed.
func (d *DB) unknown(err error) error {
	if full(err) {
		return err
	}
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
