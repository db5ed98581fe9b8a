// Package vectors_test checks every fact in this folder, which the real nix 2.8.0 made, against our own formats.
// vec.nix is where they come from, vectors.json what nix said of them.
package vectors_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/base32"
	"cairn/store/refscan"
)

const dir store.Dir = "/nix/store"

// minChecks is how many checks there are at least; a test that loses some of them fails.
const minChecks = 1200

type pathInfo struct {
	Path       store.Path
	NarHash    store.Hash
	NarSize    int64
	CA         store.ContentAddress
	References []store.Path
	Deriver    store.Path
	Signatures []string
}

func (i *pathInfo) info() *store.Info {
	return &store.Info{Path: i.Path, NarHash: i.NarHash, NarSize: i.NarSize, CA: i.CA, References: i.References, Deriver: i.Deriver, Signatures: i.Signatures}
}

type vectors struct {
	Nars map[string]struct {
		Size   int64
		SHA256 string
		Nix32  string
	}
	Hashes []struct{ Algo, Input, Base16, Nix32, Base64, SRI string }
	Fixed  []struct {
		File, Algo string
		Recursive  bool
		Path       store.Path
		Info       pathInfo
	}
	Derivations map[string]struct {
		DrvPath store.Path
		File    string
		JSON28  json.RawMessage
	}
	Text map[string]struct {
		Path    store.Path
		Content string
		Info    pathInfo
	}
	Placeholders map[string]string
	Built        map[string]struct {
		Build []struct {
			DrvPath store.Path
			Outputs map[string]store.Path
		}
		Realisation []json.RawMessage
		Infos       []pathInfo
	}
	MakeContentAddressed struct{ Rewrites map[store.Path]store.Path }
	Signing              struct {
		Secret, Public string
		Info           pathInfo
	}
	Export struct {
		File  string
		Paths []store.Path
	}
}

// suite is the vectors and what the checks share.
type suite struct {
	*testing.T
	vectors
	drvs   map[store.Path]*derivation.Derivation
	hashes *derivation.Hashes
	nars   map[store.Path][]byte // archives of objects, from the export stream and the caches
	checks int
}

// same counts a check.
func (s *suite) same(what string, got, want any) {
	s.Helper()
	s.checks++
	if !reflect.DeepEqual(got, want) {
		s.Errorf("%s\n got %v\nwant %v", what, got, want)
	}
}

// ok counts a check.
func (s *suite) ok(what string, err error) {
	s.Helper()
	s.checks++
	if err != nil {
		s.Errorf("%s: %v", what, err)
	}
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) file(name string) []byte {
	s.Helper()
	b, err := os.ReadFile(name)
	s.must(err)
	return b
}

func TestVectors(t *testing.T) {
	s := &suite{T: t, drvs: map[store.Path]*derivation.Derivation{}, nars: map[store.Path][]byte{}}
	s.must(json.Unmarshal(s.file("vectors.json"), &s.vectors))
	for _, part := range []struct {
		name string
		run  func(*suite)
	}{
		{"archives", (*suite).archives},
		{"hashes", (*suite).allHashes},
		{"fixed paths", (*suite).fixed},
		{"texts", (*suite).texts},
		{"placeholders", (*suite).placeholders},
		{"export stream", (*suite).export},
		{"caches", (*suite).caches},
		{"derivations", (*suite).derivations},
		{"resolution", (*suite).resolution},
		{"built outputs", (*suite).built},
		{"self-reference", (*suite).selfReference},
		{"make content-addressed", (*suite).makeContentAddressed},
		{"signing", (*suite).signing},
		{"registration", (*suite).registration},
		{"files for builders", (*suite).builderFiles},
	} {
		before := s.checks
		part.run(s)
		t.Logf("%-24s %4d checks", part.name, s.checks-before)
	}
	t.Logf("%-24s %4d checks", "all", s.checks)
	if s.checks < minChecks {
		t.Errorf("%d checks ran, want at least %d", s.checks, minChecks)
	}
}

func (s *suite) archives() {
	for name, want := range s.Nars {
		data := s.file("nars/" + name + ".nar")
		sum := store.SHA256.Sum(data)
		s.same(name+" size", int64(len(data)), want.Size)
		s.same(name+" hex", sum.Hex(), want.SHA256)
		s.same(name+" base 32", sum.Nix32(), want.Nix32)
		var copied bytes.Buffer
		n, err := nar.Copy(&copied, bytes.NewReader(data))
		s.ok(name+" copy", err)
		s.same(name+" copied size", n, want.Size)
		s.same(name+" copied bytes", copied.String(), string(data))
		tree := filepath.Join(s.TempDir(), "tree")
		s.ok(name+" restore", nar.Restore(bytes.NewReader(data), tree, nil))
		var dumped bytes.Buffer
		s.ok(name+" dump", nar.Dump(&dumped, tree))
		s.same(name+" dumped bytes", dumped.String(), string(data))
		s.Cleanup(func() { writable(tree) })
	}
}

