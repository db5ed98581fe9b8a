package bench

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/store"
	"cairn/store/base32"
)

// forest is a set of objects in which the last, its top, refers to all others, directly or indirectly: each refers to about three that come before it.
type forest struct {
	tag   string // part of all names and contents
	count int
	files int // in each object; 0: the object is a file
	bytes int // of each file
}

func (f *forest) path(dir store.Dir, i int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", f.tag, i))
	return fmt.Sprintf("%s/%s-object-%d", dir, base32.Encode(sum[:20]), i)
}

func (f *forest) top(dir store.Dir) string { return f.path(dir, f.count-1) }

// references are numbers of objects: three children in a heap that is upside down, and one anywhere below.
func (f *forest) references(i int) []int {
	at := f.count - 1 - i // from the top
	var refs []int
	for child := 3*at + 1; child <= 3*at+3 && child < f.count; child++ {
		refs = append(refs, f.count-1-child)
	}
	if len(refs) > 0 {
		if other := i * 7 / 11; other < refs[len(refs)-1] {
			refs = append(refs, other)
		}
	}
	return refs
}

// export writes the objects in the form that nix-store --import reads.
func (f *forest) export(w io.Writer, dir store.Dir) error {
	out := bufio.NewWriterSize(w, 1<<20)
	random := source(f.tag)
	data := make([]byte, f.bytes)
	e := wire.NewWriter(out)
	for i := range f.count {
		e.Uint64(1)
		e.Flush()
		if err := f.archive(out, random, data); err != nil {
			return err
		}
		e.Uint64(0x4558494e)
		e.String(f.path(dir, i))
		var refs []string
		for _, r := range f.references(i) {
			refs = append(refs, f.path(dir, r))
		}
		e.Strings(refs)
		e.String("") // deriver
		e.Uint64(0)  // no signature
	}
	e.Uint64(0)
	if err := e.Flush(); err != nil {
		return err
	}
	return out.Flush()
}

// archive writes the NAR of one object.
func (f *forest) archive(w io.Writer, random *rand.ChaCha8, data []byte) error {
	if f.files == 0 {
		random.Read(data)
		return nar.DumpString(w, data, false)
	}
	n := nar.NewWriter(w)
	n.WriteHeader(&nar.Header{Type: nar.Directory})
	for i := range f.files {
		random.Read(data)
		n.WriteHeader(&nar.Header{Path: fmt.Sprintf("file-%04d", i), Type: nar.Regular, Size: int64(len(data))})
		n.Write(data)
	}
	return n.Close()
}

// source is random bytes that follow from a tag.
func source(tag string) *rand.ChaCha8 { return rand.NewChaCha8(sha256.Sum256([]byte(tag))) }

// load brings the objects of a forest into a store, quickly and untimed: with nix's client, for both sides.
func (s *side) load(f *forest) {
	s.t.Helper()
	r, w := io.Pipe()
	go func() { w.CloseWithError(f.export(w, s.store)) }()
	s.pipe(r, io.Discard, "nix-store", "--import")
}

// root makes a garbage collector's root.
func (s *side) root(name, target string) {
	s.t.Helper()
	if err := os.Symlink(target, filepath.Join(s.state, "gcroots", name)); err != nil {
		s.t.Fatal(err)
	}
}

// write makes a file of random bytes that follow from a tag.
func write(file, tag string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, source(tag), size); err != nil {
		return err
	}
	return f.Close()
}

// touch changes a file's contents in a few places, so that it is as good as new.
func touch(file string, round int) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	var mark [8]byte
	binary.LittleEndian.PutUint64(mark[:], uint64(round)+1)
	for _, at := range []int64{0, fi.Size() / 2, fi.Size() - 8} {
		if _, err := f.WriteAt(mark[:], at); err != nil {
			return err
		}
	}
	return f.Close()
}

// plant makes a tree of files of random bytes, a hundred in a folder. Of those, duplicates are equal to the one before.
func plant(dir, tag string, files, size int, duplicates bool) error {
	random := source(tag)
	data := make([]byte, size)
	for i := range files {
		folder := filepath.Join(dir, fmt.Sprintf("folder-%03d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
		}
		if !duplicates || i%2 == 0 {
			random.Read(data)
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("file-%05d", i)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
