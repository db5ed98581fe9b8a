package nar

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"cairn/archive/wire"
)

// state is where in the grammar the reader stands.
type state uint8

const (
	atStart     state = iota
	inData            // of a regular file; left says how much is unread
	afterNode         // before the ")" of an object that is not a directory
	inDirectory       // before "entry" or ")"
	atEnd
)

// level is a directory that is open.
type level struct {
	path string
	last string // name of its newest entry
}

// Reader reads one archive.
type Reader struct {
	src    io.Reader
	state  state
	err    error
	offset int64
	left   int64   // bytes of data not read yet
	pad    int     // zero bytes that follow the last data
	levels []level // the directories around the place
	tmp    [MaxTargetLen + 1 + 64]byte
}

// NewReader returns a reader of the archive that starts where r is.
// It makes many small reads: r should be buffered, and is left right behind the archive's last byte.
func NewReader(r io.Reader) *Reader { return &Reader{src: r} }

// Offset returns how many bytes of the archive have been read.
func (r *Reader) Offset() int64 { return r.offset }

// Next returns the next object, a directory before its entries, or io.EOF after the archive's end.
// What is left of the current file's data is skipped.
func (r *Reader) Next() (*Header, error) {
	for {
		h, err := r.step()
		if h != nil || err != nil {
			return h, err
		}
	}
}

// step returns the next object, or neither object nor error when a directory was left.
func (r *Reader) step() (*Header, error) {
	if r.err != nil {
		return nil, r.err
	}
	h, err := r.advance()
	if err != nil {
		return nil, r.fail(err)
	}
	return h, nil
}

