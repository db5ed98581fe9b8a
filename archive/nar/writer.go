package nar

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"cairn/archive/wire"
)

// Writer writes one archive from headers and data.
type Writer struct {
	dst    *bufio.Writer
	err    error
	begun  bool
	data   bool // the last object is a regular file whose ")" is missing
	left   int64
	pad    int
	levels []level
	offset int64
}

// NewWriter returns a writer of an archive to w. Nothing is sure to be written before Close.
func NewWriter(w io.Writer) *Writer { return &Writer{dst: bufio.NewWriterSize(w, 64<<10)} }

// WriteHeader starts the next object and sets its offset. Objects come in the order in which a
// Reader gives them: a directory, then its entries sorted by name, each followed by what is in it.
func (w *Writer) WriteHeader(h *Header) error {
	if w.err == nil {
		w.err = w.header(h)
	}
	if w.err != nil {
		return fmt.Errorf("write nix archive: %q: %w", h.Path, w.err)
	}
	return nil
}

func (w *Writer) header(h *Header) error {
	if err := w.finishFile(); err != nil {
		return err
	}
	if err := w.open(h.Path); err != nil {
		return err
	}
	switch h.Type {
	case Regular:
		return w.regular(h)
	case Symlink:
		w.put(tokenSymlink + tokenTarget)
		w.text(h.Target)
		w.put(w.close())
		return checkTarget(h.Target)
	case Directory:
		w.put(tokenDirectory)
		w.levels = append(w.levels, level{path: h.Path})
		return checkDepth(len(w.levels))
	}
	return fmt.Errorf("unknown %s: %w", h.Type, ErrFormat)
}

// open writes everything before the type of the object at path.
func (w *Writer) open(path string) error {
	if path == "" {
		if w.begun {
			return fmt.Errorf("second root: %w", ErrFormat)
		}
		w.begun = true
		w.put(groupStart)
		return nil
	}
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	for len(w.levels) > 0 && w.levels[len(w.levels)-1].path != dir {
		w.leave()
	}
	if len(w.levels) == 0 {
		return fmt.Errorf("directory %q is not open: %w", dir, ErrFormat)
	}
	if err := checkName(name); err != nil {
		return err
	}
	top := &w.levels[len(w.levels)-1]
	if name <= top.last {
		return fmt.Errorf("entry %q of directory %q follows %q: %w", name, dir, top.last, ErrFormat)
	}
	top.last = name
	w.put(tokenEntry + groupName)
	w.text(name)
	w.put(groupNode)
	return nil
}

func (w *Writer) regular(h *Header) error {
	if h.Size < 0 {
		return fmt.Errorf("size %d: %w", h.Size, ErrFormat)
	}
	w.put(tokenRegular)
	if h.Executable {
		w.put(groupExecutable)
	} else {
		w.put(tokenContents)
	}
	w.number(uint64(h.Size))
	h.Offset = w.offset
	w.data, w.left, w.pad = true, h.Size, wire.Padding(uint64(h.Size))
	return w.err
}

// Write writes data of the current regular file.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if int64(len(p)) > w.left {
		w.err = fmt.Errorf("write nix archive: %d bytes beyond the file's size: %w", int64(len(p))-w.left, ErrFormat)
		return 0, w.err
	}
	n, err := w.dst.Write(p)
	w.left -= int64(n)
	w.offset += int64(n)
	w.err = err
	return n, err
}

func (w *Writer) finishFile() error {
	if w.left > 0 {
		return fmt.Errorf("file before it lacks %d bytes: %w", w.left, ErrFormat)
	}
	if w.data {
		w.data = false
		w.put("\x00\x00\x00\x00\x00\x00\x00"[:w.pad])
		w.put(w.close())
	}
	return nil
}

// close returns the end of an object that is not a directory: its own and its entry's.
func (w *Writer) close() string {
	if len(w.levels) == 0 {
		return tokenClose
	}
	return tokenClose + tokenClose
}

// leave ends the innermost directory.
func (w *Writer) leave() {
	w.levels = w.levels[:len(w.levels)-1]
	w.put(w.close())
}

// Close ends the archive and flushes it.
func (w *Writer) Close() error {
	if w.err == nil && !w.begun {
		w.err = fmt.Errorf("write nix archive: no object: %w", ErrFormat)
	}
	if w.err == nil {
		w.err = w.finishFile()
	}
	for w.err == nil && len(w.levels) > 0 {
		w.leave()
	}
	if w.err == nil {
		w.err = w.dst.Flush()
	}
	return w.err
}

func (w *Writer) put(s string) {
	if w.err != nil {
		return
	}
	_, w.err = w.dst.WriteString(s)
	w.offset += int64(len(s))
}

func (w *Writer) number(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	w.put(string(b[:]))
}

func (w *Writer) text(s string) {
	w.number(uint64(len(s)))
	w.put(s)
	w.put("\x00\x00\x00\x00\x00\x00\x00"[:wire.Padding(uint64(len(s)))])
}

// DumpString writes the archive of a single regular file.
func DumpString(w io.Writer, data []byte, executable bool) error {
	return buffered(w, func(out *bufio.Writer) error {
		n := &Writer{dst: out}
		if err := n.WriteHeader(&Header{Type: Regular, Size: int64(len(data)), Executable: executable}); err != nil {
			return err
		}
		if _, err := n.Write(data); err != nil {
			return err
		}
		return n.Close()
	})
}
