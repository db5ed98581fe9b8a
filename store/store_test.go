package store_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/store"
)

const dir store.Dir = "/nix/store"

const base = "zcf5l0r3999k7pr1d9d97qzx4pgaxai5-dep-all"

func TestPathsAccepted(t *testing.T) {
	for _, text := range []string{base, strings.Repeat("0", 32) + "-a", strings.Repeat("z", 32) + "-+-._?=A9", strings.Repeat("z", 32) + "-" + strings.Repeat("n", 211), strings.Repeat("z", 32) + "-.hidden", strings.Repeat("z", 32) + "-..."} {
		p, err := dir.Path(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if p.Base() != text || p.Digest()+"-"+p.Name() != text || p.Dir() != dir || p.IsZero() || p.String() != "/nix/store/"+text {
			t.Errorf("%q: parts are %q, %q, %q", text, p.Digest(), p.Name(), p.Dir())
		}
		if q, err := store.ParsePath(p.String()); err != nil || q != p {
			t.Errorf("%q comes back as %q, %v", p, q, err)
		}
	}
}

func TestPathsRefused(t *testing.T) {
	z := strings.Repeat("z", 32)
	for _, text := range []string{"", "x", z, z + "-", z + "x", strings.Repeat("e", 32) + "-a", z + "-.", z + "-..", z + "-.-a", z + "-..-a", z + "-a/b", z + "-a b", z + "-é", z + "-a\x00", z + "-" + strings.Repeat("n", 212), "Z" + z[1:] + "-a", "../" + z + "-a"} {
		if p, err := dir.Path(text); err == nil {
			t.Errorf("%q is accepted as %s", text, p)
		}
	}
	for _, text := range []string{"/nix/store", "/nix/store/", "/nix/store/../" + base, "nix/store/" + base, base, "//" + base, "/nix/./store/" + base, "/nix/store/" + base + "/x"} {
		if p, err := store.ParsePath(text); err == nil {
			t.Errorf("%q is accepted as %s", text, p)
		}
		if p, err := dir.ParsePath(text); err == nil {
			t.Errorf("%q is accepted as %s", text, p)
		}
	}
}

func TestWithin(t *testing.T) {
	for text, want := range map[string][2]string{
		"/nix/store/" + base:            {base, ""},
		"/nix/store/" + base + "/":      {base, "/"},
		"/nix/store/" + base + "/a/b":   {base, "/a/b"},
		"/nix/store/" + base + "/../..": {base, "/../.."},
		"/nix/store":                    {},
		"/nix/store/x/y":                {},
		"/nix/storey/" + base:           {},
	} {
		p, rest, err := dir.Within(text)
		if (err == nil) != (want[0] != "") || err == nil && (p.Base() != want[0] || rest != want[1]) {
			t.Errorf("%q: %s, %q, %v", text, p, rest, err)
		}
	}
}

func TestZeroValues(t *testing.T) {
	var p store.Path
	if p.String() != "" || p.Base() != "" || p.Name() != "" || p.Digest() != "" || p.Dir() != "" || !p.IsZero() || p.IsDerivation() {
		t.Error("zero path has parts")
	}
	var h store.Hash
	if h.String() != "" || !h.IsZero() {
		t.Error("zero hash has text")
	}
	var ca store.ContentAddress
	if ca.String() != "" || !ca.IsZero() {
		t.Error("zero content address has text")
	}
}

func TestParseDir(t *testing.T) {
	for text, ok := range map[string]bool{"/nix/store": true, "/s": true, "/": false, "": false, "nix": false, "/nix/": false, "/nix//store": false, "/nix/../store": false, "/a\x00": false} {
		if _, err := store.ParseDir(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestHashesRefused(t *testing.T) {
	sum := store.SHA256.Sum([]byte("x"))
	for _, text := range []string{"", ":", "-", "sha256", "sha256:", "sha3:" + sum.Hex(), "sha256:" + sum.Hex()[1:], "sha1:" + sum.Hex(), "sha256-" + sum.Hex(), "sha256-" + sum.Nix32(), sum.Hex() + "00", "sha256:" + strings.Replace(sum.Nix32(), sum.Nix32()[:1], "e", 1), "sha256:z" + sum.Nix32()[1:], "sha256:" + sum.SRI()[7:50] + "\n"} {
		if h, err := store.ParseHash(text, 0); err == nil {
			t.Errorf("%q is accepted as %s", text, h)
		}
	}
	if _, err := store.ParseHash(sum.Hex(), 0); err == nil {
		t.Error("digest without algorithm is accepted")
	}
	if _, err := store.ParseHash(sum.String(), store.SHA512); err == nil {
		t.Error("another algorithm than wanted is accepted")
	}
}

func TestContentAddressMethod(t *testing.T) {
	for text, want := range map[string]struct {
		method store.Method
		algo   store.Algorithm
	}{
		"text:sha256":    {store.Text, store.SHA256},
		"fixed:sha1":     {store.Flat, store.SHA1},
		"fixed:r:sha512": {store.Recursive, store.SHA512},
		"fixed:r:blake3": {store.Recursive, store.BLAKE3},
		"text:sha1":      {},
		"fixed:git:sha1": {},
		"sha256":         {},
		"":               {},
	} {
		m, a, err := store.ParseContentAddressMethod(text)
		if (err == nil) != (want.method != 0) || m != want.method || a != want.algo {
			t.Errorf("%q: %v %v, %v", text, m, a, err)
		}
	}
}

func TestReferencesChangeThePath(t *testing.T) {
	other, err := dir.Path(base)
	if err != nil {
		t.Fatal(err)
	}
	sum := store.SHA256.Sum(nil)
	seen := map[store.Path]bool{}
	for _, refs := range []store.References{{}, {Self: true}, {Others: []store.Path{other}}, {Others: []store.Path{other}, Self: true}} {
		p, err := dir.SourcePath("x", sum, refs)
		if err != nil || seen[p] {
			t.Errorf("references %+v give %s again, %v", refs, p, err)
		}
		seen[p] = true
	}
	flat := store.ContentAddress{Method: store.Flat, Hash: sum}
	if _, err := dir.ContentPath("x", flat, store.References{Self: true}); err == nil {
		t.Error("flat file with a self-reference is accepted")
	}
	text := store.ContentAddress{Method: store.Text, Hash: sum}
	if _, err := dir.ContentPath("x", text, store.References{Self: true}); err == nil {
		t.Error("text with a self-reference is accepted")
	}
	sha1 := store.ContentAddress{Method: store.Recursive, Hash: store.SHA1.Sum(nil)}
	if _, err := dir.ContentPath("x", sha1, store.References{Others: []store.Path{other}}); err == nil {
		t.Error("recursive sha1 with a reference is accepted")
	}
}

func TestFingerprintSortsReferences(t *testing.T) {
	a, _ := dir.Path(strings.Repeat("0", 32) + "-a")
	b, _ := dir.Path(strings.Repeat("1", 32) + "-b")
	one := store.Info{Path: a, NarSize: 1, NarHash: store.SHA256.Sum(nil), References: []store.Path{b, a}}
	two := one
	two.References = []store.Path{a, b}
	if one.Fingerprint() != two.Fingerprint() {
		t.Error("order of references changes the fingerprint")
	}
	if one.References[0] != b {
		t.Error("the list was sorted in place")
	}
}

func TestInfoJSON(t *testing.T) {
	p, _ := dir.Path(base)
	info := store.Info{Path: p, NarHash: store.SHA256.Sum(nil), NarSize: 7, References: []store.Path{p}, CA: store.ContentAddress{Method: store.Recursive, Hash: store.SHA256.Sum(nil)}}
	text, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	var back store.Info
	if err := json.Unmarshal(text, &back); err != nil || back.Fingerprint() != info.Fingerprint() || back.CA != info.CA {
		t.Errorf("%s comes back as %+v, %v", text, back, err)
	}
}

func realisations(tb testing.TB) []string {
	tb.Helper()
	files, err := filepath.Glob("../tests/vectors/ca-cache/realisations/*.doi")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no vectors: %v", err)
	}
	var texts []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		texts = append(texts, string(data))
	}
	return texts
}

func TestRealisations(t *testing.T) {
	for _, text := range realisations(t) {
		r, err := dir.ParseRealisation([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if r.JSON() != text {
			t.Errorf("comes back as %s", r.JSON())
		}
		if want := strings.Replace(text, `,"signatures":[]`, "", 1); r.Fingerprint() != want {
			t.Errorf("fingerprint\n got %s\nwant %s", r.Fingerprint(), want)
		}
		r.Signatures = []string{"b", "a"}
		if !strings.Contains(r.JSON(), `"signatures":["a","b"]`) || strings.Contains(r.Fingerprint(), "signatures") {
			t.Errorf("signatures: %s", r.JSON())
		}
		for _, bad := range []string{"", "{}", "[]", text[:20], strings.Replace(text, "!out", "", 1), strings.Replace(text, `"outPath":"`, `"outPath":"/nix/store/`, 1), strings.Replace(text, `"signatures":[]`, `"signatures":1`, 1), strings.Replace(text, "sha256:", "sha1:", 1)} {
			if _, err := dir.ParseRealisation([]byte(bad)); err == nil {
				t.Errorf("%s is accepted", bad)
			}
		}
	}
}

func FuzzHash(f *testing.F) {
	for _, a := range []store.Algorithm{store.MD5, store.SHA1, store.SHA256, store.SHA512, store.BLAKE3} {
		h := a.Sum(nil)
		for _, text := range []string{h.String(), h.SRI(), a.String() + ":" + h.Hex(), h.Hex()} {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := store.ParseHash(text, 0)
		if err != nil {
			return
		}
		forms := []string{h.String(), h.SRI(), h.Algorithm().String() + ":" + h.Hex()}
		for _, form := range forms {
			if g, err := store.ParseHash(form, h.Algorithm()); err != nil || g != h {
				t.Errorf("%s comes back as %s, %v", form, g, err)
			}
		}
		_, digest, ok := strings.Cut(text, ":")
		if !ok {
			_, digest, _ = strings.Cut(text, "-")
		}
		if len(digest) != len(h.Hex()) && !slices.Contains(forms, text) && !strings.HasSuffix(h.SRI(), "-"+digest) {
			t.Errorf("%q has more than one form", text)
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("/nix/store/" + base)
	f.Add("/a/b/c/" + base + ".drv")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := store.ParsePath(text)
		if err != nil {
			return
		}
		if p.String() != text {
			t.Errorf("comes back as %q", p)
		}
		q, err := p.Dir().Path(p.Digest() + "-" + p.Name())
		if err != nil || q != p {
			t.Errorf("parts make %q, %v", q, err)
		}
	})
}

func FuzzContentAddress(f *testing.F) {
	for _, text := range []string{"text:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73", "fixed:r:sha1:wz60bbf44cw7nswp1wv8vcsyfg155sqd", "fixed:md5:4425hx5d1mc9y39llj4k4nm55i"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ca, err := store.ParseContentAddress(text)
		if err != nil {
			return
		}
		back, err := store.ParseContentAddress(ca.String())
		if err != nil || back != ca {
			t.Errorf("comes back as %v, %v", back, err)
		}
		if _, _, err := store.ParseContentAddressMethod(text); err == nil {
			t.Error("is a method, too")
		}
	})
}

func FuzzRealisation(f *testing.F) {
	for _, text := range realisations(f) {
		f.Add([]byte(text))
		f.Add([]byte(strings.Replace(text, `"signatures":[]`, `"signatures":["a:b"]`, 1)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := dir.ParseRealisation(data)
		if err != nil {
			return
		}
		once := r.JSON()
		again, err := dir.ParseRealisation([]byte(once))
		if err != nil || again.JSON() != once || again.Fingerprint() != r.Fingerprint() {
			t.Errorf("comes back differently, %v\n%s", err, once)
		}
	})
}
