package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// minOpen is the free space that opening and making room may use up.
const minOpen = 4 << 20

// Room reports with ErrNoSpace whether the database's file system is too full to add anything.
func (d *DB) Room() error {
	return d.roomFor(d.reserve())
}

// reserve is the free space that must stay: the configured part, and what a compaction may write
// before it frees what it read.
func (d *DB) reserve() int64 {
	lsm, _ := d.badger.Size()
	return d.opts.Reserve + min(lsm, 3*d.opts.Reserve)
}

func (d *DB) roomFor(need int64) error {
	free, err := FreeSpace(d.dir)
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("%w: %s has %d MiB free, the database keeps %d MiB; collect garbage or make room", ErrNoSpace, d.dir, free>>20, need>>20)
	}
	return nil
}

// FreeSpace returns the bytes that an ordinary user may still write to the file system of path,
// none when it has no free inodes.
func FreeSpace(path string) (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
		}
		break
	}
	if st.Files > 0 && st.Ffree < 16 {
		return 0, nil
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// roomToOpen gives up the ballast when Badger could not even open without it.
func (d *DB) roomToOpen() error {
	if d.roomFor(d.opts.Reserve/2) == nil {
		return nil
	}
	d.dropBallast()
	return d.roomFor(minOpen)
}

// roomToShrink is for batches that only delete: they may use the reserve and then the ballast.
func (d *DB) roomToShrink() error {
	if d.roomFor(minOpen) == nil {
		return nil
	}
	d.dropBallast()
	return d.roomFor(minOpen / 4)
}

func (d *DB) ballastFile() string { return filepath.Join(d.dir, "ballast") }

func (d *DB) dropBallast() {
	if os.Remove(d.ballastFile()) == nil {
		d.opts.Logger.Warn("disk is full: ballast given up", "dir", d.dir)
	}
}

// restoreBallast makes the ballast again when there is plenty of room; it looks at most once a second.
func (d *DB) restoreBallast() {
	if d.opts.Ballast < 0 || time.Since(d.ballastChecked) < time.Second {
		return
	}
	d.ballastChecked = time.Now()
	if _, err := os.Stat(d.ballastFile()); err == nil || d.roomFor(d.reserve()+2*d.opts.Ballast) != nil {
		return
	}
	f, err := os.OpenFile(d.ballastFile(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, d.opts.Ballast); err != nil {
		os.Remove(f.Name())
	}
}
