package archive_test

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"cairn/archive"
)

// packers are the programs whose output is read.
var packers = []struct {
	name    string
	kind    archive.Compression
	command string
}{
	{"none", archive.Uncompressed, "cat"},
	{"xz", archive.XZ, "xz -c"},
	{"xz -9e", archive.XZ, "xz -9e -c"},
	{"xz sha256", archive.XZ, "xz -0 --check=sha256 -c"},
	{"xz without check", archive.XZ, "xz -0 --check=none -c"},
	{"xz x86", archive.XZ, "xz --x86 --lzma2 -c"},
	{"xz arm64", archive.XZ, "xz --delta=dist=4 --lzma2=preset=1,lc=0,lp=2,pb=0 -c"},
	{"bzip2", archive.Bzip2, "bzip2 -c"},
	{"zstd", archive.Zstd, "zstd -q -c"},
	{"zstd --long", archive.Zstd, "zstd -q -19 --long=27 -c"},
	{"gzip", archive.Gzip, "gzip -c"},
	{"brotli", archive.Brotli, "brotli -c"},
	{"brotli -w 24", archive.Brotli, "brotli -q 4 -w 24 -c"},
	{"lzip", archive.Lzip, "lzip -c"},
	{"lzip -0", archive.Lzip, "lzip -0 -c"},
	{"lzip -9", archive.Lzip, "lzip -9 -c"},
	{"lzip with small members", archive.Lzip, "lzip -b 100000 -s 4KiB -c"},
	{"lzma", archive.LZMA, "xz --format=lzma -c"},
	{"lzma lc0 lp4 pb1", archive.LZMA, "xz --format=lzma --lzma1=preset=3,lc=0,lp=4,pb=1,dict=64KiB -c"},
	{"lz4", archive.LZ4, "lz4 -q -c"},
	{"lz4 -9", archive.LZ4, "lz4 -q -9 -B4 -BD --content-size -c"},
	{"lz4 legacy", archive.LZ4, "lz4 -q -l -c"},
}

// pack runs a program on data; it skips when the program is missing.
func pack(tb testing.TB, command string, data []byte) []byte {
	tb.Helper()
	words := strings.Fields(command)
	if _, err := exec.LookPath(words[0]); err != nil {
		tb.Skipf("%s is not installed: make deps", words[0])
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s: %v", command, err)
	}
	return out
}

// samples are contents of several kinds, small and large.
func samples() map[string][]byte {
	r := rand.NewChaCha8([32]byte{1})
	noise := make([]byte, 60_000)
	r.Read(noise)
	words := []byte{}
	for len(words) < 60_000 {
		n := r.Uint64()
		words = append(words, noise[n%1000:][:n%61]...)
		words = append(words, "\x00\x00\x00\x00"[:n>>32%4]...)
	}
	return map[string][]byte{"empty": {}, "byte": {7}, "noise": noise, "words": words, "zeros": make([]byte, 300_000)}
}

func unpack(packed []byte, c archive.Compression) ([]byte, error) {
	r, err := archive.NewDecompressor(bytes.NewReader(packed), c)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestUnpacksWhatProgramsPack(t *testing.T) {
	for _, p := range packers {
		t.Run(p.name, func(t *testing.T) {
			for name, data := range samples() {
				packed := pack(t, p.command, data)
				got, err := unpack(packed, p.kind)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(data), err)
				}
			}
		})
	}
}

// TestUnpacksStreamsInARow reads what "cat a.xz b.xz" makes.
func TestUnpacksStreamsInARow(t *testing.T) {
	a, b := samples()["words"], samples()["byte"]
	for _, p := range packers {
		if p.kind == archive.Brotli || p.kind == archive.LZMA || p.name == "lz4 legacy" {
			continue // their formats end with the stream, or run into the next
		}
		t.Run(p.name, func(t *testing.T) {
			got, err := unpack(append(pack(t, p.command, a), pack(t, p.command, b)...), p.kind)
			if err != nil || !bytes.Equal(got, append(bytes.Clone(a), b...)) {
				t.Errorf("%d bytes of %d, %v", len(got), len(a)+len(b), err)
			}
		})
	}
}

func TestUnpackNoticesTheEnd(t *testing.T) {
	data := samples()["words"]
	for _, p := range packers {
		if p.kind == archive.Uncompressed {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			packed := pack(t, p.command, data)
			for _, cut := range []int{0, 1, len(packed) / 3, len(packed) - 1} {
				got, err := unpack(packed[:cut], p.kind)
				if err == nil && !(p.name == "lz4 legacy" || cut == 0 && (p.kind == archive.LZ4 || p.kind == archive.Zstd)) {
					t.Errorf("cut to %d of %d bytes: unpacked %d, no error", cut, len(packed), len(got))
				}
			}
		})
	}
}

