package wire_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"cairn/archive/wire"
)

// message writes one of everything.
func message() []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Uint64(math.MaxUint64)
	w.Bool(true)
	w.String("hello")
	w.Bytes([]byte("12345678"))
	w.Strings([]string{"", "a", "bb"})
	w.Map(map[string]string{"z": "1", "a": "2"})
	w.Write([]byte("raw"))
	w.Flush()
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for name, src := range map[string]io.Reader{
		"whole":    bytes.NewReader(message()),
		"by byte":  iotest.OneByteReader(bytes.NewReader(message())),
		"data+EOF": iotest.DataErrReader(bytes.NewReader(message())),
	} {
		r := wire.NewReader(src)
		n, err := r.Uint64()
		check(t, name, err, n == math.MaxUint64)
		b, err := r.Bool()
		check(t, name, err, b)
		s, err := r.String(5)
		check(t, name, err, s == "hello")
		p, err := r.Bytes(8)
		check(t, name, err, string(p) == "12345678")
		list, err := r.Strings(3, 2)
		check(t, name, err, slices.Equal(list, []string{"", "a", "bb"}))
		m, err := r.Map(2, 1)
		check(t, name, err, maps.Equal(m, map[string]string{"z": "1", "a": "2"}))
		raw, err := io.ReadAll(r)
		check(t, name, err, string(raw) == "raw")
	}
}

func check(t *testing.T, name string, err error, ok bool) {
	t.Helper()
	if err != nil || !ok {
		t.Fatalf("%s: wrong value, or error %v", name, err)
	}
}

func TestMapIsWrittenSorted(t *testing.T) {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Map(map[string]string{"b": "", "a": "", "c": ""})
	w.Flush()
	if s := b.String(); strings.Index(s, "a") > strings.Index(s, "b") || strings.Index(s, "b") > strings.Index(s, "c") {
		t.Errorf("map is not sorted: %q", s)
	}
}

func TestTruncated(t *testing.T) {
	whole := message()
	for n := range len(whole) - len("raw") {
		r := wire.NewReader(bytes.NewReader(whole[:n]))
		if err := readAll(r); err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for n := 1; n < 24; n++ {
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		w.String("123456789")
		w.Flush()
		if _, err := wire.NewReader(bytes.NewReader(b.Bytes()[:n])).String(9); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("string cut at %d: %v", n, err)
		}
	}
}

func readAll(r *wire.Reader) error {
	if _, err := r.Uint64(); err != nil {
		return err
	}
	if _, err := r.Bool(); err != nil {
		return err
	}
	if _, err := r.String(5); err != nil {
		return err
	}
	if _, err := r.Bytes(8); err != nil {
		return err
	}
	if _, err := r.Strings(3, 2); err != nil {
		return err
	}
	_, err := r.Map(2, 1)
	return err
}

func TestHostile(t *testing.T) {
	huge := "\xff\xff\xff\xff\xff\xff\xff\xff"
	gigabyte := "\x00\x00\x00\x40\x00\x00\x00\x00"
	read := map[string]func(*wire.Reader) error{
		"string":  func(r *wire.Reader) error { _, err := r.String(math.MaxInt); return err },
		"short":   func(r *wire.Reader) error { _, err := r.String(3); return err },
		"strings": func(r *wire.Reader) error { _, err := r.Strings(math.MaxInt, 10); return err },
		"map":     func(r *wire.Reader) error { _, err := r.Map(math.MaxInt, 10); return err },
		"bool":    func(r *wire.Reader) error { _, err := r.Bool(); return err },
		"int":     func(r *wire.Reader) error { _, err := r.Int(3); return err },
		"frames":  func(r *wire.Reader) error { return wire.NewFrameReader(r).Drain() },
	}
	for _, c := range []struct {
		read, data string
		want       error
	}{
		{"string", huge, wire.ErrTooLong},
		{"string", gigabyte + "x", io.ErrUnexpectedEOF},
		{"short", "\x04\x00\x00\x00\x00\x00\x00\x00abcd", wire.ErrTooLong},
		{"short", "\x03\x00\x00\x00\x00\x00\x00\x00abc\x00\x00\x00\x00\x01", wire.ErrPadding},
		{"strings", huge, wire.ErrTooLong},
		{"strings", gigabyte, io.ErrUnexpectedEOF},
		{"map", huge, wire.ErrTooLong},
		{"map", gigabyte, io.ErrUnexpectedEOF},
		{"map", string(frames("\x02", "", "", "", "")), wire.ErrValue},
		{"bool", "\x02\x00\x00\x00\x00\x00\x00\x00", wire.ErrValue},
		{"int", "\x04\x00\x00\x00\x00\x00\x00\x00", wire.ErrValue},
		{"frames", huge, wire.ErrTooLong},
		{"frames", gigabyte + "x", io.ErrUnexpectedEOF},
		{"frames", "", io.ErrUnexpectedEOF},
	} {
		if err := read[c.read](wire.NewReader(strings.NewReader(c.data))); !errors.Is(err, c.want) {
			t.Errorf("%s of %q: %v, want %v", c.read, c.data, err, c.want)
		}
	}
}

