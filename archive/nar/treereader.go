package nar

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// TreeReader gives the archive of a directory as DumpOpen writes it, to somebody who reads: file data goes to where it is wanted.
type TreeReader struct {
	path string
	d    dumper // whose buffer has the tokens that come next
	at   int    // what of them was read
	dirs []openDir
	file openRegular // being read; its fd is -1 when there is none
	err  error       // final
}

// openDir is a directory whose entries are being read.
type openDir struct {
	fd      int
	entries []entry // that come next
	end     string
}

// openRegular is a file of which data is left.
type openRegular struct {
	fd         int
	size, left int64
}

// tokensSize has room for all tokens of an entry.
const tokensSize = 2*MaxNameLen + 2*MaxTargetLen + 1024

// NewTreeReader returns the archive of the directory that f is. It must be closed.
func NewTreeReader(f *os.File) *TreeReader {
	t := &TreeReader{path: f.Name(), d: dumper{dst: io.Discard, buf: make([]byte, tokensSize)}, file: openRegular{fd: -1}}
	t.d.put(groupStart)
	if err := t.enter(int(f.Fd()), ".", tokenClose); err != nil {
		t.fail(err)
	}
	return t
}

// Close closes what is open.
func (t *TreeReader) Close() error {
	for _, dir := range t.dirs {
		unix.Close(dir.fd)
	}
	if t.file.fd >= 0 {
		unix.Close(t.file.fd)
	}
	t.dirs, t.file.fd, t.err = nil, -1, os.ErrClosed
	return nil
}

func (t *TreeReader) fail(err error) {
	if err != io.EOF {
		err = fmt.Errorf("dump %s: %w", filepath.Join(append([]string{t.path}, t.d.names...)...), err)
	}
	t.err = err
}

// Read reads some of the archive.
func (t *TreeReader) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if t.at < t.d.fill {
			n := copy(p, t.d.buf[t.at:t.d.fill])
			t.at += n
			return n, nil
		}
		if t.err != nil {
			return 0, t.err
		}
		t.at, t.d.fill = 0, 0
		if t.file.fd >= 0 {
			n, err := t.data(p)
			if err != nil {
				t.fail(err)
			}
			if n > 0 {
				return n, nil
			}
		} else if err := t.next(); err != nil {
			t.fail(err)
		}
	}
	return 0, nil
}

// data reads data of the file, and ends it when there is no more.
func (t *TreeReader) data(p []byte) (n int, err error) {
	f := &t.file
	if f.left > 0 {
		err = retry(func() (err error) {
			n, err = unix.Read(f.fd, p[:min(int64(len(p)), f.left)])
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return 0, errChanged
		}
		f.left -= int64(n)
	}
	if f.left > 0 {
		return n, nil
	}
	unix.Close(f.fd)
	f.fd = -1
	t.leaveEntry()
	return n, t.d.pad(uint64(f.size), tokenClose+tokenClose)
}

func (t *TreeReader) leaveEntry() { t.d.names = t.d.names[:len(t.d.names)-1] }

// next begins the next entry of the innermost directory, or leaves that.
func (t *TreeReader) next() error {
	if len(t.dirs) == 0 {
		return io.EOF
	}
	dir := &t.dirs[len(t.dirs)-1]
	if len(dir.entries) == 0 {
		unix.Close(dir.fd)
		end := dir.end
		if t.dirs = t.dirs[:len(t.dirs)-1]; len(t.dirs) > 0 {
			t.leaveEntry()
		}
		return t.d.put(tokenClose + end[len(tokenClose):])
	}
	e := dir.entries[0]
	dir.entries = dir.entries[1:]
	if err := t.d.enter(e.name); err != nil {
		return err
	}
	return t.node(dir.fd, e)
}

// node begins an object that is an entry.
func (t *TreeReader) node(at int, e entry) error {
	if e.kind == unix.DT_UNKNOWN {
		var err error
		if e.kind, err = typeOf(at, e.name); err != nil {
			return err
		}
	}
	switch e.kind {
	case unix.DT_DIR:
		return t.enter(at, e.name, tokenClose+tokenClose)
	case unix.DT_REG:
		fd, size, err := t.d.open(at, e.name)
		if err == nil {
			t.file = openRegular{fd, size, size}
		}
		return err
	}
	err := t.d.node(at, e.name, e.kind, tokenClose+tokenClose)
	if err == nil {
		t.leaveEntry()
	}
	return err
}

// enter begins a directory.
func (t *TreeReader) enter(at int, name, end string) error {
	fd, entries, err := t.d.list(at, name, len(t.dirs)+1)
	if err == nil {
		t.dirs = append(t.dirs, openDir{fd, entries, end})
	}
	return err
}
