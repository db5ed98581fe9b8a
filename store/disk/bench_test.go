package disk_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

func benchStore(b *testing.B) *disk.Store {
	l := newLayout(b)
	s, err := disk.Open(context.Background(), l, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func BenchmarkAddText(b *testing.B) {
	s := benchStore(b)
	n := 0
	for b.Loop() {
		n++
		if _, err := s.AddStream(b.Context(), "x", store.Text, store.SHA256, nil, strings.NewReader(fmt.Sprint(n))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddTextParallel(b *testing.B) {
	s := benchStore(b)
	var n atomic.Int64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.AddStream(b.Context(), "x", store.Text, store.SHA256, nil, strings.NewReader(fmt.Sprint(n.Add(1)))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAddTree(b *testing.B) {
	s := benchStore(b)
	n := 0
	for b.Loop() {
		n++
		archive := storetest.Tree(fmt.Sprint(n))
		if err := s.Add(b.Context(), storetest.Source(s.Dir(), "x", archive), bytes.NewReader(archive)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddLarge(b *testing.B) {
	s := benchStore(b)
	archive := storetest.File(string(make([]byte, 64<<20)))
	b.SetBytes(int64(len(archive)))
	for n := 0; b.Loop(); n++ {
		archive[200], archive[201] = byte(n), byte(n>>8)
		if _, err := s.AddStream(b.Context(), "x", store.Recursive, store.SHA256, nil, bytes.NewReader(archive)); err != nil {
			b.Fatal(err)
		}
	}
}