// writable lets clean-up delete a restored tree.
func writable(tree string) {
	filepath.WalkDir(tree, func(name string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(name, 0o755)
		}
		return nil
	})
}

func (s *suite) allHashes() {
	for _, v := range s.Hashes {
		algo, err := store.ParseAlgorithm(v.Algo)
		s.must(err)
		h := algo.Sum([]byte(v.Input))
		what := v.Algo + " of " + v.Input
		s.same(what+" hex", h.Hex(), v.Base16)
		s.same(what+" base 32", h.Nix32(), v.Nix32)
		s.same(what+" base 64", base64.StdEncoding.EncodeToString(h.Bytes()), v.Base64)
		s.same(what+" SRI", h.SRI(), v.SRI)
		b, err := base32.Decode(v.Nix32)
		s.ok(what+" decode base 32", err)
		s.same(what+" decoded", b, h.Bytes())
		for _, text := range []string{v.Base16, v.Nix32, v.Base64, v.SRI, v.Algo + ":" + v.Base16, v.Algo + ":" + v.Nix32, v.Algo + ":" + v.Base64} {
			got, err := store.ParseHash(text, algo)
			s.ok("parse "+text, err)
			s.same("parsed "+text, got, h)
		}
	}
}

func (s *suite) fixed() {
	for _, v := range s.Fixed {
		archive := s.file("nars/" + v.File + ".nar")
		algo, err := store.ParseAlgorithm(v.Algo)
		s.must(err)
		ca := store.ContentAddress{Method: store.Recursive, Hash: algo.Sum(archive)}
		if !v.Recursive {
			content, _, err := nar.ReadFile(bytes.NewReader(archive), 1<<20)
			s.must(err)
			ca = store.ContentAddress{Method: store.Flat, Hash: algo.Sum(content)}
		}
		what := v.File + " " + ca.String()
		path, err := dir.ContentPath(v.File, ca, store.References{})
		s.ok(what, err)
		s.same(what+" path", path, v.Path)
		v.Info.Path = v.Path
		s.object(what, &v.Info, archive)
		s.same(what+" address", ca, v.Info.CA)
	}
}

// object checks what nix says of an object against its archive.
func (s *suite) object(what string, want *pathInfo, archive []byte) {
	s.Helper()
	s.same(what+" size", int64(len(archive)), want.NarSize)
	s.same(what+" hash", store.SHA256.Sum(archive), want.NarHash)
	scan := refscan.NewScanner(nil, append(slices.Clone(want.References), want.Path))
	scan.Write(archive)
	s.same(what+" references", len(scan.Found()), len(want.References))
	if !want.CA.IsZero() {
		s.ok(what+" content address", want.info().CheckContentAddress())
		got, err := store.ParseContentAddress(want.CA.String())
		s.ok(what+" parse content address", err)
		s.same(what+" parsed content address", got, want.CA)
	}
}

func (s *suite) texts() {
	for name, v := range s.Text {
		path, err := dir.TextPath(v.Path.Name(), store.SHA256.Sum([]byte(v.Content)), v.Info.References)
		s.ok(name, err)
		s.same(name+" path", path, v.Path)
		var b bytes.Buffer
		s.must(nar.DumpString(&b, []byte(v.Content), false))
		v.Info.Path = v.Path
		s.object(name, &v.Info, b.Bytes())
		s.same(name+" address", v.Info.CA.Hash, store.SHA256.Sum([]byte(v.Content)))
	}
}

func (s *suite) placeholders() {
	for output, want := range s.Placeholders {
		s.same("placeholder of "+output, derivation.Placeholder(output), want)
	}
}

// objects is a store of the archives that were read.
type objects struct {
	infos map[store.Path]*store.Info
	nars  map[store.Path][]byte
}

func (o *objects) Info(_ context.Context, p store.Path) (*store.Info, error) { return o.infos[p], nil }

func (o *objects) NAR(_ context.Context, p store.Path, w io.Writer) error {
	_, err := w.Write(o.nars[p])
	return err
}

