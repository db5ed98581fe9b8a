package nar_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/archive/nar"
)

func TestListingsOfNix(t *testing.T) {
	files, err := filepath.Glob("../../tests/vectors/cache/*.ls")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, f := range files {
		want, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		l, err := nar.ParseListing(bytes.NewReader(want))
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		again, err := l.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if second, err := nar.ParseListing(bytes.NewReader(again)); err != nil || second.Root.Type != l.Root.Type {
			t.Errorf("%s comes back as %s, %v", f, again, err)
		}
	}
}

func TestListingRefuses(t *testing.T) {
	deep := strings.Repeat(`{"type":"directory","entries":{"a":`, 300) + `{"type":"symlink","target":"x"}` + strings.Repeat("}}", 300)
	for name, root := range map[string]string{
		"nothing": `null`, "no type": `{}`, "other type": `{"type":"socket"}`, "no size": `{"type":"regular"}`,
		"negative size": `{"type":"regular","size":-1}`, "no target": `{"type":"symlink"}`, "no entries": `{"type":"directory"}`,
		"entry up": `{"type":"directory","entries":{"..":{"type":"symlink","target":"x"}}}`, "entry without node": `{"type":"directory","entries":{"a":null}}`, "too deep": deep,
	} {
		if _, err := nar.ParseListing(strings.NewReader(`{"version":1,"root":` + root + `}`)); !errors.Is(err, nar.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "{", `{"version":2,"root":{"type":"symlink","target":"x"}}`, `{"version":1,"root":{"type":"symlink","target":"x"}} x`} {
		if _, err := nar.ParseListing(strings.NewReader(text)); !errors.Is(err, nar.ErrFormat) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":1,"narOffset":8}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := nar.ParseListing(bytes.NewReader(data))
		if err != nil {
			return
		}
		text, err := l.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nar.ParseListing(bytes.NewReader(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	})
}
