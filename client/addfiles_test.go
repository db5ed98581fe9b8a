package client_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/client"
	"cairn/store"
)

// TestAddFiles compares what many files become together with what each becomes by itself.
func TestAddFiles(t *testing.T) {
	dir := t.TempDir()
	var files []client.File
	file := func(name, contents string, mode os.FileMode, method store.Method) {
		p := filepath.Join(dir, fmt.Sprintf("%s-%o", name, mode))
		if err := os.WriteFile(p, []byte(contents), mode); err != nil {
			t.Fatal(err)
		}
		files = append(files, client.File{Name: name, Method: method, Path: p})
	}
	for i := range 30 {
		file(fmt.Sprint("small-", i), strings.Repeat("x", i*3000), 0o644, store.Recursive)
	}
	file("executable", "#!/bin/sh", 0o755, store.Recursive)
	file("flat", "#!/bin/sh", 0o755, store.Flat)
	file("empty", "", 0o644, store.Flat)
	file("text.drv", "no derivation", 0o644, store.Recursive)
	files = files[:len(files)-1] // the daemon refuses it, see below
	link := filepath.Join(dir, "link")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	files = append(files, client.File{Name: "link", Method: store.Recursive, Path: link}, files[3], files[4])
	together, alone := connect(t), connect(t)
	for range 2 {
		paths, err := together.AddFiles(t.Context(), files)
		if err != nil || len(paths) != len(files) {
			t.Fatalf("%d paths of %d files, %v", len(paths), len(files), err)
		}
		for i, f := range files {
			info, err := alone.AddFile(t.Context(), f.Name, f.Method, store.SHA256, nil, f.Path)
			if err != nil || info.Path != paths[i] {
				t.Fatalf("%s is %v alone and %v together, %v", f.Name, info, paths[i], err)
			}
			mine, err := together.Info(t.Context(), paths[i])
			if err != nil || mine.NarHash != info.NarHash || mine.NarSize != info.NarSize || mine.CA != info.CA || mine.Ultimate != info.Ultimate {
				t.Errorf("%s: %+v together, %+v alone, %v", f.Name, mine, info, err)
			}
		}
	}
	wrong := client.File{Name: "text.drv", Method: store.Recursive, Path: filepath.Join(dir, "text.drv-644")}
	for _, bad := range []client.File{wrong, {Name: "none", Method: store.Recursive, Path: filepath.Join(dir, "none")}, {Name: "flat", Method: store.Flat, Path: dir}} {
		paths, err := together.AddFiles(t.Context(), []client.File{files[0], bad, files[1]})
		if err == nil || len(paths) != 1 {
			t.Errorf("%s: %d paths, %v", bad.Name, len(paths), err)
		}
	}
}

func connect(t *testing.T) *client.Conn {
	t.Helper()
	c, err := client.New(t.Context(), pipe(t, serve(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
