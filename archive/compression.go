package archive

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	bzip2w "github.com/dsnet/compress/bzip2"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
)

// Compression is how bytes are packed, by its name in binary caches.
type Compression string

// The compressions. Those from Bzip2 on can only be read.
const (
	Uncompressed Compression = "none"
	Zstd         Compression = "zstd"
	Gzip         Compression = "gzip"
	Bzip2        Compression = "bzip2"
	XZ           Compression = "xz"
	Brotli       Compression = "br"
	Lzip         Compression = "lzip"
	LZMA         Compression = "lzma"
	LZ4          Compression = "lz4"
	Deflate      Compression = "deflate" // HTTP's, which is zlib's format
)

// compressions has what file names end in and how it is read. The memory that each takes is bounded.
var compressions = map[Compression]struct {
	suffix string
	read   func(io.Reader) (io.Reader, error)
}{
	Uncompressed: {"", func(r io.Reader) (io.Reader, error) { return r, nil }},
	Zstd:         {".zst", readZstd},
	Gzip:         {".gz", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	Bzip2:        {".bz2", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	XZ:           {".xz", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, foreignWindow) }},
	Brotli:       {".br", func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil }},
	Lzip:         {".lzip", func(r io.Reader) (io.Reader, error) { return newLzip(r), nil }},
	LZMA:         {".lzma", newLZMAAlone},
	LZ4:          {".lz4", newLZ4},
	Deflate:      {".zz", func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) }},
}

// Windows bound the memory that a stream can make a decompressor take.
const (
	foreignWindow = 128 << 20 // what "zstd --long" of others needs
	ownWindow     = 8 << 20   // what this package writes
)

// ParseCompression parses a name. The empty one is bzip2, as in old caches.
func ParseCompression(s string) (Compression, error) {
	if s == "" {
		return Bzip2, nil
	}
	if _, ok := compressions[Compression(s)]; ok {
		return Compression(s), nil
	}
	return "", fmt.Errorf("unknown compression %q; known are %s", clip(s), list(slices.Sorted(maps.Keys(compressions))))
}

func list(cs []Compression) string {
	var b strings.Builder
	for i, c := range cs {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(c))
	}
	return b.String()
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
func (c Compression) Suffix() string { return compressions[c].suffix }

// Compressor packs what is written to it. Flush sends everything so far in a form that can be unpacked;
// Close ends the stream and leaves the writer below open.
type Compressor interface {
	io.WriteCloser
	Flush() error
}

// NewCompressor returns a compressor to w.
func NewCompressor(w io.Writer, c Compression) (Compressor, error) {
	return NewLevelCompressor(w, c, 0)
}

// NewLevelCompressor returns a compressor to w that works harder the higher the level, by the program's own levels:
// 1 to 22 for zstd, 1 to 9 for gzip; 0 is a quick one. Levels 1 and 2 of zstd take the least memory, about 2 MB.
func NewLevelCompressor(w io.Writer, c Compression, level int) (Compressor, error) {
	switch c {
	case Uncompressed:
		return plain{w}, nil
	case Zstd:
		return takeEncoder(w, level)
	case Gzip:
		if level == 0 {
			level = gzip.DefaultCompression
		}
		return gzip.NewWriterLevel(w, min(level, gzip.BestCompression))
	}
	return nil, fmt.Errorf("compression %q cannot be written", string(c))
}

// NewBzip2 returns a writer that packs with bzip2, which cannot be flushed and is slow: for build logs, of which Nix's
// clients read nothing else. It takes about 2 MB of memory. Close ends the stream and leaves the writer below open.
func NewBzip2(w io.Writer) (io.WriteCloser, error) {
	return bzip2w.NewWriter(w, &bzip2w.WriterConfig{Level: 2})
}

// encoders are compressors that have been used, by speed: making one costs megabytes, which is much for a small object.
var encoders [zstd.SpeedBestCompression + 1]sync.Pool

// borrowed is a compressor that goes back after Close.
type borrowed struct {
	encoder *zstd.Encoder // nil after Close
	pool    *sync.Pool
}

