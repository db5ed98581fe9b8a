package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"cairn/archive/wire"
	"cairn/store"
)

// A bundle is a signed set of store objects as one stream. With the framing of package wire:
//
//	bundle    = magic, str manifest, str signature, { object }, str "end"
//	magic     = "cairn bundle 1\n\x00"
//	manifest  = str store directory, str public key "name:base64", u64 count, { description }
//	description = str base name, str narHash "sha256:nix32", u64 narSize, list of references (base names, sorted),
//	            str deriver (base name or ""), str content address or "", list of signatures (sorted)
//	signature = "name:base64" of "cairn-bundle-1:" + hexadecimal BLAKE3 of the manifest
//	object    = { u64 length 1…65536, bytes } u64 0, BLAKE3 (32 bytes) of everything before in this object;
//	            the bytes are the zstd frames of the object's NAR
//
// Objects come in the order of the manifest, in which an object follows what it refers to.
// References to objects outside the bundle are allowed: whoever imports must have them.
// Nothing may follow the end.
//
// The signature covers the manifest, the manifest the contents (narHash and narSize). The hash of the
// packed bytes is no protection against people; it makes any changed bit an error, those
// included that unpacking would not notice.
//
// A reader takes memory for the manifest, at most 64 MiB and never much more than has arrived, for what it says,
// about as much again, and for one decompressor with a window of 8 MiB. It gives no object before VerifySignature was content.
const (
	bundleMagic  = "cairn bundle 1\n\x00"
	bundleDomain = "cairn-bundle-1:"
	bundleEnd    = "end"
)

// Limits of a bundle.
const (
	maxManifest      = 64 << 20
	maxSignatures    = 64
	maxSignature     = 512
	bundleDigest     = 32
	bundleFrame      = 64 << 10
	minDescription   = 8 * 8 // bytes of the smallest description
	maxBundleObjects = maxManifest / minDescription
)

// WriteBundle writes a signed bundle of objects that r has. Infos are in any order; the bundle is not.
func WriteBundle(ctx context.Context, w io.Writer, key SecretKey, dir store.Dir, infos []*store.Info, r store.Reader) error {
	if err := writeBundle(ctx, w, key, dir, infos, r); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

func writeBundle(ctx context.Context, w io.Writer, key SecretKey, dir store.Dir, infos []*store.Info, r store.Reader) error {
	if key.IsZero() {
		return fmt.Errorf("no key to sign with: %w", ErrKey)
	}
	infos, err := Sort(infos)
	if err != nil {
		return err
	}
	manifest := (&manifest{dir: dir, key: key.Public(), infos: infos}).text()
	if len(manifest) > maxManifest {
		return fmt.Errorf("the list of %d objects takes %d bytes, at most %d are allowed: write several bundles: %w", len(infos), len(manifest), maxManifest, wire.ErrTooLong)
	}
	if _, err := parseManifest(manifest); err != nil {
		return fmt.Errorf("manifest: %w", err) // what we write, we can read
	}
	out := wire.NewWriter(w)
	out.Write([]byte(bundleMagic))
	out.Bytes(manifest)
	out.String(key.Sign(manifestText(manifest)))
	p, err := newPacker(out, len(infos))
	if err != nil {
		return err
	}
	if err := p.objects(ctx, infos, r); err != nil {
		return err
	}
	out.String(bundleEnd)
	return out.Flush()
}

// manifestText is what the signature signs.
func manifestText(manifest []byte) []byte {
	return []byte(bundleDomain + store.BLAKE3.Sum(manifest).Hex())
}

// text returns the manifest as it is sent, in memory of just its size.
func (m *manifest) text() []byte {
	var size length
	m.write(&size)
	b := bytes.NewBuffer(make([]byte, 0, size))
	m.write(b)
	return b.Bytes()
}

// write writes the manifest.
func (m *manifest) write(to io.Writer) error {
	w := wire.NewWriter(to)
	w.String(m.dir.String())
	w.String(m.key.String())
	w.Uint64(uint64(len(m.infos)))
	for _, i := range m.infos {
		w.String(i.Path.Base())
		w.String(i.NarHash.String())
		w.Uint64(uint64(i.NarSize))
		refs := store.SortPaths(slices.Clone(i.References))
		w.Uint64(uint64(len(refs)))
		for _, ref := range refs {
			w.String(ref.Base())
		}
		w.String(i.Deriver.Base())
		w.String(i.CA.String())
		w.Strings(slices.Compact(slices.Sorted(slices.Values(i.Signatures))))
	}
	return w.Flush()
}

// length counts what is written.
type length int

func (l *length) Write(p []byte) (int, error) {
	*l += length(len(p))
	return len(p), nil
}

// match is what must be written; anything else fails.
type match struct{ rest []byte }

func (m *match) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(m.rest, p) {
		return 0, ErrCorrupt
	}
	m.rest = m.rest[len(p):]
	return len(p), nil
}