func (s *suite) export() {
	data := s.file(s.Export.File)
	o := &objects{infos: map[store.Path]*store.Info{}, nars: s.nars}
	var order []store.Path
	err := archive.ReadExport(bytes.NewReader(data), dir, func(info *store.Info, content io.Reader) error {
		b, err := io.ReadAll(content)
		o.infos[info.Path], o.nars[info.Path] = info, b
		order = append(order, info.Path)
		return err
	})
	s.ok("read export", err)
	s.same("paths", order, s.vectors.Export.Paths)
	var out bytes.Buffer
	shuffled := slices.Clone(order)
	slices.Reverse(shuffled)
	s.ok("write export", archive.WriteExport(s.Context(), &out, o, shuffled))
	s.same("written export", out.String(), string(data))
	for p, info := range o.infos {
		s.same("hash of "+p.String(), info.NarHash, store.SHA256.Sum(s.nars[p]))
	}
}

func (s *suite) caches() {
	key, err := archive.ParsePublicKey(s.Signing.Public)
	s.must(err)
	for _, folder := range []string{"cache", "cacheplain", "ca-cache"} {
		names, err := filepath.Glob(folder + "/*.narinfo")
		s.must(err)
		for _, name := range names {
			s.narinfo(folder, name, key)
		}
		text := string(s.file(folder + "/" + cache.InfoName))
		info, err := cache.ParseInfo(text)
		s.ok(folder, err)
		s.same(folder+" info", info.Text(), text)
		s.same(folder+" store", info.StoreDir, dir)
		realisations, err := filepath.Glob(folder + "/realisations/*.doi")
		s.must(err)
		for _, name := range realisations {
			text := string(s.file(name))
			r, err := dir.ParseRealisation([]byte(text))
			s.ok(name, err)
			s.same(name+" text", r.JSON(), text)
			s.same(name+" name", r.ID.String()+".doi", filepath.Base(name))
		}
	}
}

func (s *suite) narinfo(folder, name string, key archive.PublicKey) {
	text := string(s.file(name))
	n, err := cache.ParseNarInfo(dir, text)
	s.ok(name, err)
	s.same(name+" text", n.Text(), text)
	s.same(name+" name", cache.FileName(n.Path), filepath.Base(name))
	packed := s.file(folder + "/" + n.URL)
	s.same(name+" file hash", store.SHA256.Sum(packed), n.FileHash)
	s.same(name+" file size", int64(len(packed)), n.FileSize)
	if len(n.Signatures) > 0 {
		got, ok := archive.VerifyInfo(&n.Info, []archive.PublicKey{key})
		s.same(name+" signature", ok, true)
		s.same(name+" signer", got, key)
	}
	if !n.CA.IsZero() {
		s.ok(name+" content address", n.CheckContentAddress())
	}
	if c, err := archive.ParseCompression(n.Compression); err == nil {
		r, err := archive.NewDecompressor(bytes.NewReader(packed), c)
		s.ok(name+" decompressor", err)
		data, err := io.ReadAll(r)
		s.ok(name+" unpack", err)
		s.nars[n.Path] = data
	}
	if data, ok := s.nars[n.Path]; ok {
		s.same(name+" nar hash", store.SHA256.Sum(data), n.NarHash)
		s.same(name+" nar size", int64(len(data)), n.NarSize)
		s.listing(strings.TrimSuffix(name, ".narinfo")+".ls", data)
	}
}

func (s *suite) listing(name string, data []byte) {
	want, err := os.ReadFile(name)
	if err != nil {
		return // this cache has none
	}
	l, err := nar.List(bytes.NewReader(data))
	s.ok(name, err)
	got, err := l.JSON()
	s.must(err)
	s.same(name, string(got), string(want))
}

func (s *suite) load(p store.Path) (*derivation.Derivation, error) {
	if d, ok := s.drvs[p]; ok {
		return d, nil
	}
	return nil, store.ErrNotValid
}

func (s *suite) derivations() {
	files, err := filepath.Glob("drvs/????????????????????????????????-*.drv")
	s.must(err)
	for _, file := range files {
		p, err := dir.Path(filepath.Base(file))
		s.must(err)
		d, err := derivation.ParseAt(p, s.file(file))
		s.ok(file, err)
		s.drvs[p] = d
	}
	s.hashes = derivation.NewHashes(s.load)
	for _, p := range slices.SortedFunc(maps.Keys(s.drvs), store.Path.Compare) {
		s.derivation(p, s.drvs[p])
	}
	for name, v := range s.Derivations {
		d, err := derivation.ParseAt(v.DrvPath, s.file(v.File))
		s.ok(name, err)
		p, err := d.Path(dir)
		s.ok(name+" path", err)
		s.same(name+" path", p, v.DrvPath)
		s.drvs[p] = d
		s.json(name, d, v.JSON28)
	}
	for _, v := range s.Derivations {
		s.derivation(v.DrvPath, s.drvs[v.DrvPath])
	}
}

