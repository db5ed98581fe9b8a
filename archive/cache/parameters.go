package cache

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"cairn/archive"
	"cairn/store"
)

// Parameters are what stands behind the "?" of a cache's URI, by Nix's names.
type Parameters struct {
	// Of every cache.
	StoreDir      store.Dir // store: the cache's store directory, when it is not the reader's own
	Priority      *int      // priority: lower comes first
	WantMassQuery *bool     // want-mass-query: it bears being asked for what it may not have
	Trusted       bool      // trusted: its objects need no signature

	// Of a cache that is written.
	Compression      archive.Compression // compression: of archives; default zstd
	CompressionLevel int                 // compression-level: 0 is the default
	SecretKeys       []string            // secret-key, secret-keys: files of keys that sign each object
	WriteListing     bool                // write-nar-listing: a ".ls" beside each narinfo
	IndexDebugInfo   bool                // index-debug-info: files by build id of debugging symbols

	// Of S3.
	Region   string // region: default us-east-1
	Endpoint string // endpoint: host of a server that is not Amazon's
	Scheme   string // scheme: http or https, which is the default
	Profile  string // profile: in the file of credentials
	// Files above PartsAbove bytes (multipart-threshold, default 256 MiB) are put in parts of PartSize (multipart-chunk-size,
	// default 64 MiB).
	PartsAbove, PartSize int64
	// Compressions of texts: narinfo-compression, ls-compression, log-compression; default none.
	NarInfoCompression, ListingCompression, LogCompression archive.Compression
}

// ignored are parameters of Nix that change nothing here: where it caches, and how it splits its work.
var ignored = []string{
	"path-info-cache-size", "local-nar-cache", "parallel-compression", "system-features", "buffer-size", "multipart-upload",
	"addressing-style", "storage-class",
}

// parameterTable has every parameter.
var parameterTable = map[string]func(p *Parameters, v string) error{
	"store": func(p *Parameters, v string) (err error) {
		p.StoreDir, err = store.ParseDir(v)
		return err
	},
	"priority":             func(p *Parameters, v string) error { return setNew(&p.Priority, v, strconv.Atoi) },
	"want-mass-query":      func(p *Parameters, v string) error { return setNew(&p.WantMassQuery, v, parseBool) },
	"trusted":              func(p *Parameters, v string) error { return set(&p.Trusted, v, parseBool) },
	"compression":          func(p *Parameters, v string) error { return set(&p.Compression, v, parseCompression) },
	"compression-level":    func(p *Parameters, v string) error { return set(&p.CompressionLevel, v, parseLevel) },
	"write-nar-listing":    func(p *Parameters, v string) error { return set(&p.WriteListing, v, parseBool) },
	"index-debug-info":     func(p *Parameters, v string) error { return set(&p.IndexDebugInfo, v, parseBool) },
	"region":               func(p *Parameters, v string) error { return set(&p.Region, v, parseText) },
	"endpoint":             func(p *Parameters, v string) error { return set(&p.Endpoint, v, parseText) },
	"profile":              func(p *Parameters, v string) error { return set(&p.Profile, v, parseText) },
	"scheme":               func(p *Parameters, v string) error { return set(&p.Scheme, v, parseScheme) },
	"multipart-threshold":  func(p *Parameters, v string) error { return set(&p.PartsAbove, v, parseSize) },
	"multipart-chunk-size": func(p *Parameters, v string) error { return set(&p.PartSize, v, parseSize) },
	"narinfo-compression":  func(p *Parameters, v string) error { return set(&p.NarInfoCompression, v, parseCompression) },
	"ls-compression":       func(p *Parameters, v string) error { return set(&p.ListingCompression, v, parseCompression) },
	"log-compression":      func(p *Parameters, v string) error { return set(&p.LogCompression, v, parseCompression) },
	"secret-key":           func(p *Parameters, v string) error { return p.addKeys(v) },
	"secret-keys":          func(p *Parameters, v string) error { return p.addKeys(v) },
}

func (p *Parameters) addKeys(v string) error {
	for file := range strings.SplitSeq(v, ",") {
		if file != "" {
			p.SecretKeys = append(p.SecretKeys, file)
		}
	}
	return nil
}

func set[T any](to *T, v string, parse func(string) (T, error)) error {
	x, err := parse(v)
	if err == nil {
		*to = x
	}
	return err
}

func setNew[T any](to **T, v string, parse func(string) (T, error)) error {
	x, err := parse(v)
	if err == nil {
		*to = &x
	}
	return err
}

func parseText(v string) (string, error) { return v, nil }

func parseBool(v string) (bool, error) {
	switch v {
	case "true", "yes", "1":
		return true, nil
	case "false", "no", "0", "":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", clip(v))
}

func parseLevel(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < -1 || n > 22 {
		return 0, fmt.Errorf("%q is no level; levels are 1 to 22, and -1 for the default", clip(v))
	}
	return max(n, 0), nil
}

func parseScheme(v string) (string, error) {
	if v != "http" && v != "https" {
		return "", fmt.Errorf("%q is neither http nor https", clip(v))
	}
	return v, nil
}

// parseCompression takes those that can be written.
func parseCompression(v string) (archive.Compression, error) {
	switch c := archive.Compression(v); c {
	case "":
		return archive.Uncompressed, nil
	case archive.Uncompressed, archive.Zstd, archive.Gzip:
		return c, nil
	}
	return "", fmt.Errorf("%q cannot be written; zstd, gzip and none can", clip(v))
}

// parseParameters reads a query. warn is told of unknown names; without it they are errors.
func parseParameters(query string, warn func(string)) (*Parameters, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	p := &Parameters{Compression: archive.Zstd}
	for name, vs := range values {
		set, ok := parameterTable[name]
		switch {
		case ok:
			for _, v := range vs {
				if err := set(p, v); err != nil {
					return nil, fmt.Errorf("parameter %s: %w", name, err)
				}
			}
		case slices.Contains(ignored, name):
		case warn != nil:
			warn(fmt.Sprintf("unknown parameter %q of a binary cache is ignored", clip(name)))
		default:
			return nil, fmt.Errorf("unknown parameter %q", clip(name))
		}
	}
	return p, nil
}
