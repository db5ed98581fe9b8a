package nar_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/archive/wire"
)

// tokens writes an archive by hand, right or wrong.
func tokens(list ...string) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	for _, t := range list {
		w.String(t)
	}
	w.Flush()
	return b.Bytes()
}

// tree returns the tokens of an archive of a directory with the given entries.
func tree(entries ...[]string) []byte {
	all := []string{"nix-archive-1", "(", "type", "directory"}
	for _, e := range entries {
		all = append(all, e...)
	}
	return tokens(append(all, ")")...)
}

func entry(name string, node ...string) []string {
	e := append([]string{"entry", "(", "name", name, "node", "("}, node...)
	return append(e, ")", ")")
}

func text(name string) []string { return entry(name, "type", "regular", "contents", "x") }

func link(name, target string) []string { return entry(name, "type", "symlink", "target", target) }

func nested(depth int) []byte {
	list := []string{"nix-archive-1", "(", "type", "directory"}
	for range depth {
		list = append(list, "entry", "(", "name", "a", "node", "(", "type", "directory")
	}
	for range depth {
		list = append(list, ")", ")")
	}
	return tokens(append(list, ")")...)
}

// length replaces the first string s of an archive by a length alone.
func length(archive []byte, s string, n string) []byte {
	framed := tokens(s)
	at := bytes.Index(archive, framed)
	return append(bytes.Clone(archive[:at]), n...)
}

var hostile = map[string][]byte{
	"empty":                   {},
	"zeros":                   make([]byte, 1024),
	"other magic":             tokens("nix-archive-2", "(", "type", "regular", "contents", "x", ")"),
	"unknown type":            tokens("nix-archive-1", "(", "type", "device12", ")"),
	"no contents":             tokens("nix-archive-1", "(", "type", "regular", ")"),
	"executable twice":        tokens("nix-archive-1", "(", "type", "regular", "executable", "", "executable", "", "contents", "x", ")"),
	"executable with a value": tokens("nix-archive-1", "(", "type", "regular", "executable", "y", "contents", "x", ")"),
	"executable last":         tokens("nix-archive-1", "(", "type", "regular", "contents", "x", "executable", "", ")"),
	"no target":               tokens("nix-archive-1", "(", "type", "symlink", ")"),
	"empty target":            tokens("nix-archive-1", "(", "type", "symlink", "target", "", ")"),
	"target with NUL":         tokens("nix-archive-1", "(", "type", "symlink", "target", "a\x00b", ")"),
	"long target":             tokens("nix-archive-1", "(", "type", "symlink", "target", strings.Repeat("a", 4096), ")"),
	"dot":                     tree(text(".")),
	"dot dot":                 tree(text("..")),
	"empty name":              tree(text("")),
	"slash":                   tree(text("a/b")),
	"leading slash":           tree(text("/etc")),
	"up and out":              tree(text("../escape")),
	"NUL":                     tree(text("a\x00b")),
	"long name":               tree(text(strings.Repeat("a", 256))),
	"name is ) and end":       tree([]string{"entry", "(", "name", ")"}),
	"unsorted":                tree(text("b"), text("a")),
	"twice":                   tree(text("a"), text("a")),
	"link, then file":         tree(link("a", "/tmp"), text("a")),
	"link, then directory": tree(link("a", "/tmp"),
		[]string{"entry", "(", "name", "a", "node", "(", "type", "directory"}, text("escape"), []string{")", ")"}),
	"node before name":      tree([]string{"entry", "(", "node", "(", "type", "regular", "contents", "x", ")", "name", "a", ")"}),
	"entry in entry":        tree([]string{"entry", "(", "entry", "(", ")", ")"}),
	"unknown token":         tree([]string{"attribute"}),
	"257 levels":            nested(256),
	"depth bomb":            nested(100_000),
	"huge name":             length(tree(text("name1")), "name1", "\xff\xff\xff\xff\xff\xff\xff\xff"),
	"huge name, signed":     length(tree(text("name1")), "name1", "\xff\xff\xff\xff\xff\xff\xff\x7f"),
	"huge contents":         length(tree(text("a")), "x", "\xff\xff\xff\xff\xff\xff\xff\xff"),
	"huge contents, signed": length(tree(text("a")), "x", "\xff\xff\xff\xff\xff\xff\xff\x7f"),
	"missing terabyte":      length(tree(text("a")), "x", "\x00\x00\x00\x00\x00\x01\x00\x00"),
	"padding":               bytes.Replace(tree(text("a")), []byte("x\x00"), []byte("x\x01"), 1),
	"name padding":          bytes.Replace(tree(text("bc")), []byte("bc\x00"), []byte("bc\x01"), 1),
}

func TestHostileArchivesAreRefused(t *testing.T) {
	for name, data := range hostile {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			target := filepath.Join(dir, "target")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, copied := nar.Copy(io.Discard, bytes.NewReader(data))
			err := nar.Restore(bytes.NewReader(data), target, nil)
			runtime.ReadMemStats(&after)
			if err == nil || copied == nil {
				t.Fatalf("accepted: restore %v, copy %v", err, copied)
			}
			if !errors.Is(err, nar.ErrFormat) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("restore: %v is neither a format error nor an early end", err)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
				t.Errorf("took %d bytes of memory", took)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left %v behind", left)
			}
		})
	}
}

