package meta

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// minRoom is the free space with which something that makes room may begin.
const minRoom = 4 << 20

// Names of the ballast.
const (
	ballastName       = "ballast"
	ballastInodesName = "ballast-inodes"
)

// Inodes, which may run out before bytes do.
const (
	reserveInodes = 128 // nothing is added below
	ballastInodes = 64  // files given up when there are none
	minInodes     = 8   // with which something that makes room may begin
)

// Space is what an ordinary user may still use of a file system.
type Space struct {
	Bytes       int64 // free
	TotalBytes  int64
	Inodes      int64 // free; math.MaxInt64 where they are made on demand
	TotalInodes int64 // 0 where they are made on demand
}

// Free returns what is free on the file system of path.
func Free(path string) (Space, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return Space{}, &os.PathError{Op: "statfs", Path: path, Err: err}
		}
		break
	}
	f := Space{Bytes: int64(st.Bavail) * st.Bsize, Inodes: math.MaxInt64, TotalBytes: int64(st.Blocks) * st.Bsize}
	if st.Files > 0 {
		f.Inodes, f.TotalInodes = int64(st.Ffree), int64(st.Files)
	}
	return f, nil
}

// Need reports with ErrNoSpace whether the file system of path, which is there for what, has less free
// than so many bytes or so few inodes that nothing should be added.
func Need(what, path string, bytes int64) error { return need(what, path, bytes, reserveInodes) }

func need(what, path string, bytes, inodes int64) error {
	free, err := Free(path)
	switch {
	case err != nil:
		return err
	case free.Bytes < bytes:
		return fmt.Errorf("%w: %s has %d MiB free, %s needs %d MiB; collect garbage or make room", ErrNoSpace, path, free.Bytes>>20, what, (bytes+1<<20-1)>>20)
	case free.Inodes < inodes:
		return fmt.Errorf("%w: %s has %d inodes free, %s needs %d; collect garbage or remove files", ErrNoSpace, path, free.Inodes, what, inodes)
	}
	return nil
}

// Room reports with ErrNoSpace whether the database's file system is too full to add so many bytes.
func (d *DB) Room(bytes int64) error { return d.roomFor(d.reserve()+bytes, reserveInodes) }

func (d *DB) roomFor(bytes, inodes int64) error { return need("the database", d.dir, bytes, inodes) }

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
	if d.roomFor(d.opts.Reserve, reserveInodes) == nil {
		return nil
	}
	return d.makeRoom(d.written() + minRoom)
}

// roomToClose is for the table that Badger writes when it closes.
func (d *DB) roomToClose() error { return d.makeRoom(d.written() + minRoom/4) }

// roomToShrink is for batches that only delete: they may use the reserve and then the ballast. The pages of the journal that
// they are written to are allocated first, so that nobody can take the space from under Badger, which would be its death.
func (d *DB) roomToShrink(bytes int64) error {
	need := int64(minRoom / 4)
	if w := d.written(); w > d.opts.MemTableSize*3/4 {
		need = w + minRoom
	}
	if err := d.makeRoom(need); err != nil {
		return err
	}
	if err := d.secure(2*bytes + 64<<10); err == nil || !errors.Is(err, unix.ENOSPC) {
		return err
	}
	d.dropBallast()
	if err := d.secure(2*bytes + 64<<10); err != nil {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return nil
}

// journal is the file that Badger writes to, and how many bytes behind what is written have their place on the disk.
type journal struct {
	name  string
	ahead int64
}

// secureStep is how much is allocated at a time.
const secureStep = 4 << 20

// secure allocates place for so many bytes in the newest journal.
func (d *DB) secure(bytes int64) error {
	names, _ := filepath.Glob(filepath.Join(d.dir, "*.mem"))
	if len(names) == 0 {
		return nil
	}
	name := slices.Max(names)
	if d.journal.name != name || d.journal.ahead < bytes {
		if err := allocateMore(name, max(bytes, secureStep)); err != nil {
			return err
		}
		d.journal = journal{name, max(bytes, secureStep)}
	}
	d.journal.ahead -= bytes
	return nil
}

// allocateMore allocates what follows the allocated beginning of a sparse file.
func allocateMore(name string, bytes int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	end := min(st.Size, st.Blocks*512+bytes)
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, end)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return &os.PathError{Op: "allocate", Path: name, Err: err}
	}
	return nil
}

// makeRoom checks that so much space is free, and gives up the ballast when it is not.
func (d *DB) makeRoom(bytes int64) error {
	if d.roomFor(bytes, minInodes) == nil {
		return nil
	}
	d.dropBallast()
	return d.roomFor(bytes, minInodes)
}

func (d *DB) ballastFile() string { return filepath.Join(d.dir, ballastName) }

// ballastDir has files that are there for their inodes.
func (d *DB) ballastDir() string { return filepath.Join(d.dir, ballastInodesName) }

func (d *DB) dropBallast() {
	had := os.Remove(d.ballastFile()) == nil
	names, _ := filepath.Glob(filepath.Join(d.ballastDir(), "*"))
	for _, name := range names {
		had = os.Remove(name) == nil || had
	}
	if had {
		d.opts.Logger.Warn("disk is full: ballast given up", "dir", d.dir)
	}
}

// lookAfter measures, and makes the ballast again when there is room. It does so at most once a second.
func (d *DB) lookAfter() {
	if time.Since(d.looked) < time.Second {
		return
	}
	d.looked = time.Now()
	d.measure()
	d.makeBallast()
	if d.opts.Ballast > 0 && d.roomFor(0, reserveInodes+ballastInodes) == nil {
		d.makeBallastInodes()
	}
}

// makeBallast makes the ballast, or as much of it as there is room for: it goes before additions.
func (d *DB) makeBallast() {
	free, err := Free(d.dir)
	if err != nil {
		return
	}
	have := int64(0)
	if fi, err := os.Stat(d.ballastFile()); err == nil {
		have = fi.Size()
	}
	want := min(d.opts.Ballast, have+free.Bytes-2*minRoom)
	if want < have+minRoom && want < d.opts.Ballast || want <= have {
		return
	}
	f, err := os.OpenFile(d.ballastFile(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, want); err != nil { // somebody else took the room
		f.Truncate(have)
	}
}

func (d *DB) ballastInode(n int) string { return filepath.Join(d.ballastDir(), fmt.Sprint(n)) }

// makeBallastInodes makes the last one last, so that it says that all are there.
func (d *DB) makeBallastInodes() {
	if _, err := os.Stat(d.ballastInode(ballastInodes - 1)); err == nil {
		return
	}
	if err := os.Mkdir(d.ballastDir(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return
	}
	for n := range ballastInodes {
		f, err := os.OpenFile(d.ballastInode(n), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		f.Close()
	}
}
