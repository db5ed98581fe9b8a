package archive

import (
	"compress/bzip2"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Compression is how bytes are packed, by its name in binary caches.
type Compression string

// The compressions. Bzip2 can only be read.
const (
	Uncompressed Compression = "none"
	Zstd         Compression = "zstd"
	Gzip         Compression = "gzip"
	Bzip2        Compression = "bzip2"
)

// Windows bound the memory that a stream can make a decompressor take.
const (
	foreignWindow = 128 << 20 // what "zstd --long" of others needs
	ownWindow     = 8 << 20   // what this package writes
)

// ParseCompression parses a name. The empty one is bzip2, as in old caches.
func ParseCompression(s string) (Compression, error) {
	switch c := Compression(s); c {
	case Uncompressed, Zstd, Gzip, Bzip2:
		return c, nil
	case "":
		return Bzip2, nil
	}
	return "", fmt.Errorf("unknown compression %q; known are none, zstd, gzip, bzip2", clip(s))
}

// ParseContentEncoding parses HTTP's name of a compression.
func ParseContentEncoding(s string) (Compression, error) {
	if s == "x-gzip" {
		return Gzip, nil
	}
	if s == "" {
		return Uncompressed, nil
	}
	return ParseCompression(s)
}

// Suffix returns what file names of packed archives end in: ".zst".
func (c Compression) Suffix() string {
	switch c {
	case Zstd:
		return ".zst"
	case Gzip:
		return ".gz"
	case Bzip2:
		return ".bz2"
	}
	return ""
}

// Compressor packs what is written to it. Flush sends everything so far in a form that can be unpacked;
// Close ends the stream and leaves the writer below open.
type Compressor interface {
	io.WriteCloser
	Flush() error
}

// NewCompressor returns a compressor to w.
func NewCompressor(w io.Writer, c Compression) (Compressor, error) {
	switch c {
	case Uncompressed:
		return plain{w}, nil
	case Zstd:
		return newEncoder(w)
	case Gzip:
		return gzip.NewWriter(w), nil
	}
	return nil, fmt.Errorf("compression %q cannot be written", string(c))
}

func newEncoder(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(ownWindow/2), zstd.WithLowerEncoderMem(true))
}

// plain passes bytes through.
type plain struct{ io.Writer }

func (plain) Flush() error { return nil }
func (plain) Close() error { return nil }

// NewDecompressor returns a reader of what is packed in r. The memory it takes is bounded, its
// output is not. Close frees it and leaves r open.
func NewDecompressor(r io.Reader, c Compression) (io.ReadCloser, error) {
	switch c {
	case Uncompressed:
		return io.NopCloser(r), nil
	case Zstd:
		d, err := newDecoder(r, foreignWindow)
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case Gzip:
		return gzip.NewReader(r)
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(r)), nil
	}
	return nil, fmt.Errorf("compression %q cannot be read", string(c))
}

func newDecoder(r io.Reader, window uint64) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
}
