package refscan_test

import (
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"cairn/store"
	"cairn/store/refscan"
)

func candidates(tb testing.TB, n int) []store.Path {
	tb.Helper()
	var paths []store.Path
	for i := range n {
		p, err := store.DefaultDir.TextPath("candidate", store.SHA256.Sum([]byte{byte(i), byte(i >> 8)}), nil)
		if err != nil {
			tb.Fatal(err)
		}
		paths = append(paths, p)
	}
	return paths
}

func BenchmarkScan(b *testing.B) {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Skip(err)
	}
	digits := make([]byte, 8<<20)
	for i := range digits {
		digits[i] = "0123456789abcdfghijklmnpqrsvwxyz"[rand.IntN(32)]
	}
	for name, data := range map[string][]byte{"program": program, "zeros": make([]byte, 8<<20), "digits": digits} {
		b.Run(name, func(b *testing.B) {
			paths := candidates(b, 1000)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				s := refscan.NewScanner(io.Discard, paths)
				for at := 0; at < len(data); at += 64 << 10 {
					s.Write(data[at:min(at+64<<10, len(data))])
				}
			}
		})
	}
}
