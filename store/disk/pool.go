package disk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// Sizes of the files that become links as they come, in bytes. A smaller one takes a block of the disk at most, and its link in the pool,
// made, swept and unlinked again, costs about as much as the file; for a larger one a second hash beside SHA-256 is
// a quarter of the work, and it is rarely there twice. Optimise takes them all, and so do additions when AutoOptimise is wanted.
const (
	leastLinked = 2 << 10
	mostLinked  = 64 << 20
)

// pool is the directory of links (optimise.go), to whom comes with a file that is being made.
type pool struct {
	s      *Store
	least  int64 // sizes of the files that come into it
	most   int64
	shards [256]atomic.Int32 // handles of the directories, plus one; zero: not opened yet
	mu     sync.Mutex        // held to open one
	filter filter            // of the keys in shards that are open
	events atomic.Uint64     // whatever may have changed how many links something has
	swept  atomic.Pointer[sweep]
}

// sweep is what a sweep left.
type sweep struct {
	events uint64 // before it
	saved  int64
}

func newPool(s *Store) *pool {
	p := &pool{s: s, least: leastLinked, most: mostLinked}
	if s.opts.AutoOptimise {
		p.least, p.most = 1, math.MaxInt64
	}
	return p
}

// Files is how the files of trees are made that are to be registered: equal ones as links to one. Nil: each as a file of its own.
// The trees must be on the store's file system.
func (s *Store) Files() nar.Files {
	if s.opts.NoDedupe {
		return nil
	}
	return &tree{s: s, pool: s.pool}
}

// tree is an object that is being made at a temporary name.
type tree struct {
	s    *Store
	pool *pool // nil: no links
	temp string
	seal meta.Seal // of a tree that is one file whose hash the pool wanted

	maker nar.Maker
	later *newFiles // nil: files come into the pool at once

	mu    sync.Mutex
	given [][32]byte    // keys of what the pool has from it
	noted *atomic.Int64 // how many such keys it has, or all trees of an import; nil: none are noted
}

// maxGiven is how many keys are noted. What is not noted a sweep finds.
const maxGiven = 1 << 16

// newTree returns what makes the object p, or one that has no path yet. No derivation is like another, so that they are no links.
func (s *Store) newTree(p store.Path) *tree {
	t := &tree{s: s, temp: s.temp(), noted: new(atomic.Int64)}
	if !s.opts.NoDedupe && (p.IsZero() || !p.IsDerivation()) {
		t.pool = s.pool
	}
	return t
}

// restore makes the tree of an archive, of which it reads exactly one.
func (t *tree) restore(r io.Reader, sums ...io.Writer) error {
	opts := nar.RestoreOptions{Sums: sums}
	if t.pool != nil {
		opts.Files = t
	}
	err := nar.RestoreAt(r, int(t.s.dir.Fd()), filepath.Base(t.temp), &opts)
	if err != nil {
		t.takeBack()
	}
	return err
}

// drop removes a tree that has not become an object.
func (t *tree) drop() {
	if absent(t.temp) {
		return
	}
	removeTree(t.temp)
	t.takeBack()
}

// give makes a file of the tree the pool's entry. It reports false when there is one.
func (t *tree) give(to slot, at int, name string) (bool, error) {
	given, err := t.pool.give(to, at, name)
	if given && t.noted != nil && t.noted.Add(1) <= maxGiven {
		t.mu.Lock()
		t.given = append(t.given, to.key)
		t.mu.Unlock()
	}
	return given, err
}

