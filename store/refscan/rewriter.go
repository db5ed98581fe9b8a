package refscan

import (
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"

	"cairn/store"
)

// rewriteSize is how much a rewriter collects before it looks and writes.
const rewriteSize = 64 << 10

// Rewriter replaces digests in a stream by others of the same length.
type Rewriter struct {
	dst     io.Writer
	rewrite map[string]string
	buf     []byte
	offset  int64 // of buf in the stream
	matches []int64
	err     error
}

// NewRewriter returns a rewriter to w. Keys and values have 32 bytes each; it panics when they have not.
func NewRewriter(w io.Writer, rewrite map[string]string) *Rewriter {
	for from, to := range rewrite {
		if len(from) != digestLen || len(to) != digestLen {
			panic(fmt.Sprintf("BUG: rewrite %q to %q", from, to))
		}
	}
	return &Rewriter{dst: w, rewrite: rewrite, buf: make([]byte, 0, rewriteSize)}
}

// Write rewrites p. The last bytes stay behind until more come or Close is called.
func (r *Rewriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 && r.err == nil {
		n := min(len(p), cap(r.buf)-len(r.buf))
		r.buf = append(r.buf, p[:n]...)
		p = p[n:]
		if len(r.buf) == cap(r.buf) {
			r.send(digestLen - 1)
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	return total, nil
}

// send rewrites the buffer and writes all of it but the last keep bytes, or fewer when a match
// reaches into them.
func (r *Rewriter) send(keep int) {
	done := max(len(r.buf)-keep, r.replace())
	_, r.err = r.dst.Write(r.buf[:done])
	r.offset += int64(done)
	r.buf = r.buf[:copy(r.buf, r.buf[done:])]
}

// replace rewrites all matches in the buffer and returns the end of the last one.
func (r *Rewriter) replace() int {
	end := 0
	at := window(r.buf, 0, 0)
	for at >= 0 {
		digest := r.buf[at : at+digestLen]
		to, ok := r.rewrite[string(digest)]
		if !ok {
			at = window(r.buf, at+1, at+digestLen)
			continue
		}
		copy(digest, to)
		r.matches = append(r.matches, r.offset+int64(at))
		end = at + digestLen
		at = window(r.buf, end, end)
	}
	return end
}

// Close writes what stayed behind. It does not close the writer.
func (r *Rewriter) Close() error {
	if r.err == nil {
		r.send(0)
	}
	return r.err
}

// Matches returns the offsets of what was replaced, in order. They are complete after Close.
func (r *Rewriter) Matches() []int64 { return r.matches }

// ModuloHasher hashes a stream modulo a digest.
type ModuloHasher struct {
	algo store.Algorithm
	hash hash.Hash
	*Rewriter
	closed bool
	sums   [2]store.Hash // by form, when closed
}

// HashModulo returns a hasher that counts digest, 32 base-32 digits, as 32 NUL bytes.
func HashModulo(algo store.Algorithm, digest string) *ModuloHasher {
	h := algo.New()
	blank := strings.Repeat("\x00", digestLen)
	return &ModuloHasher{algo: algo, hash: h, Rewriter: NewRewriter(h, map[string]string{digest: blank})}
}

// SelfHash is a form of hashes modulo; the package comment says whose.
type SelfHash uint8

// The forms of hashes modulo.
const (
	Blanked     SelfHash = iota // of Nix 2.17 and later
	WithOffsets                 // of Nix before
)

// Other returns the other form.
func (f SelfHash) Other() SelfHash { return Blanked + WithOffsets - f }

// Sum returns the hash. Nothing may be written afterwards.
func (m *ModuloHasher) Sum(form SelfHash) store.Hash {
	if !m.closed {
		m.Close()
		m.closed = true
		m.sums[Blanked] = store.NewHash(m.algo, m.hash.Sum(nil))
		m.sums[WithOffsets] = m.offsets()
	}
	return m.sums[form]
}

// offsets goes on to the hash with the offsets.
func (m *ModuloHasher) offsets() store.Hash {
	var b []byte
	for _, at := range m.Matches() {
		b = strconv.AppendInt(append(b[:0], '|'), at, 10)
		m.hash.Write(b)
	}
	return store.NewHash(m.algo, m.hash.Sum(nil))
}
