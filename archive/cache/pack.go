package cache

import (
	"bufio"
	"cmp"
	"fmt"
	"io"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/store"
)

// packing is what is known of an archive after it was packed.
type packing struct {
	compression archive.Compression
	hash        store.Hash // of the packed file
	size        int64
	listing     *nar.Listing // nil when nobody wants it
}

func (p *packing) narInfo(info *store.Info) *NarInfo {
	n := &NarInfo{Info: *info, Compression: string(p.compression), FileHash: p.hash, FileSize: p.size}
	n.URL = "nar/" + p.hash.Nix32() + ".nar" + p.compression.Suffix()
	return n
}

// sink counts and hashes what is written.
type sink struct {
	w    io.Writer
	sum  interface{ Sum([]byte) []byte }
	size int64
}

func newSink(to io.Writer) *sink {
	h := store.SHA256.New()
	return &sink{w: io.MultiWriter(to, h), sum: h}
}

func (s *sink) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.size += int64(n)
	return n, err
}

func (s *sink) hash() store.Hash { return store.NewHash(store.SHA256, s.sum.Sum(nil)) }

// cacheLevel is the level of compression when nobody says one: what is written once is read often.
const cacheLevel = 6

// pack writes an archive, packed, to a file, and checks that it is the one of info.
func pack(to io.Writer, p *Parameters, info *store.Info, write func(io.Writer) error) (*packing, error) {
	file := newSink(to)
	c, err := archive.NewLevelCompressor(file, p.Compression, cmp.Or(p.CompressionLevel, cacheLevel))
	if err != nil {
		return nil, err
	}
	plain := newSink(c)
	done := &packing{compression: p.Compression}
	if p.WriteListing || p.IndexDebugInfo {
		done.listing, err = writeListed(plain, write)
	} else {
		err = write(plain)
	}
	if err != nil {
		return nil, err
	}
	if err := c.Close(); err != nil {
		return nil, err
	}
	if plain.size != info.NarSize || plain.hash() != info.NarHash {
		return nil, fmt.Errorf("archive has %d bytes and the hash %s, not %d and %s: %w", plain.size, plain.hash(), info.NarSize, info.NarHash, store.ErrHashMismatch)
	}
	done.hash, done.size = file.hash(), file.size
	return done, nil
}

// writeListed writes an archive and lists it on the way.
func writeListed(to io.Writer, write func(io.Writer) error) (*nar.Listing, error) {
	type result struct {
		listing *nar.Listing
		err     error
	}
	r, w := io.Pipe()
	listed := make(chan result, 1)
	go func() {
		l, err := nar.List(bufio.NewReaderSize(r, 64<<10))
		r.CloseWithError(err) // nobody writes behind the end
		listed <- result{l, err}
	}()
	err := write(io.MultiWriter(to, w))
	w.CloseWithError(err)
	l := <-listed
	if err == nil {
		err = l.err
	}
	return l.listing, err
}