func TestUnpackNoticesDamage(t *testing.T) {
	data := samples()["words"]
	for _, p := range packers {
		if p.kind == archive.Uncompressed {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			packed := pack(t, p.command, data)
			for at := 0; at < len(packed); at += 1 + len(packed)/11 {
				bad := bytes.Clone(packed)
				bad[at] ^= 0x10
				// Damage need not be noticed, the formats differ in that; it must end well.
				r, err := archive.NewDecompressor(bytes.NewReader(bad), p.kind)
				if err != nil {
					continue
				}
				if n, _ := io.Copy(io.Discard, io.LimitReader(r, 64<<20)); n == 64<<20 {
					t.Logf("byte %d: unpacks to more than 64 MiB", at)
				}
				r.Close()
			}
		})
	}
}

func TestDeflateOfHTTP(t *testing.T) {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	w.Write(samples()["words"])
	w.Close()
	c, err := archive.ParseContentEncoding("deflate")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := unpack(b.Bytes(), c); err != nil || !bytes.Equal(got, samples()["words"]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// bombs unpack to much; reading a little of them takes little.
func TestBombsTakeLittleMemory(t *testing.T) {
	data := make([]byte, 16<<20)
	for _, p := range packers {
		if p.name == "lzip -9" {
			continue // takes half a minute to pack
		}
		t.Run(p.name, func(t *testing.T) {
			packed := pack(t, p.command, data)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r, err := archive.NewDecompressor(bytes.NewReader(packed), p.kind)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, 1<<20)); err != nil {
				t.Error(err)
			}
			r.Close()
			runtime.ReadMemStats(&after)
			if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 160 {
				t.Errorf("took %d MiB", took)
			} else {
				t.Logf("took %d MiB", took)
			}
		})
	}
}

func TestLzipRefuses(t *testing.T) {
	good := pack(t, "lzip -c", []byte("hello"))
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		if at < 0 {
			at += len(b)
		}
		b[at] = to
		return b
	}
	for name, bad := range map[string][]byte{
		"other magic": change(0, 'l'), "version 2": change(4, 2), "dictionary of 2 GiB": change(5, 31), "dictionary of 512 MiB": change(5, 29),
		"checksum": change(-20, 0), "data size": change(-12, 6), "member size": change(-8, 1), "something follows": append(bytes.Clone(good), 'x'),
	} {
		if got, err := unpack(bad, archive.Lzip); err == nil {
			t.Errorf("%s: unpacks to %q", name, got)
		}
	}
	if _, err := unpack(nil, archive.Lzip); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("nothing: %v", err)
	}
}

func FuzzLzip(f *testing.F) {
	for _, text := range []string{"", "hello", strings.Repeat("ab", 1000)} {
		if _, err := exec.LookPath("lzip"); err == nil {
			f.Add(pack(f, "lzip -c", []byte(text)))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := archive.NewDecompressor(bytes.NewReader(data), archive.Lzip)
		if err != nil {
			return
		}
		io.Copy(io.Discard, io.LimitReader(r, 8<<20))
		if r, err = archive.NewDecompressor(bytes.NewReader(data), archive.LZMA); err == nil {
			io.Copy(io.Discard, io.LimitReader(r, 8<<20))
		}
	})
}

// brokenWriter takes some bytes and fails.
type brokenWriter struct{ left int }

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// TestCompressorsAreUsedAgain: what one stream leaves behind must not show in the next.
func TestCompressorsAreUsedAgain(t *testing.T) {
	for _, level := range []int{0, 1, 6, 22} {
		pack := func(w io.Writer, data []byte) error {
			c, err := archive.NewLevelCompressor(w, archive.Zstd, level)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Write(data)
			if err2 := c.Close(); err == nil {
				err = err2
			}
			if err := c.Close(); err != nil {
				t.Errorf("closed twice: %v", err)
			}
			if _, err := c.Write(data); err == nil {
				t.Error("a closed compressor takes more")
			}
			return err
		}
		var want bytes.Buffer
		data := samples()["words"]
		if err := pack(&want, data); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if pack(&brokenWriter{1000}, samples()["noise"]) == nil {
				t.Error("a broken writer is no error")
			}
			var got bytes.Buffer
			if err := pack(&got, data); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
				t.Fatalf("level %d: packs differently the second time, %v", level, err)
			}
		}
	}
}
