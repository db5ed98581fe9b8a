package wire

import (
	"bufio"
	"encoding/binary"
	"io"
	"maps"
	"slices"
)

// Writer writes values. It buffers; nothing is sure to be sent before Flush.
type Writer struct {
	dst *bufio.Writer
	err error
	tmp [8]byte
}

// NewWriter returns a writer to w. A *Writer is returned as it is.
func NewWriter(w io.Writer) *Writer {
	if w, ok := w.(*Writer); ok {
		return w
	}
	return &Writer{dst: bufio.NewWriterSize(w, bufferSize)}
}

// Write writes raw bytes.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.dst.Write(p)
	w.err = err
	return n, err
}

// Uint64 writes a number.
func (w *Writer) Uint64(v uint64) {
	binary.LittleEndian.PutUint64(w.tmp[:], v)
	w.Write(w.tmp[:])
}

// Bool writes 0 or 1.
func (w *Writer) Bool(v bool) {
	if v {
		w.Uint64(1)
		return
	}
	w.Uint64(0)
}

// String writes a string.
func (w *Writer) String(s string) {
	w.Uint64(uint64(len(s)))
	if w.err == nil {
		_, w.err = w.dst.WriteString(s)
	}
	w.pad(len(s))
}

// Bytes writes a string.
func (w *Writer) Bytes(b []byte) {
	w.Uint64(uint64(len(b)))
	w.Write(b)
	w.pad(len(b))
}

func (w *Writer) pad(n int) {
	clear(w.tmp[:])
	w.Write(w.tmp[:Padding(uint64(n))])
}

// Strings writes a list.
func (w *Writer) Strings(list []string) {
	w.Uint64(uint64(len(list)))
	for _, s := range list {
		w.String(s)
	}
}

// Map writes a map, sorted by key.
func (w *Writer) Map(m map[string]string) {
	w.Uint64(uint64(len(m)))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		w.String(key)
		w.String(m[key])
	}
}

// Flush sends what is buffered and returns the first error there was.
func (w *Writer) Flush() error {
	if w.err == nil {
		w.err = w.dst.Flush()
	}
	return w.err
}

// Err returns the first error there was.
func (w *Writer) Err() error { return w.err }
