package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// folderOf is the archive of a folder of files, whose names end in "*" when they are programs.
func folderOf(t testing.TB, files ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	put := func(h nar.Header, data string) {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	put(nar.Header{Type: nar.Directory}, "")
	for _, f := range files {
		put(nar.Header{Path: f[0], Type: nar.Regular, Size: int64(len(f[1])), Executable: strings.HasSuffix(f[0], "*")}, f[1])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func add(t testing.TB, s *disk.Store, name string, archive []byte) store.Path {
	t.Helper()
	info := storetest.Source(s.Dir(), name, archive)
	if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	return info.Path
}

// Equal files become one as they come, within an object, between objects, at once and after a restart; small ones do not.
func TestDedupe(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	for _, size := range []int{2 << 10, 4096, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := strings.Repeat(fmt.Sprintf("%9d,", size), size/10+1)[:size]
			archive := folderOf(t, [2]string{"a", data}, [2]string{"b", data}, [2]string{"c", data[1:] + "x"}, [2]string{"p*", data})
			var paths [4]store.Path
			var wg sync.WaitGroup
			paths[0] = add(t, s, fmt.Sprint("first-", size), archive)
			for i := range paths[1:] {
				wg.Go(func() { paths[i+1] = add(t, s, fmt.Sprint("at-once-", size, "-", i), archive) })
			}
			wg.Wait()
			first := s.RealPath(paths[0])
			for _, p := range paths {
				real := s.RealPath(p)
				for name, links := range map[string]uint64{"a": 9, "b": 9, "c": 5, "p*": 5} {
					same := name
					if name == "b" {
						same = "a"
					}
					got, want := stat(t, filepath.Join(real, name)), stat(t, filepath.Join(first, same))
					if got.Ino != want.Ino || uint64(got.Nlink) != links {
						t.Errorf("%s/%s: inode %d, want %d; %d links, want %d", p, name, got.Ino, want.Ino, got.Nlink, links)
					}
				}
			}
		})
	}
	tiny := folderOf(t, [2]string{"a", "tiny"}, [2]string{"b", "tiny"}, [2]string{"empty", ""})
	for _, name := range []string{"a", "b", "empty"} {
		if st := stat(t, filepath.Join(s.RealPath(add(t, s, "tiny", tiny)), name)); st.Nlink != 1 {
			t.Errorf("tiny file %s has %d links", name, st.Nlink)
		}
	}
	if stats := optimise(t, s); stats.Files != 1 || stats.Skipped != 0 { // the tiny one
		t.Errorf("left for an optimisation: %+v", stats)
	}
	s.Close()
	s = open(t, l)
	data := strings.Repeat(fmt.Sprintf("%9d,", 4096), 410)[:4096]
	if st := stat(t, filepath.Join(s.RealPath(add(t, s, "after-restart", folderOf(t, [2]string{"a", data}))), "a")); st.Nlink != 10 {
		t.Errorf("after a restart: %d links, want 10", st.Nlink)
	}
}

// Eight thousand empty files stay empty, and eight thousand equal ones equal.
func TestDedupeMany(t *testing.T) {
	s := open(t, newLayout(t))
	var empty, equal [][2]string
	for i := range 8000 {
		empty = append(empty, [2]string{fmt.Sprintf("%05d", i), ""})
		equal = append(equal, [2]string{fmt.Sprintf("%05d", i), strings.Repeat("equal", 1000)})
	}
	add(t, s, "empty", folderOf(t, empty...))
	p := add(t, s, "equal", folderOf(t, equal...))
	if st := stat(t, filepath.Join(s.RealPath(p), "04711")); st.Nlink != 8001 {
		t.Errorf("%d links, want 8001", st.Nlink)
	}
}

// An entry of the pool that is not what its name says, in whatever way, does not spread.
func TestDedupeDamaged(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"contents": func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("-", 5000)), 0) },
		"size":     func(path string) error { return os.Truncate(path, 100) },
		"mode":     func(path string) error { return os.Chmod(path, 0o644) },
		"kind":     func(path string) error { return os.Remove(path) },
	} {
		for _, data := range []string{strings.Repeat("5", 5000), strings.Repeat("9", 90000)} {
			t.Run(fmt.Sprint(name, len(data)), func(t *testing.T) {
				l := newLayout(t)
				s := open(t, l)
				first := add(t, s, "first", folderOf(t, [2]string{"a", data}))
				entries, err := filepath.Glob(filepath.Join(l.RealDir, ".links/??/*"))
				if err != nil || len(entries) != 1 {
					t.Fatalf("pool has %v, %v", entries, err)
				}
				if err := harm(entries[0]); err != nil {
					t.Fatal(err)
				}
				if name == "kind" {
					if err := os.Symlink("/etc/passwd", entries[0]); err != nil {
						t.Fatal(err)
					}
				}
				second := add(t, s, "second", folderOf(t, [2]string{"a", data}))
				third := add(t, s, "third", folderOf(t, [2]string{"a", data}))
				if a, b := stat(t, s.RealPath(second)+"/a"), stat(t, s.RealPath(third)+"/a"); a.Ino != b.Ino || a.Nlink != 3 {
					t.Errorf("the damaged entry is not replaced: inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
				}
				for _, p := range problems(t, s) {
					if p.Path != first {
						t.Errorf("the damage has spread to %s", p.Path)
					}
				}
				if name != "kind" {
					if err := s.Replace(t.Context(), first, bytes.NewReader(folderOf(t, [2]string{"a", data}))); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// A failed addition leaves nothing in the pool, a sweep takes what only the pool has, and what an object has is not counted twice.
func TestDedupeSwept(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	archive := folderOf(t, [2]string{"a", strings.Repeat("a", 10000)}, [2]string{"b", strings.Repeat("b", 10000)})
	info := storetest.Source(s.Dir(), "x", archive)
	info.NarHash = store.SHA256.Sum(nil)
	info.CA = store.ContentAddress{}
	if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err == nil {
		t.Fatal("added what has another hash")
	}
	if entries, _ := filepath.Glob(filepath.Join(l.RealDir, ".links/??/*")); len(entries) != 0 {
		t.Errorf("pool has %v", entries)
	}
	tree := filepath.Join(l.RealDir, ".tmp-dropped") // as of a process that was killed
	if err := nar.Restore(bytes.NewReader(archive), tree, &nar.RestoreOptions{Files: s.Files()}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(tree); err != nil {
		t.Fatal(err)
	}
	if freed, _, err := s.SweepLinks(t.Context()); err != nil || freed < 20000 {
		t.Errorf("freed %d, %v", freed, err)
	}
	p, q := add(t, s, "p", archive), add(t, s, "q", archive)
	for i, path := range []store.Path{p, q} {
		deleted, err := s.Delete(t.Context(), []store.Path{path})
		if err != nil || len(deleted) != 1 || deleted[0].Freed >= 20000 != (i == 1) {
			t.Errorf("deleted %+v, %v", deleted, err)
		}
	}
	if _, saved, err := s.SweepLinks(t.Context()); err != nil || saved != 0 {
		t.Errorf("saved %d, %v", saved, err)
	}
	if entries, _ := filepath.Glob(filepath.Join(l.RealDir, ".links/??/*")); len(entries) != 0 {
		t.Errorf("pool has %v", entries)
	}
}

// However an object comes, its files are links.
func TestDedupeEveryWay(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	for _, size := range []int{5000, 300_000, 2 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := strings.Repeat(fmt.Sprintf("%9d,", size), size/10+1)[:size]
			n := 0
			archive := func() (*store.Info, []byte) { // another name each time
				n++
				info := storetest.Source(s.Dir(), fmt.Sprint("way-", size, "-", n), storetest.File(data))
				return info, storetest.File(data)
			}
			first := add(t, s, fmt.Sprint("first-", size), storetest.File(data))
			flat := func() (store.Path, error) {
				info, err := s.AddStream(t.Context(), fmt.Sprint("flat-", size), store.Flat, store.SHA256, nil, strings.NewReader(data))
				if err != nil {
					return store.Path{}, err
				}
				return info.Path, nil
			}
			open := func() (store.Path, error) {
				f, err := os.CreateTemp(t.TempDir(), "")
				if err != nil {
					return store.Path{}, err
				}
				defer f.Close()
				if _, err := f.WriteString(data); err != nil {
					return store.Path{}, err
				}
				if _, err := f.Seek(0, io.SeekStart); err != nil {
					return store.Path{}, err
				}
				info, err := s.AddOpen(t.Context(), fmt.Sprint("open-", size), store.Flat, store.SHA256, nil, f)
				if err != nil {
					return store.Path{}, err
				}
				return info.Path, nil
			}
			all := func() (store.Path, error) {
				info, b := archive()
				return info.Path, s.AddAll(t.Context(), []disk.Archive{{Info: info, NAR: b}})
			}
			imported := func() (store.Path, error) {
				info, b := archive()
				i := s.Import()
				defer i.Close()
				if err := i.Add(t.Context(), info, bytes.NewReader(b)); err != nil {
					return store.Path{}, err
				}
				return info.Path, i.Commit(t.Context())
			}
			registered := func() (store.Path, error) {
				info, b := archive()
				tree := filepath.Join(l.RealDir, fmt.Sprint(".tmp-output-", size))
				if err := nar.Restore(bytes.NewReader(b), tree, &nar.RestoreOptions{Files: s.Files()}); err != nil {
					return store.Path{}, err
				}
				return info.Path, s.Register(t.Context(), []disk.Output{{Info: info, TempPath: tree}})
			}
			for name, way := range map[string]func() (store.Path, error){
				"flat": flat, "open": open, "all": all, "import": imported, "register": registered,
			} {
				p, err := way()
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if got, want := stat(t, s.RealPath(p)).Ino, stat(t, s.RealPath(first)).Ino; got != want {
					t.Errorf("%s: inode %d, want %d", name, got, want)
				}
			}
			if st := stat(t, s.RealPath(first)); st.Nlink != 7 {
				t.Errorf("%d links, want 7", st.Nlink)
			}
		})
	}
}

// cutReader reads an archive, and calls cut in the middle.
type cutReader struct {
	io.Reader
	left int
	cut  func()
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		c.cut()
	} else {
		p = p[:min(len(p), c.left)]
	}
	n, err := c.Reader.Read(p)
	c.left -= n
	return n, err
}

// An addition that is cancelled on its way leaves nothing, not in the pool either.
func TestDedupeCancelled(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	var files [][2]string
	for i := range 300 {
		size := 4096
		if i%100 == 50 {
			size = 1 << 20
		}
		files = append(files, [2]string{fmt.Sprintf("%03d", i), strings.Repeat(fmt.Sprintf("%9d,", i), size/10+1)[:size]})
	}
	archive := folderOf(t, files...)
	kept := add(t, s, "kept", folderOf(t, files[:50]...))
	for _, part := range []int{1, 2, 3, 5, 10} {
		at := len(archive) / part * (part - 1) / part
		ctx, cancel := context.WithCancelCause(t.Context())
		left := errors.New("client left")
		r := &cutReader{bytes.NewReader(archive), at, func() { cancel(left) }}
		err := s.Add(ctx, storetest.Source(s.Dir(), "cancelled", archive), r)
		cancel(nil)
		if !errors.Is(err, left) {
			t.Fatalf("cancelled after %d of %d bytes: %v", at, len(archive), err)
		}
		if names, _ := filepath.Glob(filepath.Join(l.RealDir, ".tmp-*")); len(names) > 0 {
			t.Errorf("left %v", names)
		}
		if names, _ := filepath.Glob(filepath.Join(l.RealDir, ".links/??/*")); len(names) != 50 {
			t.Errorf("pool has %d entries, want those of %s", len(names), kept)
		}
	}
	i := s.Import()
	for n := range 20 {
		b := storetest.File(strings.Repeat(fmt.Sprintf("%9d;", n), 1000<<(n%2*8)))
		if err := i.AddLater(t.Context(), storetest.Source(s.Dir(), fmt.Sprint("imported-", n), b), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	i.Close()
	if names, _ := filepath.Glob(filepath.Join(l.RealDir, ".links/??/*")); len(names) != 50 {
		t.Errorf("pool has %d entries after an import that was given up", len(names))
	}
	p := add(t, s, "whole", archive)
	if st := stat(t, s.RealPath(p)+"/000"); st.Nlink != 3 {
		t.Errorf("%d links, want 3", st.Nlink)
	}
}