// packAhead is up to which size an object is packed in memory, before its turn.
const packAhead = 256 << 10

// aheadLevel is the level of compression of those: the tables of a higher one are larger than what they are for, and finding them cold takes
// several times as long as packing, for 5 % of the bytes of small texts.
const aheadLevel = 1

// packer writes objects. Small ones are packed on all cores, a few before their turn.
type packer struct {
	out   *wire.Writer
	cores int
	ahead *zstd.Encoder // of small objects, for all cores
	even  *zstd.Encoder // of those whose bytes are even: finding out that codes for them are no use takes most of the time of packing
	hash  hash.Hash
	buf   []byte
}

// newPacker returns a packer of so many objects.
func newPacker(out *wire.Writer, objects int) (*packer, error) {
	cores := max(1, min(runtime.GOMAXPROCS(0), objects))
	ahead, err := newEncoder(nil, aheadLevel, cores)
	if err != nil {
		return nil, err
	}
	even, err := newEncoder(nil, aheadLevel, cores, zstd.WithNoEntropyCompression(true))
	return &packer{out: out, cores: cores, ahead: ahead, even: even, hash: store.BLAKE3.New(), buf: make([]byte, 0, bundleFrame)}, err
}

// packing is an object whose turn comes.
type packing struct {
	info *store.Info
	done chan struct{} // nil when the object is not packed before its turn
	data []byte
	err  error
}

