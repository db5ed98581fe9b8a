// Package sources remembers what files and trees contained, so that what has not changed since need not be read again.
//
// A tree is the same as before when its listing is: of everything in it name, kind, permissions, device, inode, size, and
// the times of its last modification and status change, to the nanosecond. Nobody can set the last of these, so that
// a change is seen unless it happens within the same tick of the file system's clock. Therefore a tree is remembered only if
// everything in it had been left alone for two seconds (settled) when the listing began, before anything was read: what changes later, while
// it is read or after that, gets a time that differs. Three things go unseen: writes through a shared memory mapping
// on file systems that do not note them (tmpfs), a clock that is set back, and what is below a mount point, which is why a
// tree of several file systems, or of one whose clock is another machine's, is not remembered at all.
//
// # The file
//
// Below the user's cache directory is one file of slots; the place of a slot follows from device and inode, and
// what was there before is lost, so that the file has a bounded size.
//
//	slot = 32 bytes listing's BLAKE3 hash, 32 bytes SHA-256 of the contents, 32 bytes BLAKE3 hash of the tag and those 64
//
// A slot that is damaged, half written by a crash, or mixed from two writers, does not have the hash that it should
// and is as good as none. Nothing is synced or locked. A file that cannot be written means that everything is read.
//
// Not here: reading the contents (package client), and whether a store has them.
package sources

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
)

const (
	slots    = 1 << 16
	slotSize = 96
	tag      = "cairn sources 1\n"
)

// settled is how long something must have been left alone to be remembered: some file systems count whole seconds.
const settled = 2 * time.Second

// Cache is the file of slots. A nil Cache remembers nothing.
type Cache struct{ f *os.File }

// Open opens the cache in a directory, which it makes.
func Open(dir string) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the cache of sources: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "sources"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the cache of sources: %w", err)
	}
	return &Cache{f}, nil
}

// Close closes the file.
func (c *Cache) Close() error {
	if c == nil {
		return nil
	}
	return c.f.Close()
}

// Listing is what a tree looked like, without its contents.
type Listing struct {
	hash  [32]byte
	slot  int64
	still bool // it may be remembered
}

// Recall returns the hash of the contents of a tree, if they are known.
func (c *Cache) Recall(l *Listing) (store.Hash, bool) {
	if c == nil || !l.still {
		return store.Hash{}, false
	}
	var b [slotSize]byte
	if _, err := c.f.ReadAt(b[:], l.slot); err != nil || [32]byte(b[:32]) != l.hash || [32]byte(b[64:]) != check(b[:64]) {
		return store.Hash{}, false
	}
	return store.NewHash(store.SHA256, b[32:64]), true
}

// Blank reports whether nothing is remembered of what is at path, so that nobody need wait for its listing.
func (c *Cache) Blank(path, kind string) bool {
	if c == nil {
		return true
	}
	var st unix.Stat_t
	var b [slotSize]byte
	if unix.Lstat(path, &st) != nil {
		return true
	}
	_, err := c.f.ReadAt(b[:], slotOf(&st, kind))
	return err != nil || [32]byte(b[64:]) != check(b[:64])
}

// slotOf returns where in the file something has its slot.
func slotOf(st *unix.Stat_t, kind string) int64 {
	place := binary.LittleEndian.AppendUint64([]byte(kind), st.Ino)
	place = binary.LittleEndian.AppendUint64(place, st.Dev)
	return int64(binary.LittleEndian.Uint64(store.BLAKE3.Sum(place).Bytes())%slots) * slotSize
}

// Remember notes the SHA-256 hash of the contents of a tree, which were read after its listing began.
func (c *Cache) Remember(l *Listing, contents store.Hash) {
	if c == nil || !l.still || contents.Algorithm() != store.SHA256 {
		return
	}
	b := append(l.hash[:], contents.Bytes()...)
	sum := check(b)
	c.f.WriteAt(append(b, sum[:]...), l.slot)
}

func check(b []byte) [32]byte {
	return [32]byte(store.BLAKE3.Sum(append([]byte(tag), b...)).Bytes())
}

// List looks at everything in a tree, or no further than to what keeps it from being remembered. What the contents are hashed as is part
// of what is remembered: kind tells apart the archive of a file and its bytes. The listing began when nobody had read any of the contents;
// what changes while they are read is seen in the listing to have changed just now, or in the next one.
func List(path, kind string, began time.Time) (*Listing, error) {
	w := &walk{began: began}
	err := w.root(path)
	if err == errNotStill {
		return &Listing{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, err)
	}
	w.put(uint64(len(kind)))
	w.text = append(w.text, kind...)
	l := &Listing{still: true, slot: slotOf(&w.top, kind)}
	copy(l.hash[:], w.sum())
	return l, nil
}

// errNotStill says that something has changed just now, or is on another file system, or on one whose times are not this machine's.
var errNotStill = errors.New("not to be remembered")

// walk lists a tree.
type walk struct {
	began time.Time
	top   unix.Stat_t
	text  []byte
	hash  hash.Hash
}

func (w *walk) root(path string) error {
	w.hash = store.BLAKE3.New()
	if err := unix.Lstat(path, &w.top); err != nil {
		return err
	}
	var vfs unix.Statfs_t
	if w.top.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Statfs(path, &vfs); err != nil {
			return err
		}
		if !local(int64(vfs.Type)) {
			return errNotStill
		}
	}
	return w.entry(unix.AT_FDCWD, path, "", &w.top, 0)
}

// local reports whether a file system gets its times from this machine's clock.
func local(kind int64) bool {
	switch kind {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, 0x2fc12fc1: // the last is ZFS
		return true
	}
	return false
}

// maxDepth is how deep directories nest in an archive.
const maxDepth = 256

// entry lists what st is of.
func (w *walk) entry(at int, name, shown string, st *unix.Stat_t, depth int) error {
	for _, at := range []unix.Timespec{st.Mtim, st.Ctim} {
		if !time.Unix(at.Unix()).Add(settled).Before(w.began) {
			return errNotStill
		}
	}
	if st.Dev != w.top.Dev {
		return errNotStill
	}
	w.note(shown, st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if depth == maxDepth {
		return unix.ELOOP
	}
	return w.directory(at, name, depth)
}

// note adds a line to the listing.
func (w *walk) note(name string, st *unix.Stat_t) {
	w.put(uint64(len(name)))
	w.text = append(w.text, name...)
	for _, v := range []uint64{uint64(st.Mode), st.Dev, st.Ino, uint64(st.Size), uint64(st.Mtim.Sec), uint64(st.Mtim.Nsec), uint64(st.Ctim.Sec), uint64(st.Ctim.Nsec)} {
		w.put(v)
	}
	if len(w.text) > 1<<15 {
		w.hash.Write(w.text)
		w.text = w.text[:0]
	}
}

func (w *walk) put(v uint64) { w.text = binary.LittleEndian.AppendUint64(w.text, v) }

func (w *walk) sum() []byte {
	w.hash.Write(w.text)
	return w.hash.Sum(nil)
}

func (w *walk) directory(at int, name string, depth int) error {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	w.put(uint64(len(names)))
	for _, n := range names {
		var st unix.Stat_t
		err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil {
			err = w.entry(fd, n, n, &st, depth+1)
		}
		if err == errNotStill {
			return err
		}
		if err != nil {
			var pe *fs.PathError
			if errors.As(err, &pe) {
				return err
			}
			return &fs.PathError{Op: "stat", Path: n, Err: err}
		}
	}
	return nil
}
