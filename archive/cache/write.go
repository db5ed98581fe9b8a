package cache

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/store"
)

// Writer is a binary cache that can be written. It is safe for concurrent use.
type Writer interface {
	Cache
	// Init writes nix-cache-info when there is none, and refuses a cache of another store.
	Init(ctx context.Context) error
	// Has reports whether an object is there.
	Has(ctx context.Context, p store.Path) (bool, error)
	// Upload packs an archive and writes it, and what goes with it, but not the narinfo. It refuses an archive
	// that is not the one of info.
	Upload(ctx context.Context, info *store.Info, archive func(io.Writer) error) (*NarInfo, error)
	// Publish writes an object's narinfo, after which the object is there. Its references must be.
	Publish(ctx context.Context, n *NarInfo) error
	// PutRealisation, PutTrace and PutLog write what their names say. Keys of the cache sign the former two.
	PutRealisation(ctx context.Context, r *store.Realisation) error
	PutTrace(ctx context.Context, t *Trace) error
	PutLog(ctx context.Context, drv store.Path, text io.Reader) error
}

// writable is a place whose files can be written.
type writable interface {
	place
	has(ctx context.Context, name string) (bool, error)
	// stage makes a file on its way into the place.
	stage() (*staged, error)
	// put writes a file, whole or not at all, and may take what was staged away.
	put(ctx context.Context, name string, s *staged, kind fileKind) error
}

// fileKind is what HTTP tells of a file.
type fileKind struct {
	mediaType string
	encoding  archive.Compression // of a text that was packed for the way; empty or none: not
}

// The media types of Nix's caches.
const (
	typeInfo    = "text/x-nix-cache-info"
	typeNarInfo = "text/x-nix-narinfo"
	typeNAR     = "application/x-nix-nar"
	typeJSON    = "application/json"
	typeLog     = "text/plain; charset=utf-8"
)

// OpenWriter returns the cache at a URI, for writing. Nothing is asked or checked but the URI and the keys that it names.
func OpenWriter(uri string, dir store.Dir, opts *Options) (Writer, error) {
	b, err := open(uri, dir, opts)
	if err != nil {
		return nil, err
	}
	w, ok := b.place.(writable)
	if !ok {
		return nil, fmt.Errorf("open %s: %w", b.URI(), ErrReadOnly)
	}
	keys := slices.Clone(b.opts.Keys)
	for _, file := range b.parameters.SecretKeys {
		key, _, err := archive.ReadExposedKey(file)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", b.URI(), err)
		}
		keys = append(keys, key)
	}
	return &writer{bucket: b, place: w, keys: keys, packing: make(chan struct{}, runtime.GOMAXPROCS(0))}, nil
}

// writer is a bucket that can be written.
type writer struct {
	*bucket
	place writable
	keys  []archive.SecretKey

	packing chan struct{} // a place for each processor: a compressor takes megabytes, and more at a time are no faster
}

func (w *writer) Init(ctx context.Context) error {
	there, err := w.place.has(ctx, InfoName)
	if err != nil {
		return w.about(err, "%s", InfoName)
	}
	if there {
		_, err := w.Info(ctx)
		return err
	}
	info := Info{StoreDir: w.dir, WantMassQuery: true}
	if p := w.parameters.Priority; p != nil {
		info.Priority = *p
	}
	if m := w.parameters.WantMassQuery; m != nil {
		info.WantMassQuery = *m
	}
	return w.about(w.putText(ctx, InfoName, info.Text(), fileKind{mediaType: typeInfo}), "write %s", InfoName)
}

func (w *writer) Has(ctx context.Context, p store.Path) (bool, error) {
	there, err := w.place.has(ctx, FileName(p))
	return there, w.about(err, "%s", FileName(p))
}

func (w *writer) Upload(ctx context.Context, info *store.Info, archive func(io.Writer) error) (*NarInfo, error) {
	n, err := w.upload(ctx, info, archive)
	if err != nil {
		return nil, w.about(err, "write archive of %s", info.Path)
	}
	return n, nil
}

