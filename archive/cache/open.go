package cache

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"cairn/store"
)

// place is where the files of a cache are. A name is relative, with slashes.
type place interface {
	// uri names it, without parameters and credentials.
	uri() string
	// get returns a file; the error of one that is not there is store.ErrNotValid.
	// size is how long it must be, 0 when that is not known.
	get(ctx context.Context, name string, size int64) (io.ReadCloser, error)
	// close frees what is held.
	close()
}

// Open returns the cache at a URI, for a store directory. Nothing is asked or checked but the URI.
func Open(uri string, dir store.Dir, opts *Options) (Cache, error) {
	b, err := open(uri, dir, opts)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func open(uri string, dir store.Dir, opts *Options) (*bucket, error) {
	opts = opts.withDefaults()
	bare, query, _ := strings.Cut(uri, "?")
	p, err := parseParameters(query, opts.Warn)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", hide(bare), err)
	}
	if p.StoreDir != "" {
		dir = p.StoreDir
	}
	b := &bucket{dir: dir, parameters: p, opts: opts}
	if b.place, err = newPlace(bare, p, opts); err != nil {
		return nil, fmt.Errorf("open cache %s: %w", hide(bare), err)
	}
	return b, nil
}

func newPlace(bare string, p *Parameters, opts *Options) (place, error) {
	scheme, rest, ok := strings.Cut(bare, "://")
	switch {
	case !ok && filepath.IsAbs(bare):
		return newFolder(bare)
	case ok && scheme == "file":
		return newFolder(rest)
	case ok && (scheme == "http" || scheme == "https"):
		return newWeb(bare, opts)
	case ok && scheme == "s3":
		return newS3(rest, p, opts)
	}
	return nil, fmt.Errorf("not a binary cache; it has to be file://, http://, https:// or s3://")
}

// hide returns a URI without its credentials.
func hide(uri string) string {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return clip(uri)
	}
	host, path, slash := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	if slash {
		host += "/" + path
	}
	return clip(scheme + "://" + host)
}

// hideURL is hide of a parsed URL, without its query, which may be a signature.
func hideURL(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return shown.String()
}

// CloseIdle closes the connections that c keeps for its next question.
func CloseIdle(c Cache) {
	if b, ok := c.(*bucket); ok {
		b.place.close()
	}
}
