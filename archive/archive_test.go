package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/store"
)

const dir store.Dir = "/cairn/store"

// objects is a store in memory.
type objects struct {
	infos map[store.Path]*store.Info
	nars  map[store.Path][]byte
}

func (o *objects) Info(_ context.Context, p store.Path) (*store.Info, error) {
	if i, ok := o.infos[p]; ok {
		return i, nil
	}
	return nil, store.ErrNotValid
}

func (o *objects) NAR(_ context.Context, p store.Path, w io.Writer) error {
	_, err := w.Write(o.nars[p])
	return err
}

// add makes a text object.
func (o *objects) add(tb testing.TB, name, content string, refs ...store.Path) *store.Info {
	tb.Helper()
	ca := store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum([]byte(content))}
	p, err := dir.ContentPath(name, ca, store.References{Others: refs})
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	if err := nar.DumpString(&b, []byte(content), false); err != nil {
		tb.Fatal(err)
	}
	info := &store.Info{Path: p, NarHash: store.SHA256.Sum(b.Bytes()), NarSize: int64(b.Len()), References: refs, CA: ca}
	o.infos[p], o.nars[p] = info, b.Bytes()
	return info
}

func newObjects() *objects {
	return &objects{infos: map[store.Path]*store.Info{}, nars: map[store.Path][]byte{}}
}

// chain returns a store with three objects, each of which refers to the one before it.
func chain(tb testing.TB) (*objects, []*store.Info) {
	tb.Helper()
	o := newObjects()
	a := o.add(tb, "z", "first\n")
	b := o.add(tb, "y", a.Path.String()+strings.Repeat("second\n", 3), a.Path)
	c := o.add(tb, "x", b.Path.String()+"third\n", a.Path, b.Path)
	return o, []*store.Info{c, a, b}
}

// key returns a key that is always the same.
func key(tb testing.TB, n byte) archive.SecretKey {
	tb.Helper()
	keys := []string{
		"vec-1:NlZ7ghhzuxeB0urOpW4vqoDr/ZwZemMRm87EENet49W4OohsG3vzPn//QQyl0Ezp6e9ztpB2jV5RN3KFtfGaGg==",
	}
	k, err := archive.ParseSecretKey(keys[n])
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func allow(tb testing.TB, key archive.PublicKey) *archive.ACL {
	tb.Helper()
	acl, err := archive.ParseACL([]byte(key.String() + " import\n"))
	if err != nil {
		tb.Fatal(err)
	}
	return acl
}

func TestSort(t *testing.T) {
	o, infos := chain(t)
	for range 3 {
		infos = append(infos[1:], infos[0])
		sorted, err := archive.Sort(infos)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range sorted {
			names = append(names, i.Path.Name())
		}
		if !slices.Equal(names, []string{"z", "y", "x"}) {
			t.Errorf("order %v", names)
		}
	}
	cycle := *infos[0]
	for _, i := range o.infos {
		if i.Path.Name() == "z" {
			cycle = *i
		}
	}
	for _, i := range o.infos {
		if i.Path.Name() == "x" {
			cycle.References = []store.Path{i.Path}
		}
	}
	if _, err := archive.Sort(append(infos, &cycle)); err == nil {
		t.Error("a cycle is accepted")
	}
	self := store.Info{Path: infos[0].Path, References: []store.Path{infos[0].Path}}
	if sorted, err := archive.Sort([]*store.Info{&self}); err != nil || len(sorted) != 1 {
		t.Errorf("self-reference: %v, %v", sorted, err)
	}
}

func TestSortLongChain(t *testing.T) {
	var infos []*store.Info
	var last []store.Path
	for n := range 200_000 {
		p, err := dir.Path(fmt.Sprintf("%032d-x", n))
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, &store.Info{Path: p, References: last})
		last = []store.Path{p}
	}
	slices.Reverse(infos)
	if sorted, err := archive.Sort(infos); err != nil || len(sorted) != len(infos) {
		t.Fatalf("%d of %d objects, %v", len(sorted), len(infos), err)
	}
}

