// Package refscan finds and rewrites the digests of store paths in a stream of bytes, usually an archive.
//
// An object refers to another when the 32 base-32 digits of the other's path occur anywhere in its
// archive. No format is understood and none has to be.
//
// The search looks at a window of 32 bytes from its end: a byte that is no base-32 digit lets the window
// jump behind it, so that most bytes are never looked at. What was seen to be digits is not looked
// at again. Only a window full of digits is looked up among the candidates.
// The work is one pass, independent of the number of candidates, and takes no memory per write;
// digests that cross the borders of writes are found.
//
// Hash modulo is how a self-referential object is addressed by its content: every occurrence of the object's own
// digest counts as 32 NUL bytes. Occurrences are taken from left to right and do not overlap.
//
// Nix has two forms of it (SelfHash), and its generations refuse each other's self-referential objects. Up to 2.16, "|" and the
// decimal offset of each occurrence are hashed after the contents, in order. Nix 2.17 lost that when it
// rewrote its rewriter, and all since, 2.34 and 2.36 among them, hash the blanked contents alone; both were seen in real programs
// (tests/compat). So we believe either form of an object that comes in, and make the form of whoever asks: the newer
// one unless the client is of the older generation. One realisation stands for a derivation's output in a store, whichever form came first.
// What the offsets were for is lost with them: in the newer form, contents with NUL bytes where the digest
// was have the same address, if they still claim to refer to themselves.
//
// Nothing is safe for concurrent use.
package refscan

import "cairn/store"

const digestLen = store.DigestLen

// digit says which bytes are base-32 digits.
var digit = func() (t [256]bool) {
	for _, c := range []byte("0123456789abcdfghijklmnpqrsvwxyz") {
		t[c] = true
	}
	return t
}()

// window returns the first place at or after from where 32 digits begin, or -1, in which case
// all windows of b were looked at. Bytes before seen are known to be digits back to from.
func window(b []byte, from, seen int) int {
	for from+digestLen <= len(b) {
		at := from + digestLen - 1
		for at >= seen && digit[b[at]] {
			at--
		}
		if at < seen {
			return from
		}
		from = at + 1
		seen = from
	}
	return -1
}
