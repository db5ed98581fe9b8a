package nar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"cairn/archive/wire"
)

// errChanged says that a tree changed while it was being dumped.
var errChanged = errors.New("changed while it was read")

// Dump writes the archive of the tree at path. It goes from directory handle to directory handle
// and never follows a symbolic link, path itself included.
// Sockets, pipes and devices are errors.
func Dump(w io.Writer, path string) error {
	dir, base := filepath.Split(filepath.Clean(path))
	if base == "" || base == ".." {
		dir, base = path, "."
	}
	at, err := open(unix.AT_FDCWD, orDot(dir), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("dump %s: open %s: %w", path, orDot(dir), err)
	}
	defer unix.Close(at)
	return dumpAt(w, at, base, path)
}

// DumpAt is Dump of the tree called name in the directory with the handle at.
func DumpAt(w io.Writer, at int, name string) error { return dumpAt(w, at, name, name) }

// dumpAt is DumpAt of a tree that errors call path.
func dumpAt(w io.Writer, at int, name, path string) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	d := &dumper{dst: w, buf: *buf}
	if err := d.root(at, name); err != nil {
		return fmt.Errorf("dump %s: %w", filepath.Join(append([]string{path}, d.names...)...), err)
	}
	return nil
}

// DumpOpen writes the archive of the directory that f is, as Dump does.
func DumpOpen(w io.Writer, f *os.File) error { return dumpAt(w, int(f.Fd()), ".", f.Name()) }

// NewFileReader returns the archive of a regular file of size bytes, which r gives; it may have more.
func NewFileReader(r io.Reader, size int64, executable bool) io.Reader {
	head := groupStart + tokenRegular + tokenContents
	if executable {
		head = groupStart + tokenRegular + groupExecutable
	}
	head += string(binary.LittleEndian.AppendUint64(nil, uint64(size)))
	tail := string(make([]byte, wire.Padding(uint64(size)))) + tokenClose
	return io.MultiReader(strings.NewReader(head), &exactly{r, size}, strings.NewReader(tail))
}

// exactly reads left bytes, or fails.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = errChanged
	}
	return n, err
}

func orDot(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}

// dumper collects the archive in one buffer, into which file data is read directly.
type dumper struct {
	dst   io.Writer
	buf   []byte
	fill  int
	names []string // where it is, for errors
}

func (d *dumper) root(at int, name string) error {
	if err := d.put(groupStart); err != nil {
		return err
	}
	if err := d.node(at, name, unix.DT_UNKNOWN, tokenClose); err != nil {
		return err
	}
	return d.flush()
}

// node writes an object from its type to its end.
func (d *dumper) node(at int, name string, kind uint8, end string) error {
	if kind == unix.DT_UNKNOWN {
		var err error
		if kind, err = typeOf(at, name); err != nil {
			return err
		}
	}
	switch kind {
	case unix.DT_REG:
		return d.regular(at, name, end)
	case unix.DT_LNK:
		return d.symlink(at, name, end)
	case unix.DT_DIR:
		return d.directory(at, name, end)
	}
	return fmt.Errorf("neither file, directory nor symbolic link; remove it first")
}

func typeOf(at int, name string) (uint8, error) {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	return uint8(st.Mode & unix.S_IFMT >> 12), nil
}

func (d *dumper) regular(at int, name, end string) error {
	fd, size, err := d.open(at, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := d.data(fd, size); err != nil {
		return err
	}
	return d.pad(uint64(size), end)
}

// open opens a regular file and writes what comes before its data.
func (d *dumper) open(at int, name string) (fd int, size int64, err error) {
	fd, err = open(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return -1, 0, fmt.Errorf("open: %w", err)
	}
	var st unix.Stat_t
	if err = retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		err = fmt.Errorf("stat: %w", err)
	} else if st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errChanged
	}
	head := tokenRegular + tokenContents
	if st.Mode&0o100 != 0 {
		head = tokenRegular + groupExecutable
	}
	if err == nil {
		err = d.put(head)
	}
	if err == nil {
		err = d.number(uint64(st.Size))
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, err
	}
	return fd, st.Size, nil
}

// data reads exactly size bytes of fd.
func (d *dumper) data(fd int, size int64) error {
	for size > 0 {
		if d.fill == len(d.buf) {
			if err := d.flush(); err != nil {
				return err
			}
		}
		room := d.buf[d.fill:]
		room = room[:min(int64(len(room)), size)]
		n, err := unix.Read(fd, room)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return errChanged
		}
		d.fill += n
		size -= int64(n)
	}
	return nil
}