func TestKeysRefuse(t *testing.T) {
	k := key(t, 0)
	secret, public := k.Reveal(), k.Public().String()
	for name, text := range map[string]string{
		"empty":            "",
		"no name":          strings.TrimPrefix(public, "vec-1"),
		"no colon":         strings.Replace(public, ":", "", 1),
		"space in name":    "vec 1" + strings.TrimPrefix(public, "vec-1"),
		"comma in name":    "vec,1" + strings.TrimPrefix(public, "vec-1"),
		"hash in name":     "vec#1" + strings.TrimPrefix(public, "vec-1"),
		"long name":        strings.Repeat("a", 300) + public,
		"short":            public[:len(public)-4],
		"secret as public": secret,
		"newline":          public[:20] + "\n" + public[20:],
		"no padding":       strings.TrimSuffix(public, "="),
		"loose last bits":  strings.TrimSuffix(public, "o=") + "p=",
	} {
		if k, err := archive.ParsePublicKey(text); !errors.Is(err, archive.ErrKey) {
			t.Errorf("%s: public key %v, %v", name, k, err)
		}
	}
	wrongHalf := secret[:len(secret)-8] + "AAAAAA=="
	for _, text := range []string{public, wrongHalf, secret + "A"} {
		_, err := archive.ParseSecretKey(text)
		if !errors.Is(err, archive.ErrKey) {
			t.Errorf("secret key %q: %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), text[10:40]) {
			t.Errorf("error shows the key: %v", err)
		}
	}
}

func TestSecretKeyIsNotPrinted(t *testing.T) {
	k := key(t, 0)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		text := fmt.Sprintf(verb, k) + fmt.Sprintf(verb, &k) + fmt.Sprintf(verb, []any{k})
		if strings.Contains(text, "NlZ7") || strings.Contains(text, "36567b") || strings.Contains(text, "54 86") {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	if _, err := k.MarshalText(); err == nil {
		t.Error("becomes text in JSON")
	}
}

func TestKeyFiles(t *testing.T) {
	folder := t.TempDir()
	k, err := archive.GenerateKey("host-1")
	if err != nil {
		t.Fatal(err)
	}
	secret, public := filepath.Join(folder, "key.sec"), filepath.Join(folder, "key.pub")
	if err := errors.Join(k.WriteFile(secret), k.Public().WriteFile(public)); err != nil {
		t.Fatal(err)
	}
	for file, mode := range map[string]os.FileMode{secret: 0o400, public: 0o444} {
		st, err := os.Stat(file)
		if err != nil || st.Mode() != mode {
			t.Errorf("%s has mode %s, %v", file, st.Mode(), err)
		}
	}
	back, err := archive.ReadSecretKey(secret)
	if err != nil || back.Reveal() != k.Reveal() {
		t.Errorf("another key came back, %v", err)
	}
	p, err := archive.ReadPublicKey(public)
	if err != nil || p != k.Public() {
		t.Errorf("another public key came back, %v", err)
	}
	if err := k.WriteFile(secret); !errors.Is(err, os.ErrExist) {
		t.Errorf("write over a key: %v", err)
	}
	if err := os.Chmod(secret, 0o440); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.ReadSecretKey(secret); err == nil || !strings.Contains(err.Error(), "chmod 0400") {
		t.Errorf("key that others can read: %v", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "big"), make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.ReadSecretKey(filepath.Join(folder, "big")); err == nil {
		t.Error("file of a megabyte is a key")
	}
}

func TestACL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acl")
	first, second := key(t, 0).Public(), generate(t, "vec-1")
	acl, err := archive.LoadACL(path)
	if err != nil || acl.Allows(first, archive.Import) {
		t.Fatalf("missing file allows, or %v", err)
	}
	comment := "# who may sign\n\n"
	if err := os.WriteFile(path, []byte(comment), 0o644); err != nil {
		t.Fatal(err)
	}
	for n, want := range []bool{true, false} {
		changed, err := archive.Authorize(path, first, archive.Import)
		if err != nil || changed != want {
			t.Errorf("time %d: changed %v, %v", n, changed, err)
		}
	}
	if acl, err = archive.LoadACL(path); err != nil {
		t.Fatal(err)
	}
	if !acl.Allows(first, archive.Import) {
		t.Error("authorized key is not allowed")
	}
	// The same name is not the same key.
	if acl.Allows(second, archive.Import) || acl.Allows(archive.PublicKey{}, archive.Import) || acl.Allows(first, archive.Repair) || acl.Allows(first, 0) {
		t.Error("allows more than it says")
	}
	if err := acl.Check(second, archive.Import); !errors.Is(err, archive.ErrUnauthorized) || !strings.Contains(err.Error(), second.String()) {
		t.Errorf("check: %v", err)
	}
	data, _ := os.ReadFile(path)
	if want := comment + first.String() + " import\n"; string(data) != want {
		t.Errorf("file\n got %q\nwant %q", data, want)
	}
	if _, err := archive.Authorize(path, first, archive.GC); err == nil {
		t.Error("a key may collect garbage")
	}
	var none *archive.ACL
	if none.Allows(first, archive.Import) {
		t.Error("no list allows")
	}
}

func generate(tb testing.TB, name string) archive.PublicKey {
	tb.Helper()
	k, err := archive.GenerateKey(name)
	if err != nil {
		tb.Fatal(err)
	}
	return k.Public()
}

func TestACLRefuses(t *testing.T) {
	public := key(t, 0).Public().String()
	for name, text := range map[string]string{
		"no verb":      public,
		"unknown verb": public + " reign",
		"empty verb":   public + " import,",
		"three words":  public + " import export",
		"no key":       "vec-1 import",
		"secret key":   key(t, 0).Reveal() + " import",
		"binary":       "\x00\x01\x02",
	} {
		_, err := archive.ParseACL([]byte("# one\n" + text + "\n"))
		if err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := archive.ParseACL(bytes.Repeat([]byte("#\n"), 1<<20)); err == nil {
		t.Error("list of two megabytes is accepted")
	}
}

func TestAuthorizeTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acl")
	done := make(chan error)
	var keys []archive.PublicKey
	for n := range 8 {
		k := generate(t, fmt.Sprintf("k%d", n))
		keys = append(keys, k)
		go func() {
			_, err := archive.Authorize(path, k, archive.Import)
			done <- err
		}()
	}
	for range keys {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	acl, err := archive.LoadACL(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if !acl.Allows(k, archive.Import) {
			t.Errorf("key %s was lost", k.Name())
		}
	}
}

func TestCompressions(t *testing.T) {
	data := bytes.Repeat([]byte("some text that repeats. "), 50_000)
	for _, c := range []archive.Compression{archive.Uncompressed, archive.Zstd, archive.Gzip} {
		var b bytes.Buffer
		w, err := archive.NewCompressor(&b, c)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(data)
		if err := errors.Join(err, w.Flush(), w.Close()); err != nil {
			t.Fatal(err)
		}
		r, err := archive.NewDecompressor(&b, c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes come back, %v", c, len(got), err)
		}
	}
	if _, err := archive.NewCompressor(io.Discard, archive.Bzip2); err == nil {
		t.Error("bzip2 can be written")
	}
	if _, err := archive.ParseCompression("rar"); err == nil {
		t.Error("rar is known")
	}
}

func TestExportRoundTrip(t *testing.T) {
	o, infos := chain(t)
	big := o.add(t, "big", strings.Repeat("0123456789abcdef", 200_000))
	var paths []store.Path
	for _, i := range append(infos, big) {
		paths = append(paths, i.Path)
	}
	var b bytes.Buffer
	if err := archive.WriteExport(t.Context(), &b, o, paths); err != nil {
		t.Fatal(err)
	}
	b.WriteString("after")
	seen := 0
	err := archive.ReadExport(&b, dir, func(info *store.Info, content io.Reader) error {
		seen++
		data, err := io.ReadAll(content)
		if !bytes.Equal(data, o.nars[info.Path]) {
			t.Errorf("%s: other contents", info.Path)
		}
		want := o.infos[info.Path]
		if info.NarHash != want.NarHash || info.NarSize != want.NarSize || !slices.Equal(info.References, store.SortPaths(slices.Clone(want.References))) {
			t.Errorf("%s: other description", info.Path)
		}
		return err
	})
	if err != nil || seen != 4 {
		t.Errorf("%d objects, %v", seen, err)
	}
}

func TestExportRefusesADamagedStore(t *testing.T) {
	o, infos := chain(t)
	o.nars[infos[0].Path][100] ^= 1
	err := archive.WriteExport(t.Context(), io.Discard, o, []store.Path{infos[0].Path})
	if !errors.Is(err, store.ErrHashMismatch) {
		t.Errorf("export: %v", err)
	}
	if err := archive.WriteExport(t.Context(), io.Discard, o, []store.Path{generatedPath(t)}); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("export of an unknown path: %v", err)
	}
}

func generatedPath(tb testing.TB) store.Path {
	tb.Helper()
	p, err := dir.TextPath("unknown", store.SHA256.Sum(nil), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestExportTruncated(t *testing.T) {
	o, infos := chain(t)
	var b bytes.Buffer
	if err := archive.WriteExport(t.Context(), &b, o, []store.Path{infos[0].Path, infos[1].Path}); err != nil {
		t.Fatal(err)
	}
	for n := range b.Len() {
		err := archive.ReadExport(bytes.NewReader(b.Bytes()[:n]), dir, func(*store.Info, io.Reader) error { return nil })
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d of %d bytes: %v", n, b.Len(), err)
		}
	}
}