func takeEncoder(w io.Writer, level int) (*borrowed, error) {
	pool := &encoders[zstd.SpeedDefault]
	if level > 0 {
		pool = &encoders[zstd.EncoderLevelFromZstd(level)]
	}
	if e, ok := pool.Get().(*zstd.Encoder); ok {
		e.Reset(w)
		return &borrowed{e, pool}, nil
	}
	e, err := newEncoder(w, level, 1)
	return &borrowed{e, pool}, err
}

var errClosed = errors.New("compressor is closed")

func (b *borrowed) Write(p []byte) (int, error) {
	if b.encoder == nil {
		return 0, errClosed
	}
	return b.encoder.Write(p)
}

func (b *borrowed) Flush() error {
	if b.encoder == nil {
		return errClosed
	}
	return b.encoder.Flush()
}

// Close ends the stream. One that is never closed is not used again.
func (b *borrowed) Close() error {
	if b.encoder == nil {
		return nil
	}
	e := b.encoder
	b.encoder = nil
	if err := e.Close(); err != nil {
		return err
	}
	e.Reset(nil)
	b.pool.Put(e)
	return nil
}

// highLevel is the first at which memory does not matter.
const highLevel = 6

// newEncoder returns an encoder to w. Without one it is for EncodeAll, by so many goroutines at once.
func newEncoder(w io.Writer, level, concurrency int, more ...zstd.EOption) (*zstd.Encoder, error) {
	speed, window := zstd.SpeedDefault, ownWindow/2
	if level > 0 {
		speed = zstd.EncoderLevelFromZstd(level)
	}
	switch {
	case speed == zstd.SpeedFastest:
		window = ownWindow / 8
	case level >= highLevel:
		window = ownWindow
	}
	options := []zstd.EOption{
		zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(concurrency), zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(level < highLevel),
		zstd.WithAllLitEntropyCompression(true), // the fastest level leaves base64 and hex as they are
	}
	return zstd.NewWriter(w, append(options, more...)...)
}

// isEven reports whether all bytes are about as frequent in data, so that codes for them would not be shorter than the bytes: two
// bytes are the same less than three times as often as when bytes are random. In base64 it is four times.
func isEven(data []byte) bool {
	var count [256]uint64
	for _, b := range data {
		count[b]++
	}
	pairs := uint64(0)
	for _, c := range count {
		pairs += c * (c - min(c, 1))
	}
	n := uint64(len(data))
	return pairs*256 < 3*n*(n-min(n, 1))
}

// plain passes bytes through.
type plain struct{ io.Writer }

func (plain) Flush() error { return nil }
func (plain) Close() error { return nil }

// NewDecompressor returns a reader of what is packed in r, up to its end. The memory it takes is bounded, its
// output is not. Close frees it and leaves r open.
func NewDecompressor(r io.Reader, c Compression) (io.ReadCloser, error) {
	kind, ok := compressions[c]
	if !ok {
		return nil, fmt.Errorf("compression %q cannot be read", string(c))
	}
	plain, err := kind.read(r)
	if err != nil {
		return nil, err
	}
	if rc, ok := plain.(io.ReadCloser); ok && c != Uncompressed {
		return rc, nil
	}
	return io.NopCloser(plain), nil
}

func readZstd(r io.Reader) (io.Reader, error) {
	d, err := newDecoder(r, foreignWindow)
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// lz4Frames reads frames until nothing follows.
type lz4Frames struct {
	source *bufio.Reader
	frame  *lz4.Reader
}

func newLZ4(r io.Reader) (io.Reader, error) {
	source := bufio.NewReader(r)
	return &lz4Frames{source, lz4.NewReader(source)}, nil
}

func (f *lz4Frames) Read(p []byte) (int, error) {
	for {
		n, err := f.frame.Read(p)
		if n > 0 || err != io.EOF {
			return n, err
		}
		if _, err := f.source.Peek(1); err != nil {
			return 0, err
		}
		f.frame.Reset(f.source)
	}
}

func newDecoder(r io.Reader, window uint64) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
}
