// Package base32 is Nix's base-32 ("nix32"): the digest is read as one little-endian integer
// and written in base 32, most significant digit first, so that n bytes always give
// ceil(8n/5) digits and nothing is padded.
//
// The alphabet leaves out e, o, t and u.
// Decoding is strict: other characters, a length that no number of bytes has, and set bits
// beyond the last byte are errors, so that each digest has exactly one text.
//
// Source: the "nix32" section of the format notes; vectors made by nix 2.8.0.
package base32

import (
	"fmt"
	"slices"
	"strings"
)

// Alphabet lists the 32 digits in order of value.
const Alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

var values = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range len(Alphabet) {
		t[Alphabet[i]] = byte(i)
	}
	return t
}()

// EncodedLen returns the number of digits for n bytes.
func EncodedLen(n int) int { return (n*8 + 4) / 5 }

// Encode returns the digits of src.
func Encode(src []byte) string {
	out := make([]byte, EncodedLen(len(src)))
	for i := range out {
		n := len(out) - 1 - i
		bit := n * 5
		at, shift := bit/8, bit%8
		v := src[at] >> shift
		if shift > 3 && at+1 < len(src) {
			v |= src[at+1] << (8 - shift)
		}
		out[i] = Alphabet[v&31]
	}
	return string(out)
}

// Decode returns the bytes that s encodes.
func Decode(s string) ([]byte, error) { return AppendDecode(nil, s) }

// AppendDecode appends the bytes that s encodes to dst. Eight digits are five bytes.
func AppendDecode(dst []byte, s string) ([]byte, error) {
	size := len(s) * 5 / 8
	if EncodedLen(size) != len(s) {
		return nil, fmt.Errorf("decode base-32 %q: no digest has %d digits", clip(s), len(s))
	}
	dst = slices.Grow(dst, size)
	for end := len(s); end > 0; end -= 8 {
		digits := s[max(end-8, 0):end]
		x, all := uint64(0), byte(0)
		for i := range len(digits) {
			v := values[digits[i]]
			x, all = x<<5|uint64(v&31), all|v
		}
		if all == 0xff {
			i := strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(Alphabet, r) })
			return nil, fmt.Errorf("decode base-32 %q: character %q is not in the alphabet", clip(s), s[i])
		}
		for range min(5, size) {
			dst = append(dst, byte(x))
			x >>= 8
			size--
		}
		if x != 0 {
			return nil, fmt.Errorf("decode base-32 %q: bits set beyond %d bytes", clip(s), len(s)*5/8)
		}
	}
	return dst, nil
}

// Valid reports whether s consists of digits only.
func Valid(s string) bool {
	for i := range len(s) {
		if values[s[i]] == 0xff {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}
