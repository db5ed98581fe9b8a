package store

import (
	"fmt"
	"path"
	"strings"

	"cairn/store/base32"
)

// DigestLen is the number of base-32 digits at the start of an object's base name.
const DigestLen = 32

// MaxNameLen is the length limit of an object's name, in bytes.
const MaxNameLen = 211

// DefaultDir is the store directory of a cairn that was not told otherwise.
const DefaultDir Dir = "/cairn/store"

// Dir is the absolute, clean directory below which a store's objects have their names.
// It is part of every path's fingerprint, whatever the place where the bytes really are.
type Dir string

// ParseDir checks that s is absolute and clean.
func ParseDir(s string) (Dir, error) {
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" || strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("store directory %q is not an absolute clean path", clip(s))
	}
	return Dir(s), nil
}

func (d Dir) String() string { return string(d) }

// Path returns the object with the base name base, or an error when base is not one.
func (d Dir) Path(base string) (Path, error) {
	if err := checkBase(base); err != nil {
		return Path{}, fmt.Errorf("store path %q: %w", clip(base), err)
	}
	return Path{s: string(d) + "/" + base}, nil
}

// ParsePath parses the full path of a store object of d.
func (d Dir) ParsePath(s string) (Path, error) {
	base, ok := strings.CutPrefix(s, string(d)+"/")
	if !ok {
		return Path{}, fmt.Errorf("path %q is not below the store %s", clip(s), d)
	}
	return d.Path(base)
}

// Within splits a path at or below a store object into the object and the rest,
// which is empty or starts with a slash.
func (d Dir) Within(s string) (Path, string, error) {
	base, ok := strings.CutPrefix(s, string(d)+"/")
	if !ok {
		return Path{}, "", fmt.Errorf("path %q is not below the store %s", clip(s), d)
	}
	base, rest := base, ""
	if i := strings.IndexByte(base, '/'); i >= 0 {
		base, rest = base[:i], base[i:]
	}
	p, err := d.Path(base)
	return p, rest, err
}

// Path names a store object: a store directory and a base name. The zero value is no path.
type Path struct{ s string }

// ParsePath parses a full path; everything before the last slash is the store directory.
func ParsePath(s string) (Path, error) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return Path{}, fmt.Errorf("store path %q is not absolute", clip(s))
	}
	d, err := ParseDir(s[:i])
	if err != nil {
		return Path{}, fmt.Errorf("store path %q: %w", clip(s), err)
	}
	return d.Path(s[i+1:])
}

// String returns the full path, or the empty string of the zero value.
func (p Path) String() string { return p.s }

// IsZero reports whether p names nothing.
func (p Path) IsZero() bool { return p.s == "" }

// Dir returns the store directory.
func (p Path) Dir() Dir {
	if p.s == "" {
		return ""
	}
	return Dir(p.s[:strings.LastIndexByte(p.s, '/')])
}

// Base returns the last element: digest, hyphen, name.
func (p Path) Base() string { return p.s[strings.LastIndexByte(p.s, '/')+1:] }

// Digest returns the 32 digits at the start of the base name.
func (p Path) Digest() string {
	if p.s == "" {
		return ""
	}
	return p.Base()[:DigestLen]
}

// Name returns the base name without digest and hyphen.
func (p Path) Name() string {
	if p.s == "" {
		return ""
	}
	return p.Base()[DigestLen+1:]
}

// IsDerivation reports whether the name ends in ".drv".
func (p Path) IsDerivation() bool { return strings.HasSuffix(p.s, ".drv") }

// Compare orders paths by their bytes, as Nix sorts them.
func (p Path) Compare(q Path) int { return strings.Compare(p.s, q.s) }

// MarshalText gives the full path, so that a Path is a string in JSON and a key in JSON maps.
func (p Path) MarshalText() ([]byte, error) { return []byte(p.s), nil }

// UnmarshalText parses a full path; empty text gives the zero value.
func (p *Path) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*p = Path{}
		return nil
	}
	q, err := ParsePath(string(b))
	if err == nil {
		*p = q
	}
	return err
}

// CheckName checks the name of a store object: 1 to 211 letters, digits and +-._?= that
// do not make ".", "..", or a start of ".-" or "..-".
func CheckName(name string) error {
	if name == "" {
		return fmt.Errorf("name is empty")
	}
	if len(name) > MaxNameLen {
		return fmt.Errorf("name has %d bytes, the limit is %d", len(name), MaxNameLen)
	}
	if name == "." || name == ".." || strings.HasPrefix(name, ".-") || strings.HasPrefix(name, "..-") {
		return fmt.Errorf("name %q is reserved", name)
	}
	for i := range len(name) {
		if c := name[i]; !nameChars[c] {
			return fmt.Errorf("name %q contains %q; allowed are letters, digits and +-._?=", clip(name), c)
		}
	}
	return nil
}

var nameChars = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("+-._?=", byte(c)) >= 0
	}
	return t
}()

func checkBase(base string) error {
	if len(base) < DigestLen+2 || base[DigestLen] != '-' {
		return fmt.Errorf("not <%d digits>-<name>", DigestLen)
	}
	if !base32.Valid(base[:DigestLen]) {
		return fmt.Errorf("digest %q is not base-32", base[:DigestLen])
	}
	return CheckName(base[DigestLen+1:])
}

func clip(s string) string {
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}
