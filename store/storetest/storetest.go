// Package storetest is the conformance suite of the contracts store.Reader and store.Writer:
// whatever holds store objects runs it in its tests.
//
// The suite adds objects of every shape, reads them back, and tries what must be refused: wrong hashes and
// sizes, references that are not valid, damaged archives, content addresses that lie. After a refusal
// the path must not be valid.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/refscan"
)

// Run runs the suite. Each call of open gives a store that may have objects of its own.
func Run(t *testing.T, open func(t *testing.T) store.ReadWriter) {
	tests := []struct {
		name string
		run  func(t *testing.T, rw store.ReadWriter)
	}{
		{"shapes", shapes},
		{"references", references},
		{"content", content},
		{"refusals", refusals},
		{"twice", twice},
		{"exactly one archive", exactlyOne},
		{"unknown path", unknown},
		{"concurrent", concurrent},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// TempDir returns a directory for a store, and makes what is in it removable when the test ends: objects are
// read-only, which keeps an ordinary user from removing them.
func TempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
	})
	return dir
}

// File returns the archive of a plain file.
func File(contents string) []byte {
	var b bytes.Buffer
	if err := nar.DumpString(&b, []byte(contents), false); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Tree returns the archive of a tree with files, an executable, links and directories.
func Tree(tag string) []byte {
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	for _, e := range []struct {
		h    nar.Header
		data string
	}{
		{nar.Header{Type: nar.Directory}, ""},
		{nar.Header{Path: "bin", Type: nar.Directory}, ""},
		{nar.Header{Path: "bin/run", Type: nar.Regular, Executable: true}, "#!/bin/sh\n" + tag},
		{nar.Header{Path: "empty", Type: nar.Directory}, ""},
		{nar.Header{Path: "link", Type: nar.Symlink, Target: "bin/run"}, ""},
		{nar.Header{Path: "zero", Type: nar.Regular}, ""},
	} {
		e.h.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.h); err != nil {
			panic(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Source returns what is known of an object that has the content address of its archive.
// The archive must not contain its own path.
func Source(dir store.Dir, name string, archive []byte, refs ...store.Path) *store.Info {
	h := store.SHA256.Sum(archive)
	p, err := dir.SourcePath(name, h, store.References{Others: refs})
	if err != nil {
		panic(err)
	}
	return &store.Info{
		Path: p, NarHash: h, NarSize: int64(len(archive)), References: store.SortPaths(slices.Clone(refs)),
		CA: store.ContentAddress{Method: store.Recursive, Hash: h},
	}
}

// dirOf finds out the store directory: the suite needs no other access to a store than the contracts, so an
// implementation with another directory has a Dir method.
func dirOf(rw store.ReadWriter) store.Dir {
	if d, ok := rw.(interface{ Dir() store.Dir }); ok {
		return d.Dir()
	}
	return store.DefaultDir
}

func add(t *testing.T, rw store.ReadWriter, info *store.Info, archive []byte) {
	t.Helper()
	if err := rw.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
		t.Fatalf("add %s: %v", info.Path, err)
	}
}

// check reads an object back and compares.
func check(t *testing.T, rw store.ReadWriter, want *store.Info, archive []byte) {
	t.Helper()
	got, err := rw.Info(t.Context(), want.Path)
	if err != nil {
		t.Fatalf("info of %s: %v", want.Path, err)
	}
	if got.Path != want.Path || got.NarHash != want.NarHash || got.NarSize != want.NarSize || got.CA != want.CA ||
		!slices.Equal(got.References, want.References) || got.Deriver != want.Deriver {
		t.Errorf("info of %s:\n got %+v\nwant %+v", want.Path, got, want)
	}
	var b bytes.Buffer
	if err := rw.NAR(t.Context(), want.Path, &b); err != nil {
		t.Fatalf("read %s: %v", want.Path, err)
	}
	if !bytes.Equal(b.Bytes(), archive) {
		t.Errorf("archive of %s: got %d bytes, want %d, and other ones", want.Path, b.Len(), len(archive))
	}
}

func absent(t *testing.T, rw store.ReadWriter, p store.Path) {
	t.Helper()
	if _, err := rw.Info(t.Context(), p); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("info of %s: got %v, want ErrNotValid", p, err)
	}
}

func shapes(t *testing.T, rw store.ReadWriter) {
	var symlink bytes.Buffer
	w := nar.NewWriter(&symlink)
	if err := w.WriteHeader(&nar.Header{Type: nar.Symlink, Target: "/nowhere"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var executable bytes.Buffer
	if err := nar.DumpString(&executable, []byte("run"), true); err != nil {
		t.Fatal(err)
	}
	for name, archive := range map[string][]byte{
		"file": File("hello"), "empty": File(""), "large": File(string(make([]byte, 3<<20))),
		"tree": Tree("shapes"), "symlink": symlink.Bytes(), "executable": executable.Bytes(),
	} {
		info := Source(dirOf(rw), name, archive)
		add(t, rw, info, archive)
		check(t, rw, info, archive)
	}
}

func references(t *testing.T, rw store.ReadWriter) {
	base := Source(dirOf(rw), "base", File("base"))
	add(t, rw, base, File("base"))
	top := File("needs " + base.Path.String())
	info := Source(dirOf(rw), "top", top, base.Path)
	add(t, rw, info, top)
	check(t, rw, info, top)

	missing := Source(dirOf(rw), "missing", File("never added"))
	text := File("needs " + missing.Path.String())
	bad := Source(dirOf(rw), "dangling", text, missing.Path)
	if err := rw.Add(t.Context(), bad, bytes.NewReader(text)); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("add with a reference that is not valid: got %v, want ErrNotValid", err)
	}
	absent(t, rw, bad.Path)
}

func content(t *testing.T, rw store.ReadWriter) {
	dir := dirOf(rw)
	data := []byte("some contents")
	archive := File(string(data))
	for _, ca := range []store.ContentAddress{
		{Method: store.Text, Hash: store.SHA256.Sum(data)},
		{Method: store.Flat, Hash: store.SHA256.Sum(data)},
		{Method: store.Flat, Hash: store.SHA1.Sum(data)},
		{Method: store.Recursive, Hash: store.SHA512.Sum(archive)},
		{Method: store.Recursive, Hash: store.BLAKE3.Sum(archive)},
	} {
		p, err := dir.ContentPath("content", ca, store.References{})
		if err != nil {
			t.Fatal(err)
		}
		info := &store.Info{Path: p, NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive)), CA: ca}
		add(t, rw, info, archive)
		check(t, rw, info, archive)
	}
	for _, form := range []refscan.SelfHash{refscan.Blanked, refscan.WithOffsets} {
		info, archive := self(dir, "self", "I am %s, again %s\n", form)
		add(t, rw, info, archive)
		check(t, rw, info, archive)
	}
}

// Self returns an object that refers to itself: format has %s where its path goes.
func Self(dir store.Dir, name, format string) (*store.Info, []byte) {
	return self(dir, name, format, refscan.Blanked)
}

func self(dir store.Dir, name, format string, form refscan.SelfHash) (*store.Info, []byte) {
	const digits = "00000000000000000000000000000000"
	blank := string(dir) + "/" + digits + "-" + name
	archive := File(fmt.Sprintf(format, blank, blank))
	m := refscan.HashModulo(store.SHA256, digits)
	m.Write(archive)
	ca := store.ContentAddress{Method: store.Recursive, Hash: m.Sum(form)}
	p, err := dir.ContentPath(name, ca, store.References{Self: true})
	if err != nil {
		panic(err)
	}
	archive = bytes.ReplaceAll(archive, []byte(digits), []byte(p.Digest()))
	return &store.Info{
		Path: p, NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive)),
		References: []store.Path{p}, CA: ca,
	}, archive
}

