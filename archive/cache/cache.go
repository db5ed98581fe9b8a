// Package cache is Nix's binary caches: folders of files, behind any of a few protocols, that hold packed store
// objects and say what they are.
//
//	nix-cache-info                        describes the cache
//	<digest>.narinfo                      describes an object
//	<digest>.ls                           lists what is in it
//	nar/<nix32 of FileHash>.nar.zst       its archive; the narinfo says where
//	log/<base name of derivation>         build log
//	realisations/<id>.doi                 which path an output of a derivation has: Nix up to 2.34
//	build-trace-v2/<drv>/<output>.doi     the same since Nix 2.35
//	debuginfo/<build id>.debug            which object has the debugging symbols
//
// # narinfo
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
// # Reading a cache
//
// Open makes a Cache of a URI: "file:///folder" or an absolute path, "http://…", "https://…", "s3://bucket/prefix",
// with Nix's parameters behind "?" (Parameters). It asks nothing; a cache that does not exist or does not answer is
// found out by the first question.
//
// An answer is one of four: what was asked for; store.ErrNotValid, the cache works and does not have it;
// ErrUnavailable, the cache is not there, too slow, or refuses; anything else, mostly ErrFormat and
// store.ErrHashMismatch: the cache lies. Nothing is remembered but the description of the cache, so that no
// answer is stale.
//
// Everything that comes from a cache is bounded: texts by their kind (maxText and others), a packed archive by
// FileSize, an unpacked one by NarSize, both while they stream. Signatures are not looked at: whoever takes an object
// decides whom to believe.
//
// # HTTP
//
// Connections are kept and shared, at most Options.Connections to a host. 403, 404 and 410 mean that a file is not
// there. Server errors (5xx, 408, 429) and broken connections are tried again after a pause that doubles; a download that breaks or
// stands still goes on where it stopped, with a Range request. Not tried again is a server that cannot be connected to
// in the first place. At most ten redirects are followed, and credentials do not cross hosts.
//
// # Writing a cache
//
// Writer adds objects. An archive is packed to a temporary file, since its name is its hash; narinfo is written last,
// so that whoever sees one finds all that it names.
//
// Not here: which cache to ask and whom to trust (package substitute), serving one (package serve).
package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"cairn/archive/nar"
	"cairn/store"
)

// Errors that callers test for with errors.Is. Besides them, store.ErrNotValid says that the cache does not have what was
// asked for, and store.ErrHashMismatch that contents are not what was announced.
var (
	// ErrFormat says that what a cache gave is not of its format.
	ErrFormat = errors.New("not a valid cache file")
	// ErrUnavailable says that a cache could not be asked.
	ErrUnavailable = errors.New("cache is unavailable")
	// ErrReadOnly says that a cache cannot be written.
	ErrReadOnly = errors.New("cache cannot be written")
)

// Cache is a binary cache that can be read. It is safe for concurrent use.
type Cache interface {
	// URI names the cache, without parameters and credentials.
	URI() string
	// Info describes the cache; parameters of the URI come before what the cache says of itself.
	Info(ctx context.Context) (*Info, error)
	// NarInfo describes an object. The error is store.ErrNotValid when the cache does not have it.
	NarInfo(ctx context.Context, p store.Path) (*NarInfo, error)
	// NAR returns the unpacked archive of an object. Its io.EOF says that NarSize, NarHash, and FileSize and FileHash
	// when they are given, have proved right; what was read before is not to be believed until then.
	NAR(ctx context.Context, n *NarInfo) (io.ReadCloser, error)
}

// Realisations is a Cache that knows which paths outputs of derivations have.
type Realisations interface {
	Realisation(ctx context.Context, id store.DrvOutput) (*store.Realisation, error)
	Traced(ctx context.Context, drv store.Path, output string) (*Trace, error)
}

// Logs is a Cache that has build logs.
type Logs interface {
	Log(ctx context.Context, drv store.Path) (io.ReadCloser, error)
}

// Digests is a Cache that finds objects by the digest alone.
type Digests interface {
	ByDigest(ctx context.Context, digest string) (*NarInfo, error)
}

// Listings is a Cache that lists what is in its objects.
type Listings interface {
	Listing(ctx context.Context, p store.Path) (*nar.Listing, error)
}

// Realisation returns what c knows of an output, or an error that is store.ErrNotValid.
func Realisation(ctx context.Context, c Cache, id store.DrvOutput) (*store.Realisation, error) {
	if r, ok := c.(Realisations); ok {
		return r.Realisation(ctx, id)
	}
	return nil, fmt.Errorf("realisation of %s: %w", id, store.ErrNotValid)
}

// Traced returns what c knows of an output by the derivation's path, or an error that is store.ErrNotValid.
func Traced(ctx context.Context, c Cache, drv store.Path, output string) (*Trace, error) {
	if r, ok := c.(Realisations); ok {
		return r.Traced(ctx, drv, output)
	}
	return nil, fmt.Errorf("realisation of %s of %s: %w", output, drv, store.ErrNotValid)
}

// Log returns a derivation's build log as text, or an error that is store.ErrNotValid.
func Log(ctx context.Context, c Cache, drv store.Path) (io.ReadCloser, error) {
	if l, ok := c.(Logs); ok {
		return l.Log(ctx, drv)
	}
	return nil, fmt.Errorf("log of %s: %w", drv, store.ErrNotValid)
}

// ByDigest returns the object with a digest, or an error that is store.ErrNotValid.
func ByDigest(ctx context.Context, c Cache, digest string) (*NarInfo, error) {
	if d, ok := c.(Digests); ok {
		return d.ByDigest(ctx, digest)
	}
	return nil, fmt.Errorf("object with digest %s: %w", clip(digest), store.ErrNotValid)
}

// Listing returns what is in an object, or an error that is store.ErrNotValid.
func Listing(ctx context.Context, c Cache, p store.Path) (*nar.Listing, error) {
	if l, ok := c.(Listings); ok {
		return l.Listing(ctx, p)
	}
	return nil, fmt.Errorf("listing of %s: %w", p, store.ErrNotValid)
}

// Trusted reports whether the URI of c says that objects need no signature.
func Trusted(c Cache) bool {
	t, ok := c.(interface{ Trusted() bool })
	return ok && t.Trusted()
}

// Limits of texts.
const (
	maxText    = 1 << 20  // narinfo, .doi
	maxInfo    = 64 << 10 // nix-cache-info
	maxListing = 64 << 20 // .ls, unpacked
	maxLog     = 1 << 30  // build log, unpacked
)

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