func (d *dumper) symlink(at int, name, end string) error {
	var buf [MaxTargetLen + 2]byte
	n, err := unix.Readlinkat(at, name, buf[:])
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	target := string(buf[:n])
	if err := checkTarget(target); err != nil {
		return err
	}
	if err := d.put(tokenSymlink + tokenTarget); err != nil {
		return err
	}
	return d.text(target, end)
}

func (d *dumper) directory(at int, name, end string) error {
	fd, entries, err := d.list(at, name, len(d.names)+1)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, e := range entries {
		if err := d.entry(fd, e); err != nil {
			return err
		}
	}
	return d.put(tokenClose + end[len(tokenClose):])
}

// list opens a directory, which is so deep, and writes what comes before its entries.
func (d *dumper) list(at int, name string, depth int) (fd int, entries []entry, err error) {
	fd, err = open(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, nil, fmt.Errorf("open: %w", err)
	}
	if err = checkDepth(depth); err == nil {
		if entries, err = readDirectory(fd); err != nil {
			err = fmt.Errorf("read directory: %w", err)
		}
	}
	if err == nil {
		err = d.put(tokenDirectory)
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, entries, nil
}

func (d *dumper) entry(fd int, e entry) error {
	if err := d.enter(e.name); err != nil {
		return err
	}
	if err := d.node(fd, e.name, e.kind, tokenClose+tokenClose); err != nil {
		return err
	}
	d.names = d.names[:len(d.names)-1]
	return nil
}

// enter writes what comes before an entry's object.
func (d *dumper) enter(name string) error {
	d.names = append(d.names, name)
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.put(tokenEntry + groupName); err != nil {
		return err
	}
	return d.text(name, groupNode)
}

func (d *dumper) put(s string) error {
	if len(s) > len(d.buf)-d.fill {
		if err := d.flush(); err != nil {
			return err
		}
	}
	d.fill += copy(d.buf[d.fill:], s)
	return nil
}

func (d *dumper) number(n uint64) error {
	if len(d.buf)-d.fill < 8 {
		if err := d.flush(); err != nil {
			return err
		}
	}
	binary.LittleEndian.PutUint64(d.buf[d.fill:], n)
	d.fill += 8
	return nil
}

func (d *dumper) text(s, after string) error {
	if err := d.number(uint64(len(s))); err != nil {
		return err
	}
	if err := d.put(s); err != nil {
		return err
	}
	return d.pad(uint64(len(s)), after)
}

// pad writes the padding of a string of n bytes and what follows it.
func (d *dumper) pad(n uint64, after string) error {
	if err := d.put("\x00\x00\x00\x00\x00\x00\x00"[:wire.Padding(n)]); err != nil {
		return err
	}
	return d.put(after)
}

func (d *dumper) flush() error {
	_, err := d.dst.Write(d.buf[:d.fill])
	d.fill = 0
	return err
}

// entry is a name in a directory and its type as the file system gave it.
type entry struct {
	name string
	kind uint8 // DT_…
}

// readDirectory returns the entries of a directory, sorted by name.
func readDirectory(fd int) ([]entry, error) {
	var entries []entry
	block := direntBuffers.Get().(*[direntSize]byte)
	defer direntBuffers.Put(block)
	for {
		n, err := unix.Getdents(fd, block[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("getdents", err)
		}
		if n <= 0 {
			break
		}
		entries = appendEntries(entries, block[:n])
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// appendEntries parses a block of struct linux_dirent64.
func appendEntries(entries []entry, block []byte) []entry {
	const nameAt = int(unsafe.Offsetof(unix.Dirent{}.Name))
	for len(block) > nameAt {
		size := int(binary.NativeEndian.Uint16(block[unsafe.Offsetof(unix.Dirent{}.Reclen):]))
		kind := block[unsafe.Offsetof(unix.Dirent{}.Type)]
		name := block[nameAt:size]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		if s := string(name); s != "." && s != ".." {
			entries = append(entries, entry{name: s, kind: kind})
		}
		block = block[size:]
	}
	return entries
}

// open opens a name relative to a directory handle.
func open(at int, name string, flags int) (int, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(at, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