// fail makes err final.
func (r *Reader) fail(err error) error {
	if err == io.EOF && r.state == atEnd {
		r.err = err
		return err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	r.err = fmt.Errorf("read nix archive at byte %d: %w", r.offset, err)
	return r.err
}

func (r *Reader) advance() (*Header, error) {
	switch r.state {
	case atStart:
		if err := r.expect(groupStart); err != nil {
			return nil, err
		}
		return r.node("")
	case inData:
		if err := r.skip(); err != nil {
			return nil, err
		}
		fallthrough
	case afterNode:
		if err := r.leaveFile(); err != nil || len(r.levels) == 0 {
			return nil, end(err)
		}
		fallthrough
	case inDirectory:
		return r.entry()
	}
	return nil, io.EOF
}

// end returns err, or io.EOF when there is none.
func end(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// node reads an object from its type on.
func (r *Reader) node(path string) (*Header, error) {
	kind, err := r.take(16)
	if err != nil {
		return nil, err
	}
	switch string(kind) {
	case tokenRegular:
		return r.regular(path)
	case tokenSymlink:
		return r.symlink(path)
	case tokenDirectory[:16]:
		return r.directory(path)
	}
	return nil, fmt.Errorf("object %q has an unknown type: %w", path, ErrFormat)
}

func (r *Reader) regular(path string) (*Header, error) {
	h := &Header{Path: path, Type: Regular}
	token, err := r.take(16)
	if err != nil {
		return nil, err
	}
	switch string(token) {
	case tokenContents:
	case groupExecutable[:16]:
		h.Executable = true
		if err := r.expect(groupExecutable[16:]); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("file %q has neither contents nor the executable mark: %w", path, ErrFormat)
	}
	size, err := r.number()
	if err != nil {
		return nil, err
	}
	if size > math.MaxInt64-64 {
		return nil, fmt.Errorf("file %q of %d bytes: %w", path, size, ErrFormat)
	}
	h.Size, h.Offset = int64(size), r.offset
	r.left, r.pad = h.Size, wire.Padding(size)
	r.state = inData
	return h, nil
}

func (r *Reader) symlink(path string) (*Header, error) {
	if err := r.expect(tokenTarget); err != nil {
		return nil, err
	}
	target, err := r.text(MaxTargetLen, "")
	if err != nil {
		return nil, err
	}
	if err := checkTarget(target); err != nil {
		return nil, err
	}
	r.pad = 0
	r.state = afterNode
	return &Header{Path: path, Type: Symlink, Target: target}, nil
}

func (r *Reader) directory(path string) (*Header, error) {
	if err := r.expect(tokenDirectory[16:]); err != nil {
		return nil, err
	}
	r.levels = append(r.levels, level{path: path})
	r.state = inDirectory
	if err := checkDepth(len(r.levels)); err != nil {
		return nil, err
	}
	return &Header{Path: path, Type: Directory}, nil
}

// leaveFile reads what follows a file's data or a link's target: padding, ")" of the object and,
// inside a directory, ")" of the entry.
func (r *Reader) leaveFile() error {
	if err := r.padding(r.pad); err != nil {
		return err
	}
	if len(r.levels) == 0 {
		r.state = atEnd
		return r.finish(r.expect(tokenClose))
	}
	r.state = inDirectory
	return r.expect(tokenClose + tokenClose)
}

// finish keeps an input that ends before the last token from looking like the archive's end.
func (r *Reader) finish(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// entry reads the next entry of a directory, or leaves it.
func (r *Reader) entry() (*Header, error) {
	token, err := r.take(16)
	if err != nil {
		return nil, err
	}
	switch string(token) {
	case tokenEntry:
	case tokenClose:
		return nil, r.leaveDirectory()
	default:
		return nil, fmt.Errorf("directory %q has neither an entry nor an end: %w", r.top().path, ErrFormat)
	}
	if err := r.expect(groupName); err != nil {
		return nil, err
	}
	name, err := r.text(MaxNameLen, groupNode)
	if err != nil {
		return nil, err
	}
	if err := r.name(name); err != nil {
		return nil, err
	}
	return r.node(join(r.top().path, name))
}

func (r *Reader) leaveDirectory() error {
	r.levels = r.levels[:len(r.levels)-1]
	if len(r.levels) == 0 {
		r.state = atEnd
		return nil
	}
	return r.expect(tokenClose)
}

// name checks an entry's name and that it comes after the one before it.
func (r *Reader) name(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	dir := r.top()
	if name <= dir.last {
		return fmt.Errorf("entry %q of directory %q follows %q: %w", name, dir.path, dir.last, ErrFormat)
	}
	dir.last = name
	return nil
}

func (r *Reader) top() *level { return &r.levels[len(r.levels)-1] }

// Read reads data of the current regular file, and returns io.EOF at its end.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil && r.err != io.EOF {
		return 0, r.err
	}
	if r.state != inData || r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.src.Read(p[:min(int64(len(p)), r.left)])
	r.offset += int64(n)
	r.left -= int64(n)
	if err != nil && (err != io.EOF || r.left > 0) {
		return n, r.fail(err)
	}
	return n, nil
}

// skip reads what is left of the current file.
func (r *Reader) skip() error {
	for r.left > 0 {
		if _, err := r.take(int(min(r.left, int64(len(r.tmp))))); err != nil {
			return err
		}
		r.left -= min(r.left, int64(len(r.tmp)))
	}
	return nil
}

// take reads n bytes, which stay until the next call.
func (r *Reader) take(n int) ([]byte, error) {
	got, err := io.ReadFull(r.src, r.tmp[:n])
	r.offset += int64(got)
	return r.tmp[:n], err
}

// expect reads a constant.
func (r *Reader) expect(want string) error {
	got, err := r.take(len(want))
	if err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("found %q, want %q: %w", got, want, ErrFormat)
	}
	return nil
}

func (r *Reader) number() (uint64, error) {
	b, err := r.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// text reads a string of at most max bytes and the constant after it.
func (r *Reader) text(max int, after string) (string, error) {
	n, err := r.number()
	if err != nil {
		return "", err
	}
	if n > uint64(max) {
		return "", fmt.Errorf("string of %d bytes, the limit is %d: %w", n, max, ErrFormat)
	}
	end := int(n) + wire.Padding(n)
	b, err := r.take(end + len(after))
	if err != nil {
		return "", err
	}
	if string(b[end:]) != after {
		return "", fmt.Errorf("found %q, want %q: %w", b[end:], after, ErrFormat)
	}
	return string(b[:n]), zeros(b[n:end])
}

func (r *Reader) padding(n int) error {
	b, err := r.take(n)
	if err != nil {
		return err
	}
	return zeros(b)
}

func zeros(b []byte) error {
	for _, c := range b {
		if c != 0 {
			return fmt.Errorf("padding is not zero: %w", ErrFormat)
		}
	}
	return nil
}
