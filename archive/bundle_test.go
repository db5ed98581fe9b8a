package archive_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/archive/wire"
	"cairn/store"
)

func bundle(tb testing.TB) []byte {
	tb.Helper()
	o, infos := chain(tb)
	var b bytes.Buffer
	if err := archive.WriteBundle(tb.Context(), &b, key(tb, 0), dir, infos, o); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// receive reads a whole bundle as an importer does.
func receive(r io.Reader, acl *archive.ACL) (map[store.Path][]byte, error) {
	b, err := archive.OpenBundle(r, dir)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if err := b.VerifySignature(acl); err != nil {
		return nil, err
	}
	all := map[store.Path][]byte{}
	for {
		info, content, err := b.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if all[info.Path], err = io.ReadAll(content); err != nil {
			return nil, err
		}
	}
}

func TestBundleRoundTrip(t *testing.T) {
	o, infos := chain(t)
	infos = append(infos, o.add(t, "big", strings.Repeat("0123456789", 500_000)))
	infos[0].Signatures = []string{"b:x", "a:y"}
	var b bytes.Buffer
	if err := archive.WriteBundle(t.Context(), &b, key(t, 0), dir, infos, o); err != nil {
		t.Fatal(err)
	}
	got, err := receive(&b, allow(t, key(t, 0).Public()))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(infos) {
		t.Errorf("%d objects, want %d", len(got), len(infos))
	}
	for p, data := range got {
		if !bytes.Equal(data, o.nars[p]) {
			t.Errorf("%s: other contents", p)
		}
	}
}

// TestBundlePacksSmallObjects packs small objects whose bytes are of few kinds without repeating each other, and does no harm to random ones.
func TestBundlePacksSmallObjects(t *testing.T) {
	for n := range 20 {
		var random [6000]byte
		rand.NewChaCha8([32]byte{byte(n)}).Read(random[:])
		raw := random[:300*(n+1)]
		for name, c := range map[string]struct {
			text string
			most float64 // of its size
		}{
			"random": {string(raw), 1},
			"base64": {base64.StdEncoding.EncodeToString(raw), 0.85},
			"hex":    {hex.EncodeToString(raw), 0.65},
		} {
			o := newObjects()
			info := o.add(t, "x", c.text)
			var b bytes.Buffer
			if err := archive.WriteBundle(t.Context(), &b, key(t, 0), dir, []*store.Info{info}, o); err != nil {
				t.Fatal(err)
			}
			if most := int(c.most*float64(len(c.text))) + 1000; b.Len() > most {
				t.Errorf("%d bytes of %s take %d, want at most %d", len(c.text), name, b.Len(), most)
			}
			got, err := receive(&b, allow(t, key(t, 0).Public()))
			if err != nil || !bytes.Equal(got[info.Path], o.nars[info.Path]) {
				t.Errorf("%d bytes of %s: other contents, %v", len(c.text), name, err)
			}
		}
	}
}

func TestBundleSkipsWhatIsNotRead(t *testing.T) {
	b, err := archive.OpenBundle(bytes.NewReader(bundle(t)), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Next(); !errors.Is(err, archive.ErrUnauthorized) {
		t.Fatalf("an object before the signature was verified: %v", err)
	}
	b, err = archive.OpenBundle(bytes.NewReader(bundle(t)), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.VerifySignature(allow(t, b.Key())); err != nil {
		t.Fatal(err)
	}
	for n := range len(b.Infos()) {
		info, _, err := b.Next()
		if err != nil || info != b.Infos()[n] {
			t.Fatalf("object %d: %v, %v", n, info, err)
		}
	}
	for range 2 {
		if _, _, err := b.Next(); err != io.EOF {
			t.Fatalf("end: %v", err)
		}
	}
}

func TestBundleOfAnUnknownKey(t *testing.T) {
	data := bundle(t)
	other := generate(t, "vec-1")
	for name, acl := range map[string]*archive.ACL{"none": nil, "empty": {}, "same name": allow(t, other)} {
		_, err := receive(bytes.NewReader(data), acl)
		if !errors.Is(err, archive.ErrUnauthorized) || !strings.Contains(err.Error(), key(t, 0).Public().String()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBundleOfAnotherStore(t *testing.T) {
	_, err := archive.OpenBundle(bytes.NewReader(bundle(t)), "/nix/store")
	if err == nil || !strings.Contains(err.Error(), "/cairn/store") || !strings.Contains(err.Error(), "/nix/store") {
		t.Errorf("open: %v", err)
	}
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	data := bundle(t)
	acl := allow(t, key(t, 0).Public())
	if _, err := receive(bytes.NewReader(data), acl); err != nil {
		t.Fatal(err)
	}
	for at := range data {
		for bit := range 8 {
			data[at] ^= 1 << bit
			if _, err := receive(bytes.NewReader(data), acl); err == nil {
				t.Errorf("bit %d of byte %d of %d: accepted", bit, at, len(data))
			}
			data[at] ^= 1 << bit
		}
	}
	t.Logf("%d bits", 8*len(data))
}

func TestBundleTruncatedOrExtended(t *testing.T) {
	data := bundle(t)
	acl := allow(t, key(t, 0).Public())
	for n := range data {
		if _, err := receive(bytes.NewReader(data[:n]), acl); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d of %d bytes: %v", n, len(data), err)
		}
	}
	for _, more := range []string{"\x00", "\n", string(data), strings.Repeat("\x00", 1000)} {
		if _, err := receive(strings.NewReader(string(data)+more), acl); !errors.Is(err, archive.ErrCorrupt) {
			t.Errorf("%d bytes more: %v", len(more), err)
		}
	}
}

// cut splits a bundle into what is before its objects and the rest.
func cut(tb testing.TB, data []byte) (manifest []byte, signature string, rest []byte) {
	tb.Helper()
	src := bytes.NewReader(data[16:])
	r := wire.NewReader(src)
	manifest, err := r.Bytes(1 << 20)
	if err != nil {
		tb.Fatal(err)
	}
	if signature, err = r.String(1000); err != nil {
		tb.Fatal(err)
	}
	if rest, err = io.ReadAll(r); err != nil {
		tb.Fatal(err)
	}
	return manifest, signature, rest
}

func join(manifest []byte, signature string, rest []byte) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Write([]byte("cairn bundle 1\n\x00"))
	w.Bytes(manifest)
	w.String(signature)
	w.Write(rest)
	w.Flush()
	return b.Bytes()
}

// sign signs a manifest as WriteBundle does.
func sign(k archive.SecretKey, manifest []byte) string {
	return k.Sign([]byte("cairn-bundle-1:" + store.BLAKE3.Sum(manifest).Hex()))
}

// What an authorized key has signed is still not believed when it is not true.
func TestSignedLiesAreRefused(t *testing.T) {
	k := key(t, 0)
	acl := allow(t, k.Public())
	manifest, signature, rest := cut(t, bundle(t))
	if got := sign(k, manifest); got != signature {
		t.Fatalf("signature is %s, want %s", signature, got)
	}
	o, infos := chain(t)
	size := func(n int64) []byte {
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		w.Uint64(uint64(n))
		w.Flush()
		return b.Bytes()
	}
	first := infos[1] // of the sorted order
	for name, change := range map[string][2][]byte{
		"other hash":           {[]byte(first.NarHash.Nix32()), []byte(store.SHA256.Sum(nil).Nix32())},
		"other size":           {size(first.NarSize), size(first.NarSize + 1)},
		"negative size":        {size(first.NarSize), size(-1)},
		"other name":           {[]byte(first.Path.Base()), []byte(first.Path.Base()[:32] + "-q")},
		"up and out":           {[]byte(first.Path.Base()), []byte("../../" + first.Path.Base()[6:])},
		"other address":        {[]byte(first.CA.String()), []byte(store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum(nil)}.String())},
		"objects out of order": {[]byte(infos[2].Path.Base()), []byte(infos[0].Path.Base())},
	} {
		lie := bytes.Replace(manifest, change[0], change[1], 1)
		if bytes.Equal(lie, manifest) {
			t.Fatalf("%s: no change", name)
		}
		if _, err := receive(bytes.NewReader(join(lie, sign(k, lie), rest)), acl); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	_ = o
	// Signed by another key than the one it names, authorized or not.
	other, err := archive.GenerateKey("vec-1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = receive(bytes.NewReader(join(manifest, sign(other, manifest), rest)), acl)
	if !errors.Is(err, archive.ErrCorrupt) {
		t.Errorf("signature by another key of the same name: %v", err)
	}
}

func TestBundleMemoryIsBounded(t *testing.T) {
	huge := "cairn bundle 1\n\x00" + "\x00\x00\x00\x04\x00\x00\x00\x00" + "xxxxxxxx" // 64 MiB announced
	tooBig := "cairn bundle 1\n\x00" + "\x01\x00\x00\x04\x00\x00\x00\x00"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, text := range []string{huge, tooBig} {
		if _, err := archive.OpenBundle(strings.NewReader(text), dir); err == nil {
			t.Error("accepted")
		}
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("took %d bytes", took)
	}
}

func TestWriteBundleRefuses(t *testing.T) {
	o, infos := chain(t)
	if err := archive.WriteBundle(t.Context(), io.Discard, archive.SecretKey{}, dir, infos, o); !errors.Is(err, archive.ErrKey) {
		t.Errorf("without a key: %v", err)
	}
	o.nars[infos[0].Path][100] ^= 1
	if err := archive.WriteBundle(t.Context(), io.Discard, key(t, 0), dir, infos, o); !errors.Is(err, store.ErrHashMismatch) {
		t.Errorf("of a damaged store: %v", err)
	}
	if err := archive.WriteBundle(t.Context(), io.Discard, key(t, 0), "/nix/store", infos, o); err == nil {
		t.Error("of another store's paths: accepted")
	}
}

func TestEmptyBundle(t *testing.T) {
	var b bytes.Buffer
	if err := archive.WriteBundle(t.Context(), &b, key(t, 0), dir, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := receive(&b, allow(t, key(t, 0).Public())); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzBundle(f *testing.F) {
	data := bundle(f)
	f.Add(data)
	manifest, signature, rest := cut(f, data)
	f.Add(join(manifest[:len(manifest)-8], signature, rest))
	k := key(f, 0)
	acl := allow(f, k.Public())
	f.Fuzz(func(t *testing.T, changed []byte) {
		got, err := receive(bytes.NewReader(changed), acl)
		if err == nil && len(got) > 0 && !bytes.Equal(changed, data) {
			t.Error("accepted what was never signed")
		}
		// As manifest that is signed: it may be right or wrong, and must not break anything.
		b, err := archive.OpenBundle(bytes.NewReader(join(changed, sign(k, changed), rest)), dir)
		if err != nil {
			return
		}
		if err := b.VerifySignature(acl); err != nil {
			return
		}
		for {
			if _, _, err := b.Next(); err != nil {
				return
			}
		}
	})
}

func FuzzExport(f *testing.F) {
	real, err := os.ReadFile("../tests/vectors/export.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	o, infos := chain(f)
	var b bytes.Buffer
	if err := archive.WriteExport(f.Context(), &b, o, []store.Path{infos[0].Path, infos[1].Path}); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.ReplaceAll(b.Bytes(), []byte("/cairn/store"), []byte("/nix/store\x00\x00")))
	f.Fuzz(func(t *testing.T, data []byte) {
		o := &objects{infos: map[store.Path]*store.Info{}, nars: map[store.Path][]byte{}}
		var paths []store.Path
		err := archive.ReadExport(bytes.NewReader(data), "/nix/store", func(info *store.Info, content io.Reader) error {
			data, err := io.ReadAll(content)
			if store.SHA256.Sum(data) != info.NarHash {
				t.Error("contents have another hash")
			}
			if _, double := o.infos[info.Path]; double {
				return errors.New("twice")
			}
			o.infos[info.Path], o.nars[info.Path] = info, data
			paths = append(paths, info.Path)
			return err
		})
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := archive.WriteExport(t.Context(), &again, o, paths); err != nil {
			return // references in a circle
		}
		seen := 0
		err = archive.ReadExport(&again, "/nix/store", func(info *store.Info, content io.Reader) error {
			seen++
			if o.infos[info.Path].NarHash != info.NarHash {
				t.Errorf("%s changed", info.Path)
			}
			return nil
		})
		if err != nil || seen != len(paths) {
			t.Errorf("%d of %d objects come again, %v", seen, len(paths), err)
		}
	})
}

func FuzzACL(f *testing.F) {
	public := key(f, 0).Public().String()
	f.Add([]byte("# comment\n\n" + public + " import # why\n"))
	f.Add([]byte(public + "\timport,import\r\n"))
	f.Add([]byte("* default,inspect\n@wheel all\nuid:7 none # x\nuser:a add\ngid:0 gc\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		acl, err := archive.ParseACL(data)
		if err != nil {
			return
		}
		if got := acl.Bytes(); len(data) > 0 && string(got) != strings.TrimSuffix(string(data), "\n")+"\n" {
			if strings.TrimSuffix(string(data), "\n") != "" {
				t.Errorf("comes back as %q", got)
			}
		}
		again, err := archive.ParseACL(acl.Bytes())
		if err != nil || len(again.Keys(archive.Import)) != len(acl.Keys(archive.Import)) {
			t.Fatalf("another list comes back, %v", err)
		}
		if !slices.Equal(again.Rules(), acl.Rules()) || !slices.Equal((*archive.ACL)(nil).With(acl.Rules()...).Rules(), acl.Rules()) {
			t.Errorf("%v comes back as %v", acl.Rules(), again.Rules())
		}
		for _, r := range acl.Rules() {
			one, err := archive.ParseACL([]byte(r.String()))
			if err != nil || !slices.Equal(one.Rules(), []archive.Rule{r}) {
				t.Errorf("%s comes back as %v, %v", r, one.Rules(), err)
			}
		}
	})
}

func FuzzKey(f *testing.F) {
	k := key(f, 0)
	f.Add(k.Reveal())
	f.Add(k.Public().String())
	f.Add(k.Sign([]byte("x")))
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := archive.ParsePublicKey(text); err == nil && p.String() != text {
			t.Errorf("public key comes back as %s", p)
		}
		s, err := archive.ParseSecretKey(text)
		if err == nil && s.Reveal() != text {
			t.Error("secret key comes back differently")
		}
		if err == nil && !s.Public().Verify([]byte("x"), s.Sign([]byte("x"))) {
			t.Error("does not verify its own signature")
		}
		if k.Public().Verify([]byte("x"), text) && text != k.Sign([]byte("x")) {
			t.Error("another signature verifies")
		}
	})
}

func FuzzRegistration(f *testing.F) {
	real, err := os.ReadFile(filepath.Join("..", "tests", "vectors", "dump-db.txt"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(real))
	f.Fuzz(func(t *testing.T, text string) {
		var infos []*store.Info
		collect := func(i *store.Info) error { infos = append(infos, i); return nil }
		if err := archive.ReadRegistration(strings.NewReader(text), "/nix/store", collect); err != nil {
			return
		}
		var once, twice strings.Builder
		archive.WriteRegistration(&once, infos)
		infos = nil
		if err := archive.ReadRegistration(strings.NewReader(once.String()), "/nix/store", collect); err != nil {
			t.Fatalf("not accepted again: %v", err)
		}
		archive.WriteRegistration(&twice, infos)
		if once.String() != twice.String() {
			t.Error("comes back differently")
		}
	})
}
