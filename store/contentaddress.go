package store

import (
	"errors"
	"fmt"
	"strings"
)

// Method says which bytes of an object a content address is the hash of.
type Method uint8

// The methods: of a file's bytes, with or without references, or of the NAR.
const (
	Text      Method = iota + 1 // "text:": a file's bytes; may have references
	Flat                        // "fixed:": a file's bytes; no references
	Recursive                   // "fixed:r:": the NAR; references only with SHA-256
)

// Prefix returns what stands before the algorithm in a derivation output: "text:", "", "r:".
func (m Method) Prefix() string {
	switch m {
	case Text:
		return "text:"
	case Recursive:
		return "r:"
	}
	return ""
}

// ContentAddress is how an object proves itself: a method and a hash. The zero value is none.
//
//	text:sha256:<nix32> | fixed:<algo>:<nix32> | fixed:r:<algo>:<nix32>
//
// For a self-referential object the hash is that of the NAR with its own digest blanked,
// see package refscan.
type ContentAddress struct {
	Method Method
	Hash   Hash
}

// IsZero reports whether there is no content address.
func (c ContentAddress) IsZero() bool { return c.Method == 0 }

func (c ContentAddress) String() string {
	switch c.Method {
	case Text:
		return "text:" + c.Hash.String()
	case Flat:
		return "fixed:" + c.Hash.String()
	case Recursive:
		return "fixed:r:" + c.Hash.String()
	}
	return ""
}

// ParseContentAddress parses the text form; the empty string gives the zero value.
func ParseContentAddress(s string) (ContentAddress, error) {
	if s == "" {
		return ContentAddress{}, nil
	}
	m, rest, err := cutMethod(s)
	if err != nil {
		return ContentAddress{}, fmt.Errorf("content address %q: %w", clip(s), err)
	}
	h, err := ParseHash(rest, 0)
	if err != nil {
		return ContentAddress{}, fmt.Errorf("content address %q: %w", clip(s), err)
	}
	if m == Text && h.Algorithm() != SHA256 {
		return ContentAddress{}, fmt.Errorf("content address %q: text is always sha256", clip(s))
	}
	return ContentAddress{Method: m, Hash: h}, nil
}

// ParseContentAddressMethod parses a content address without its digest, as AddToStore sends it:
// "text:sha256", "fixed:<algo>", "fixed:r:<algo>".
func ParseContentAddressMethod(s string) (Method, Algorithm, error) {
	m, rest, err := cutMethod(s)
	if err != nil {
		return 0, 0, fmt.Errorf("content address method %q: %w", clip(s), err)
	}
	a, err := ParseAlgorithm(rest)
	if err != nil {
		return 0, 0, fmt.Errorf("content address method %q: %w", clip(s), err)
	}
	if m == Text && a != SHA256 {
		return 0, 0, fmt.Errorf("content address method %q: text is always sha256", clip(s))
	}
	return m, a, nil
}

// ErrGit says that something is addressed by the hash of a git tree.
var ErrGit = errors.New("objects addressed by their git hash are not supported")

func cutMethod(s string) (Method, string, error) {
	if rest, ok := strings.CutPrefix(s, "text:"); ok {
		return Text, rest, nil
	}
	if rest, ok := strings.CutPrefix(s, "fixed:r:"); ok {
		return Recursive, rest, nil
	}
	if strings.HasPrefix(s, "fixed:git:") {
		return 0, "", ErrGit
	}
	if rest, ok := strings.CutPrefix(s, "fixed:"); ok {
		return Flat, rest, nil
	}
	return 0, "", fmt.Errorf("starts neither with text: nor with fixed:")
}

// MarshalText gives the text form.
func (c ContentAddress) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText parses the text form.
func (c *ContentAddress) UnmarshalText(b []byte) error {
	d, err := ParseContentAddress(string(b))
	if err == nil {
		*c = d
	}
	return err
}
