package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"cairn/store"
)

func BenchmarkQueryPathInfo(b *testing.B) {
	r := start(b, nil)
	c := r.dial()
	p := addText(b, c, "a", "x").Path
	for b.Loop() {
		if _, err := c.Info(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddTempRoot(b *testing.B) {
	r := start(b, nil)
	c := r.dial()
	p := addText(b, c, "a", "x").Path
	for i := 0; b.Loop(); i++ {
		if i%(1<<19) == 1<<19-1 {
			c = r.dial()
		}
		if err := c.AddTempRoot(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddText(b *testing.B) {
	r := start(b, nil)
	c := r.dial()
	for i := 0; b.Loop(); i++ {
		addText(b, c, "a", fmt.Sprint(i))
	}
}

func BenchmarkAddTextThere(b *testing.B) {
	r := start(b, nil)
	c := r.dial()
	for b.Loop() {
		addText(b, c, "a", "x")
	}
}

func BenchmarkUpload(b *testing.B) {
	r := start(b, nil)
	c := r.dial()
	const size = 64 << 20
	body := strings.Repeat("x", size)
	b.SetBytes(size)
	for i := 0; b.Loop(); i++ {
		if _, err := c.AddToStore(b.Context(), fmt.Sprint("n", i), store.Flat, store.SHA256, nil, strings.NewReader(body)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDownload(b *testing.B) {
	r := start(b, nil)
	c := r.dial()
	contents := narOf(b, strings.Repeat("x", 64<<20))
	info, err := c.AddToStore(b.Context(), "n", store.Recursive, store.SHA256, nil, bytes.NewReader(contents))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(contents)))
	for b.Loop() {
		if err := c.NAR(b.Context(), info.Path, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
