package cache

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cairn/store"
)

// NarInfo describes an object in a cache.
type NarInfo struct {
	store.Info
	URL         string
	Compression string     // as written; empty means bzip2
	FileHash    store.Hash // zero when not given
	FileSize    int64      // 0 when not given
}

// FileName returns the name of an object's narinfo in a cache.
func FileName(p store.Path) string { return p.Digest() + ".narinfo" }

// Text returns the file's text.
func (n *NarInfo) Text() string {
	var b strings.Builder
	line := func(key, value string) { b.WriteString(key + ": " + value + "\n") }
	line("StorePath", n.Path.String())
	line("URL", n.URL)
	if n.Compression != "" {
		line("Compression", n.Compression)
	}
	if !n.FileHash.IsZero() {
		line("FileHash", n.FileHash.String())
	}
	if n.FileSize > 0 {
		line("FileSize", strconv.FormatInt(n.FileSize, 10))
	}
	line("NarHash", n.NarHash.String())
	line("NarSize", strconv.FormatInt(n.NarSize, 10))
	line("References", n.referenceText())
	if !n.Deriver.IsZero() {
		line("Deriver", n.Deriver.Base())
	}
	for _, s := range slices.Sorted(slices.Values(n.Signatures)) {
		line("Sig", s)
	}
	if !n.CA.IsZero() {
		line("CA", n.CA.String())
	}
	return b.String()
}

func (n *NarInfo) referenceText() string {
	refs := store.SortPaths(slices.Clone(n.References))
	bases := make([]string, len(refs))
	for i, p := range refs {
		bases[i] = p.Base()
	}
	return strings.Join(bases, " ")
}

// ParseNarInfo parses a narinfo of a cache for the store dir.
func ParseNarInfo(dir store.Dir, text string) (*NarInfo, error) {
	n := &NarInfo{}
	seen := map[string]bool{}
	err := forEachLine(text, func(key, value string) error {
		if seen[key] && key != "Sig" {
			return fmt.Errorf("comes twice: %w", ErrFormat)
		}
		seen[key] = true
		return n.set(dir, key, value)
	})
	if err != nil {
		return nil, fmt.Errorf("parse narinfo: %w", err)
	}
	for _, key := range []string{"StorePath", "URL", "NarHash", "NarSize"} {
		if !seen[key] {
			return nil, fmt.Errorf("parse narinfo: %s is missing: %w", key, ErrFormat)
		}
	}
	return n, nil
}

func (n *NarInfo) set(dir store.Dir, key, value string) (err error) {
	switch key {
	case "StorePath":
		n.Path, err = dir.ParsePath(value)
	case "URL":
		n.URL = value
		if value == "" {
			err = fmt.Errorf("is empty: %w", ErrFormat)
		}
	case "Compression":
		n.Compression = value
	case "FileHash":
		n.FileHash, err = store.ParseHash(value, 0)
	case "FileSize":
		n.FileSize, err = parseSize(value)
	case "NarHash":
		n.NarHash, err = store.ParseHash(value, store.SHA256)
	case "NarSize":
		n.NarSize, err = parseSize(value)
	case "References":
		n.References, err = parseBases(dir, value)
	case "Deriver":
		if value != "" && value != "unknown-deriver" {
			n.Deriver, err = dir.Path(value)
		}
	case "Sig":
		n.Signatures = append(n.Signatures, value)
	case "CA":
		n.CA, err = store.ParseContentAddress(value)
	}
	return err
}

// parseSize accepts digits of a number above 0.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a size: %w", clip(s), ErrFormat)
	}
	return int64(n), nil
}

func parseBases(dir store.Dir, s string) ([]store.Path, error) {
	var refs []store.Path
	for base := range strings.FieldsSeq(s) {
		p, err := dir.Path(base)
		if err != nil {
			return nil, err
		}
		refs = append(refs, p)
	}
	return store.SortPaths(refs), nil
}
