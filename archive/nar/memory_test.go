package nar_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"cairn/archive/nar"
)

// late takes its time with what it is written.
type late struct{ io.Writer }

func (l late) Write(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return l.Writer.Write(p)
}

// writeLarge writes an archive of small files with a huge one among them.
func writeLarge(w io.Writer, files int, small, huge int64) error {
	nw := nar.NewWriter(w)
	if err := nw.WriteHeader(&nar.Header{Type: nar.Directory}); err != nil {
		return err
	}
	data := make([]byte, 64<<10)
	for i := range files {
		size := small
		if i == files/2 {
			size = huge
		}
		if err := nw.WriteHeader(&nar.Header{Path: fmt.Sprintf("%06d", i), Type: nar.Regular, Size: size}); err != nil {
			return err
		}
		for size > 0 {
			n, err := nw.Write(data[:min(size, int64(len(data)))])
			if err != nil {
				return err
			}
			size -= int64(n)
		}
	}
	return nw.Close()
}

// An archive of any size is restored within the same memory, also when a sum or the disk is slower than the source.
func TestRestoreMemory(t *testing.T) {
	const files, size, huge = 2000, 8 << 10, 48 << 20
	target := filepath.Join(t.TempDir(), "target")
	makeRemovable(t, target)
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(writeLarge(pw, files, size, huge)) }()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	sum := sha256.New()
	if err := nar.Restore(pr, target, &nar.RestoreOptions{Sums: []io.Writer{late{sum}}}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	// Twelve blocks of 256 KiB at once, and about a kilobyte for each file, which is garbage afterwards.
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("restoring %d bytes allocated %d bytes", files*size+huge, took)
	}
	want := sha256.New()
	if err := nar.Dump(want, target); err != nil {
		t.Fatal(err)
	}
	if string(sum.Sum(nil)) != string(want.Sum(nil)) {
		t.Error("the tree is not that of the archive")
	}
}
