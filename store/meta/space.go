package meta

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// minRoom is the free space with which something that makes room may begin.
const minRoom = 4 << 20

// tablesDelay is how long a transaction waits on a full disk for tables to be made.
const tablesDelay = 5 * time.Second

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

// statfs is replaced by tests.
var statfs = unix.Statfs

// Free returns what is free on the file system of path.
func Free(path string) (Space, error) {
	var st unix.Statfs_t
	for {
		err := statfs(path, &st)
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
// than so many bytes or so few inodes that nothing should be added, and returns what is free besides.
func Need(what, path string, bytes int64) (Space, error) {
	return need(what, path, bytes, reserveInodes)
}

func need(what, path string, bytes, inodes int64) (Space, error) {
	free, err := Free(path)
	switch {
	case err != nil:
	case free.Bytes < bytes:
		err = fmt.Errorf("%w: %s has %d MiB free, %s needs %d MiB; collect garbage or make room", ErrNoSpace, path, free.Bytes>>20, what, (bytes+1<<20-1)>>20)
	case free.Inodes < inodes:
		err = fmt.Errorf("%w: %s has %d inodes free, %s needs %d; collect garbage or remove files", ErrNoSpace, path, free.Inodes, what, inodes)
	}
	free.Bytes -= bytes
	free.Inodes -= inodes
	return free, err
}

// Room reports with ErrNoSpace whether the database's file system is too full to add so many bytes, and returns what is free besides.
func (d *DB) Room(bytes int64) (Space, error) {
	return need("the database", d.dir, d.reserve()+bytes, reserveInodes)
}

func (d *DB) roomFor(bytes, inodes int64) error {
	_, err := need("the database", d.dir, bytes, inodes)
	return err
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

// Journals. Badger begins the next when one is full, in the midst of a commit: it opens a file of the next number, which may be there if it
// is empty, makes it twice as long as a memtable, and writes to it through a map. Hence an empty file of that name is kept ready that
// has its inode and its place on the disk already. It is made while transactions go on, and waited for by those that may need it.

// journalRoom is the place of a journal: what makes it full, and the transaction that comes then.
func (d *DB) journalRoom() int64 { return d.opts.MemTableSize * 5 / 4 }

// filling is the journal that Badger writes to.
type filling struct {
	number  int
	rows    int64      // bytes, at least as many as Badger counts until it begins the next
	secured bool       // has its place on the disk
	next    chan error // while the next is made: what becomes of it
}

// memTableFor returns how large the memtables of this process must be, so that each journal fits into one, which is how Badger reads them.
// The length of a journal tells how large the memtable was that it was made with, unless an opening has cut it.
func (d *DB) memTableFor(journals []string) (int64, error) {
	size := d.opts.MemTableSize
	for _, name := range journals {
		fi, err := os.Stat(name)
		if err != nil {
			return 0, err
		}
		if fi.Size() != 2*d.opts.MemTableSize {
			size = max(size, olderMemTable, fi.Size()/2)
		}
	}
	return size, nil
}

func (d *DB) journalName(number int) string {
	return filepath.Join(d.dir, fmt.Sprintf("%05d.mem", number))
}

// secure has the journal's place ready, and the next journal when this one is nearly full, or soon. It takes no room that a table may need which
// Badger is just making of an older journal.
func (d *DB) secure() error {
	if d.filling.next != nil {
		return d.secureNext()
	}
	next := d.journalName(d.filling.number + 1)
	fi, err := os.Stat(next)
	if err == nil && fi.Size() > 0 { // Badger has begun it
		d.filling = filling{number: d.filling.number + 1, secured: true}
		next = d.journalName(d.filling.number + 1)
		fi, err = os.Stat(next)
	}
	if !d.filling.secured {
		if err := d.allocate(d.journalName(d.filling.number), os.O_WRONLY, d.older()); err != nil {
			return err
		}
		d.filling.secured = true
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	made, older := make(chan error, 1), d.older()
	d.filling.next = made
	go func() {
		err := d.allocate(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, older)
		if err != nil {
			os.Remove(next)
		}
		made <- err
	}()
	return d.secureNext()
}

// secureNext tells what has become of the next journal, for which it waits only when it may be needed at once.
func (d *DB) secureNext() error {
	if len(d.filling.next) == 0 && !d.nearlyFull() {
		return nil
	}
	return d.awaitNext()
}

// awaitNext waits for the next journal, if it is being made.
func (d *DB) awaitNext() (err error) {
	if d.filling.next != nil {
		err = <-d.filling.next
		d.filling.next = nil
	}
	return err
}

// allocate gives a journal its place, if there is room for that and for tables of so many older ones.
func (d *DB) allocate(name string, flags, older int) error {
	free, err := Free(d.dir)
	if err != nil {
		return err
	}
	if free.Bytes < d.journalRoom()+int64(older)*d.opts.MemTableSize+minRoom/4 {
		return &os.PathError{Op: "allocate", Path: name, Err: unix.ENOSPC}
	}
	return allocate(name, flags, d.journalRoom())
}

// older returns how many journals there are before that which is written to: of which Badger makes tables.
func (d *DB) older() (n int) {
	for number := d.filling.number - 1; number > 0; number-- {
		if _, err := os.Stat(d.journalName(number)); err != nil {
			break
		}
		n++
	}
	return n
}

// waitForTables waits a while until there are no older journals.
func (d *DB) waitForTables() {
	for begin := time.Now(); d.older() > 0 && time.Since(begin) < tablesDelay; {
		time.Sleep(10 * time.Millisecond)
	}
}

// allocate gives the beginning of a file its place on the disk, whether the file is as long or not. Where the file system cannot, it does nothing.
func allocate(name string, flags int, size int64) error {
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil, errors.Is(err, unix.EOPNOTSUPP):
			return nil
		default:
			return &os.PathError{Op: "allocate", Path: name, Err: err}
		}
	}
}

// nearlyFull reports whether Badger may begin the next journal, and make a table of this one, at the next commit.
func (d *DB) nearlyFull() bool { return d.filling.rows > d.opts.MemTableSize*3/4 }

// unflushed returns the bytes of journals that are not in tables yet.
func (d *DB) unflushed() int64 {
	return d.filling.rows + int64(d.older())*d.opts.MemTableSize
}

// roomToCommit reports why a transaction must not be tried: without the journal's place, or, when it may be the last in its journal, without
// the next one and room for the tables.
func (d *DB) roomToCommit() error {
	err := d.secure()
	if full(err) {
		d.dropBallast()
		d.waitForTables()
		err = d.secure()
	}
	if err != nil && (!d.filling.secured || d.nearlyFull()) {
		if full(err) {
			err = fmt.Errorf("%w: %w; collect garbage or make room", ErrNoSpace, err)
		}
		return err
	}
	if d.nearlyFull() {
		return d.makeRoom(d.unflushed() + minRoom)
	}
	return nil
}

// roomToOpen gives up the ballast when Badger might not get through its opening without it, which begins a journal, and makes tables
// of what is written in the old ones.
func (d *DB) roomToOpen(written int64) error {
	if d.roomFor(d.opts.Reserve, reserveInodes) == nil {
		return nil
	}
	return d.makeRoom(written + minRoom)
}

// roomToClose is for the table that Badger writes when it closes.
func (d *DB) roomToClose() error { return d.makeRoom(d.unflushed() + minRoom/4) }

// roomToShrink is for batches that only delete: they may use the reserve and then the ballast.
func (d *DB) roomToShrink() error { return d.makeRoom(minRoom / 4) }

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
	d.mergeAll()
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
