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
	// Sums are written the bytes of the archive, in order, each by one goroutine at a time; what they return as an error Restore does.
	Sums []io.Writer
	// Files makes regular files instead of Restore, which is for making them links.
	Files Files
}

// Files makes the regular files of a tree. Its methods are called by several goroutines at once.
type Files interface {
	// Make makes the file h called name in the directory at, as a Maker does: when it fails it leaves nothing. The data may be
	// used until it returns.
	Make(at int, name string, h *Header, data []byte) error
	// Large returns what is written the data of a file that is too large to be made at once; Restore makes it. When it has its
	// final metadata, and all its data, sealed is called. Both may be nil.
	Large(size int64, executable bool) (data io.Writer, sealed func(at int, name string) error)
}

// smallFile is up to which size a file is made in one piece.
const smallFile = bulk / 4

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
	return restoreAt(r, at, base, path, opts)
}

// RestoreAt is Restore of a tree called name in the directory with the handle at.
func RestoreAt(r io.Reader, at int, name string, opts *RestoreOptions) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return restoreAt(r, at, name, name, opts)
}

func restoreAt(r io.Reader, at int, name, path string, opts *RestoreOptions) error {
	var o RestoreOptions
	if opts != nil {
		o = *opts
	}
	t := &restorer{base: name, planter: planter{maker: Maker{sync: o.Sync}, files: o.Files}}
	t.parent = newFolder(at) // which is never left
	t.tape = newTape(r, o.Sums, t.dispatch, t.planter.fail)
	t.src = NewReader(t.tape)
	err := t.run()
	if e := t.finish(err); err == nil || errors.Is(e, errStopped) {
		err = e
	}
	if err != nil {
		return errors.Join(fmt.Errorf("restore %s: %w", path, err), t.abort(at))
	}
	return nil
}

// restorer reads an archive and hands what is in it over to a planter.
type restorer struct {
	planter
	tape   *tape
	src    *Reader
	base   string    // the tree's name
	parent *folder   // in which it is
	dirs   []*folder // that are open, outermost first
	batch  *batch    // of files in the tape's current block; nil when there are none
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
			t.leave()
		} else if err = t.make(h); err != nil {
			return err
		}
		if t.stopped() {
			return errStopped
		}
	}
}

// finish waits for everything that is under way, and returns the first error of what goes on beside the reading.
func (t *restorer) finish(err error) error {
	if err != nil {
		t.planter.fail(err)
	}
	for len(t.dirs) > 0 {
		t.leave()
	}
	t.last()
	t.planter.wait()
	t.tape.close()
	return t.planter.first()
}

func (t *restorer) make(h *Header) error {
	dir, name := t.parent, t.base
	if len(t.dirs) > 0 {
		dir = t.dirs[len(t.dirs)-1]
		name = h.Path[strings.LastIndexByte(h.Path, '/')+1:]
	}
	var err error
	switch {
	case h.Type == Directory:
		err = t.directory(dir, name)
	case h.Type == Regular && h.Size > smallFile:
		err = t.large(dir, name, h)
	default:
		err = t.small(dir, name, h)
	}
	if err != nil && !errors.Is(err, t.src.err) {
		err = makeError(h.Type, h.Path, err)
	}
	return err
}

func makeError(kind Type, path string, err error) error {
	return fmt.Errorf("make %s %q: %w", kind, path, err)
}

// small leaves a small file, or a link, to the planter.
func (t *restorer) small(dir *folder, name string, h *Header) error {
	j := job{header: h, dir: dir, name: name}
	if h.Type == Regular {
		room := t.tape.room(int(h.Size))[:h.Size]
		for at := 0; at < len(room); {
			n, err := t.data(room[at:])
			if at += n; err != nil {
				return err
			}
		}
		j.data = room
	}
	if t.batch == nil {
		t.batch = newBatch(t.tape.cur)
	}
	dir.users.Add(1)
	if t.batch.jobs = append(t.batch.jobs, j); len(t.batch.jobs) == cap(t.batch.jobs) {
		t.dispatch()
	}
	return nil
}

// data reads data of the current file into room, which is the tape's.
func (t *restorer) data(room []byte) (int, error) {
	src := t.src.src
	t.src.src = t.tape.src // what is in the block need not be copied there
	n, err := t.src.Read(room)
	t.src.src = src
	t.tape.cur.fill += n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // of more than there is
	}
	return n, err
}

// dispatch gives the files of the current block to a worker.
func (t *restorer) dispatch() {
	if b := t.batch; b != nil {
		t.batch = nil
		t.plant(b)
	}
}

// last is dispatch for the last batch, which is often the only one.
func (t *restorer) last() {
	if b := t.batch; b != nil {
		t.batch = nil
		t.work(b)
	}
}

// large makes a file while it is read.
func (t *restorer) large(dir *folder, name string, h *Header) error {
	f, err := t.planter.large(dir, name, h)
	if err != nil {
		return err
	}
	defer f.end()
	for left := h.Size; left > 0; {
		room := t.tape.room(1)
		at := t.tape.cur.fill
		n, err := t.data(room[:min(int64(len(room)), left)])
		left -= int64(n)
		if n > 0 {
			f.write(t.tape.cur, (*t.tape.cur.buf)[at:at+n])
		}
		if err != nil {
			return err
		}
		if t.stopped() {
			return errStopped
		}
	}
	f.whole = true
	return nil
}

// directory makes a directory that its owner can write until nothing is made in it any more.
func (t *restorer) directory(dir *folder, name string) error {
	if err := retry(func() error { return unix.Mkdirat(dir.fd, name, 0o755) }); err != nil {
		return err
	}
	t.made.Store(true)
	fd, err := open(dir.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	t.dirs = append(t.dirs, newFolder(fd))
	return nil
}

// leave says that nothing more comes for the innermost directory.
func (t *restorer) leave() {
	dir := t.dirs[len(t.dirs)-1]
	t.dirs = t.dirs[:len(t.dirs)-1]
	t.done(dir)
}

// abort removes what was made.
func (t *restorer) abort(at int) error {
	if !t.made.Load() {
		return nil
	}
	return remove(at, t.base)
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
