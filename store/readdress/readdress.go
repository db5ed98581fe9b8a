// Package readdress copies objects to paths that follow from their contents.
//
// An object's own digest and the paths of references that have been copied are replaced in the archive, all by strings of
// the same length. The new path is that of the archive's hash modulo the new digest:
//
//	old archive ── references → their copies ──▶ hash modulo the old digest ──▶ new path
//	            └─ references → their copies, old digest → new digest ──▶ new archive ──▶ its hash ──▶ added
//
// As in Nix, which gives the same paths, references are replaced only as whole paths, with the store directory,
// but the own digest everywhere. Archives are streamed: nothing of them is kept in memory, and each is read three times.
package readdress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"cairn/store"
	"cairn/store/refscan"
)

// Copier copies from one store to another, which may be the same.
type Copier struct {
	From     store.Reader
	To       store.Writer
	SelfHash refscan.SelfHash // how objects that contain their own path are addressed
}

// Copy copies objects, references first, and calls done for each. References that are not among the infos stay as they are.
func (c *Copier) Copy(ctx context.Context, infos []*store.Info, done func(old, new store.Path)) error {
	copies := map[store.Path]store.Path{}
	for _, info := range infos {
		p, err := c.copyOne(ctx, info, copies)
		if err != nil {
			return fmt.Errorf("make %s content-addressed: %w", info.Path, err)
		}
		copies[info.Path] = p
		done(info.Path, p)
	}
	return nil
}

func (c *Copier) copyOne(ctx context.Context, old *store.Info, copies map[store.Path]store.Path) (store.Path, error) {
	refs := store.References{Self: old.SelfReferences()}
	rewrite := map[store.Path]store.Path{}
	for _, r := range old.References {
		to, copied := copies[r]
		switch {
		case r == old.Path:
			continue
		case !copied:
			to = r
		case to != r:
			rewrite[r] = to
		}
		refs.Others = append(refs.Others, to)
	}
	refs.Others = store.SortPaths(refs.Others)
	modulo := refscan.HashModulo(store.SHA256, old.Path.Digest())
	if err := c.archive(ctx, old.Path, rewrite, modulo); err != nil {
		return store.Path{}, err
	}
	ca := store.ContentAddress{Method: store.Recursive, Hash: modulo.Sum(c.SelfHash)}
	p, err := old.Path.Dir().ContentPath(old.Path.Name(), ca, refs)
	if err != nil {
		return store.Path{}, err
	}
	return p, c.add(ctx, old.Path, p, ca, refs, rewrite)
}

// add writes the new archive twice: for its hash, and into the store.
func (c *Copier) add(ctx context.Context, old, p store.Path, ca store.ContentAddress, refs store.References, rewrite map[store.Path]store.Path) error {
	write := func(w io.Writer) error {
		own := refscan.NewRewriter(w, map[string]string{old.Digest(): p.Digest()})
		if err := c.archive(ctx, old, rewrite, own); err != nil {
			return err
		}
		return own.Close()
	}
	sum := &summer{Hash: store.SHA256.New()}
	if err := write(sum); err != nil {
		return err
	}
	info := &store.Info{Path: p, NarHash: store.NewHash(store.SHA256, sum.Sum(nil)), NarSize: sum.n, CA: ca, References: refs.Others}
	if refs.Self {
		info.References = store.SortPaths(append(info.References, p))
	}
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(w)
		w.CloseWithError(err)
		written <- err
	}()
	err := c.To.Add(ctx, info, r)
	r.CloseWithError(errUnwanted)
	if wrong := <-written; wrong != nil && !errors.Is(wrong, errUnwanted) {
		return wrong
	}
	return err
}

var errUnwanted = errors.New("nobody reads the archive")

// summer hashes and counts.
type summer struct {
	hash.Hash
	n int64
}

func (s *summer) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return s.Hash.Write(p)
}

// archive writes an object's archive with references replaced.
func (c *Copier) archive(ctx context.Context, p store.Path, rewrite map[store.Path]store.Path, w io.Writer) error {
	if len(rewrite) == 0 {
		return c.From.NAR(ctx, p, w)
	}
	r := newReplacer(w, rewrite)
	if err := c.From.NAR(ctx, p, r); err != nil {
		return err
	}
	return r.close()
}

// replacer replaces whole store paths in a stream.
type replacer struct {
	dst  io.Writer
	dir  []byte               // what they begin with
	by   map[string][2][]byte // from, to, without dir, by digest
	keep int                  // the longest of them with dir
	buf  []byte
}

const (
	replaceSize = 64 << 10
	digestLen   = 32
)

func newReplacer(w io.Writer, rewrite map[store.Path]store.Path) *replacer {
	r := &replacer{dst: w, by: map[string][2][]byte{}}
	for from, to := range rewrite {
		r.dir = []byte(from.Dir().String() + "/")
		r.by[from.Digest()] = [2][]byte{[]byte(from.Base()), []byte(to.Base())}
		r.keep = max(r.keep, len(from.String()))
	}
	return r
}

func (r *replacer) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), max(replaceSize, 2*r.keep)-len(r.buf))
		r.buf = append(r.buf, p[:n]...)
		p = p[n:]
		if len(r.buf) >= max(replaceSize, 2*r.keep) {
			if err := r.send(r.keep - 1); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

// send replaces in the buffer and writes all of it but the last keep bytes, in which nothing is replaced unless it began before.
func (r *replacer) send(keep int) error {
	done := max(0, len(r.buf)-keep)
	for at := 0; at < done; {
		next := bytes.Index(r.buf[at:], r.dir)
		if next < 0 || at+next >= done {
			break
		}
		at += next + len(r.dir)
		if n := r.replace(r.buf[at:]); n > 0 {
			at += n
			done = max(done, at)
		}
	}
	_, err := r.dst.Write(r.buf[:done])
	r.buf = r.buf[:copy(r.buf, r.buf[done:])]
	return err
}

// replace replaces what b begins with and returns its length, or 0.
func (r *replacer) replace(b []byte) int {
	if len(b) < digestLen {
		return 0
	}
	pair, ok := r.by[string(b[:digestLen])]
	if !ok || !bytes.HasPrefix(b, pair[0]) {
		return 0
	}
	return copy(b, pair[1])
}

func (r *replacer) close() error { return r.send(0) }
