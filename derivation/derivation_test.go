package derivation_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/derivation"
	"cairn/store"
)

const dir store.Dir = "/nix/store"

const (
	source = "/nix/store/6hqnv4zbyyr1s8vprbph979vp45d9id0-busybox"
	caDrv  = "/nix/store/y9df81z7xx6hic0cx6xfqabh0rf2jxag-ca.drv"
)

// vectorFiles returns the derivations that the real nix wrote, by file.
func vectorFiles(tb testing.TB) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob("../tests/vectors/drvs/*.drv")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no vectors: %v", err)
	}
	texts := map[string][]byte{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		texts[file] = data
	}
	return texts
}

func mustPath(tb testing.TB, s string) store.Path {
	tb.Helper()
	p, err := dir.ParsePath(s)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestParseRefuses(t *testing.T) {
	const good = `Derive([("out","","r:sha256","")],[("` + caDrv + `",["out"])],["` + source + `"],"sys","/bin/sh",["a"],[("a","1"),("b","\n")])`
	if _, err := derivation.Parse("x", dir, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"trailing newline":      {`")])`, "\")])\n"},
		"space":                 {`"sys",`, `"sys", `},
		"no end":                {`\n")])`, `\n")]`},
		"open string":           {`\n")])`, `\n`},
		"backslash at the end":  {`\n")])`, `\`},
		"variables unsorted":    {`("a","1"),("b","\n")`, `("b","\n"),("a","1")`},
		"variable twice":        {`("a","1"),`, `("a","1"),("a","1"),`},
		"raw newline":           {`\n`, "\n"},
		"needless escape":       {`"1"`, `"\1"`},
		"comma at list's end":   {`["a"]`, `["a",]`},
		"no comma":              {`["a"]`, `["a""b"]`},
		"no output":             {`[("out","","r:sha256","")]`, `[]`},
		"output name":           {`("out","",`, `("o/t","",`},
		"output twice":          {`[("out",`, `[("out","","r:sha256",""),("out",`},
		"kinds differ":          {`[("out",`, `[("dev","","",""),("out",`},
		"unknown method":        {`"r:sha256"`, `"git:sha1"`},
		"unknown algorithm":     {`"r:sha256"`, `"r:sha3"`},
		"text but not sha256":   {`"r:sha256"`, `"text:sha1"`},
		"hash without path":     {`"r:sha256",""`, `"r:sha256","` + strings.Repeat("0", 64) + `"`},
		"hash without method":   {`"r:sha256",""`, `"","` + strings.Repeat("0", 64) + `"`},
		"hash in base 32":       {`"r:sha256",""`, `"r:sha256","` + strings.Repeat("0", 52) + `"`},
		"other store":           {source, "/gnu/store/6hqnv4zbyyr1s8vprbph979vp45d9id0-busybox"},
		"source is no path":     {source, "/nix/store/../etc"},
		"input is no drv":       {caDrv, "/nix/store/y9df81z7xx6hic0cx6xfqabh0rf2jxag-ca"},
		"input without outputs": {`["out"])],`, `[])],`},
		"input output twice":    {`["out"])],`, `["out","out"])],`},
		"dynamic":               {`Derive(`, `DrvWithVersion("xp-dyn-drv",`},
		"not one":               {`Derive(`, `Deliver(`},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%s: no change", name)
		}
		if d, err := derivation.Parse("x", dir, []byte(text)); err == nil {
			t.Errorf("%s: accepted as %s", name, d.ATerm())
		}
	}
	for n := range len(good) {
		if _, err := derivation.Parse("x", dir, []byte(good[:n])); !errors.Is(err, derivation.ErrFormat) {
			t.Fatalf("cut at byte %d: %v", n, err)
		}
	}
}

func TestNames(t *testing.T) {
	const text = `Derive([("out","","r:sha256","")],[],[],"","",[],[])`
	for name, ok := range map[string]bool{"x": true, "": false, "a/b": false, "a b": false, strings.Repeat("a", 207): true, strings.Repeat("a", 208): false} {
		if _, err := derivation.Parse(name, dir, []byte(text)); (err == nil) != ok {
			t.Errorf("name of %d bytes %.10q: %v", len(name), name, err)
		}
	}
}

func fixed(hash string) *derivation.Derivation {
	h, err := store.ParseHash(hash, 0)
	if err != nil {
		panic(err)
	}
	return &derivation.Derivation{
		Name:    "fixed",
		Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: h.Algorithm(), Hash: h}},
	}
}

func TestFixedOutputs(t *testing.T) {
	hashes := derivation.NewHashes(nil)
	for _, algo := range []store.Algorithm{store.MD5, store.SHA1, store.SHA256, store.SHA512, store.BLAKE3} {
		d := fixed(algo.Sum([]byte("x")).String())
		if err := hashes.FillOutputs(d, dir); err != nil {
			t.Fatal(err)
		}
		back, err := derivation.Parse("fixed", dir, d.ATerm())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back.ATerm(), d.ATerm()) || back.Outputs["out"] != d.Outputs["out"] {
			t.Errorf("%s: other derivation after parsing", algo)
		}
		// The path of a fixed output must follow from its hash.
		text := strings.ReplaceAll(string(d.ATerm()), d.Outputs["out"].Path.Digest(), strings.Repeat("0", 32))
		if _, err := derivation.Parse("fixed", dir, []byte(text)); !errors.Is(err, derivation.ErrOutput) {
			t.Errorf("%s with another path: %v", algo, err)
		}
	}
	two := fixed("sha256:" + strings.Repeat("0", 64))
	two.Outputs["dev"] = two.Outputs["out"]
	if _, err := two.Kind(); !errors.Is(err, derivation.ErrFormat) {
		t.Errorf("two fixed outputs: %v", err)
	}
}

func TestCheckOutputsFindsLies(t *testing.T) {
	texts := vectorFiles(t)
	load := func(p store.Path) (*derivation.Derivation, error) {
		data, ok := texts["../tests/vectors/drvs/"+p.Base()]
		if !ok {
			return nil, store.ErrNotValid
		}
		return derivation.ParseAt(p, data)
	}
	hashes := derivation.NewHashes(load)
	for _, base := range []string{"84g7x25aqi4wfvzxmbm0vhn1x8vyzs6r-multi.drv", "y1qpq5d8qp9qxvbq5x2vqsbn3az298gk-dep.drv"} {
		d, err := load(mustPath(t, "/nix/store/"+base))
		if err != nil {
			t.Fatal(err)
		}
		if err := hashes.CheckOutputs(d, dir); err != nil {
			t.Fatal(err)
		}
		lie := d.Clone()
		lie.Outputs["out"] = derivation.Output{Path: mustPath(t, source)}
		if err := hashes.CheckOutputs(lie, dir); !errors.Is(err, derivation.ErrOutput) {
			t.Errorf("%s with another path: %v", base, err)
		}
		lie = d.Clone()
		lie.Env["out"] = source
		if err := hashes.CheckOutputs(lie, dir); !errors.Is(err, derivation.ErrOutput) {
			t.Errorf("%s with another variable: %v", base, err)
		}
		lie = d.Clone()
		lie.Args = append(lie.Args, "more")
		if err := hashes.CheckOutputs(lie, dir); !errors.Is(err, derivation.ErrOutput) {
			t.Errorf("%s with another argument: %v", base, err)
		}
		lie = d.Clone()
		lie.InputDrvs[mustPath(t, caDrv)] = []string{"nothing"}
		if err := hashes.CheckOutputs(lie, dir); err == nil {
			t.Errorf("%s with an output that its input lacks: accepted", base)
		}
	}
}

func TestCycleIsAnError(t *testing.T) {
	paths := []store.Path{mustPath(t, caDrv), mustPath(t, "/nix/store/84g7x25aqi4wfvzxmbm0vhn1x8vyzs6r-multi.drv")}
	load := func(p store.Path) (*derivation.Derivation, error) {
		next := paths[0]
		if p == paths[0] {
			next = paths[1]
		}
		return &derivation.Derivation{Name: "x", Outputs: map[string]derivation.Output{"out": {}}, InputDrvs: map[store.Path][]string{next: {"out"}}}, nil
	}
	_, err := derivation.NewHashes(load).Input(paths[0])
	if err == nil || !strings.Contains(err.Error(), "depends on itself") {
		t.Errorf("cycle: %v", err)
	}
}

func TestHashesLoadEachInputOnce(t *testing.T) {
	loads := map[store.Path]int{}
	var paths []store.Path
	for i := range 40 {
		p, err := dir.TextPath(fmt.Sprintf("n%d.drv", i), store.SHA256.Sum([]byte{byte(i)}), nil)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	// Each depends on both derivations before it: without memory that is 2^40 steps.
	load := func(p store.Path) (*derivation.Derivation, error) {
		loads[p]++
		d := &derivation.Derivation{Name: "x", Outputs: map[string]derivation.Output{"out": {}}, InputDrvs: map[store.Path][]string{}}
		for i, q := range paths {
			if q == p && i >= 2 {
				d.InputDrvs[paths[i-1]], d.InputDrvs[paths[i-2]] = []string{"out"}, []string{"out"}
			}
		}
		return d, nil
	}
	if _, err := derivation.NewHashes(load).Input(paths[39]); err != nil {
		t.Fatal(err)
	}
	for p, n := range loads {
		if n != 1 {
			t.Errorf("%s was loaded %d times", p, n)
		}
	}
}

func TestRewrite(t *testing.T) {
	d := &derivation.Derivation{Builder: "X/bin", Args: []string{"X", "aXb"}, Env: map[string]string{"X": "vX"}}
	d.Rewrite(map[string]string{"X": "Y"})
	if d.Builder != "Y/bin" || d.Args[1] != "aYb" || d.Env["Y"] != "vY" || len(d.Env) != 1 {
		t.Errorf("got %+v", d)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	for file, data := range vectorFiles(t) {
		d, err := derivation.Parse("x", dir, data)
		if err != nil {
			continue // a fixed output's path depends on the name
		}
		c := d.Clone()
		for name := range c.Outputs {
			delete(c.Outputs, name)
		}
		for _, outputs := range c.InputDrvs {
			outputs[0] = "changed"
		}
		for i := range c.Args {
			c.Args[i] = "changed"
		}
		clear(c.Env)
		if !bytes.Equal(d.ATerm(), data) {
			t.Errorf("%s: changing a clone changed it", file)
		}
	}
}

func TestJSONRefuses(t *testing.T) {
	const good = `{"name":"x","version":4,"outputs":{"out":{"method":"nar","hashAlgo":"sha256"}},"inputs":{"srcs":[],"drvs":{}},"system":"s","builder":"b","args":[],"env":{}}`
	if _, err := derivation.ParseJSON("x", dir, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"other name":         {`"name":"x"`, `"name":"y"`},
		"other version":      {`"version":4`, `"version":3`},
		"no version":         {`"version":4,`, ``},
		"unknown field":      {`"system"`, `"extra":1,"system"`},
		"unknown method":     {`"nar"`, `"git"`},
		"unknown algorithm":  {`"sha256"`, `"sha3"`},
		"path and algorithm": {`"method":"nar"`, `"path":"6hqnv4zbyyr1s8vprbph979vp45d9id0-busybox","method":"nar"`},
		"full path":          {`"srcs":[]`, `"srcs":["` + source + `"]`},
		"dynamic output":     {`"drvs":{}`, `"drvs":{"y9df81z7xx6hic0cx6xfqabh0rf2jxag-ca.drv":{"outputs":["out"],"dynamicOutputs":{"out":{}}}}`},
		"attributes twice":   {`"env":{}`, `"env":{"__json":"{}"},"structuredAttrs":{}`},
		"attributes a list":  {`"env":{}`, `"env":{},"structuredAttrs":[]`},
		"not UTF-8":          {`"s"`, "\"\xff\""},
		"no output":          {`"out":{"method":"nar","hashAlgo":"sha256"}`, ``},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%s: no change", name)
		}
		if d, err := derivation.ParseJSON("x", dir, []byte(text)); err == nil {
			t.Errorf("%s: accepted as %s", name, d.ATerm())
		}
	}
	d := &derivation.Derivation{Name: "x", Env: map[string]string{"a": "\xff"}}
	if text, err := d.JSON(); err == nil {
		t.Errorf("bytes that are not UTF-8 became %s", text)
	}
}

// The current JSON form, as in upstream's own tests.
func TestStructuredAttributesInJSON(t *testing.T) {
	d := &derivation.Derivation{Name: "x", Outputs: map[string]derivation.Output{"out": {}}, Env: map[string]string{"out": "", "__json": `{"a":1,"b":"<&>"}`}}
	text, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"name":"x","version":4,"outputs":{"out":{}},"inputs":{"srcs":[],"drvs":{}},"system":"","builder":"","args":[],"env":{"out":""},"structuredAttrs":{"a":1,"b":"<&>"}}`
	if string(text) != want {
		t.Errorf("JSON\n got %s\nwant %s", text, want)
	}
	for _, odd := range []string{`{"a": 1}`, `[]`, `nonsense`, ``} {
		d.Env["__json"] = odd
		text, err := d.JSON()
		if err != nil {
			t.Fatal(err)
		}
		back, err := derivation.ParseJSON("x", dir, text)
		if err != nil || back.Env["__json"] != odd {
			t.Errorf("attributes %q come back as %q, %v", odd, back.Env["__json"], err)
		}
	}
}

func FuzzATerm(f *testing.F) {
	for file, data := range vectorFiles(f) {
		name := strings.TrimSuffix(filepath.Base(file), ".drv")
		if len(name) > 33 && name[32] == '-' {
			name = name[33:]
		}
		f.Add(name, data)
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		d, err := derivation.Parse(name, dir, data)
		if err != nil {
			return
		}
		if !bytes.Equal(d.ATerm(), data) {
			t.Error("accepted, and written differently")
		}
		if _, err := d.Path(dir); err != nil {
			t.Errorf("accepted, and has no path: %v", err)
		}
		d.Clone().Resolve(dir, func(store.Path, string) (store.Path, bool) { return store.Path{}, false })
	})
}

func FuzzDerivationJSON(f *testing.F) {
	for file, data := range vectorFiles(f) {
		name := strings.TrimSuffix(filepath.Base(file), ".drv")
		if len(name) < 33 || name[32] != '-' {
			continue
		}
		d, err := derivation.Parse(name[33:], dir, data)
		if err != nil {
			f.Fatal(err)
		}
		for _, form := range []func() ([]byte, error){d.JSON, d.JSONv1} {
			text, err := form()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(d.Name, text)
		}
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		d, err := derivation.ParseJSON(name, dir, data)
		if err != nil {
			return
		}
		for _, form := range []func() ([]byte, error){d.JSON, d.JSONv1} {
			text, err := form()
			if err != nil {
				t.Fatalf("accepted, and has no JSON: %v", err)
			}
			back, err := derivation.ParseJSON(d.Name, dir, text)
			if err != nil {
				t.Fatalf("not accepted again: %v\n%s", err, text)
			}
			if !bytes.Equal(back.ATerm(), d.ATerm()) {
				t.Errorf("another derivation after JSON\n%s\n%s", back.ATerm(), d.ATerm())
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	data, err := os.ReadFile("../tests/vectors/drvs/structured.drv")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := derivation.Parse("structured", dir, data); err != nil {
			b.Fatal(err)
		}
	}
}
