package sources_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/client/sources"
	"cairn/store"
)

// old makes a tree that was left alone for long enough.
func old(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	for _, f := range []string{"a", "b/c", "b/d"} {
		file := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond) // nothing else makes a status change old
	return dir
}

func open(t *testing.T, dir string) *sources.Cache {
	t.Helper()
	c, err := sources.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func list(t *testing.T, path string) *sources.Listing {
	t.Helper()
	l, err := sources.List(path, "nar", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var contents = store.SHA256.Sum([]byte("contents"))

func TestRecall(t *testing.T) {
	tree, dir := old(t), t.TempDir()
	c := open(t, dir)
	if _, ok := c.Recall(list(t, tree)); ok {
		t.Error("an empty cache knows something")
	}
	if !c.Blank(tree, "nar") {
		t.Error("there is something in an empty cache")
	}
	c.Remember(list(t, tree), contents)
	if c.Blank(tree, "nar") || !c.Blank(tree, "flat") {
		t.Error("what is remembered, or something else, is not there")
	}
	again := open(t, dir)
	if h, ok := again.Recall(list(t, tree)); !ok || h != contents {
		t.Errorf("recalled %v, %v", h, ok)
	}
	if l, err := sources.List(tree, "flat", time.Now()); err != nil {
		t.Fatal(err)
	} else if _, ok := c.Recall(l); ok {
		t.Error("what was remembered as an archive is known as bytes")
	}
	for name, change := range map[string]func() error{
		"contents, with the old time": func() error {
			file := filepath.Join(tree, "b/c")
			fi, err := os.Stat(file)
			if err != nil {
				return err
			}
			if err := os.WriteFile(file, []byte("x/y"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(file, fi.ModTime(), fi.ModTime())
		},
		"mode":    func() error { return os.Chmod(filepath.Join(tree, "a"), 0o755) },
		"name":    func() error { return os.Rename(filepath.Join(tree, "b/d"), filepath.Join(tree, "b/e")) },
		"removal": func() error { return os.Remove(filepath.Join(tree, "link")) },
	} {
		c.Remember(list(t, tree), contents) // not after the first change: it is too young
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, ok := c.Recall(list(t, tree)); ok {
			t.Errorf("after a change of %s it is recalled", name)
		}
	}
	c.Remember(list(t, tree), contents)
	if _, ok := c.Recall(list(t, tree)); ok {
		t.Error("what has just changed is remembered")
	}
	began := time.Now()
	if err := os.Chmod(filepath.Join(tree, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond)
	late, err := sources.List(tree, "nar", began)
	if err != nil {
		t.Fatal(err)
	}
	c.Remember(late, contents)
	if _, ok := c.Recall(list(t, tree)); ok {
		t.Error("what has changed after the reading began is remembered")
	}
}

func TestDamagedCache(t *testing.T) {
	tree, dir := old(t), t.TempDir()
	c := open(t, dir)
	c.Remember(list(t, tree), contents)
	file := filepath.Join(dir, "sources")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-40] ^= 1 // in the hash of the contents or the check
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if h, ok := c.Recall(list(t, tree)); ok {
		t.Errorf("recalled %v from a damaged slot", h)
	}
	if err := os.Truncate(file, 100); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Recall(list(t, tree)); ok {
		t.Error("recalled from what is not there")
	}
	c.Remember(list(t, tree), contents)
	if h, ok := c.Recall(list(t, tree)); !ok || h != contents {
		t.Errorf("recalled %v, %v after it was remembered again", h, ok)
	}
}

// Without a cache everything is read.
func TestNoCache(t *testing.T) {
	var c *sources.Cache
	l := list(t, old(t))
	c.Remember(l, contents)
	if _, ok := c.Recall(l); ok || c.Close() != nil {
		t.Error("no cache knows something")
	}
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := sources.Open(filepath.Join(blocked, "dir")); err == nil {
		t.Error("opened below a file")
	}
}
