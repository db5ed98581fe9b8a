package disk

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cairn/store/failpoint"
)

// linker makes files of one object links to the pool. Its caller has the object's lock.
type linker struct {
	op   *optimisation
	real string
	busy string // the file that says that directories are written to; "" before the first
}

// link makes a file and the pool's entry for it one file.
func (w *linker) link(c *candidate) error {
	path := filepath.Join(w.real, c.path)
	entry, err := w.entry(path, c)
	if err != nil || entry == nil || entry.st.Ino == c.st.Ino {
		return err
	}
	temp := w.op.s.temp()
	defer os.Remove(temp)
	err = os.Link(entry.path, temp)
	if errors.Is(err, unix.EMLINK) {
		return w.renew(entry.path, path, c)
	}
	if errors.Is(err, fs.ErrNotExist) { // a collection has taken it away
		return nil
	}
	if err == nil {
		failpoint.Hit("disk/link/made")
		err = w.replace(temp, path)
	}
	if err != nil {
		return err
	}
	freed := int64(0)
	if c.st.Nlink == 1 {
		freed = c.st.Blocks * 512
	}
	w.op.count(func(t *LinkStats) { t.Files++; t.Bytes += freed })
	if w.op.opts.Linked != nil {
		w.op.opts.Linked(c.st.Size, c.st.Blocks)
	}
	return nil
}

// poolEntry is a file of the pool.
type poolEntry struct {
	path string
	st   unix.Stat_t
}

// entry returns the pool's entry for a file, which is that file when there was none or a damaged one.
func (w *linker) entry(path string, c *candidate) (*poolEntry, error) {
	hex := c.key.Hex()
	w.op.s.pool.filter.add([32]byte(c.key.Bytes()))
	dir := filepath.Join(w.op.s.layout.RealDir, poolName, hex[:2])
	e := &poolEntry{path: filepath.Join(dir, hex[2:])}
	err := os.Link(path, e.path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		err = os.Link(path, e.path)
	}
	switch {
	case err == nil:
		failpoint.Hit("disk/link/pooled")
		w.op.pool.Store(c.st.Ino, struct{}{})
		e.st = c.st
		return e, nil
	case errors.Is(err, unix.EMLINK), errors.Is(err, unix.EPERM):
		return nil, nil // full, or a file system or a file that takes no links
	case !errors.Is(err, fs.ErrExist):
		return nil, err
	}
	if err := unix.Lstat(e.path, &e.st); err != nil {
		if err == unix.ENOENT {
			return nil, nil
		}
		return nil, &os.PathError{Op: "lstat", Path: e.path, Err: err}
	}
	same, err := w.same(path, c, e)
	if err != nil || same {
		return e, err
	}
	w.op.s.log.Warn("an entry of the pool of links is damaged and replaced; verify the store", "entry", e.path)
	return nil, w.renew(e.path, path, c)
}

// same compares a file with an entry: metadata and bytes.
func (w *linker) same(path string, c *candidate, e *poolEntry) (bool, error) {
	a, b := &c.st, &e.st
	if a.Ino == b.Ino && a.Dev == b.Dev {
		return true, nil
	}
	if a.Size != b.Size || a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim || a.Dev != b.Dev {
		return false, nil
	}
	return equalFiles(path, e.path)
}

func equalFiles(a, b string) (bool, error) {
	f, err := os.OpenFile(a, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.OpenFile(b, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer g.Close()
	return equalContents(f, g)
}

// equalContents compares what two readers have.
func equalContents(f, g io.Reader) (bool, error) {
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(f, p)
		m, err2 := io.ReadFull(g, q)
		if !bytes.Equal(p[:n], q[:m]) {
			return false, nil
		}
		if end := err == io.EOF || err == io.ErrUnexpectedEOF; end {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if err2 != nil {
			return false, err2
		}
	}
}

// renew makes a file the pool's entry in the place of one that has no room for links or is damaged.
func (w *linker) renew(entry, path string, c *candidate) error {
	temp := w.op.s.temp()
	defer os.Remove(temp)
	if err := os.Link(path, temp); err != nil {
		return err
	}
	failpoint.Hit("disk/link/renewing")
	w.op.pool.Store(c.st.Ino, struct{}{})
	return os.Rename(temp, entry)
}

// replace renames temp to path and gives the directory its time again.
func (w *linker) replace(temp, path string) error {
	if path == w.real {
		return os.Rename(temp, path)
	}
	if err := w.begin(); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if os.Geteuid() != 0 {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
		defer os.Chmod(dir, 0o555)
	}
	err := os.Rename(temp, path)
	failpoint.Hit("disk/link/renamed")
	return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, dir, epoch, unix.AT_SYMLINK_NOFOLLOW))
}

// begin says on disk that the object's directories are written to.
func (w *linker) begin() error {
	if w.busy != "" {
		return nil
	}
	busy := filepath.Join(filepath.Dir(w.real), busyPrefix+filepath.Base(w.real))
	f, err := os.OpenFile(busy, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	failpoint.Hit("disk/link/marked")
	w.busy = busy
	return f.Close()
}

func (w *linker) close() error {
	if w.busy == "" {
		return nil
	}
	failpoint.Hit("disk/link/done")
	return os.Remove(w.busy)
}
