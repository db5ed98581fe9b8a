package wire

import (
	"errors"
	"fmt"
	"io"
)

// frameSize is what a frame writer collects before it sends a frame.
const frameSize = 64 << 10

// maxFrame is the largest frame that is believed. Nothing is allocated for it.
const maxFrame = 1 << 32

var errFrameClosed = errors.New("write to a closed frame stream")

// FrameReader reads the contents of a framed stream. It returns io.EOF after the end mark
// and io.ErrUnexpectedEOF when the source ends before it.
type FrameReader struct {
	src  *Reader
	left uint64
	err  error
}

// NewFrameReader returns a reader of the framed stream that starts where r is.
func NewFrameReader(r *Reader) *FrameReader { return &FrameReader{src: r} }

// Read reads contents.
func (f *FrameReader) Read(p []byte) (int, error) {
	if f.err != nil || len(p) == 0 {
		return 0, f.err
	}
	if f.left == 0 {
		if f.err = f.next(); f.err != nil {
			return 0, f.err
		}
	}
	n, err := f.src.Read(p[:min(uint64(len(p)), f.left)])
	f.left -= uint64(n)
	f.err = unexpected(err)
	return n, f.err
}

func (f *FrameReader) next() error {
	n, err := f.src.Uint64()
	if err != nil {
		return unexpected(err)
	}
	if n == 0 {
		return io.EOF
	}
	if n > maxFrame {
		return fmt.Errorf("frame of %d, the limit is %d: %w", n, uint64(maxFrame), ErrTooLong)
	}
	f.left = n
	return nil
}

// Drain reads up to and including the end mark.
func (f *FrameReader) Drain() error {
	_, err := io.Copy(io.Discard, f)
	return err
}

// FrameWriter writes a framed stream. Contents go out in frames of 64 KiB,
// whatever the sizes of the writes.
type FrameWriter struct {
	dst    *Writer
	buf    []byte
	closed bool
}

// NewFrameWriter returns a writer of a framed stream to w. Nobody else may write to w before Close.
func NewFrameWriter(w *Writer) *FrameWriter {
	return &FrameWriter{dst: w, buf: make([]byte, 0, frameSize)}
}

// Write writes contents.
func (f *FrameWriter) Write(p []byte) (int, error) {
	if f.closed {
		return 0, errFrameClosed
	}
	total := len(p)
	for len(p) > 0 {
		if len(f.buf) == 0 && len(p) >= frameSize {
			f.send(p[:frameSize])
			p = p[frameSize:]
			continue
		}
		n := min(frameSize-len(f.buf), len(p))
		f.buf = append(f.buf, p[:n]...)
		p = p[n:]
		if len(f.buf) == frameSize {
			f.sendBuffer()
		}
	}
	if err := f.dst.Err(); err != nil {
		return 0, err
	}
	return total, nil
}

// Flush sends what was written so far, so that the peer can act on it.
func (f *FrameWriter) Flush() error {
	f.sendBuffer()
	return f.dst.Flush()
}

func (f *FrameWriter) sendBuffer() {
	if len(f.buf) > 0 {
		f.send(f.buf)
		f.buf = f.buf[:0]
	}
}

func (f *FrameWriter) send(p []byte) {
	f.dst.Uint64(uint64(len(p)))
	f.dst.Write(p)
}

// Close writes the end mark and flushes.
func (f *FrameWriter) Close() error {
	if f.closed {
		return f.dst.Err()
	}
	f.closed = true
	f.sendBuffer()
	f.dst.Uint64(0)
	return f.dst.Flush()
}
