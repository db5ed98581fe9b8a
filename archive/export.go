package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/store"
)

// An export stream is Nix's, with the framing of package wire:
//
//	stream = { u64 1, object } u64 0
//	object = NAR, u64 0x4558494e, str path, list of references, str deriver or "", u64 0
//
// Instead of an object's last 0, 1 and a string stand for a signature of long ago, which is ignored.
const exportMagic = 0x4558494e

// Limits of what an export stream may say of one object.
const (
	maxPathLen    = 4 << 10
	maxReferences = 1 << 16
)

// spoolMemory is how much of an archive stays in memory while its description is awaited.
const spoolMemory = 1 << 20

// WriteExport writes an export stream of valid paths, references first. Only the given paths
// are written, not their closure.
func WriteExport(ctx context.Context, w io.Writer, r store.Reader, paths []store.Path) error {
	infos := make([]*store.Info, len(paths))
	for n, p := range paths {
		var err error
		if infos[n], err = r.Info(ctx, p); err != nil {
			return fmt.Errorf("export %s: %w", p, err)
		}
	}
	infos, err := Sort(infos)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	out := wire.NewWriter(w)
	for _, info := range infos {
		if err := writeExported(ctx, out, r, info); err != nil {
			return fmt.Errorf("export %s: %w", info.Path, err)
		}
	}
	out.Uint64(0)
	return out.Flush()
}

func writeExported(ctx context.Context, out *wire.Writer, r store.Reader, info *store.Info) error {
	out.Uint64(1)
	check := newChecker(out)
	if err := r.NAR(ctx, info.Path, check); err != nil {
		return err
	}
	if err := check.compare(info); err != nil {
		return err
	}
	out.Uint64(exportMagic)
	out.String(info.Path.String())
	refs := store.SortPaths(append([]store.Path(nil), info.References...))
	out.Uint64(uint64(len(refs)))
	for _, ref := range refs {
		out.String(ref.String())
	}
	out.String(info.Deriver.String())
	out.Uint64(0)
	return out.Err()
}

// checker passes an archive through and computes its hash and size.
type checker struct {
	dst  io.Writer
	hash hash.Hash
	size int64
}

func newChecker(dst io.Writer) *checker { return &checker{dst: dst, hash: sha256.New()} }

func (c *checker) Write(p []byte) (int, error) {
	n, err := c.dst.Write(p)
	c.hash.Write(p[:n])
	c.size += int64(n)
	return n, err
}

func (c *checker) sum() store.Hash { return store.NewHash(store.SHA256, c.hash.Sum(nil)) }

// compare checks that what passed is what was announced.
func (c *checker) compare(info *store.Info) error {
	if c.size != info.NarSize {
		return fmt.Errorf("archive of %s has %d bytes, announced were %d: %w", info.Path, c.size, info.NarSize, store.ErrHashMismatch)
	}
	if sum := c.sum(); sum != info.NarHash {
		return fmt.Errorf("archive of %s has hash %s, announced was %s: %w", info.Path, sum, info.NarHash, store.ErrHashMismatch)
	}
	return nil
}

// ReadExport reads exactly one export stream of the store dir and calls fn for each object. Hash and size of info are
// computed; a content address or signatures it has not. The archive, which is canonical, can be
// read until fn returns; it lies in a temporary file when it is large.
func ReadExport(r io.Reader, dir store.Dir, fn func(info *store.Info, nar io.Reader) error) error {
	in := wire.NewReader(r)
	for n := 0; ; n++ {
		more, err := in.Bool()
		if err != nil {
			return fmt.Errorf("read export stream: object %d: %w", n+1, unexpected(err))
		}
		if !more {
			return nil
		}
		if err := readExported(in, dir, fn); err != nil {
			return fmt.Errorf("read export stream: object %d: %w", n+1, err)
		}
	}
}

func readExported(in *wire.Reader, dir store.Dir, fn func(*store.Info, io.Reader) error) error {
	s := &spool{}
	defer s.close()
	check := newChecker(s)
	if _, err := nar.Copy(check, in); err != nil {
		return err
	}
	info, err := readDescription(in, dir)
	if err != nil {
		return err
	}
	info.NarHash, info.NarSize = check.sum(), check.size
	content, err := s.reader()
	if err != nil {
		return err
	}
	return fn(info, content)
}

// readDescription reads what follows an archive.
func readDescription(in *wire.Reader, dir store.Dir) (*store.Info, error) {
	f := fields{in: in}
	if magic := f.any(); f.err == nil && magic != exportMagic {
		return nil, fmt.Errorf("found %#x after an archive, want %#x: %w", magic, exportMagic, ErrCorrupt)
	}
	path, refs, deriver := f.text(maxPathLen), f.list(maxReferences, maxPathLen), f.text(maxPathLen)
	if signed := f.number(); signed == 1 {
		f.text(maxPathLen)
	} else if f.err == nil && signed != 0 {
		return nil, fmt.Errorf("found %d after an object, want 0 or 1: %w", signed, ErrCorrupt)
	}
	if f.err != nil {
		return nil, unexpected(f.err)
	}
	return parseDescription(dir, path, refs, deriver)
}

func parseDescription(dir store.Dir, path string, refs []string, deriver string) (*store.Info, error) {
	info := &store.Info{}
	var err error
	if info.Path, err = dir.ParsePath(path); err != nil {
		return nil, err
	}
	for _, s := range refs {
		ref, err := dir.ParsePath(s)
		if err != nil {
			return nil, fmt.Errorf("%s: reference: %w", info.Path, err)
		}
		info.References = append(info.References, ref)
	}
	info.References = store.SortPaths(info.References)
	if deriver == "" {
		return info, nil
	}
	if info.Deriver, err = dir.ParsePath(deriver); err != nil {
		return nil, fmt.Errorf("%s: deriver: %w", info.Path, err)
	}
	return info, nil
}

// spool keeps bytes: the first ones in memory, all of them in a nameless file when there are many.
type spool struct {
	memory bytes.Buffer
	file   *os.File
}

func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && s.memory.Len()+len(p) > spoolMemory {
		if err := s.spill(); err != nil {
			return 0, err
		}
	}
	if s.file != nil {
		return s.file.Write(p)
	}
	return s.memory.Write(p)
}

func (s *spool) spill() error {
	f, err := os.CreateTemp("", "cairn-spool-*")
	if err != nil {
		return err
	}
	s.file = f
	_, err = s.memory.WriteTo(f)
	return errors.Join(os.Remove(f.Name()), err)
}

func (s *spool) reader() (io.Reader, error) {
	if s.file == nil {
		return &s.memory, nil
	}
	_, err := s.file.Seek(0, io.SeekStart)
	return s.file, err
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}
