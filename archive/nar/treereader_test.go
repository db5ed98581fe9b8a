package nar_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
)

// someTree makes a tree of objects of all kinds and sizes.
func someTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, size := range map[string]int{"a": 0, "b/c": 1, "b/d/e": 8, "b/d/f": 4096, "b/z": 300_001, "zz": 7, strings.Repeat("n", 255): 9} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, bytes.Repeat([]byte{'x'}, size), 0o644+os.FileMode(size%2)*0o111); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "empty/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"a", strings.Repeat("/long", 800)} {
		if err := os.Symlink(target, filepath.Join(dir, "b", "link"+target[:1][:len(target)%2])); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openTree(t *testing.T, dir string) *nar.TreeReader {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r := nar.NewTreeReader(f)
	t.Cleanup(func() { r.Close() })
	return r
}

// A tree that is read is the one that is dumped, however little is read at once.
func TestTreeReader(t *testing.T) {
	for name, dir := range map[string]string{"some": someTree(t), "empty": t.TempDir()} {
		var want bytes.Buffer
		if err := nar.Dump(&want, dir); err != nil {
			t.Fatal(err)
		}
		for how, wrap := range map[string]func(io.Reader) io.Reader{"all": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader} {
			if got, err := io.ReadAll(wrap(openTree(t, dir))); err != nil || !bytes.Equal(got, want.Bytes()) {
				t.Errorf("%s, %s: %d bytes, want %d, %v", name, how, len(got), want.Len(), err)
			}
		}
	}
}

// What cannot be read is named, and nothing stays open.
func TestTreeReaderFails(t *testing.T) {
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	dir := someTree(t)
	before := open()
	r := openTree(t, dir)
	b := make([]byte, 100_000)
	for total := 0; total < 250_000; { // in the middle of b/z
		n, err := r.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if err := os.Truncate(filepath.Join(dir, "b/z"), 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err == nil || !strings.Contains(err.Error(), "b/z: changed") {
		t.Errorf("a file that gets shorter: %v", err)
	}
	if err := errors.Join(r.Close(), unix.Mkfifo(filepath.Join(dir, "b/pipe"), 0o644)); err != nil {
		t.Fatal(err)
	}
	r = openTree(t, dir)
	if _, err := io.Copy(io.Discard, r); err == nil || !strings.Contains(err.Error(), "b/pipe: neither") {
		t.Errorf("a pipe: %v", err)
	}
	r.Close()
	if now := open(); now > before+2 { // the two handles of the directory
		t.Errorf("%d open files, %d before", now, before)
	}
}
