package disk_test

import (
	"testing"
	"testing/synctest"
	"time"

	"cairn/store/disk"
)

// TestVerifyAtALimit reads at a rate, by a clock that moves when everybody waits.
func TestVerifyAtALimit(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	paths := addTwins(t, s, 2)
	size := s.Size(paths)
	if all := s.Size(nil); all != size || size == 0 {
		t.Fatalf("all are %d bytes, the two are %d", all, size)
	}
	closeStore(t, s)
	synctest.Test(t, func(t *testing.T) {
		s, err := disk.Open(t.Context(), l, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		start, read := time.Now(), int64(0)
		r, err := s.Verify(t.Context(), &disk.VerifyOptions{Contents: true, Workers: 1, Limit: size / 60, Progress: func(n int64) { read += n }}, nil)
		if took := time.Since(start).Round(time.Second); err != nil || r.Bytes != size || read != size || took < 59*time.Second || took > 62*time.Second {
			t.Errorf("%d of %d bytes, %d told, took %v, %v", r.Bytes, size, read, took, err)
		}
	})
}
