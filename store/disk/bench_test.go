package disk_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/meta"
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

// BenchmarkLoad opens a store with many objects of five references each, CAIRN_TEST_OBJECTS of them.
// There is nothing in the store directory, which makes them invalid and the opening no faster.
func BenchmarkLoad(b *testing.B) {
	count := 100_000
	if n, err := strconv.Atoi(os.Getenv("CAIRN_TEST_OBJECTS")); err == nil {
		count = n
	}
	l := newLayout(b)
	db, err := meta.Open(filepath.Join(l.StateDir, "db"), l.Dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	digest := func(n int) (d meta.Digest) {
		binary.BigEndian.PutUint64(d[:], uint64(n)*0x9e3779b97f4a7c15)
		return d
	}
	for n := 0; n < count; {
		var batch meta.Batch
		for ; n < count && batch.Size() < db.MaxBatch()/2; n++ {
			o := &meta.Object{Name: fmt.Sprint("object-number-", n), NarSize: 1000, Signatures: []string{strings.Repeat("s", 100)}}
			for r := range min(n, 5) {
				o.References = append(o.References, digest((n*7+r*13)%n))
			}
			batch.PutObject(digest(n), o)
		}
		if err := db.Commit(&batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := disk.Open(context.Background(), l, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/float64(count), "heap-B/object")
		s.Close()
		b.StartTimer()
	}
}

// BenchmarkAddOpen adds a large file, and a tree of small ones, each of which are new every time.
func BenchmarkAddOpen(b *testing.B) {
	for name, make := range map[string]func(b *testing.B) (path string, touch func(n int)){"file": benchFile, "tree": benchTree} {
		b.Run(name, func(b *testing.B) {
			path, touch := make(b)
			s := benchStore(b)
			var used time.Duration
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				touch(n)
				used -= processorTime()
				b.StartTimer()
				info, err := s.AddFromPath(b.Context(), "x", store.Recursive, store.SHA256, store.References{}, path)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(info.NarSize)
				b.StopTimer()
				used += processorTime()
				if _, err := s.Delete(b.Context(), []store.Path{info.Path}); err != nil {
					b.Fatal(err)
				}
				if _, _, err := s.SweepLinks(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(used)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var r unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func benchFile(b *testing.B) (string, func(int)) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 256<<20/16)
	file := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		b.Fatal(err)
	}
	return file, func(n int) {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(fmt.Append(nil, n), 1000)
			f.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchTree(b *testing.B) (string, func(int)) {
	dir := b.TempDir()
	data := make([]byte, 4096)
	for i := range 20000 {
		folder := filepath.Join(dir, fmt.Sprint(i/100))
		binary.LittleEndian.PutUint64(data, uint64(i))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprint(i)), data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return dir, func(n int) {
		if err := os.WriteFile(filepath.Join(dir, "0/0"), fmt.Append(nil, n), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}
