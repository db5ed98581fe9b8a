package nar

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// sealings counts the large files that are said to be whole.
type sealings int

func (*sealings) Make(int, string, *Header, []byte) error { return nil }

func (s *sealings) Large(int64, bool) (io.Writer, func(int, string) error) {
	return io.Discard, func(int, string) error { *s++; return nil }
}

// A large file of which not all has come is not said to be whole, also not before it is known why.
func TestLargeCut(t *testing.T) {
	for _, whole := range []bool{false, true} {
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		at, err := unix.Dup(int(dir.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		var sealed sealings
		p := planter{files: &sealed}
		parent := newFolder(at)
		f, err := p.large(parent, "file", &Header{Path: "file", Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		f.whole = whole
		f.end()
		p.wait()
		p.done(parent)
		if err := p.first(); err != nil || sealed == 1 != whole {
			t.Errorf("whole %t: %d sealed, %v", whole, sealed, err)
		}
	}
}
