package archive_test

import (
	"bytes"
	"io"
	"path/filepath"
	"runtime"
	"testing"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/store"
)

// large returns a store with one large object.
func large(b *testing.B) (*objects, *store.Info) {
	b.Helper()
	var data bytes.Buffer
	if err := nar.Dump(&data, filepath.Join(runtime.GOROOT(), "src")); err != nil {
		b.Skip(err)
	}
	info := &store.Info{NarHash: store.SHA256.Sum(data.Bytes()), NarSize: int64(data.Len())}
	var err error
	if info.Path, err = dir.SourcePath("src", info.NarHash, store.References{}); err != nil {
		b.Fatal(err)
	}
	return &objects{infos: map[store.Path]*store.Info{info.Path: info}, nars: map[store.Path][]byte{info.Path: data.Bytes()}}, info
}

func BenchmarkWriteBundle(b *testing.B) {
	o, info := large(b)
	b.SetBytes(info.NarSize)
	b.ReportAllocs()
	for b.Loop() {
		var n counter
		if err := archive.WriteBundle(b.Context(), &n, key(b, 0), dir, []*store.Info{info}, o); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.NarSize)/float64(n), "ratio")
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func BenchmarkReadBundle(b *testing.B) {
	o, info := large(b)
	var data bytes.Buffer
	if err := archive.WriteBundle(b.Context(), &data, key(b, 0), dir, []*store.Info{info}, o); err != nil {
		b.Fatal(err)
	}
	acl := allow(b, key(b, 0).Public())
	b.SetBytes(info.NarSize)
	b.ReportAllocs()
	for b.Loop() {
		in, err := archive.OpenBundle(bytes.NewReader(data.Bytes()), dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := in.VerifySignature(acl); err != nil {
			b.Fatal(err)
		}
		for {
			_, content, err := in.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, content); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkSmallObjects(b *testing.B) {
	data := bytes.Repeat([]byte("hello world "), 300)
	var packed bytes.Buffer
	w, _ := archive.NewCompressor(&packed, archive.Zstd)
	w.Write(data)
	w.Close()
	b.Run("pack", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w, err := archive.NewLevelCompressor(io.Discard, archive.Zstd, 6)
			if err != nil {
				b.Fatal(err)
			}
			w.Write(data)
			w.Close()
		}
	})
	b.Run("unpack", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r, err := archive.NewDecompressor(bytes.NewReader(packed.Bytes()), archive.Zstd)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, r)
			r.Close()
		}
	})
}
