package meta

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Unknown has a database meet an error of a transaction.
func Unknown(d *DB, err error) { d.unknown(err) }

// Reading returns at how many versions somebody reads.
func Reading(d *DB) int {
	d.reads.mu.Lock()
	defer d.reads.mu.Unlock()
	return len(d.reads.at)
}

// CloseBadger closes what Close leaves open.
func CloseBadger(d *DB) error { return d.badger.Close() }

// DropPrefix has Badger throw rows away.
func DropPrefix(d *DB, prefix []byte) error { return d.badger.DropPrefix(prefix) }

// PretendFree has every file system have as many bytes free as free says.
func PretendFree(t *testing.T, free func() int64) {
	statfs = func(path string, st *unix.Statfs_t) error {
		err := unix.Statfs(path, st)
		st.Bsize, st.Bavail = 1, uint64(free())
		return err
	}
	t.Cleanup(func() { statfs = unix.Statfs })
}

// Merging reports whether tables are merged as usual.
func Merging(d *DB) bool { return d.merging }

// ZeroTables returns how many tables level 0 has.
func ZeroTables(d *DB) int { return d.badger.Levels()[0].NumTables }