func TestDeepestTree(t *testing.T) {
	data := nested(nar.MaxDepth - 1)
	target := filepath.Join(t.TempDir(), "target")
	makeRemovable(t, target)
	if err := nar.Restore(bytes.NewReader(data), target, nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := nar.Dump(&b, target); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), data) {
		t.Error("dump differs")
	}
}

func TestTruncatedAtEveryByte(t *testing.T) {
	data := tree(text("a"), entry("b", "type", "regular", "executable", "", "contents", "y"), entry("c", "type", "directory"), link("d", "x"))
	dir := t.TempDir()
	for n := range data {
		err := nar.Restore(bytes.NewReader(data[:n]), filepath.Join(dir, "t"), nil)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d of %d bytes: %v, want an early end", n, len(data), err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Fatalf("%d of %d bytes: left %v behind", n, len(data), left)
		}
	}
}

// A reader that fails in the middle of data gives its own error, not an early end.
func TestReaderKeepsTheSourcesError(t *testing.T) {
	data := tree(text("a"))
	own := errors.New("cable pulled")
	for n := range data {
		r := io.MultiReader(bytes.NewReader(data[:n]), errReader{own})
		if _, err := nar.Copy(io.Discard, r); !errors.Is(err, own) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestReaderStopsAtTheEnd(t *testing.T) {
	data := tree(text("a"), link("b", "c"))
	r := bytes.NewReader(append(bytes.Clone(data), "what follows"...))
	n, err := nar.Copy(io.Discard, r)
	if err != nil || n != int64(len(data)) {
		t.Fatalf("copied %d of %d bytes: %v", n, len(data), err)
	}
	rest, _ := io.ReadAll(r)
	if string(rest) != "what follows" {
		t.Errorf("left %q", rest)
	}
}

// Whatever the umask and the default ACL say, and however many files were made before, objects get the metadata of store objects.
func TestRestoreIsCanonical(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	modes := map[string]os.FileMode{"": os.ModeDir | 0o555, "a": 0o444, "b": 0o555, "c": os.ModeDir | 0o555, "c/e": 0o444, "c/f": 0o555, "d": os.ModeSymlink | 0o777}
	data := tree(text("a"), entry("b", "type", "regular", "executable", "", "contents", "y"), entry("c", "type", "directory", "entry", "(", "name", "e", "node", "(", "type", "regular", "contents", "z", ")", ")",
		"entry", "(", "name", "f", "node", "(", "type", "regular", "executable", "", "contents", "z", ")", ")"), link("d", "x"))
	for _, c := range []struct {
		name  string
		umask int
		acl   bool
		sync  bool
	}{{"usual", 0o022, false, false}, {"durable", 0o022, false, true}, {"umask", 0o077, false, true}, {"ACL", 0o022, true, false}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			target := filepath.Join(dir, "target")
			makeRemovable(t, target)
			unix.Umask(c.umask)
			if c.acl {
				private := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x04\x00\x00\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff" // u::rwx,g::-,o::-
				if err := unix.Setxattr(dir, "system.posix_acl_default", []byte(private), 0); err != nil {
					t.Fatalf("give %s a default ACL: %v", dir, err)
				}
			}
			if err := nar.Restore(bytes.NewReader(data), target, &nar.RestoreOptions{Sync: c.sync}); err != nil {
				t.Fatal(err)
			}
			for name, mode := range modes {
				st, err := os.Lstat(filepath.Join(target, name))
				if err != nil {
					t.Fatal(err)
				}
				if st.Mode() != mode || st.ModTime().Unix() != 1 || st.ModTime().Nanosecond() != 0 {
					t.Errorf("%q has mode %s and time %s", name, st.Mode(), st.ModTime())
				}
			}
		})
	}
}

func TestRestoreOntoAnother(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	makeRemovable(t, target)
	data := tree(text("a"))
	if err := nar.Restore(bytes.NewReader(data), target, nil); err != nil {
		t.Fatal(err)
	}
	if err := nar.Restore(bytes.NewReader(data), target, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("restore onto an existing tree: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(target, "a")); err != nil {
		t.Errorf("a refused restore removed what was there: %v", err)
	}
}

func TestRestoreDoesNotFollowALinkAtItsTarget(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	target := filepath.Join(dir, "target")
	if err := os.Symlink(outside, target); err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{tree(text("a")), tokens("nix-archive-1", "(", "type", "regular", "contents", "x", ")"), tokens("nix-archive-1", "(", "type", "symlink", "target", "y", ")")} {
		if err := nar.Restore(bytes.NewReader(data), target, nil); !errors.Is(err, os.ErrExist) {
			t.Errorf("restore: %v, want that it exists", err)
		}
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Error("wrote through the link")
	}
}

// Somebody who changes the tree meanwhile cannot lead Restore outside either.
func TestRestoreInATreeThatChanges(t *testing.T) {
	dir := t.TempDir()
	outside, target := filepath.Join(dir, "outside"), filepath.Join(dir, "target")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	data := tree(append(append([]string{"entry", "(", "name", "sub", "node", "(", "type", "directory"}, text("file")...), ")", ")"))
	at := bytes.Index(data, tokens("file"))
	swap := func() {
		sub := filepath.Join(target, "sub")
		if err := os.Rename(sub, filepath.Join(dir, "moved")); err != nil {
			t.Error(err)
		}
		if err := os.Symlink(outside, sub); err != nil {
			t.Error(err)
		}
	}
	r := io.MultiReader(bytes.NewReader(data[:at]), &hook{do: swap}, bytes.NewReader(data[at:]))
	err := nar.Restore(r, target, nil)
	makeRemovable(t, target)
	makeRemovable(t, filepath.Join(dir, "moved"))
	t.Logf("restore: %v", err)
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("wrote %v outside", left)
	}
}

