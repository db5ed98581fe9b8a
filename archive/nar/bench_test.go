package nar_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"cairn/archive/nar"
)

// sources is a tree of some thousand files that every machine that runs tests has.
func sources(b *testing.B) (tree string, size int64) {
	b.Helper()
	tree = filepath.Join(runtime.GOROOT(), "src", "cmd")
	var n counter
	if err := nar.Dump(&n, tree); err != nil {
		b.Skip(err)
	}
	return tree, int64(n)
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func BenchmarkDump(b *testing.B) {
	tree, size := sources(b)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if err := nar.Dump(io.Discard, tree); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	tree, size := sources(b)
	var data bytes.Buffer
	if err := nar.Dump(&data, tree); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nar.Copy(io.Discard, bytes.NewReader(data.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRestore(b *testing.B) {
	tree, size := sources(b)
	var data bytes.Buffer
	if err := nar.Dump(&data, tree); err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		target := filepath.Join(dir, "tree")
		if err := nar.Restore(bytes.NewReader(data.Bytes()), target, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		makeWritable(target)
		os.RemoveAll(target)
		b.StartTimer()
	}
}
