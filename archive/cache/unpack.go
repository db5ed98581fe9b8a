package cache

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"io"

	"cairn/archive"
	"cairn/store"
)

// unpacker is an archive on its way out of a cache: read, counted, hashed, unpacked, counted, hashed.
type unpacker struct {
	bucket *bucket
	info   *NarInfo
	packed *packed
	source *bufio.Reader // of packed
	plain  io.ReadCloser // of source; nil until the first Read
	kind   archive.Compression
	sum    hash.Hash
	size   int64
	err    error // final
}

// sourceBuffer is how much is read at a time.
const sourceBuffer = 64 << 10

func newUnpacker(b *bucket, n *NarInfo, c archive.Compression, r io.ReadCloser) *unpacker {
	p := &packed{r: r, info: n, progress: b.opts.Progress}
	p.limit = n.FileSize
	if n.FileSize == 0 {
		p.limit = n.NarSize + n.NarSize/4 + 1<<20
	}
	if !n.FileHash.IsZero() {
		p.sum = n.FileHash.Algorithm().New()
	}
	return &unpacker{bucket: b, info: n, packed: p, source: bufio.NewReaderSize(p, sourceBuffer), kind: c, sum: store.SHA256.New()}
}

// Read reads the unpacked archive.
func (u *unpacker) Read(b []byte) (int, error) {
	if u.err != nil || len(b) == 0 {
		return 0, u.err
	}
	n, err := u.read(b)
	if err != nil && err != io.EOF {
		err = u.bucket.about(err, "archive of %s", u.info.Path)
	}
	u.err = err
	return n, err
}

func (u *unpacker) read(b []byte) (int, error) {
	if u.plain == nil {
		var err error
		if u.plain, err = archive.NewDecompressor(u.source, u.kind); err != nil {
			return 0, u.blame(err)
		}
	}
	n, err := u.plain.Read(b)
	u.size += int64(n)
	if u.size > u.info.NarSize {
		return 0, fmt.Errorf("unpacks to more than NarSize, %d bytes: %w", u.info.NarSize, ErrFormat)
	}
	u.sum.Write(b[:n])
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF:
		return n, u.finish()
	}
	return n, u.blame(err)
}

// blame tells an error of the source from damage that the decompressor found.
func (u *unpacker) blame(err error) error {
	if u.packed.err != nil && u.packed.err != io.EOF {
		return u.packed.err
	}
	return fmt.Errorf("unpack %s: %w: %w", u.kind, err, ErrFormat)
}

// finish checks the whole and returns io.EOF when it is what was announced.
func (u *unpacker) finish() error {
	if u.size != u.info.NarSize {
		return fmt.Errorf("unpacks to %d bytes, NarSize is %d: %w", u.size, u.info.NarSize, ErrFormat)
	}
	if got := store.NewHash(store.SHA256, u.sum.Sum(nil)); got != u.info.NarHash {
		return fmt.Errorf("hash is %s, NarHash is %s: %w", got, u.info.NarHash, store.ErrHashMismatch)
	}
	// What the decompressor left: padding, or nothing.
	if _, err := io.Copy(io.Discard, u.source); err != nil {
		return err
	}
	return u.packed.check()
}

// Close ends the download.
func (u *unpacker) Close() error {
	if u.err == nil {
		u.err = errors.New("archive was closed")
	}
	var err error
	if u.plain != nil {
		err = u.plain.Close()
	}
	return errors.Join(err, u.packed.r.Close())
}

// packed counts and hashes what comes out of the cache.
type packed struct {
	r        io.ReadCloser
	info     *NarInfo
	progress func(n *NarInfo, done, total int64)
	sum      hash.Hash // nil when nobody knows what it should be
	limit    int64
	size     int64
	err      error // the last one
}

func (p *packed) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.size += int64(n)
	if p.size > p.limit {
		err = fmt.Errorf("has more than the %d bytes it may have: %w", p.limit, ErrFormat)
	}
	if p.sum != nil {
		p.sum.Write(b[:n])
	}
	if p.progress != nil && n > 0 {
		p.progress(p.info, p.size, p.info.FileSize)
	}
	p.err = err
	return n, err
}

// check compares with what was announced and returns io.EOF.
func (p *packed) check() error {
	if p.info.FileSize > 0 && p.size != p.info.FileSize {
		return fmt.Errorf("has %d bytes, FileSize is %d: %w", p.size, p.info.FileSize, ErrFormat)
	}
	if p.sum != nil {
		if got := store.NewHash(p.info.FileHash.Algorithm(), p.sum.Sum(nil)); got != p.info.FileHash {
			return fmt.Errorf("hash of the file is %s, FileHash is %s: %w", got, p.info.FileHash, store.ErrHashMismatch)
		}
	}
	return io.EOF
}