func (w *writer) upload(ctx context.Context, info *store.Info, archive func(io.Writer) error) (*NarInfo, error) {
	s, err := w.place.stage()
	if err != nil {
		return nil, err
	}
	defer s.discard()
	select {
	case w.packing <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	p, err := pack(s.file, w.parameters, info, archive)
	<-w.packing
	if err != nil {
		return nil, err
	}
	n := p.narInfo(info)
	w.sign(n)
	there, err := w.place.has(ctx, n.URL)
	if err != nil {
		return nil, err
	}
	if !there {
		if err := w.place.put(ctx, n.URL, s, fileKind{mediaType: typeNAR}); err != nil {
			return nil, err
		}
	}
	return n, w.putListing(ctx, n, p.listing)
}

// sign adds the signatures of the cache's keys.
func (w *writer) sign(n *NarInfo) {
	n.Signatures = Sign(w.keys, n.Signatures, n.Fingerprint())
}

// Sign returns the signatures of a text that there are, and those of keys that did not sign it.
func Sign(keys []archive.SecretKey, there []string, text string) []string {
	all := slices.Clone(there)
	for _, k := range keys {
		if !slices.ContainsFunc(all, func(s string) bool { return k.Public().Verify([]byte(text), s) }) {
			all = append(all, k.Sign([]byte(text)))
		}
	}
	return all
}

func (w *writer) putListing(ctx context.Context, n *NarInfo, l *nar.Listing) error {
	if w.parameters.WriteListing {
		text, err := l.JSON()
		if err != nil {
			return err
		}
		if err := w.putText(ctx, ListingName(n.Path), string(text), fileKind{typeJSON, w.parameters.ListingCompression}); err != nil {
			return err
		}
	}
	if w.parameters.IndexDebugInfo {
		return w.indexDebugInfo(ctx, n, l)
	}
	return nil
}

// indexDebugInfo writes where debugging symbols are, by build id: lib/debug/.build-id/ab/cdef….debug in the object.
func (w *writer) indexDebugInfo(ctx context.Context, n *NarInfo, l *nar.Listing) error {
	const folder = "lib/debug/.build-id"
	ids := l.Root
	for name := range strings.SplitSeq(folder, "/") {
		if ids == nil {
			return nil
		}
		ids = ids.Entries[name]
	}
	if ids == nil {
		return nil
	}
	for first, below := range ids.Entries {
		for rest, file := range below.Entries {
			id, ok := strings.CutSuffix(first+rest, ".debug")
			if !ok || file.Type != nar.Regular.String() || !isBuildID(id) {
				continue
			}
			text, err := json.Marshal(map[string]string{"archive": "../" + n.URL, "member": folder + "/" + first + "/" + rest})
			if err != nil {
				return err
			}
			if err := w.putText(ctx, "debuginfo/"+id+".debug", string(text), fileKind{mediaType: typeJSON}); err != nil {
				return err
			}
		}
	}
	return nil
}

func isBuildID(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == ""
}

func (w *writer) Publish(ctx context.Context, n *NarInfo) error {
	kind := fileKind{typeNarInfo, w.parameters.NarInfoCompression}
	return w.about(w.putText(ctx, FileName(n.Path), n.Text(), kind), "write %s", FileName(n.Path))
}

func (w *writer) PutRealisation(ctx context.Context, r *store.Realisation) error {
	signed := *r
	signed.Signatures = Sign(w.keys, r.Signatures, r.Fingerprint())
	name := RealisationName(r.ID)
	return w.about(w.putText(ctx, name, signed.JSON(), fileKind{mediaType: typeJSON}), "write %s", name)
}

func (w *writer) PutTrace(ctx context.Context, t *Trace) error {
	if err := store.CheckName(t.Output); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	signed := *t
	signed.Signatures = Sign(w.keys, t.Signatures, t.Fingerprint())
	name := TraceName(t.Drv, t.Output)
	return w.about(w.putText(ctx, name, signed.JSON(), fileKind{mediaType: typeJSON}), "write %s", name)
}

func (w *writer) PutLog(ctx context.Context, drv store.Path, text io.Reader) error {
	kind := fileKind{typeLog, w.parameters.LogCompression}
	return w.about(w.putFile(ctx, LogName(drv), text, kind), "write %s", LogName(drv))
}

func (w *writer) putText(ctx context.Context, name, text string, kind fileKind) error {
	return w.putFile(ctx, name, strings.NewReader(text), kind)
}

// putFile writes a file, packed for the way if the place can say so.
func (w *writer) putFile(ctx context.Context, name string, r io.Reader, kind fileKind) error {
	if _, ok := w.place.(*folder); ok || kind.encoding == "" {
		kind.encoding = archive.Uncompressed
	}
	s, err := w.place.stage()
	if err != nil {
		return err
	}
	defer s.discard()
	c, err := archive.NewCompressor(s.file, kind.encoding)
	if err != nil {
		return err
	}
	if _, err = io.Copy(c, r); err == nil {
		err = c.Close()
	}
	if err != nil {
		return err
	}
	return w.place.put(ctx, name, s, kind)
}

// Put writes a whole object. Its references must be there.
func Put(ctx context.Context, w Writer, info *store.Info, archive func(io.Writer) error) (*NarInfo, error) {
	n, err := w.Upload(ctx, info, archive)
	if err != nil {
		return nil, err
	}
	return n, w.Publish(ctx, n)
}
