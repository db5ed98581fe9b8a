package cache

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/store"
)

// bucket is the cache in a place.
type bucket struct {
	place      place
	dir        store.Dir
	parameters *Parameters
	opts       *Options

	mu   sync.Mutex // guards info
	info *Info      // nil until it was read
}

// URI names the cache.
func (b *bucket) URI() string { return b.place.uri() }

// Trusted reports whether objects need no signature.
func (b *bucket) Trusted() bool { return b.parameters.Trusted }

// text returns a whole file of at most limit bytes.
func (b *bucket) text(ctx context.Context, name string, limit int64) (string, error) {
	r, err := b.place.get(ctx, name, 0)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes: %w", clip(name), limit, ErrFormat)
	}
	return string(data), err
}

// about adds what was asked for, and of whom, to an error.
func (b *bucket) about(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s in %s: %w", fmt.Sprintf(format, args...), b.URI(), err)
}

// Info describes the cache.
func (b *bucket) Info(ctx context.Context) (*Info, error) {
	b.mu.Lock()
	info := b.info
	b.mu.Unlock()
	if info == nil {
		var err error
		if info, err = b.readInfo(ctx); err != nil {
			return nil, b.about(err, "%s", InfoName)
		}
		b.mu.Lock()
		b.info = info
		b.mu.Unlock()
	}
	mine := *info
	return &mine, nil
}

func (b *bucket) readInfo(ctx context.Context) (*Info, error) {
	info := &Info{}
	text, err := b.text(ctx, InfoName, maxInfo)
	if err == nil {
		info, err = ParseInfo(text)
	}
	if err != nil && !errors.Is(err, store.ErrNotValid) {
		return nil, err
	}
	info.StoreDir = cmp.Or(info.StoreDir, b.dir)
	if info.StoreDir != b.dir {
		return nil, fmt.Errorf("cache is of the store %s, not %s: %w", info.StoreDir, b.dir, ErrFormat)
	}
	info.Priority = cmp.Or(info.Priority, DefaultPriority)
	if p := b.parameters.Priority; p != nil {
		info.Priority = *p
	}
	if w := b.parameters.WantMassQuery; w != nil {
		info.WantMassQuery = *w
	}
	return info, nil
}

// NarInfo describes an object.
func (b *bucket) NarInfo(ctx context.Context, p store.Path) (*NarInfo, error) {
	n, err := b.ByDigest(ctx, p.Digest())
	if err == nil && n.Path != p {
		err = b.about(ErrFormat, "%s describes %s", FileName(p), n.Path)
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// ByDigest describes the object with a digest.
func (b *bucket) ByDigest(ctx context.Context, digest string) (*NarInfo, error) {
	name := digest + ".narinfo"
	if len(digest) != store.DigestLen {
		return nil, fmt.Errorf("%q is no digest of a store path: %w", clip(digest), store.ErrNotValid)
	}
	text, err := b.text(ctx, name, maxText)
	if err != nil {
		return nil, b.about(err, "%s", name)
	}
	n, err := ParseNarInfo(b.dir, text)
	if err == nil && n.Path.Digest() != digest {
		err = fmt.Errorf("describes %s: %w", n.Path, ErrFormat)
	}
	if err != nil {
		return nil, b.about(err, "%s", name)
	}
	return n, nil
}

// NAR returns the unpacked archive of an object.
func (b *bucket) NAR(ctx context.Context, n *NarInfo) (io.ReadCloser, error) {
	c, err := archive.ParseCompression(n.Compression)
	if err != nil {
		return nil, b.about(err, "archive of %s", n.Path)
	}
	r, err := b.place.get(ctx, n.URL, n.FileSize)
	if err != nil {
		return nil, b.about(err, "archive of %s", n.Path)
	}
	return newUnpacker(b, n, c, r), nil
}

// Realisation returns what is known of an output.
func (b *bucket) Realisation(ctx context.Context, id store.DrvOutput) (*store.Realisation, error) {
	name := RealisationName(id)
	text, err := b.text(ctx, name, maxText)
	if err != nil {
		return nil, b.about(err, "%s", name)
	}
	r, err := b.dir.ParseRealisation([]byte(text))
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", err, ErrFormat)
	case r.ID != id:
		err = fmt.Errorf("is of %s: %w", r.ID, ErrFormat)
	}
	if err != nil {
		return nil, b.about(err, "%s", name)
	}
	return r, nil
}

// Traced returns what is known of an output by its derivation's path.
func (b *bucket) Traced(ctx context.Context, drv store.Path, output string) (*Trace, error) {
	if err := store.CheckName(output); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	name := TraceName(drv, output)
	text, err := b.text(ctx, name, maxText)
	if err != nil {
		return nil, b.about(err, "%s", name)
	}
	t, err := ParseTrace(drv, output, []byte(text))
	if err != nil {
		return nil, b.about(err, "%s", name)
	}
	return t, nil
}

// LogName is the name of a build log's file in a cache.
func LogName(drv store.Path) string { return "log/" + drv.Base() }

// Log returns a build log.
func (b *bucket) Log(ctx context.Context, drv store.Path) (io.ReadCloser, error) {
	r, err := b.place.get(ctx, LogName(drv), 0)
	if err != nil {
		return nil, b.about(err, "%s", LogName(drv))
	}
	return limited{io.LimitReader(r, maxLog), r}, nil
}

// limited reads no more than so much.
type limited struct {
	io.Reader
	io.Closer
}

// ListingName is the name of the file in a cache that lists an object.
func ListingName(p store.Path) string { return p.Digest() + ".ls" }

// Listing returns what is in an object.
func (b *bucket) Listing(ctx context.Context, p store.Path) (*nar.Listing, error) {
	r, err := b.place.get(ctx, ListingName(p), 0)
	if err != nil {
		return nil, b.about(err, "%s", ListingName(p))
	}
	defer r.Close()
	l, err := nar.ParseListing(bufio.NewReader(io.LimitReader(r, maxListing)))
	if err != nil {
		return nil, b.about(err, "%s", ListingName(p))
	}
	return l, nil
}
