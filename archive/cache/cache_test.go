package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/archive/cache"
	"cairn/store"
)

const dir store.Dir = "/nix/store"

func vectorFiles(tb testing.TB, pattern string) []string {
	tb.Helper()
	files, err := filepath.Glob("../../tests/vectors/" + pattern)
	if err != nil || len(files) == 0 {
		tb.Fatalf("no vectors %s: %v", pattern, err)
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

func TestNarInfoRoundTrip(t *testing.T) {
	for _, text := range vectorFiles(t, "*/*.narinfo") {
		n, err := cache.ParseNarInfo(dir, text)
		if err != nil {
			t.Fatal(err)
		}
		if n.Text() != text {
			t.Errorf("comes back differently\n got %s\nwant %s", n.Text(), text)
		}
	}
}

// minimal has nothing that may be missing.
const minimal = "StorePath: /nix/store/zcf5l0r3999k7pr1d9d97qzx4pgaxai5-dep-all\nURL: nar/x.nar\nNarHash: sha256:0z7wa5ill680317c84hwi9vhc9lrkn84xlni698vljs7a4xz144h\nNarSize: 328\nReferences: \n"

func TestNarInfoAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"minimal":                 minimal,
		"unknown key":             minimal + "System: x86_64-linux\n",
		"unknown deriver":         minimal + "Deriver: unknown-deriver\n",
		"no references":           strings.Replace(minimal, "References: \n", "", 1),
		"other order":             "Compression: br\n" + minimal,
		"hash in base 16":         strings.Replace(minimal, "0z7wa5ill680317c84hwi9vhc9lrkn84xlni698vljs7a4xz144h", "9090f03b51474bba5132d1d24e909d992606778a1c12c44e1800194a6351fc7c", 1),
		"references out of order": strings.Replace(minimal, "References: ", "References: zzz5l0r3999k7pr1d9d97qzx4pgaxai5-b aaa5l0r3999k7pr1d9d97qzx4pgaxai5-a", 1),
	} {
		if _, err := cache.ParseNarInfo(dir, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNarInfoRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "",
		"no last newline": strings.TrimSuffix(minimal, "\n"),
		"no colon":        minimal + "nonsense\n",
		"no space":        minimal + "Key:value\n",
		"twice":           minimal + "NarSize: 328\n",
		"no path":         minimal[strings.Index(minimal, "\n")+1:],
		"no URL":          strings.Replace(minimal, "URL: nar/x.nar\n", "", 1),
		"empty URL":       strings.Replace(minimal, "nar/x.nar", "", 1),
		"size 0":          strings.Replace(minimal, "328", "0", 1),
		"negative size":   strings.Replace(minimal, "328", "-1", 1),
		"size in words":   strings.Replace(minimal, "328", "many", 1),
		"huge size":       strings.Replace(minimal, "328", "9223372036854775808", 1),
		"other store":     strings.Replace(minimal, "/nix/store", "/gnu/store", 1),
		"other hash":      strings.Replace(minimal, "sha256", "sha1", 1),
		"full reference":  strings.Replace(minimal, "References: ", "References: /nix/store/zcf5l0r3999k7pr1d9d97qzx4pgaxai5-dep-all", 1),
		"reference up":    strings.Replace(minimal, "References: ", "References: ../../etc", 1),
		"bad address":     minimal + "CA: fixed:git:sha1:x\n",
		"huge":            minimal + "Key: " + strings.Repeat("x", 5<<20) + "\n",
	} {
		if n, err := cache.ParseNarInfo(dir, text); err == nil {
			t.Errorf("%s: accepted as %s", name, n.Text())
		}
	}
	if _, err := cache.ParseNarInfo(dir, minimal+"x\n"); !errors.Is(err, cache.ErrFormat) || !strings.Contains(err.Error(), "line 6") {
		t.Errorf("error does not name the line: %v", err)
	}
}

func TestInfo(t *testing.T) {
	text := "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"
	i, err := cache.ParseInfo(text)
	if err != nil || *i != (cache.Info{StoreDir: dir, WantMassQuery: true, Priority: 40}) || i.Text() != text {
		t.Errorf("got %+v, %v", i, err)
	}
	for _, good := range []string{"", "Priority: 40\n", "StoreDir: /nix/store", "what\nPriority:40\n"} {
		if _, err := cache.ParseInfo(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"<html>\nstyle: x\n", "StoreDir: relative\n", "StoreDir: /nix/store\nPriority: first\n", "StoreDir: /nix/store\n" + strings.Repeat("x", 1<<20)} {
		if _, err := cache.ParseInfo(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzNarInfo(f *testing.F) {
	for _, text := range vectorFiles(f, "*/*.narinfo") {
		f.Add(text)
	}
	f.Add(minimal)
	f.Fuzz(func(t *testing.T, text string) {
		n, err := cache.ParseNarInfo(dir, text)
		if err != nil {
			return
		}
		once := n.Text()
		again, err := cache.ParseNarInfo(dir, once)
		if err != nil {
			t.Fatalf("not accepted again: %v\n%s", err, once)
		}
		if again.Text() != once || again.Fingerprint() != n.Fingerprint() {
			t.Error("comes back differently")
		}
	})
}

func FuzzCacheInfo(f *testing.F) {
	for _, text := range vectorFiles(f, "*/nix-cache-info") {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		i, err := cache.ParseInfo(text)
		if err != nil {
			return
		}
		again, err := cache.ParseInfo(i.Text())
		if err != nil || *again != *i {
			t.Errorf("comes back as %+v, %v", again, err)
		}
	})
}

func FuzzTrace(f *testing.F) {
	drv, err := dir.Path("00000000000000000000000000000000-x.drv")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(`{"outPath":"zcf5l0r3999k7pr1d9d97qzx4pgaxai5-dep-all","signatures":[{"keyName":"k","sig":"AAAA"},"l:BBBB"]}`)
	f.Add(`{"outPath":"../x","signatures":[]}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, text string) {
		trace, err := cache.ParseTrace(drv, "out", []byte(text))
		if err != nil {
			return
		}
		again, err := cache.ParseTrace(drv, "out", []byte(trace.JSON()))
		if err != nil || again.JSON() != trace.JSON() || again.Fingerprint() != trace.Fingerprint() {
			t.Errorf("%s comes back as %+v, %v", trace.JSON(), again, err)
		}
	})
}

func FuzzRealisation(f *testing.F) {
	for _, text := range vectorFiles(f, "ca-cache/realisations/*.doi") {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := dir.ParseRealisation([]byte(text))
		if err != nil {
			return
		}
		again, err := dir.ParseRealisation([]byte(r.JSON()))
		if err != nil || again.JSON() != r.JSON() {
			t.Errorf("%s comes back as %+v, %v", r.JSON(), again, err)
		}
	})
}

func TestTrace(t *testing.T) {
	drv, err := dir.Path("00000000000000000000000000000000-x.drv")
	if err != nil {
		t.Fatal(err)
	}
	out, err := dir.Path("11111111111111111111111111111111-x")
	if err != nil {
		t.Fatal(err)
	}
	trace := &cache.Trace{Drv: drv, Output: "out", OutPath: out, Signatures: []string{"k:c2ln"}}
	if got, want := trace.Fingerprint(), `{"key":{"drvPath":"00000000000000000000000000000000-x.drv","outputName":"out"},"value":{"outPath":"11111111111111111111111111111111-x"}}`; got != want {
		t.Errorf("signs %s", got)
	}
	if got, want := trace.JSON(), `{"outPath":"11111111111111111111111111111111-x","signatures":[{"keyName":"k","sig":"c2ln"}]}`; got != want {
		t.Errorf("writes %s", got)
	}
	for _, bad := range []string{"", "{}", `{"outPath":"x"}`, `{"outPath":"/nix/store/11111111111111111111111111111111-x"}`, `{"outPath":"11111111111111111111111111111111-x","signatures":["nocolon"]}`, `{"outPath":"11111111111111111111111111111111-x","signatures":[{"keyName":"a:b","sig":"x"}]}`} {
		if got, err := cache.ParseTrace(drv, "out", []byte(bad)); !errors.Is(err, cache.ErrFormat) {
			t.Errorf("%s: %+v, %v", bad, got, err)
		}
	}
}