// derivation checks all that follows from a derivation's own text.
func (s *suite) derivation(p store.Path, d *derivation.Derivation) {
	got, err := d.Path(dir)
	s.ok(p.String(), err)
	s.same(p.String()+" path", got, p)
	s.ok(p.String()+" outputs", s.hashes.CheckOutputs(d, dir))
	bare := d.Clone()
	for name, o := range bare.Outputs {
		o.Path = store.Path{}
		bare.Outputs[name] = o
		bare.Env[name] = "to be filled"
	}
	s.ok(p.String()+" fill", s.hashes.FillOutputs(bare, dir))
	s.same(p.String()+" filled", string(bare.ATerm()), string(d.ATerm()))
	text, err := d.JSON()
	s.ok(p.String()+" JSON", err)
	back, err := derivation.ParseJSON(d.Name, dir, text)
	s.ok(p.String()+" parse JSON", err)
	s.same(p.String()+" from JSON", string(back.ATerm()), string(d.ATerm()))
}

// json compares with what "nix show-derivation" printed.
func (s *suite) json(name string, d *derivation.Derivation, want json.RawMessage) {
	text, err := d.JSONv1()
	s.ok(name+" JSON", err)
	var a, b any
	s.must(json.Unmarshal(text, &a))
	s.must(json.Unmarshal(want, &b))
	s.same(name+" JSON", a, b)
	back, err := derivation.ParseJSON(d.Name, dir, want)
	s.ok(name+" parse JSON", err)
	s.same(name+" from JSON", string(back.ATerm()), string(d.ATerm()))
}

// resolution checks the derivations that nix wrote when it resolved ours.
func (s *suite) resolution() {
	ca := s.Derivations["ca"].DrvPath
	realised := s.Built["ca"].Build[0].Outputs["out"]
	for name, want := range map[string]string{"caDep": "c6nv4gvk2l298wpzl9khcjwwwg8yry2z-ca-dep.drv", "deferred": "ihjz3ijgb69ifv9idd7ryrv107kd3c4x-deferred.drv"} {
		d := s.drvs[s.Derivations[name].DrvPath]
		s.same(name+" placeholder", strings.Contains(d.Args[2], derivation.UpstreamPlaceholder(ca, "out")), true)
		r, err := d.Resolve(dir, func(p store.Path, output string) (store.Path, bool) {
			return realised, p == ca && output == "out"
		})
		s.ok("resolve "+name, err)
		p, err := r.Path(dir)
		s.ok("resolved "+name, err)
		s.same("resolved "+name+" path", p.Base(), want)
		s.same("resolved "+name, string(r.ATerm()), string(s.file("drvs/"+want)))
		_, err = d.Resolve(dir, func(store.Path, string) (store.Path, bool) { return store.Path{}, false })
		s.same("unresolved "+name, err != nil, true)
	}
}

func (s *suite) built() {
	for name, v := range s.Built {
		drv := s.drvs[v.Build[0].DrvPath]
		s.same(name+" is known", drv != nil, true)
		id, err := s.hashes.DrvOutput(drv, "out")
		s.ok(name+" id", err)
		for _, raw := range v.Realisation {
			r, err := dir.ParseRealisation(raw)
			s.ok(name+" realisation", err)
			s.same(name+" id", r.ID, id)
			s.same(name+" output", r.OutPath, v.Build[0].Outputs[r.ID.Output])
			var compact bytes.Buffer
			s.must(json.Compact(&compact, raw))
			s.same(name+" realisation text", r.JSON(), compact.String())
		}
		for _, i := range v.Infos {
			if !i.CA.IsZero() {
				s.ok(name+" content address", i.info().CheckContentAddress())
			}
			if data, ok := s.nars[i.Path]; ok {
				s.object(name, &i, data)
			}
		}
		for output, o := range drv.Outputs {
			if !o.Path.IsZero() && output == "out" {
				s.same(name+" path", o.Path, v.Build[0].Outputs[output])
			}
		}
	}
}

// tree returns the archive of a folder of plain files.
func (s *suite) tree(folder string) []byte {
	var b bytes.Buffer
	s.must(nar.Dump(&b, folder))
	return b.Bytes()
}

