// Package cache is the text side of Nix's binary caches: the ".narinfo" file that describes an object, and
// "nix-cache-info", which describes a cache.
//
// A narinfo is lines "Key: value\n", written in this order:
//
//	StorePath    full path
//	URL          of the packed archive, relative to the cache: "nar/<nix32 of FileHash>.nar.zst"
//	Compression  none, zstd, xz, bzip2, …; bzip2 when missing
//	FileHash     sha256:<nix32>, of the packed archive; optional
//	FileSize     bytes; optional
//	NarHash      sha256:<nix32>
//	NarSize      bytes, above 0
//	References   base names, sorted, separated by spaces; there even when empty
//	Deriver      base name; optional
//	Sig          signature; any number
//	CA           content address; optional
//
// Reading takes the lines in any order and ignores keys it does not know. A line without ": ", a key twice (but
// Sig), a value that does not parse, or a missing last newline make the file corrupt.
//
// Compressions that this program cannot unpack are still described: whoever fetches decides.
// Not here: files, HTTP, S3.
package cache

import (
	"errors"
	"fmt"
	"strings"
)

// ErrFormat says that a text is not of the cache's format.
var ErrFormat = errors.New("not a valid cache file")

// maxText is the size limit of either file.
const maxText = 4 << 20

// forEachLine calls fn for each "key: value" line.
func forEachLine(text string, fn func(key, value string) error) error {
	if len(text) > maxText {
		return fmt.Errorf("text of %d bytes, the limit is %d: %w", len(text), maxText, ErrFormat)
	}
	for n := 1; text != ""; n++ {
		line, rest, ended := strings.Cut(text, "\n")
		if !ended {
			return fmt.Errorf("line %d does not end: %w", n, ErrFormat)
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok {
			return fmt.Errorf("line %d is not \"key: value\": %w", n, ErrFormat)
		}
		if err := fn(key, value); err != nil {
			return fmt.Errorf("line %d: %s: %w", n, clip(key), err)
		}
		text = rest
	}
	return nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