func (p *packer) objects(ctx context.Context, infos []*store.Info, r store.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	queue := make(chan *packing, 8*p.cores)
	var feeder sync.WaitGroup
	defer feeder.Wait()
	defer cancel()
	feeder.Go(func() {
		defer close(queue)
		var packers errgroup.Group
		packers.SetLimit(p.cores)
		defer packers.Wait()
		for _, info := range infos {
			k := &packing{info: info}
			if info.NarSize <= packAhead {
				k.done = make(chan struct{})
				packers.Go(func() error {
					defer close(k.done)
					k.data, k.err = p.packed(ctx, info, r)
					return nil
				})
			}
			select {
			case queue <- k:
			case <-ctx.Done():
				return
			}
		}
	})
	for k := range queue {
		if err := p.object(ctx, k, r); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// packed reads and packs an object in memory.
func (p *packer) packed(ctx context.Context, info *store.Info, r store.Reader) ([]byte, error) {
	var nar bytes.Buffer
	nar.Grow(int(info.NarSize))
	check := newChecker(&limited{w: &nar, left: info.NarSize})
	err := r.NAR(ctx, info.Path, check)
	if err == nil {
		err = check.compare(info)
	}
	if err != nil {
		return nil, err
	}
	if isEven(nar.Bytes()) {
		return p.even.EncodeAll(nar.Bytes(), nil), nil
	}
	return p.ahead.EncodeAll(nar.Bytes(), nil), nil
}

// limited keeps no more than was announced; that there was more the checker finds out.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(b []byte) (int, error) {
	if n := min(int64(len(b)), l.left); n > 0 {
		l.left -= n
		if _, err := l.w.Write(b[:n]); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (p *packer) object(ctx context.Context, k *packing, r store.Reader) error {
	p.hash.Reset()
	if err := p.contents(ctx, k, r); err != nil {
		return err
	}
	p.send()
	p.put(0)
	p.out.Write(p.hash.Sum(nil))
	return p.out.Err()
}

// contents writes the packed bytes of an object.
func (p *packer) contents(ctx context.Context, k *packing, r store.Reader) error {
	if k.done != nil {
		<-k.done
		if k.err != nil {
			return k.err
		}
		_, err := packedWriter{p}.Write(k.data)
		return err
	}
	zstd, err := takeEncoder(packedWriter{p}, 0)
	if err != nil {
		return err
	}
	check := newChecker(zstd)
	if err := r.NAR(ctx, k.info.Path, check); err != nil {
		return err
	}
	if err := check.compare(k.info); err != nil {
		return err
	}
	return zstd.Close()
}

// packedWriter takes packed bytes and frames them.
type packedWriter struct{ p *packer }

func (w packedWriter) Write(b []byte) (int, error) {
	p, total := w.p, len(b)
	for len(b) > 0 {
		n := min(bundleFrame-len(p.buf), len(b))
		p.buf = append(p.buf, b[:n]...)
		b = b[n:]
		if len(p.buf) == bundleFrame {
			p.send()
		}
	}
	return total, p.out.Err()
}

func (p *packer) send() {
	if len(p.buf) == 0 {
		return
	}
	p.put(uint64(len(p.buf)))
	p.hash.Write(p.buf)
	p.out.Write(p.buf)
	p.buf = p.buf[:0]
}

func (p *packer) put(n uint64) {
	b := binary.LittleEndian.AppendUint64(nil, n)
	p.hash.Write(b)
	p.out.Write(b)
}

// Bundle is a bundle that is being read.
type Bundle struct {
	in        *wire.Reader
	manifest  *manifest
	text      []byte // what the signature signs
	signature string
	verified  bool
	next      int       // index of the next object
	current   *unpacker // that is being read
	zstd      *zstd.Decoder
	err       error
}

// manifest is what a bundle says of itself.
type manifest struct {
	dir   store.Dir
	key   PublicKey
	infos []*store.Info
	known map[string]store.Path // by base name, while it is parsed: each path takes memory once
}

// path returns the path of a base name.
func (m *manifest) path(base string) (store.Path, error) {
	if p, ok := m.known[base]; ok {
		return p, nil
	}
	p, err := m.dir.Path(base)
	if err == nil {
		m.known[p.Base()] = p
	}
	return p, err
}

// OpenBundle reads a bundle's manifest. The bundle must be of the store dir.
// Nothing of it is to be believed before VerifySignature.
func OpenBundle(r io.Reader, dir store.Dir) (*Bundle, error) {
	b := &Bundle{in: wire.NewReader(r)}
	if err := b.open(dir); err != nil {
		return nil, fmt.Errorf("open bundle: %w", unexpected(err))
	}
	return b, nil
}

func (b *Bundle) open(dir store.Dir) error {
	magic := make([]byte, len(bundleMagic))
	if _, err := io.ReadFull(b.in, magic); err != nil {
		return err
	}
	if string(magic) != bundleMagic {
		return fmt.Errorf("it begins with %q, want %q: %w", magic, bundleMagic, ErrCorrupt)
	}
	raw, err := b.in.Bytes(maxManifest)
	if err != nil {
		return fmt.Errorf("manifest: %w", unexpected(err))
	}
	if b.signature, err = b.in.String(maxSignature); err != nil {
		return fmt.Errorf("signature: %w", unexpected(err))
	}
	if b.manifest, err = parseManifest(raw); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if b.manifest.dir != dir {
		return fmt.Errorf("it is for the store %s, this one is %s", b.manifest.dir, dir)
	}
	b.text = manifestText(raw)
	return nil
}

// parseManifest accepts what manifest.write writes, and only that.
func parseManifest(raw []byte) (*manifest, error) {
	in := wire.NewReader(bytes.NewReader(raw))
	m := &manifest{known: map[string]store.Path{}}
	if err := m.parse(in); err != nil {
		return nil, unexpected(err)
	}
	m.known = nil
	again := &match{raw}
	if err := m.write(again); err != nil || len(again.rest) > 0 {
		return nil, fmt.Errorf("it is not in canonical form: %w", ErrCorrupt)
	}
	return m, nil
}

func (m *manifest) parse(in *wire.Reader) (err error) {
	f := fields{in: in}
	dir, key, count := f.text(maxPathLen), f.text(maxSignature), f.number()
	if f.err != nil {
		return f.err
	}
	if m.dir, err = store.ParseDir(dir); err != nil {
		return err
	}
	if m.key, err = ParsePublicKey(key); err != nil {
		return err
	}
	if count > maxBundleObjects {
		return fmt.Errorf("%d objects, the limit is %d: %w", count, maxBundleObjects, wire.ErrTooLong)
	}
	seen := make(map[store.Path]bool, min(count, 1024))
	for range count {
		info, err := m.description(in)
		if err != nil {
			return err
		}
		if seen[info.Path] {
			return fmt.Errorf("object %s comes twice: %w", info.Path, ErrCorrupt)
		}
		m.infos = append(m.infos, info)
		seen[info.Path] = true
	}
	return m.checkOrder(seen)
}

// checkOrder checks that references come first.
func (m *manifest) checkOrder(all map[store.Path]bool) error {
	before := make(map[store.Path]bool, len(m.infos))
	for _, info := range m.infos {
		before[info.Path] = true
		for _, ref := range info.References {
			if all[ref] && !before[ref] {
				return fmt.Errorf("object %s comes before %s, to which it refers: %w", info.Path, ref, ErrCorrupt)
			}
		}
	}
	return nil
}

func (m *manifest) description(in *wire.Reader) (*store.Info, error) {
	base, err := in.String(maxPathLen)
	if err != nil {
		return nil, err
	}
	info := &store.Info{}
	if info.Path, err = m.path(base); err != nil {
		return nil, err
	}
	if err := m.details(in, info); err != nil {
		return nil, fmt.Errorf("object %s: %w", info.Path, err)
	}
	if info.CA.IsZero() {
		return info, nil
	}
	return info, info.CheckContentAddress()
}

// details reads a description after its base name.
func (m *manifest) details(in *wire.Reader, info *store.Info) (err error) {
	f := fields{in: in}
	narHash, size := f.text(maxSignature), f.number()
	refs := f.list(maxReferences, maxPathLen)
	deriver, ca := f.text(maxPathLen), f.text(maxSignature)
	info.Signatures = f.list(maxSignatures, maxSignature)
	if f.err != nil {
		return f.err
	}
	info.NarSize = int64(size)
	if info.NarHash, err = store.ParseHash(narHash, store.SHA256); err != nil {
		return err
	}
	if len(refs) > 0 {
		info.References = make([]store.Path, 0, len(refs))
	}
	for _, s := range refs {
		ref, err := m.path(s)
		if err != nil {
			return err
		}
		info.References = append(info.References, ref)
	}
	if deriver != "" {
		if info.Deriver, err = m.path(deriver); err != nil {
			return err
		}
	}
	info.CA, err = store.ParseContentAddress(ca)
	return err
}

// fields reads values until the first error, which stays.
type fields struct {
	in  *wire.Reader
	err error
}

func (f *fields) text(max int) (s string) {
	if f.err == nil {
		s, f.err = f.in.String(max)
	}
	return s
}

func (f *fields) any() (n uint64) {
	if f.err == nil {
		n, f.err = f.in.Uint64()
	}
	return n
}

func (f *fields) number() (n uint64) {
	if f.err == nil {
		n, f.err = f.in.Int(math.MaxInt64)
	}
	return n
}

func (f *fields) list(maxCount, maxLen int) (list []string) {
	if f.err == nil {
		list, f.err = f.in.Strings(maxCount, maxLen)
	}
	if len(list) == 0 {
		return nil
	}
	return list
}

// Key returns the key that the bundle says it is signed with.
func (b *Bundle) Key() PublicKey { return b.manifest.key }

// Infos returns the descriptions of the objects, references first.
func (b *Bundle) Infos() []*store.Info { return b.manifest.infos }

// VerifySignature checks that the key named in the bundle has signed it, and that the list lets this key
// sign imports: otherwise the error is ErrUnauthorized and names the key.
func (b *Bundle) VerifySignature(acl *ACL) error {
	if !b.manifest.key.Verify(b.text, b.signature) {
		return fmt.Errorf("verify bundle: the signature is not one by key %s: %w", b.manifest.key, ErrCorrupt)
	}
	if err := acl.Check(b.manifest.key, Import); err != nil {
		return fmt.Errorf("verify bundle: %w", err)
	}
	b.verified = true
	return nil
}

// Next returns the next object and a reader of its NAR, or io.EOF after the last one and the end of the stream.
// The reader returns io.EOF only after the contents have proved to be those described; what is left
// unread of it is read and checked by the next call.
// An object is not to be made visible before Next has returned io.EOF, when all must come or none.
func (b *Bundle) Next() (*store.Info, io.Reader, error) {
	if b.err == nil {
		b.err = b.advance()
	}
	if b.err != nil {
		if b.err != io.EOF {
			return nil, nil, fmt.Errorf("read bundle: %w", b.err)
		}
		return nil, nil, io.EOF
	}
	return b.current.info, b.current, nil
}

// advance makes the next object current.
func (b *Bundle) advance() error {
	if !b.verified {
		return fmt.Errorf("its signature was not verified: %w", ErrUnauthorized)
	}
	if b.current != nil {
		if _, err := io.Copy(io.Discard, b.current); err != nil {
			return err
		}
	}
	if b.next == len(b.manifest.infos) {
		return b.finish()
	}
	if b.zstd == nil {
		var err error
		if b.zstd, err = newDecoder(nil, ownWindow); err != nil {
			return err
		}
	}
	packed := &packedReader{in: b.in, hash: store.BLAKE3.New()}
	if err := b.zstd.Reset(packed); err != nil {
		return err
	}
	b.current = &unpacker{packed: packed, zstd: b.zstd, info: b.manifest.infos[b.next], check: newChecker(io.Discard)}
	b.next++
	return nil
}

// finish reads the end and what must not be behind it.
func (b *Bundle) finish() error {
	b.Close()
	end, err := b.in.String(len(bundleEnd))
	if err != nil {
		return fmt.Errorf("end mark: %w", unexpected(err))
	}
	if end != bundleEnd {
		return fmt.Errorf("found %q, want the end mark: %w", end, ErrCorrupt)
	}
	if _, err := b.in.ReadByte(); err != io.EOF {
		return errors.Join(fmt.Errorf("bytes follow the end: %w", ErrCorrupt), err)
	}
	return io.EOF
}

// Close frees the decompressor. Reading to the end does it, too.
func (b *Bundle) Close() {
	if b.zstd != nil {
		b.zstd.Close()
		b.zstd = nil
	}
}

// unpacker reads the NAR of an object and checks it.
type unpacker struct {
	packed *packedReader
	zstd   *zstd.Decoder
	info   *store.Info
	check  *checker
	err    error
}

func (u *unpacker) Read(p []byte) (int, error) {
	if u.err != nil || len(p) == 0 {
		return 0, u.err
	}
	n, err := u.zstd.Read(p)
	u.check.Write(p[:n])
	if err != nil && err != io.EOF && !errors.Is(err, errSource) && !errors.Is(err, ErrCorrupt) { // the decoder's own complaint
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if u.check.size > u.info.NarSize {
		err = fmt.Errorf("more than the announced %d bytes: %w", u.info.NarSize, store.ErrHashMismatch)
	}
	if err == io.EOF {
		err = u.finish()
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("object %s: %w", u.info.Path, err)
	}
	u.err = err
	return n, err
}

// finish checks the whole object, and returns io.EOF when it is right.
func (u *unpacker) finish() error {
	if err := u.packed.finish(); err != nil {
		return err
	}
	if err := u.check.compare(u.info); err != nil {
		return err
	}
	return io.EOF
}

// packedReader reads an object's packed bytes out of their frames.
type packedReader struct {
	in   *wire.Reader
	hash hash.Hash
	left int
	err  error
}

func (p *packedReader) Read(b []byte) (int, error) {
	if p.err == nil && p.left == 0 {
		p.err = p.frame()
	}
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.in.Read(b[:min(len(b), p.left)])
	p.hash.Write(b[:n])
	p.left -= n
	p.err = sourceError(unexpected(err))
	return n, p.err
}

// frame reads a frame's length; after the last one it checks the hash and returns io.EOF.
func (p *packedReader) frame() error {
	n, err := p.in.Int(bundleFrame)
	if err != nil {
		return sourceError(unexpected(err))
	}
	p.hash.Write(binary.LittleEndian.AppendUint64(nil, n))
	p.left = int(n)
	if n > 0 {
		return nil
	}
	sum := make([]byte, bundleDigest)
	if _, err := io.ReadFull(p.in, sum); err != nil {
		return sourceError(unexpected(err))
	}
	if !bytes.Equal(sum, p.hash.Sum(nil)) {
		return fmt.Errorf("packed bytes have another hash: %w", ErrCorrupt)
	}
	return io.EOF
}

// errSource marks that a stream could not be read, which does not mean that it is damaged.
var errSource = errors.New("read archive")

func sourceError(err error) error {
	if err == nil || errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", errSource, err)
}

// finish checks that everything was read.
func (p *packedReader) finish() error {
	if _, err := io.Copy(io.Discard, p); err != nil {
		return err
	}
	return nil
}

// errTruncated is both: what is cut off is damaged.
var errTruncated = fmt.Errorf("it ends too early, or is none: %w (%w)", ErrCorrupt, io.ErrUnexpectedEOF)

// unexpected makes damage of an end that comes too early and of what no writer writes.
func unexpected(err error) error {
	switch {
	case errors.Is(err, ErrCorrupt):
		return err
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return errTruncated
	case errors.Is(err, wire.ErrTooLong) || errors.Is(err, wire.ErrPadding) || errors.Is(err, wire.ErrValue):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}
