package nar_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/archive/nar"
)

const vectors = "../../tests/vectors/nars"

func TestVectorsRoundTrip(t *testing.T) {
	files, err := filepath.Glob(vectors + "/*.nar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors in %s: %v", vectors, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := rewrite(t, data); !bytes.Equal(got, data) {
				t.Error("reader and writer change the archive")
			}
			tree := filepath.Join(t.TempDir(), "tree")
			if err := nar.Restore(bytes.NewReader(data), tree, nil); err != nil {
				t.Fatal(err)
			}
			makeRemovable(t, tree)
			var dumped bytes.Buffer
			if err := nar.Dump(&dumped, tree); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(dumped.Bytes(), data) {
				t.Error("restore and dump change the archive")
			}
		})
	}
}

// rewrite passes an archive through Reader and Writer.
func rewrite(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	r, w := nar.NewReader(bytes.NewReader(data)), nar.NewWriter(&out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		offset := h.Offset
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Offset != offset {
			t.Errorf("%q: reader says offset %d, writer %d", h.Path, offset, h.Offset)
		}
		if _, err := io.Copy(w, struct{ io.Reader }{r}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// makeRemovable lets the test's clean-up delete a restored tree without being root.
func makeRemovable(t testing.TB, tree string) {
	t.Cleanup(func() { makeWritable(tree) })
}

func makeWritable(tree string) {
	filepath.WalkDir(tree, func(name string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(name, 0o755)
		}
		return nil
	})
}

func TestListMatchesCaches(t *testing.T) {
	want := `{"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":0,"executable":true,"narOffset":264},"b":{"type":"symlink","target":"x"},"c":{"type":"directory","entries":{}}}}}`
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	for _, h := range []nar.Header{
		{Type: nar.Directory},
		{Path: "a", Type: nar.Regular, Executable: true},
		{Path: "b", Type: nar.Symlink, Target: "x"},
		{Path: "c", Type: nar.Directory},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := nar.List(&b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("listing\n got %s\nwant %s", got, strings.TrimSpace(want))
	}
}