// hook is an empty reader that does something when it is read.
type hook struct{ do func() }

func (h *hook) Read([]byte) (int, error) {
	h.do()
	return 0, io.EOF
}

func TestDump(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b", "a", "A", "10", "9", "é", "a b", "a-b", "a.b", "aa", "_"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	big := bytes.Repeat([]byte("0123456789"), 100_000)
	if err := os.WriteFile(filepath.Join(dir, "big"), big, 0o700); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := nar.Dump(&b, dir); err != nil {
		t.Fatal(err)
	}
	if got := rewrite(t, b.Bytes()); !bytes.Equal(got, b.Bytes()) {
		t.Error("dump is not canonical")
	}
	t.Chdir(dir)
	for _, path := range []string{".", "../" + filepath.Base(dir), dir + "/"} {
		var again bytes.Buffer
		if err := nar.Dump(&again, path); err != nil || !bytes.Equal(again.Bytes(), b.Bytes()) {
			t.Errorf("dump %q: %v, or other bytes", path, err)
		}
	}
}

func TestDumpErrorsNameThePlace(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "sub", "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	err := nar.Dump(io.Discard, dir)
	if err == nil || !strings.Contains(err.Error(), pipe) {
		t.Errorf("dump with a pipe in it: %v", err)
	}
	if err := nar.Dump(io.Discard, filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dump of nothing: %v", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	root := nar.Header{Type: nar.Directory}
	file := func(path string) nar.Header { return nar.Header{Path: path, Type: nar.Regular} }
	for name, headers := range map[string][]nar.Header{
		"no root":              {file("a")},
		"two roots":            {root, root},
		"unsorted":             {root, file("b"), file("a")},
		"twice":                {root, file("a"), file("a")},
		"in a file":            {root, file("a"), file("a/b")},
		"in a directory left":  {root, {Path: "a", Type: nar.Directory}, file("b"), file("a/c")},
		"dot dot":              {root, file("..")},
		"empty target":         {root, {Path: "a", Type: nar.Symlink}},
		"no type":              {root, {Path: "a"}},
		"negative size":        {root, {Path: "a", Type: nar.Regular, Size: -1}},
		"data missing":         {root, {Path: "a", Type: nar.Regular, Size: 1}, file("b")},
		"data missing at end":  {{Type: nar.Regular, Size: 1}},
		"nothing":              {},
		"name with a NUL byte": {root, file("a\x00")},
	} {
		w := nar.NewWriter(io.Discard)
		var err error
		for _, h := range headers {
			if err = w.WriteHeader(&h); err != nil {
				break
			}
		}
		if closed := w.Close(); err == nil {
			err = closed
		}
		if !errors.Is(err, nar.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func seeds(f *testing.F) {
	files, err := filepath.Glob(vectors + "/*.nar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, data := range hostile {
		if len(data) < 10_000 {
			f.Add(data)
		}
	}
	f.Add(tree(text("a"), entry("b", "type", "regular", "executable", "", "contents", "y"), entry("c", "type", "directory"), link("d", "x")))
}

func FuzzNAR(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := nar.Copy(io.Discard, bytes.NewReader(data))
		if err != nil {
			return
		}
		if got := rewrite(t, data[:n]); !bytes.Equal(got, data[:n]) {
			t.Error("accepted, and written differently")
		}
		if _, err := nar.List(bytes.NewReader(data)); err != nil {
			t.Errorf("accepted, and not listed: %v", err)
		}
	})
}

func FuzzRestore(f *testing.F) {
	seeds(f)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		target := filepath.Join(dir, "target")
		n, read := nar.Copy(io.Discard, bytes.NewReader(data))
		err := nar.Restore(bytes.NewReader(data), target, nil)
		if read != nil && err == nil {
			t.Errorf("restored what is not canonical: %v", read)
		}
		if err == nil {
			var b bytes.Buffer
			if err := nar.Dump(&b, target); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(b.Bytes(), data[:n]) {
				t.Error("dump differs from what was restored")
			}
			makeWritable(target)
			os.RemoveAll(target)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Fatalf("left %v", left)
		}
	})
}
