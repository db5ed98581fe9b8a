package disk_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// twins is an archive with a large file that others have as well, as data and as a program, an empty one and one of its own.
func twins(t testing.TB, tag string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	shared := strings.Repeat("the same everywhere\n", 1000)
	for _, e := range []struct {
		h    nar.Header
		data string
	}{
		{nar.Header{Type: nar.Directory}, ""},
		{nar.Header{Path: "data", Type: nar.Regular}, shared},
		{nar.Header{Path: "dir", Type: nar.Directory}, ""},
		{nar.Header{Path: "dir/again", Type: nar.Regular}, shared},
		{nar.Header{Path: "dir/empty", Type: nar.Regular}, ""},
		{nar.Header{Path: "dir/own", Type: nar.Regular}, strings.Repeat(tag, 5000)},
		{nar.Header{Path: "program", Type: nar.Regular, Executable: true}, shared},
	} {
		e.h.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func addTwins(t testing.TB, s *disk.Store, n int) []store.Path {
	t.Helper()
	var paths []store.Path
	for i := range n {
		archive := twins(t, fmt.Sprint("twin", i))
		info := storetest.Source(s.Dir(), fmt.Sprint("twin", i), archive)
		if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, info.Path)
	}
	return paths
}

// openPlain opens a store that makes no links by itself.
func openPlain(t testing.TB, l disk.Layout) *disk.Store {
	t.Helper()
	s, err := disk.Open(t.Context(), l, &disk.Options{NoDedupe: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(path, err)
	}
	return st
}

func optimise(t testing.TB, s *disk.Store) disk.LinkStats {
	t.Helper()
	stats, err := s.Optimise(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func TestOptimise(t *testing.T) {
	s := openPlain(t, newLayout(t))
	twins := addTwins(t, s, 3)
	stats := optimise(t, s)
	// Of three times two equal files and three programs, one of each kind stays.
	if stats.Paths != 3 || stats.Files != 5+2 || stats.Skipped != 0 || stats.Bytes < 7*20000 {
		t.Errorf("first time: %+v", stats)
	}
	first := stat(t, filepath.Join(s.RealPath(twins[0]), "data"))
	for _, p := range twins {
		real := s.RealPath(p)
		data, again, program := stat(t, real+"/data"), stat(t, real+"/dir/again"), stat(t, real+"/program")
		if data.Ino != first.Ino || again.Ino != first.Ino || data.Nlink != 7 {
			t.Errorf("%s: inodes %d, %d, want %d; %d links", p, data.Ino, again.Ino, first.Ino, data.Nlink)
		}
		if program.Ino == first.Ino || program.Mode&0o111 == 0 {
			t.Errorf("%s: a program is a link to data", p)
		}
		if empty := stat(t, real+"/dir/empty"); empty.Nlink != 1 {
			t.Errorf("%s: empty file has %d links", p, empty.Nlink)
		}
		for _, dir := range []string{real, real + "/dir"} {
			if st := stat(t, dir); st.Mtim.Sec != 1 || st.Mode&0o777 != 0o555 {
				t.Errorf("%s: mode %o, time %d", dir, st.Mode, st.Mtim.Sec)
			}
		}
	}
	if stats := optimise(t, s); stats.Files != 0 || stats.Bytes != 0 {
		t.Errorf("second time: %+v", stats)
	}
	if freed, saved, err := s.SweepLinks(t.Context()); err != nil || freed != 0 || saved < 7*20000 {
		t.Errorf("sweep of what is in use: freed %d, saved %d, %v", freed, saved, err)
	}
	if _, err := s.Delete(t.Context(), twins); err != nil {
		t.Fatal(err)
	}
	if freed, saved, err := s.SweepLinks(t.Context()); err != nil || freed < 5*20000 || saved != 0 {
		t.Errorf("sweep of what is not: freed %d, saved %d, %v", freed, saved, err)
	}
}

// Neither a damaged object nor a damaged entry of the pool spreads.
func TestOptimiseDamaged(t *testing.T) {
	s := openPlain(t, newLayout(t))
	twins := addTwins(t, s, 2)
	bad := filepath.Join(s.RealPath(twins[0]), "dir", "own")
	damage(t, bad)
	if stats := optimise(t, s); stats.Skipped != 1 {
		t.Errorf("with a damaged object: %+v", stats)
	}
	if st := stat(t, bad); st.Nlink != 1 {
		t.Error("a damaged object was linked")
	}
	archiveOf := func(n int) *bytes.Reader { return bytes.NewReader(twinArchive(t, n)) }
	if err := s.Replace(t.Context(), twins[0], archiveOf(0)); err != nil {
		t.Fatal(err)
	}
	damage(t, filepath.Join(s.RealPath(twins[1]), "data")) // and with it the entry
	if found := problems(t, s); len(found) != 1 || found[0].Path != twins[1] || found[0].Kind != disk.Modified {
		t.Fatalf("found %v", found)
	}
	var links []disk.BadLink
	if err := s.VerifyLinks(t.Context(), disk.LinkCheck{}, func(b disk.BadLink) { links = append(links, b) }); err != nil || len(links) != 1 {
		t.Errorf("bad links: %v, %v", links, err)
	}
	if stats := optimise(t, s); stats.Skipped != 0 { // its files are in the pool, so that it is not read
		t.Errorf("with a damaged entry: %+v", stats)
	}
	if found := problems(t, s); len(found) != 1 {
		t.Fatalf("the damage has spread: %v", found)
	}
	if err := s.VerifyLinks(t.Context(), disk.LinkCheck{Remove: true}, func(disk.BadLink) {}); err != nil {
		t.Error(err)
	}
	if err := s.Replace(t.Context(), twins[1], archiveOf(1)); err != nil {
		t.Fatal(err)
	}
	if stats := optimise(t, s); stats.Files == 0 {
		t.Errorf("after the repair: %+v", stats)
	}
}

func twinArchive(t testing.TB, n int) []byte { return twins(t, fmt.Sprint("twin", n)) }

func TestOptimiseAtOnce(t *testing.T) {
	s := openPlain(t, newLayout(t))
	twins := addTwins(t, s, 12)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { optimise(t, s) })
		wg.Go(func() {
			if _, _, err := s.SweepLinks(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	optimise(t, s)
	inodes := map[uint64]bool{}
	for _, p := range twins {
		inodes[stat(t, s.RealPath(p)+"/data").Ino] = true
		inodes[stat(t, s.RealPath(p)+"/dir/again").Ino] = true
	}
	if len(inodes) > 2 { // a sweep may have forgotten one between two runs
		t.Errorf("%d files with the same contents are left", len(inodes))
	}
}

func TestAutoOptimise(t *testing.T) {
	s, err := disk.Open(t.Context(), newLayout(t), &disk.Options{AutoOptimise: true, NoDedupe: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	twins := addTwins(t, s, 3)
	for _, p := range twins {
		for deadline := time.Now().Add(time.Minute); stat(t, s.RealPath(p)+"/dir/again").Nlink != 7; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s has %d links, want 7", p, stat(t, s.RealPath(p)+"/dir/again").Nlink)
			}
		}
	}
	if err := s.Close(); err != nil { // the last of them may still be marked as being written to
		t.Error(err)
	}
	open(t, s.Layout())
}

// With both, everything is linked as it comes, whatever its size, and nothing is left to do.
func TestAutoOptimiseOnAdd(t *testing.T) {
	s, err := disk.Open(t.Context(), newLayout(t), &disk.Options{AutoOptimise: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	tiny := folderOf(t, [2]string{"a", "tiny"}, [2]string{"b", "tiny"}, [2]string{"empty", ""})
	p := add(t, s, "tiny", tiny)
	for name, links := range map[string]uint64{"a": 3, "b": 3, "empty": 1} {
		if st := stat(t, filepath.Join(s.RealPath(p), name)); uint64(st.Nlink) != links {
			t.Errorf("%s has %d links, want %d", name, st.Nlink, links)
		}
	}
	if stats := optimise(t, s); stats.Files != 0 {
		t.Errorf("left for an optimisation: %+v", stats)
	}
}

// A crash while directories of an object were written to.
func TestOptimiseInterrupted(t *testing.T) {
	l := newLayout(t)
	s := openPlain(t, l)
	p := addTwins(t, s, 1)[0]
	s.Close()
	dir := l.RealPath(p) + "/dir"
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.RealDir, ".busy-"+p.Base()), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, l)
	if st := stat(t, dir); st.Mode&0o777 != 0o555 || st.Mtim.Sec != 1 {
		t.Errorf("directory: mode %o, time %d", st.Mode, st.Mtim.Sec)
	}
	if _, err := os.Lstat(filepath.Join(l.RealDir, ".busy-"+p.Base())); err == nil {
		t.Error("mark is still there")
	}
}

func TestForget(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	base := text(t, s, "base", "base")
	mid := text(t, s, "mid", "mid", base)
	top := text(t, s, "top", "top", mid)
	vanish(t, s.RealPath(mid))
	found := problems(t, s)
	kinds := map[store.Path]disk.ProblemKind{}
	for _, p := range found {
		kinds[p.Path] = p.Kind
	}
	if kinds[mid] != disk.Vanished || s.IsValid(mid) || len(found) > 2 {
		t.Fatalf("found %v", found)
	}
	if gone, err := s.Forget(t.Context(), []store.Path{base, mid}); err != nil || len(gone) != 0 {
		t.Errorf("forgot %v, %v, although something refers to it", gone, err)
	}
	vanish(t, s.RealPath(top))
	problems(t, s)
	if gone, err := s.Forget(t.Context(), []store.Path{mid, top, base}); err != nil || !slices.Equal(gone, []store.Path{top, mid}) {
		t.Errorf("forgot %v, %v; want top and mid", gone, err)
	}
	if !s.IsValid(base) {
		t.Error("forgot what is there")
	}
	if _, err := s.Registered(mid); err == nil {
		t.Error("the row is still there")
	}
}

// What has vanished and comes back as it was is valid again.
func TestVanishedComesBack(t *testing.T) {
	s := open(t, newLayout(t))
	p := text(t, s, "a", "a")
	aside := s.RealPath(p) + ".aside"
	if err := os.Rename(s.RealPath(p), aside); err != nil {
		t.Fatal(err)
	}
	if len(problems(t, s)) != 1 || s.IsValid(p) {
		t.Error("not found to have vanished")
	}
	if unknown, err := s.Unknown(); err != nil || !slices.Equal(unknown, []string{filepath.Base(aside)}) {
		t.Errorf("unknown: %v, %v", unknown, err)
	}
	if err := os.Rename(aside, s.RealPath(p)); err != nil {
		t.Fatal(err)
	}
	if len(problems(t, s)) != 0 || !s.IsValid(p) {
		t.Error("not valid again")
	}
}