// takeBack removes from the pool what only the pool has of a tree that is removed: on a full disk that is what the next one needs.
// Whoever takes an entry at the same time has the file, which is just not in the pool.
func (t *tree) takeBack() {
	for _, key := range t.given {
		from, err := t.pool.slot(key)
		var st unix.Stat_t
		if err == nil && unix.Fstatat(from.shard, from.entry(), &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Nlink == 1 {
			t.pool.forget(from)
		}
	}
	t.given = nil
}

// file makes a tree that is a plain file.
func (t *tree) file(data []byte) error {
	at, name := int(t.s.dir.Fd()), filepath.Base(t.temp)
	var err error
	if t.pool != nil {
		err = t.Make(at, name, &nar.Header{Type: nar.Regular, Size: int64(len(data))}, data)
	} else {
		err = t.maker.Make(at, name, false, data)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", t.temp, err)
	}
	return nil
}

// Make makes a small file: a link to what the pool has, if that is the same byte for byte, or else a file that the pool
// gets a link to. That the file is not durable yet, and may never be valid, does not matter: nobody trusts an entry.
// Only the tree itself is made in the store directory.
func (t *tree) Make(at int, name string, h *nar.Header, data []byte) error {
	if int64(len(data)) < t.pool.least {
		return t.maker.Make(at, name, h.Executable, data)
	}
	to, err := t.pool.slot(keyOf(h.Executable, data))
	if err != nil {
		return err
	}
	if at == int(t.s.dir.Fd()) {
		t.seal = to.key
	} else if t.later != nil {
		return t.makeNew(to, at, name, h, data)
	}
	return t.put(to, at, name, h.Executable, data)
}

// Large hashes a file while it is written.
func (t *tree) Large(size int64, executable bool) (io.Writer, func(at int, name string) error) {
	if size < t.pool.least || size > t.pool.most {
		return nil, nil
	}
	h := newFileHash(size, executable)
	return h, func(at int, name string) error {
		key := h.key()
		if at == int(t.s.dir.Fd()) {
			t.seal = key
		}
		to, err := t.pool.slot(key)
		if err != nil {
			return err
		}
		return t.settle(to, at, name, executable, size)
	}
}

func (p *pool) close() {
	for i := range p.shards {
		if fd := p.shards[i].Swap(0); fd > 0 {
			unix.Close(int(fd - 1))
		}
	}
}

// shard returns a handle of a directory of the pool, which it makes.
func (p *pool) shard(i byte) (int, error) {
	if fd := p.shards[i].Load(); fd > 0 {
		return int(fd - 1), nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if fd := p.shards[i].Load(); fd > 0 {
		return int(fd - 1), nil
	}
	dir := filepath.Join(p.s.layout.RealDir, poolName, hex.EncodeToString([]byte{i}))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	err = readNames(dir, func(names []string) error {
		for _, name := range names {
			if key, err := hex.DecodeString(name); err == nil && len(key) == 31 {
				p.filter.add([32]byte(append([]byte{i}, key...)))
			}
		}
		return nil
	})
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	p.shards[i].Store(int32(fd + 1))
	return fd, nil
}

// filter says of most keys that are not in the pool that they are not, so that it need not be asked for them:
// three bits for a key in 4 MiB, which is good for some million keys. Nothing is ever taken out.
type filter [filterWords]atomic.Uint64

const filterWords = 4 << 20 / 8

func (f *filter) bits(key [32]byte) (at [3]uint64) {
	for i := range at {
		at[i] = binary.LittleEndian.Uint64(key[8*(i+1):]) % (64 * filterWords)
	}
	return at
}

func (f *filter) add(key [32]byte) {
	for _, at := range f.bits(key) {
		f[at/64].Or(1 << (at % 64))
	}
}

func (f *filter) may(key [32]byte) bool {
	for _, at := range f.bits(key) {
		if f[at/64].Load()&(1<<(at%64)) == 0 {
			return false
		}
	}
	return true
}

// slot is where the pool has, or would have, the file with a key.
type slot struct {
	key   [32]byte
	shard int // handle of the directory
}

func (p *pool) slot(key [32]byte) (slot, error) {
	shard, err := p.shard(key[0])
	return slot{key, shard}, err
}

// entry is the name in the directory.
func (s slot) entry() string { return hex.EncodeToString(s.key[1:]) }

// fileHash is the running BLAKE3 hash of a file's archive, which is its key.
type fileHash struct {
	hash.Hash
	size int64
}

var fileHashes = sync.Pool{New: func() any { return &fileHash{Hash: store.BLAKE3.New()} }}

// The archive of a file before its size and after its padding.
var plainHead, programHead, fileTail = archiveParts()

func archiveParts() (plain, program, tail []byte) {
	for _, executable := range []bool{false, true} {
		var b bytes.Buffer
		if err := nar.DumpString(&b, nil, executable); err != nil {
			panic("BUG: archive of nothing: " + err.Error())
		}
		tail = b.Bytes()[b.Len()-closeSize:]
		plain, program = program, b.Bytes()[:b.Len()-closeSize-8]
	}
	return plain, program, tail
}

// closeSize is the size of ")" in an archive.
const closeSize = 16

func newFileHash(size int64, executable bool) *fileHash {
	h := fileHashes.Get().(*fileHash)
	h.Reset()
	h.size = size
	var buf [128]byte
	head := append(buf[:0], plainHead...)
	if executable {
		head = append(buf[:0], programHead...)
	}
	h.Write(binary.LittleEndian.AppendUint64(head, uint64(size)))
	return h
}

// key ends the hash.
func (h *fileHash) key() (key [32]byte) {
	var buf [32]byte
	h.Write(append(buf[:wire.Padding(uint64(h.size))], fileTail...))
	h.Sum(key[:0])
	fileHashes.Put(h)
	return key
}

// keyOf returns the key of a file.
func keyOf(executable bool, data []byte) [32]byte {
	h := newFileHash(int64(len(data)), executable)
	h.Write(data)
	return h.key()
}

// put makes a small file whose slot is known; see Make of tree.
func (t *tree) put(to slot, at int, name string, executable bool, data []byte) error {
	for range 2 { // somebody else may give an equal file meanwhile
		linked, err := t.pool.take(to, at, name, func(fd int) (bool, error) { return holds(fd, executable, data) })
		if linked || err != nil {
			return err
		}
		if err := t.maker.Make(at, name, executable, data); err != nil {
			return err
		}
		given, err := t.give(to, at, name)
		if given {
			return nil
		}
		if err = errors.Join(err, unix.Unlinkat(at, name, 0)); err != nil {
			return err
		}
	}
	return t.maker.Make(at, name, executable, data)
}

// take makes name a link to an entry that same says is the file. It reports false when there is no such entry any more.
func (p *pool) take(from slot, at int, name string, same func(fd int) (bool, error)) (bool, error) {
	if !p.filter.may(from.key) {
		return false, nil
	}
	err := unix.Linkat(from.shard, from.entry(), at, name, 0)
	switch err {
	case nil:
	case unix.ENOENT, unix.EPERM, unix.ENOSPC, unix.EDQUOT:
		return false, nil
	case unix.EMLINK: // full: another takes its place
		return false, p.forget(from)
	default:
		return false, fmt.Errorf("link %s: %w", from.entry(), err)
	}
	failpoint.Hit("disk/pool/taken")
	ok, err := p.check(at, name, same)
	if ok {
		p.events.Add(1)
		return true, nil
	}
	if e := unix.Unlinkat(at, name, 0); e != nil {
		return false, errors.Join(err, e)
	}
	p.s.log.Warn("an entry of the pool of links is damaged and forgotten; verify the store", "entry", from.entry(), "error", err)
	return false, p.forget(from)
}

// check compares what has just become a link, under a name that nobody else changes.
func (p *pool) check(at int, name string, same func(fd int) (bool, error)) (bool, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return same(fd)
}

// give makes a file the pool's entry. It reports false when there is one.
func (p *pool) give(to slot, at int, name string) (bool, error) {
	p.events.Add(1)
	p.filter.add(to.key)
	switch err := unix.Linkat(at, name, to.shard, to.entry(), 0); err {
	case nil, unix.EPERM, unix.ENOSPC, unix.EDQUOT: // without links, or room for them, the file is just not in the pool
		failpoint.Hit("disk/pool/given")
		return true, nil
	case unix.EEXIST:
		return false, nil
	default:
		return false, fmt.Errorf("link %s: %w", to.entry(), err)
	}
}

func (p *pool) forget(s slot) error {
	if err := unix.Unlinkat(s.shard, s.entry(), 0); err != nil && err != unix.ENOENT {
		return err
	}
	failpoint.Hit("disk/pool/forgotten")
	return nil
}

// canonical reports whether an open file has the metadata of files in the store.
func canonical(fd int, executable bool, size int64) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	mode := uint32(unix.S_IFREG | 0o444)
	if executable {
		mode = unix.S_IFREG | 0o555
	}
	return st.Mode == mode && st.Size == size && st.Mtim.Sec == 1 && st.Mtim.Nsec == 0 && int(st.Uid) == os.Geteuid(), nil
}

var compareBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// holds reports whether an open file is canonical and has the data.
func holds(fd int, executable bool, data []byte) (bool, error) {
	if ok, err := canonical(fd, executable, int64(len(data))); !ok || err != nil {
		return false, err
	}
	buf := compareBuffers.Get().(*[64 << 10]byte)
	defer compareBuffers.Put(buf)
	for len(data) > 0 {
		n, err := unix.Read(fd, buf[:min(len(buf), len(data))])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 || !bytes.Equal(buf[:n], data[:n]) {
			return false, err
		}
		data = data[n:]
	}
	return true, nil
}

// settle makes a file that is written a link to the pool's entry if they are the same, or the entry if there is none.
func (t *tree) settle(to slot, at int, name string, executable bool, size int64) error {
	mine, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(mine), name)
	defer file.Close()
	temp := t.s.temp()
	linked, err := t.pool.take(to, unix.AT_FDCWD, temp, func(fd int) (bool, error) {
		if ok, err := canonical(fd, executable, size); !ok || err != nil {
			return false, err
		}
		return equalContents(file, io.NewSectionReader(descriptor(fd), 0, size))
	})
	switch {
	case err != nil:
		return err
	case !linked:
		_, err := t.give(to, at, name)
		return err
	}
	failpoint.Hit("disk/pool/linked")
	if err := unix.Renameat(unix.AT_FDCWD, temp, at, name); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// descriptor reads a file without owning it.
type descriptor int

func (d descriptor) ReadAt(b []byte, off int64) (int, error) {
	n, err := unix.Pread(int(d), b, off)
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF
	}
	return max(n, 0), err
}
