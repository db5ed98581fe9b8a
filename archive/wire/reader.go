package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// bufferSize is enough for most requests and makes bulk data go around the buffer.
const bufferSize = 64 << 10

// chunk is the most memory taken for a string before its bytes have arrived.
const chunk = 1 << 20

// Reader reads values. It buffers, so whoever reads the same stream must read through it:
// it is an io.Reader of the raw bytes after the last value.
type Reader struct {
	src *bufio.Reader
	tmp [8]byte
}

// NewReader returns a reader of r. A *Reader is returned as it is, and a *bufio.Reader
// is used without another buffer, so that its owner can read on after the last value.
func NewReader(r io.Reader) *Reader {
	switch r := r.(type) {
	case *Reader:
		return r
	case *bufio.Reader:
		return &Reader{src: r}
	}
	return &Reader{src: bufio.NewReaderSize(r, bufferSize)}
}

// Read reads raw bytes.
func (r *Reader) Read(p []byte) (int, error) { return r.src.Read(p) }

// ReadByte reads one raw byte.
func (r *Reader) ReadByte() (byte, error) { return r.src.ReadByte() }

// Buffered returns how many bytes can be read without asking the source.
func (r *Reader) Buffered() int { return r.src.Buffered() }

// Uint64 reads a number.
func (r *Reader) Uint64() (uint64, error) {
	if _, err := io.ReadFull(r.src, r.tmp[:]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(r.tmp[:]), nil
}

// Int reads a number that is at most max.
func (r *Reader) Int(max uint64) (uint64, error) {
	n, err := r.Uint64()
	if err != nil {
		return 0, err
	}
	if n > max {
		return 0, fmt.Errorf("number %d, the limit is %d: %w", n, max, ErrValue)
	}
	return n, nil
}

// Bool reads 0 or 1.
func (r *Reader) Bool() (bool, error) {
	n, err := r.Int(1)
	return n == 1, err
}

// Bytes reads a string of at most max bytes.
func (r *Reader) Bytes(max int) ([]byte, error) {
	n, err := r.Uint64()
	if err != nil {
		return nil, err
	}
	if err := checkLength("string", n, max); err != nil {
		return nil, err
	}
	b, err := r.take(int(n))
	if err != nil {
		return nil, unexpected(err)
	}
	return b, r.padding(n)
}

// take reads n bytes, and takes memory for much more than has arrived never.
func (r *Reader) take(n int) ([]byte, error) {
	b := make([]byte, min(n, chunk))
	for at := 0; ; {
		if _, err := io.ReadFull(r.src, b[at:]); err != nil {
			return nil, err
		}
		at = len(b)
		if at == n {
			return b, nil
		}
		grown := make([]byte, min(n, 2*at))
		copy(grown, b)
		b = grown
	}
}

// padding reads the zero bytes after a string of n bytes.
func (r *Reader) padding(n uint64) error {
	pad := r.tmp[:Padding(n)]
	if _, err := io.ReadFull(r.src, pad); err != nil {
		return unexpected(err)
	}
	for _, b := range pad {
		if b != 0 {
			return fmt.Errorf("string of %d bytes: %w", n, ErrPadding)
		}
	}
	return nil
}

// String reads a string of at most max bytes.
func (r *Reader) String(max int) (string, error) {
	b, err := r.Bytes(max)
	return string(b), err
}

// Strings reads a list of at most maxCount strings of at most maxLen bytes.
func (r *Reader) Strings(maxCount, maxLen int) ([]string, error) {
	n, err := r.count("list", maxCount)
	if err != nil {
		return nil, err
	}
	list := make([]string, 0, min(n, 1024))
	for range n {
		s, err := r.String(maxLen)
		if err != nil {
			return nil, unexpected(err)
		}
		list = append(list, s)
	}
	return list, nil
}

// Map reads a map of at most maxCount pairs, with keys and values of at most maxLen bytes.
func (r *Reader) Map(maxCount, maxLen int) (map[string]string, error) {
	n, err := r.count("map", maxCount)
	if err != nil {
		return nil, err
	}
	m := make(map[string]string, min(n, 1024))
	for range n {
		if err := r.pair(m, maxLen); err != nil {
			return nil, unexpected(err)
		}
	}
	return m, nil
}

func (r *Reader) pair(m map[string]string, maxLen int) error {
	key, err := r.String(maxLen)
	if err != nil {
		return err
	}
	value, err := r.String(maxLen)
	if err != nil {
		return err
	}
	if _, double := m[key]; double {
		return fmt.Errorf("map with two keys %q: %w", key[:min(len(key), 100)], ErrValue)
	}
	m[key] = value
	return nil
}

func (r *Reader) count(what string, max int) (int, error) {
	n, err := r.Uint64()
	if err != nil {
		return 0, err
	}
	return int(n), checkLength(what, n, max)
}

// unexpected turns the end of the input into an error of its own: something had begun.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
