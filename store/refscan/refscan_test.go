package refscan_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/store"
	"cairn/store/refscan"
)

func TestScannerFindsAcrossEveryBorder(t *testing.T) {
	paths := candidates(t, 3)
	text := "x" + paths[0].Digest() + strings.Repeat("-", 40) + paths[2].Digest()
	for chunk := 1; chunk <= len(text); chunk++ {
		var out bytes.Buffer
		s := refscan.NewScanner(&out, paths)
		for c := range slices.Chunk([]byte(text), chunk) {
			s.Write(c)
		}
		want := store.SortPaths([]store.Path{paths[0], paths[2]})
		if got := s.Found(); !slices.Equal(got, want) {
			t.Errorf("chunks of %d: found %v, want %v", chunk, got, want)
		}
		if out.String() != text {
			t.Errorf("chunks of %d: what is passed on changed", chunk)
		}
	}
}

func TestScannerFindsAmongDigits(t *testing.T) {
	paths := candidates(t, 2)
	for before := range 70 {
		text := strings.Repeat("0", before) + paths[1].Digest() + strings.Repeat("z", before)
		s := refscan.NewScanner(nil, paths)
		io.WriteString(s, text)
		if got := s.Found(); len(got) != 1 || got[0] != paths[1] {
			t.Errorf("%d digits before: found %v", before, got)
		}
	}
	near := paths[0].Digest()[:31] + "e" + paths[0].Digest()[1:]
	s := refscan.NewScanner(nil, paths[:1])
	io.WriteString(s, near)
	if got := s.Found(); len(got) != 0 {
		t.Errorf("found %v in a text that has 31 of 32 digits", got)
	}
}

func TestScannerKnowsBothPathsOfADigest(t *testing.T) {
	a := candidates(t, 1)[0]
	b, err := a.Dir().Path(a.Digest() + "-other")
	if err != nil {
		t.Fatal(err)
	}
	s := refscan.NewScanner(nil, []store.Path{a, b})
	io.WriteString(s, a.Digest())
	if got := s.Found(); len(got) != 2 {
		t.Errorf("found %v, want both", got)
	}
}

func TestRewriterMatchesReplaceAll(t *testing.T) {
	paths := candidates(t, 4)
	from, to := paths[0].Digest(), paths[1].Digest()
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var text strings.Builder
		for text.Len() < random.IntN(200_000) {
			switch random.IntN(4) {
			case 0:
				text.WriteString(from)
			case 1:
				text.WriteString(paths[3].Digest())
			case 2:
				text.WriteString(from[:random.IntN(32)])
			default:
				text.WriteString(strings.Repeat("é-", random.IntN(5000)))
			}
		}
		var out bytes.Buffer
		r := refscan.NewRewriter(&out, map[string]string{from: to})
		for c := range slices.Chunk([]byte(text.String()), 1+random.IntN(100_000)) {
			r.Write(c)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if out.String() != strings.ReplaceAll(text.String(), from, to) {
			t.Fatal("not what replacing all gives")
		}
		for _, at := range r.Matches() {
			if text.String()[at:at+32] != from {
				t.Fatalf("match at %d is none", at)
			}
		}
		if got, want := len(r.Matches()), strings.Count(text.String(), from); got != want {
			t.Fatalf("%d matches, want %d", got, want)
		}
	}
}

func TestRewriterSwapsDigests(t *testing.T) {
	paths := candidates(t, 2)
	a, b := paths[0].Digest(), paths[1].Digest()
	var out bytes.Buffer
	r := refscan.NewRewriter(&out, map[string]string{a: b, b: a})
	io.WriteString(r, a+b+a)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if out.String() != b+a+b {
		t.Errorf("got %s, want %s", out.String(), b+a+b)
	}
}

func TestRewriterReturnsWriteErrors(t *testing.T) {
	r := refscan.NewRewriter(failing{}, nil)
	if _, err := r.Write(make([]byte, 1<<20)); err != io.ErrShortWrite {
		t.Errorf("write: %v", err)
	}
	if err := r.Close(); err != io.ErrShortWrite {
		t.Errorf("close: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func FuzzScan(f *testing.F) {
	paths := candidates(f, 8)
	f.Add([]byte("a"+paths[3].Digest()+paths[4].Digest()), 7)
	f.Add([]byte(strings.Repeat(paths[0].Digest(), 4)), 33)
	f.Fuzz(func(t *testing.T, text []byte, chunk int) {
		if chunk < 1 {
			return
		}
		s := refscan.NewScanner(nil, paths)
		for c := range slices.Chunk(text, chunk) {
			s.Write(c)
		}
		found := s.Found()
		for _, p := range paths {
			if slices.Contains(found, p) != bytes.Contains(text, []byte(p.Digest())) {
				t.Errorf("%s: scanner and search differ", p)
			}
		}
	})
}
