package disk_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// damage changes a file of an object as a broken disk would: metadata stay.
func damage(t testing.TB, name string) {
	t.Helper()
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o444); err != nil {
		t.Fatal(err)
	}
}

// vanish removes an object's files behind the store's back.
func vanish(t testing.TB, name string) {
	t.Helper()
	filepath.WalkDir(name, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

// problems returns what Verify finds wrong.
func problems(t testing.TB, s *disk.Store) []disk.Problem {
	t.Helper()
	var found []disk.Problem
	if _, err := s.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { found = append(found, p) }); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestReplace(t *testing.T) {
	hurts := map[string]func(t testing.TB, real string){
		"file":     func(t testing.TB, real string) { damage(t, filepath.Join(real, "bin", "run")) },
		"gone":     vanish,
		"no tree":  func(t testing.TB, real string) { vanish(t, real); os.WriteFile(real, nil, 0o444) },
		"unharmed": func(testing.TB, string) {},
	}
	for name, hurt := range hurts {
		for _, exchange := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				s := open(t, newLayout(t))
				if !exchange {
					disk.NoExchange(s)
				}
				archive := storetest.Tree("replace")
				info := storetest.Source(s.Dir(), "replace", archive)
				if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
					t.Fatal(err)
				}
				user := text(t, s, "user", "user", info.Path)
				hurt(t, s.RealPath(info.Path))
				if err := s.Replace(t.Context(), info.Path, bytes.NewReader(storetest.Tree("other"))); !errors.Is(err, store.ErrHashMismatch) {
					t.Errorf("replace by another tree: got %v, want ErrHashMismatch", err)
				}
				if found := problems(t, s); (len(found) == 0) != (name == "unharmed") {
					t.Errorf("after a refusal: %v", found)
				}
				if err := s.Replace(t.Context(), info.Path, bytes.NewReader(archive)); err != nil {
					t.Fatal(err)
				}
				if refs, err := s.References(user); err != nil || len(refs) != 1 {
					t.Errorf("references of the user: %v, %v", refs, err)
				}
			})
		}
	}
}

func TestReplaceTree(t *testing.T) {
	s := open(t, newLayout(t))
	archive := storetest.Tree("tree")
	info := storetest.Source(s.Dir(), "tree", archive)
	if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	damage(t, filepath.Join(s.RealPath(info.Path), "bin", "run"))
	dir, err := s.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for name, want := range map[string]error{"other": store.ErrHashMismatch, "tree": nil} {
		tree := filepath.Join(dir, name)
		if err := nar.Restore(bytes.NewReader(storetest.Tree(name)), tree, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.ReplaceTree(t.Context(), info.Path, tree); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
		if _, err := os.Lstat(tree); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

// A missing object becomes valid by a replacement, after what it refers to.
func TestReplaceMissing(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	base := text(t, s, "base", "base")
	top := text(t, s, "top", "top", base)
	s.Close()
	vanish(t, l.RealPath(base))
	vanish(t, l.RealPath(top))
	s = open(t, l)
	if s.IsValid(base) || s.IsValid(top) {
		t.Fatal("missing objects are valid")
	}
	file := func(contents string) *bytes.Reader { return bytes.NewReader(storetest.File(contents)) }
	if err := s.Replace(t.Context(), top, file("top")); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("replace before references: got %v, want ErrNotValid", err)
	}
	if err := s.Replace(t.Context(), base, file("base")); err != nil {
		t.Error(err)
	}
	if err := s.Replace(t.Context(), top, file("top")); err != nil {
		t.Error(err)
	}
	if closure, err := s.Closure(top); err != nil || len(closure) != 2 {
		t.Errorf("closure: %v, %v", closure, err)
	}
	unknown := storetest.Source(s.Dir(), "unknown", storetest.File("unknown")).Path
	if err := s.Replace(t.Context(), unknown, file("unknown")); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("replace an unknown path: got %v, want ErrNotValid", err)
	}
}

// A start after a crash between the two steps of file systems that cannot exchange names.
func TestReplaceIsFinished(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	a, b, gone := text(t, s, "a", "a"), text(t, s, "b", "b"), text(t, s, "gone", "gone")
	never := text(t, s, "never", "never")
	if _, err := s.Delete(t.Context(), []store.Path{never}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	next := func(p store.Path) string { return filepath.Join(l.RealDir, ".next-"+p.Base()) }
	if err := os.Rename(l.RealPath(a), next(a)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next(b), []byte("too late"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next(never), []byte("no row"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(l.RealPath(gone), filepath.Join(l.RealDir, ".busy-"+gone.Base())); err != nil {
		t.Fatal(err)
	}
	s = open(t, l)
	if !s.IsValid(a) || !s.IsValid(b) {
		t.Error("an object is missing after an interrupted replacement")
	}
	if s.IsValid(gone) {
		t.Error("an object that has disappeared while it was linked is valid")
	}
	if got := text(t, s, "gone", "gone"); got != gone {
		t.Errorf("what has disappeared is added again as %s", got)
	}
	if _, err := os.Lstat(l.RealPath(never)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was to replace no object is there: %v", err)
	}
	entries, err := filepath.Glob(filepath.Join(l.RealDir, ".next-*"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left over: %s, %v", strings.Join(entries, " "), err)
	}
}