// frames returns a count, one byte, and strings.
func frames(count string, list ...string) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Uint64(uint64(count[0]))
	for _, s := range list {
		w.String(s)
	}
	w.Flush()
	return b.Bytes()
}

func TestReadersShareABuffer(t *testing.T) {
	src := bufio.NewReader(bytes.NewReader(message()))
	first := wire.NewReader(src)
	if _, err := first.Uint64(); err != nil {
		t.Fatal(err)
	}
	second := wire.NewReader(first)
	if b, err := second.Bool(); err != nil || !b {
		t.Fatalf("second reader: %v, %v", b, err)
	}
	if s, err := wire.NewReader(src).String(5); err != nil || s != "hello" {
		t.Fatalf("reader of the same buffer: %q, %v", s, err)
	}
}

func TestFrames(t *testing.T) {
	for _, size := range []int{0, 1, 7, 8, 65535, 65536, 65537, 300_000} {
		data := bytes.Repeat([]byte("x"), size)
		for _, chunk := range []int{1, 1000, 65536, 1 << 20} {
			var b bytes.Buffer
			w := wire.NewFrameWriter(wire.NewWriter(&b))
			for c := range slices.Chunk(data, chunk) {
				if _, err := w.Write(c); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			b.WriteString("after")
			r := wire.NewReader(&b)
			got, err := io.ReadAll(wire.NewFrameReader(r))
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes in chunks of %d: got %d, %v", size, chunk, len(got), err)
			}
			if rest, _ := io.ReadAll(r); string(rest) != "after" {
				t.Fatalf("%d bytes: left %q", size, rest)
			}
		}
	}
}

func TestFrameWriterAfterClose(t *testing.T) {
	w := wire.NewFrameWriter(wire.NewWriter(io.Discard))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("write after close is accepted")
	}
}

type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestWriterKeepsItsFirstError(t *testing.T) {
	w := wire.NewWriter(&failing{})
	w.Bytes(make([]byte, 1<<20))
	if w.Err() != io.ErrClosedPipe {
		t.Errorf("after a write: %v", w.Err())
	}
	w.String("more")
	if err := w.Flush(); err != io.ErrClosedPipe {
		t.Errorf("flush: %v", err)
	}
	f := wire.NewFrameWriter(wire.NewWriter(&failing{}))
	f.Write(make([]byte, 1<<20))
	if err := f.Close(); err != io.ErrClosedPipe {
		t.Errorf("close: %v", err)
	}
}

// FuzzWire reads a list, a map and frames, and writes them again.
func FuzzWire(f *testing.F) {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Strings([]string{"a", "bb"})
	w.Map(map[string]string{"k": "v"})
	fw := wire.NewFrameWriter(w)
	fw.Write([]byte("data"))
	fw.Close()
	f.Add(b.Bytes())
	f.Add(message())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := wire.NewReader(bytes.NewReader(data))
		list, err := r.Strings(100, 1000)
		if err != nil {
			return
		}
		m, err := r.Map(100, 1000)
		if err != nil {
			return
		}
		content, err := io.ReadAll(wire.NewFrameReader(r))
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r)
		var again bytes.Buffer
		w := wire.NewWriter(&again)
		w.Strings(list)
		w.Map(m)
		fw := wire.NewFrameWriter(w)
		fw.Write(content)
		fw.Close()
		r = wire.NewReader(&again)
		list2, err1 := r.Strings(100, 1000)
		m2, err2 := r.Map(100, 1000)
		content2, err3 := io.ReadAll(wire.NewFrameReader(r))
		if errors.Join(err1, err2, err3) != nil || !slices.Equal(list, list2) || !maps.Equal(m, m2) || !bytes.Equal(content, content2) {
			t.Error("what was written is not what was read")
		}
		if len(m) < 2 && len(content) == 0 && len(rest) == 0 && len(data) < 1000 {
			// One form only: the bytes come out again.
			again.Reset()
			w.Strings(list)
			w.Map(m)
			wire.NewFrameWriter(w).Close()
			if !bytes.Equal(again.Bytes(), data) {
				t.Error("accepted, and written differently")
			}
		}
	})
}
