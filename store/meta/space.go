package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// minRoom is the free space with which something that makes room may begin.
const minRoom = 4 << 20

const ballastName = "ballast"

// Room reports with ErrNoSpace whether the database's file system is too full to add so many bytes.
func (d *DB) Room(bytes int64) error {
	return d.roomFor(d.reserve() + bytes)
}

// reserve is the free space that must stay: the configured part, and what a compaction may write
// before it frees what it read.
func (d *DB) reserve() int64 {
	return d.opts.Reserve + min(d.tables.Load(), 3*d.opts.Reserve)
}

// measure notes the size of the tables, which a compaction may write again.
func (d *DB) measure() {
	names, _ := filepath.Glob(filepath.Join(d.dir, "*.sst"))
	var sum int64
	for _, name := range names {
		if fi, err := os.Stat(name); err == nil {
			sum += fi.Size()
		}
	}
	d.tables.Store(sum)
}

func (d *DB) roomFor(need int64) error {
	free, err := FreeSpace(d.dir)
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("%w: %s has %d MiB free, the database needs %d MiB; collect garbage or make room", ErrNoSpace, d.dir, free>>20, (need+1<<20-1)>>20)
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

// written returns the bytes that the memtable files hold on disk: what Badger will write again as a table
// when it opens, closes, or changes to a new memtable.
func (d *DB) written() int64 {
	names, _ := filepath.Glob(filepath.Join(d.dir, "*.mem"))
	var sum int64
	for _, name := range names {
		var st unix.Stat_t
		if unix.Stat(name, &st) == nil {
			sum += st.Blocks * 512
		}
	}
	return sum
}

// roomToOpen gives up the ballast when Badger might not get through its opening without it.
func (d *DB) roomToOpen() error {
	if d.roomFor(d.opts.Reserve) == nil {
		return nil
	}
	return d.makeRoom(d.written() + minRoom)
}

// roomToClose is for the table that Badger writes when it closes.
func (d *DB) roomToClose() error { return d.makeRoom(d.written() + minRoom/4) }

// roomToShrink is for batches that only delete: they may use the reserve and then the ballast.
func (d *DB) roomToShrink() error {
	if w := d.written(); w > d.opts.MemTableSize*3/4 {
		return d.makeRoom(w + minRoom)
	}
	return d.makeRoom(minRoom / 4)
}

// makeRoom checks that so much space is free, and gives up the ballast when it is not.
func (d *DB) makeRoom(need int64) error {
	if d.roomFor(need) == nil {
		return nil
	}
	d.dropBallast()
	return d.roomFor(need)
}

func (d *DB) ballastFile() string { return filepath.Join(d.dir, ballastName) }

func (d *DB) dropBallast() {
	if os.Remove(d.ballastFile()) == nil {
		d.opts.Logger.Warn("disk is full: ballast given up", "dir", d.dir)
	}
}

// lookAfter measures, and makes the ballast again when there is plenty of room. It does so at most once a
// second.
func (d *DB) lookAfter() {
	if time.Since(d.looked) < time.Second {
		return
	}
	d.looked = time.Now()
	d.measure()
	if d.opts.Ballast < 0 || d.roomFor(d.reserve()+2*d.opts.Ballast) != nil {
		return
	}
	if _, err := os.Stat(d.ballastFile()); err == nil {
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
