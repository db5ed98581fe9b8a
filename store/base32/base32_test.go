package base32_test

import (
	"bytes"
	"strings"
	"testing"

	"cairn/store/base32"
)

func TestVectors(t *testing.T) {
	for text, want := range map[string][]byte{
		"":                           {},
		"00":                         {0},
		"7z":                         {255},
		"0g0":                        nil, // no digest has three digits
		"80":                         nil, // a bit beyond one byte
		"0e":                         nil, // e is not in the alphabet
		"0O":                         nil,
		"0 ":                         nil,
		"3y8bwfr609h3lh9ch0izcqq7fl": {0xd4, 0x1d, 0x8c, 0xd9, 0x8f, 0x00, 0xb2, 0x04, 0xe9, 0x80, 0x09, 0x98, 0xec, 0xf8, 0x42, 0x7e},
		"zy8bwfr609h3lh9ch0izcqq7fl": nil, // bits beyond 16 bytes
	} {
		got, err := base32.Decode(text)
		if (err == nil) != (want != nil) || !bytes.Equal(got, want) {
			t.Errorf("decode %q: %x, %v; want %x", text, got, err, want)
		}
		if want != nil && base32.Encode(want) != text {
			t.Errorf("encode %x: %q, want %q", want, base32.Encode(want), text)
		}
	}
}

func TestEveryLength(t *testing.T) {
	for n := range 70 {
		src := bytes.Repeat([]byte{0xff}, n)
		text := base32.Encode(src)
		if len(text) != base32.EncodedLen(n) || !base32.Valid(text) {
			t.Errorf("%d bytes: %q", n, text)
		}
		if back, err := base32.Decode(text); err != nil || !bytes.Equal(back, src) {
			t.Errorf("%d bytes come back as %x, %v", n, back, err)
		}
	}
}

func FuzzBase32(f *testing.F) {
	f.Add("0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")
	f.Add(strings.Repeat("z", 32))
	f.Add("7z")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := base32.Decode(base32.Encode([]byte(text))); err != nil || string(got) != text {
			t.Errorf("bytes come back as %q, %v", got, err)
		}
		b, err := base32.Decode(text)
		if err == nil && base32.Encode(b) != text {
			t.Errorf("text comes back as %q", base32.Encode(b))
		}
		if err == nil && !base32.Valid(text) {
			t.Error("decoded, and not valid")
		}
	})
}