func refusals(t *testing.T, rw store.ReadWriter) {
	dir := dirOf(rw)
	archive := Tree("refusals")
	tests := []struct {
		name    string
		change  func(i *store.Info)
		archive []byte
	}{
		{"hash", func(i *store.Info) { i.NarHash = store.SHA256.Sum([]byte("other")) }, archive},
		{"size", func(i *store.Info) { i.NarSize++ }, archive},
		{"path", func(i *store.Info) { i.Path, _ = dir.SourcePath("path", store.SHA256.Sum(nil), store.References{}) }, archive},
		{"contents", func(*store.Info) {}, Tree("REFUSALS")},
		{"cut", func(*store.Info) {}, archive[:len(archive)-8]},
		{"cut in the middle", func(*store.Info) {}, archive[:len(archive)/2]},
		{"empty", func(*store.Info) {}, nil},
		{"no archive", func(*store.Info) {}, bytes.Repeat([]byte("no archive"), 100)},
		{"text that is a tree", func(i *store.Info) {
			i.CA = store.ContentAddress{Method: store.Text, Hash: i.NarHash}
			i.Path, _ = dir.ContentPath(i.Path.Name(), i.CA, store.References{})
		}, archive},
	}
	for _, test := range tests {
		info := Source(dir, "refused", archive)
		test.change(info)
		if err := rw.Add(t.Context(), info, bytes.NewReader(test.archive)); err == nil {
			t.Errorf("%s: added", test.name)
		}
		absent(t, rw, info.Path)
	}
}

func twice(t *testing.T, rw store.ReadWriter) {
	archive := Tree("twice")
	info := Source(dirOf(rw), "twice", archive)
	add(t, rw, info, archive)
	add(t, rw, info, archive)
	check(t, rw, info, archive)
}

// exactlyOne gives a stream in which something follows the archive, for a new path and for a valid one.
func exactlyOne(t *testing.T, rw store.ReadWriter) {
	archive := Tree("exactly")
	info := Source(dirOf(rw), "exactly", archive)
	for range 2 {
		r := bytes.NewReader(append(slices.Clone(archive), "what follows"...))
		if err := rw.Add(t.Context(), info, r); err != nil {
			t.Fatal(err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "what follows" {
			t.Errorf("left in the stream: %q", rest)
		}
	}
}

func unknown(t *testing.T, rw store.ReadWriter) {
	p := Source(dirOf(rw), "unknown", File("unknown")).Path
	absent(t, rw, p)
	if err := rw.NAR(t.Context(), p, io.Discard); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("read: got %v, want ErrNotValid", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	archive := File("cancelled")
	info := Source(dirOf(rw), "cancelled", archive)
	if err := rw.Add(ctx, info, bytes.NewReader(archive)); err == nil {
		t.Error("add with a cancelled context: no error")
	}
	absent(t, rw, info.Path)
}

func concurrent(t *testing.T, rw store.ReadWriter) {
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 20 {
				archive := Tree(fmt.Sprint("concurrent", (n+w)%20)) // every one is added by all
				info := Source(dirOf(rw), "concurrent", archive)
				if err := rw.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for n := range 20 {
		archive := Tree(fmt.Sprint("concurrent", n))
		check(t, rw, Source(dirOf(rw), "concurrent", archive), archive)
	}
}