// selfReference makes a floating output that refers to itself from what its builder wrote.
func (s *suite) selfReference() {
	want := s.Built["caSelf"].Infos[0]
	drv := s.drvs[s.Derivations["caSelf"].DrvPath]
	final := s.tree("built-caSelf")
	s.object("caSelf", &want, final)
	drvPath, err := drv.Path(dir)
	s.must(err)
	scratch, err := dir.ScratchPath(drvPath, "out", drv.Name, store.Path{})
	s.ok("scratch path", err)
	var written bytes.Buffer
	back := refscan.NewRewriter(&written, map[string]string{want.Path.Digest(): scratch.Digest()})
	back.Write(final)
	s.ok("rewrite to scratch", back.Close())
	for what, v := range map[string]struct {
		digest string
		data   []byte
	}{"scratch": {scratch.Digest(), written.Bytes()}, "final": {want.Path.Digest(), final}} {
		for _, chunk := range []int{1, 7, 31, 32, 33, 100, 1 << 20} {
			h := refscan.HashModulo(store.SHA256, v.digest)
			for c := range slices.Chunk(v.data, chunk) {
				h.Write(c)
			}
			s.same("hash modulo "+what, h.Sum(refscan.WithOffsets), want.CA.Hash)
		}
	}
	path, err := dir.ContentPath(drv.Name, want.CA, store.References{Self: true})
	s.ok("caSelf path", err)
	s.same("caSelf path", path, want.Path)
	var rewritten bytes.Buffer
	forth := refscan.NewRewriter(&rewritten, map[string]string{scratch.Digest(): path.Digest()})
	forth.Write(written.Bytes())
	s.ok("rewrite to final", forth.Close())
	s.same("final bytes", rewritten.String(), string(final))
}

// makeContentAddressed rewrites a closure as "nix store make-content-addressed" does.
func (s *suite) makeContentAddressed() {
	digests := map[string]string{}
	paths := map[store.Path]store.Path{}
	for _, p := range s.Export.Paths {
		scan := refscan.NewScanner(nil, s.Export.Paths)
		scan.Write(s.nars[p])
		refs := store.SplitSelf(p, scan.Found())
		for i, ref := range refs.Others {
			refs.Others[i] = paths[ref]
		}
		var rewritten bytes.Buffer
		w := refscan.NewRewriter(&rewritten, digests)
		w.Write(s.nars[p])
		s.ok("rewrite", w.Close())
		h := refscan.HashModulo(store.SHA256, p.Digest())
		h.Write(rewritten.Bytes())
		path, err := dir.SourcePath(p.Name(), h.Sum(refscan.WithOffsets), refs)
		s.ok("path of "+p.Name(), err)
		digests[p.Digest()], paths[p] = path.Digest(), path
	}
	for from, to := range s.MakeContentAddressed.Rewrites {
		s.same("content-addressed "+from.Name(), paths[from], to)
	}
}

func (s *suite) signing() {
	secret, err := archive.ParseSecretKey(s.Signing.Secret)
	s.ok("secret key", err)
	s.same("secret key text", secret.Reveal(), s.Signing.Secret)
	s.same("public half", secret.Public().String(), s.Signing.Public)
	s.same("public file", strings.TrimSpace(string(s.file("public.key"))), s.Signing.Public)
	s.same("secret file", strings.TrimSpace(string(s.file("secret.key"))), s.Signing.Secret)
	info := s.Signing.Info.info()
	for _, want := range info.Signatures {
		s.same("signature", secret.SignInfo(info), want)
	}
	_, ok := archive.VerifyInfo(info, []archive.PublicKey{secret.Public()})
	s.same("verified", ok, true)
	info.NarSize++
	_, ok = archive.VerifyInfo(info, []archive.PublicKey{secret.Public()})
	s.same("verified after a change", ok, false)
}

func (s *suite) registration() {
	text := string(s.file("dump-db.txt"))
	var infos []*store.Info
	s.ok("read", archive.ReadRegistration(strings.NewReader(text), dir, func(i *store.Info) error {
		infos = append(infos, i)
		return nil
	}))
	var b strings.Builder
	s.ok("write", archive.WriteRegistration(&b, infos))
	s.same("text", b.String(), text)
	for _, i := range infos {
		s.same("hash", i.NarHash, store.SHA256.Sum(s.nars[i.Path]))
	}
}

// builderFiles checks that what builders of nix wrote has the hash that nix registered.
func (s *suite) builderFiles() {
	for name, file := range map[string]string{"graph": "built-graph", "passFile": "built-passFile"} {
		var b bytes.Buffer
		s.must(nar.DumpString(&b, s.file(file), false))
		s.object(name, &s.Built[name].Infos[0], b.Bytes())
	}
	s.object("structured", &s.Built["structured"].Infos[0], s.tree("built-structured"))
}
