package disk_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cairn/store"
	"cairn/store/disk"
)

func addSource(t testing.TB, s *disk.Store, name string, archive []byte) store.Path {
	t.Helper()
	info, err := s.AddStream(t.Context(), name, store.Recursive, store.SHA256, nil, bytes.NewReader(archive))
	if err != nil {
		t.Error(err)
		return store.Path{}
	}
	return info.Path
}

// manyFiles are files of which each is there twice; offset says which there are.
func manyFiles(offset int) (files [][2]string) {
	for i := range 600 {
		data := strings.Repeat(fmt.Sprintf("%9d,", offset+i/2), 400+i)[:4000]
		files = append(files, [2]string{fmt.Sprintf("%03d", i), data})
	}
	return files
}

// Files of a source tree become links as those of others do: within it, to the next, and when it is stopped at once.
func TestNewFiles(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	first := addSource(t, s, "first", folderOf(t, manyFiles(0)...))
	next := addSource(t, s, "next", folderOf(t, manyFiles(200)...))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, l)
	last := add(t, s, "last", folderOf(t, manyFiles(100)...))
	for i := range 300 {
		file := func(p store.Path, n int) string { return filepath.Join(s.RealPath(p), fmt.Sprintf("%03d", n)) }
		want := uint64(3) // two names and the pool's
		if i >= 100 {
			want += 2 // last
		}
		if i >= 200 {
			want += 2 // next
		}
		a, b := stat(t, file(first, 2*i)), stat(t, file(first, 2*i+1))
		if a.Ino != b.Ino || uint64(a.Nlink) != want {
			t.Errorf("file %d: inodes %d and %d, %d links, want %d", i, a.Ino, b.Ino, a.Nlink, want)
		}
		if i >= 100 && stat(t, file(last, 2*(i-100))).Ino != a.Ino || i >= 200 && stat(t, file(next, 2*(i-200))).Ino != a.Ino {
			t.Errorf("file %d is there more than once", i)
		}
	}
	if stats := optimise(t, s); stats.Files != 0 {
		t.Errorf("left for an optimisation: %+v", stats)
	}
}

// Equal trees that come at the same time are one soon.
func TestNewFilesAtOnce(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	archive := folderOf(t, manyFiles(0)...)
	var wg sync.WaitGroup
	var paths [4]store.Path
	for i := range paths {
		wg.Go(func() { paths[i] = addSource(t, s, fmt.Sprint("source-", i), archive) })
	}
	wg.Wait()
	if _, _, err := s.SweepLinks(t.Context()); err != nil { // it waits for the links
		t.Fatal(err)
	}
	for i := range 600 {
		if st := stat(t, filepath.Join(s.RealPath(paths[0]), fmt.Sprintf("%03d", i))); st.Nlink != 9 {
			t.Errorf("file %d has %d links, want 9", i, st.Nlink)
		}
	}
	if found := problems(t, s); len(found) > 0 {
		t.Errorf("problems: %v", found)
	}
	if deleted, err := s.Delete(t.Context(), paths[:]); err != nil || len(deleted) != len(paths) {
		t.Errorf("deleted %v, %v", deleted, err)
	}
	if _, _, err := s.SweepLinks(t.Context()); err != nil {
		t.Fatal(err)
	}
	if entries, _ := filepath.Glob(filepath.Join(l.RealDir, ".links/??/*")); len(entries) != 0 {
		t.Errorf("pool has %d entries", len(entries))
	}
}

// What has just been added can be deleted.
func TestNewFilesDeleted(t *testing.T) {
	s := open(t, newLayout(t))
	for i := range 4 {
		p := addSource(t, s, "source", folderOf(t, manyFiles(1000*i)...))
		if deleted, err := s.Delete(t.Context(), []store.Path{p}); err != nil || len(deleted) != 1 {
			t.Fatalf("deleted %v, %v", deleted, err)
		}
	}
}
