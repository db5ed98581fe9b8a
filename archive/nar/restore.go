package nar

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// RestoreOptions change how a tree is written.
type RestoreOptions struct {
	// Sync makes every file and directory durable before Restore returns,
	// except for the name of the tree in its parent.
	Sync bool
}

// Restore reads exactly one archive and makes its tree at path, which must not exist.
// The parent is opened once; everything below is made relative to handles of directories that
// Restore itself has made, exclusively, so that nothing outside path can be written.
// When it fails it removes what it has made.
func Restore(r io.Reader, path string, opts *RestoreOptions) error {
	path = filepath.Clean(path)
	dir, base := filepath.Split(path)
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("restore %s: no name for the tree", path)
	}
	at, err := open(unix.AT_FDCWD, orDot(dir), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("restore %s: open %s: %w", path, orDot(dir), err)
	}
	defer unix.Close(at)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	t := &restorer{src: NewReader(r), at: at, base: base, buf: *buf}
	t.sync = opts != nil && opts.Sync
	if err := t.run(); err != nil {
		return errors.Join(fmt.Errorf("restore %s: %w", path, err), t.abort())
	}
	return nil
}

type restorer struct {
	src  *Reader
	at   int    // the parent
	base string // the tree's name in it
	made bool   // the tree exists
	sync bool
	dirs []int // handles of the directories that are open, outermost first
	buf  []byte
}

func (t *restorer) run() error {
	for {
		h, err := t.src.step()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h == nil {
			err = t.leave()
		} else if err = t.make(h); err != nil {
			err = fmt.Errorf("make %s %q: %w", h.Type, h.Path, err)
		}
		if err != nil {
			return err
		}
	}
}

func (t *restorer) make(h *Header) error {
	at, name := t.at, t.base
	if len(t.dirs) > 0 {
		at = t.dirs[len(t.dirs)-1]
		name = h.Path[strings.LastIndexByte(h.Path, '/')+1:]
	}
	switch h.Type {
	case Regular:
		return t.regular(at, name, h)
	case Symlink:
		return t.symlink(at, name, h.Target)
	}
	return t.directory(at, name)
}

func (t *restorer) regular(at int, name string, h *Header) error {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	t.made = true
	mode := uint32(0o444)
	if h.Executable {
		mode = 0o555
	}
	err = t.data(fd)
	if err == nil {
		err = t.seal(fd, mode)
	}
	if e := unix.Close(fd); err == nil && e != unix.EINTR {
		err = e
	}
	return err
}

// data copies the current file to fd.
func (t *restorer) data(fd int) error {
	for {
		n, err := t.fill()
		if werr := writeAll(fd, t.buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fill reads as much of the current file as the buffer holds.
func (t *restorer) fill() (int, error) {
	at := 0
	for at < len(t.buf) {
		n, err := t.src.Read(t.buf[at:])
		at += n
		if err != nil {
			return at, err
		}
	}
	return at, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// epoch is one second after the epoch, for access and modification.
var epoch = []unix.Timespec{{Sec: 1}, {Sec: 1}}

// seal gives an open object its final metadata.
func (t *restorer) seal(fd int, mode uint32) error {
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(fd, "", epoch, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if !t.sync {
		return nil
	}
	return retry(func() error { return unix.Fsync(fd) })
}

func (t *restorer) symlink(at int, name, target string) error {
	if err := retry(func() error { return unix.Symlinkat(target, at, name) }); err != nil {
		return err
	}
	t.made = true
	return unix.UtimesNanoAt(at, name, epoch, unix.AT_SYMLINK_NOFOLLOW)
}

// directory makes a directory that its owner can write until it is left.
func (t *restorer) directory(at int, name string) error {
	if err := retry(func() error { return unix.Mkdirat(at, name, 0o755) }); err != nil {
		return err
	}
	t.made = true
	fd, err := open(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	t.dirs = append(t.dirs, fd)
	return nil
}

// leave finishes the innermost directory.
func (t *restorer) leave() error {
	fd := t.dirs[len(t.dirs)-1]
	t.dirs = t.dirs[:len(t.dirs)-1]
	defer unix.Close(fd)
	return t.seal(fd, 0o555)
}

// abort closes the handles and removes what was made.
func (t *restorer) abort() error {
	for _, fd := range t.dirs {
		unix.Close(fd)
	}
	if !t.made {
		return nil
	}
	return remove(t.at, t.base)
}

// remove deletes a tree, directories without write permission included.
func remove(at int, name string) error {
	err := unix.Unlinkat(at, name, 0)
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, err := open(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return err
	}
	entries, err := readDirectory(fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := remove(fd, e.name); err != nil {
			return err
		}
	}
	return unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
}
