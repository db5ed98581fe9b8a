package store

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"

	"github.com/zeebo/blake3"

	"cairn/store/base32"
)

// Algorithm is a hash function. The zero value is none.
type Algorithm uint8

// The algorithms of Nix. Only SHA-256 and BLAKE3 protect anything here;
// the others are for fixed outputs that the world announces by them.
const (
	MD5 Algorithm = iota + 1
	SHA1
	SHA256
	SHA512
	BLAKE3
)

var algorithms = [...]struct {
	name string
	size int
	new  func() hash.Hash
}{
	MD5:    {"md5", 16, md5.New},
	SHA1:   {"sha1", 20, sha1.New},
	SHA256: {"sha256", 32, sha256.New},
	SHA512: {"sha512", 64, sha512.New},
	BLAKE3: {"blake3", 32, func() hash.Hash { return blake3.New() }},
}

// ParseAlgorithm parses "md5", "sha1", "sha256", "sha512" or "blake3".
func ParseAlgorithm(s string) (Algorithm, error) {
	for i := MD5; int(i) < len(algorithms); i++ {
		if algorithms[i].name == s {
			return i, nil
		}
	}
	return 0, fmt.Errorf("unknown hash algorithm %q; known are md5, sha1, sha256, sha512, blake3", clip(s))
}

func (a Algorithm) String() string {
	if int(a) < len(algorithms) {
		return algorithms[a].name
	}
	return ""
}

// Size returns the digest's length in bytes, 0 for the zero value.
func (a Algorithm) Size() int {
	if int(a) < len(algorithms) {
		return algorithms[a].size
	}
	return 0
}

// New returns a running hash. It panics for the zero value.
func (a Algorithm) New() hash.Hash {
	if a.Size() == 0 {
		panic("BUG: hash of no algorithm")
	}
	return algorithms[a].new()
}

// Sum returns the hash of b.
func (a Algorithm) Sum(b []byte) Hash {
	h := a.New()
	h.Write(b)
	return NewHash(a, h.Sum(nil))
}

// Hash is a digest and its algorithm. It is comparable; the zero value is no hash.
type Hash struct {
	algo   Algorithm
	digest [64]byte
}

// NewHash makes a hash of a digest. It panics when the digest has the wrong length.
func NewHash(a Algorithm, digest []byte) Hash {
	if a.Size() == 0 || len(digest) != a.Size() {
		panic(fmt.Sprintf("BUG: %s digest of %d bytes", a, len(digest)))
	}
	h := Hash{algo: a}
	copy(h.digest[:], digest)
	return h
}

// IsZero reports whether h is no hash.
func (h Hash) IsZero() bool { return h.algo == 0 }

// Algorithm returns the hash function.
func (h Hash) Algorithm() Algorithm { return h.algo }

// Bytes returns a copy of the digest.
func (h Hash) Bytes() []byte { return append([]byte(nil), h.digest[:h.algo.Size()]...) }

// Hex returns the digest in base 16, without the algorithm.
func (h Hash) Hex() string { return hex.EncodeToString(h.digest[:h.algo.Size()]) }

// Nix32 returns the digest in Nix's base 32, without the algorithm.
func (h Hash) Nix32() string { return base32.Encode(h.digest[:h.algo.Size()]) }

// SRI returns "<algorithm>-<base 64>".
func (h Hash) SRI() string {
	return h.algo.String() + "-" + base64.StdEncoding.EncodeToString(h.digest[:h.algo.Size()])
}

// String returns "<algorithm>:<base 32>", the form of narinfo and content addresses.
func (h Hash) String() string {
	if h.IsZero() {
		return ""
	}
	return h.algo.String() + ":" + h.Nix32()
}

// MarshalText gives the SRI form, as Nix's JSON has it.
func (h Hash) MarshalText() ([]byte, error) {
	if h.IsZero() {
		return nil, nil
	}
	return []byte(h.SRI()), nil
}

// UnmarshalText parses any form that names its algorithm.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*h = Hash{}
		return nil
	}
	g, err := ParseHash(string(b), 0)
	if err == nil {
		*h = g
	}
	return err
}

// ParseHash parses "algo:digest", "algo-base64" (SRI) or, when algo is known, a bare digest.
// The digest is base 16, base 32 or base 64, told apart by its length.
// An algorithm in s must be algo unless algo is zero.
func ParseHash(s string, algo Algorithm) (Hash, error) {
	if name, rest, ok := strings.Cut(s, ":"); ok {
		a, err := ParseAlgorithm(name)
		if err != nil {
			return Hash{}, fmt.Errorf("hash %q: %w", clip(s), err)
		}
		return parseDigest(s, rest, a, algo)
	}
	if name, rest, ok := strings.Cut(s, "-"); ok {
		a, err := ParseAlgorithm(name)
		if err != nil {
			return Hash{}, fmt.Errorf("hash %q: %w", clip(s), err)
		}
		if len(rest) != base64.StdEncoding.EncodedLen(a.Size()) {
			return Hash{}, fmt.Errorf("hash %q: SRI digest has %d characters, %s wants %d", clip(s), len(rest), a, base64.StdEncoding.EncodedLen(a.Size()))
		}
		return parseDigest(s, rest, a, algo)
	}
	if algo == 0 {
		return Hash{}, fmt.Errorf("hash %q does not name its algorithm", clip(s))
	}
	return parseDigest(s, s, algo, algo)
}

func parseDigest(whole, s string, a, want Algorithm) (Hash, error) {
	if want != 0 && a != want {
		return Hash{}, fmt.Errorf("hash %q is %s, wanted is %s", clip(whole), a, want)
	}
	var b []byte
	var err error
	switch len(s) {
	case hex.EncodedLen(a.Size()):
		b, err = hex.DecodeString(s)
	case base32.EncodedLen(a.Size()):
		b, err = base32.Decode(s)
	case base64.StdEncoding.EncodedLen(a.Size()):
		b, err = base64.StdEncoding.Strict().DecodeString(s)
	default:
		return Hash{}, fmt.Errorf("hash %q has %d digits, which no encoding of %s has", clip(whole), len(s), a)
	}
	if err != nil {
		return Hash{}, fmt.Errorf("hash %q: %w", clip(whole), err)
	}
	if len(b) != a.Size() {
		return Hash{}, fmt.Errorf("hash %q has %d bytes, %s has %d", clip(whole), len(b), a, a.Size())
	}
	return NewHash(a, b), nil
}
