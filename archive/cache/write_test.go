package cache_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/store"
)

// webFolder is a folder behind HTTP that can be written.
func webFolder(root string) http.Handler {
	files := http.FileServer(http.Dir(root))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			files.ServeHTTP(w, r)
			return
		}
		name := filepath.Join(root, filepath.Clean(r.URL.Path))
		data, err := io.ReadAll(r.Body)
		if err == nil && int64(len(data)) != r.ContentLength {
			err = errors.New("length")
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(name), 0o755)
		}
		if err == nil {
			err = os.WriteFile(name, data, 0o644)
		}
		if err != nil {
			w.WriteHeader(500)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
}

func write(data []byte) func(io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(data); return err }
}

// roundTrip writes one of everything and reads it back.
func roundTrip(t *testing.T, w cache.Writer) {
	t.Helper()
	ctx := t.Context()
	for range 2 {
		if err := w.Init(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := w.Info(ctx); err != nil || info.StoreDir != dir || !info.WantMassQuery {
		t.Errorf("info %+v, %v", info, err)
	}
	for _, o := range []*object{newObject(t, "small", []byte("x"), archive.Uncompressed), newObject(t, "large", noise(500_000), archive.Uncompressed)} {
		if there, err := w.Has(ctx, o.Path); err != nil || there {
			t.Fatalf("before: %v, %v", there, err)
		}
		n, err := cache.Put(ctx, w, &o.Info, write(o.nar))
		if err != nil {
			t.Fatal(err)
		}
		if there, err := w.Has(ctx, o.Path); err != nil || !there {
			t.Errorf("after: %v, %v", there, err)
		}
		got, err := w.NarInfo(ctx, o.Path)
		if err != nil || got.Text() != n.Text() {
			t.Errorf("comes back as %v, %v", got, err)
			continue
		}
		if err := readNAR(t, w, got); err != nil {
			t.Error(err)
		}
		want, _ := nar.List(bytes.NewReader(o.nar))
		l, err := cache.Listing(ctx, w, o.Path)
		if err != nil || *l.Root.Size != *want.Root.Size || l.Root.Offset != want.Root.Offset {
			t.Errorf("listing %+v, %v", l, err)
		}
	}
	o := newObject(t, "x.drv", nil, archive.Uncompressed)
	r := &store.Realisation{ID: store.DrvOutput{Drv: o.NarHash, Output: "out"}, OutPath: o.Path}
	trace := &cache.Trace{Drv: o.Path, Output: "out", OutPath: o.Path}
	if err := errors.Join(w.PutRealisation(ctx, r), w.PutTrace(ctx, trace), w.PutLog(ctx, o.Path, strings.NewReader("built\n"))); err != nil {
		t.Fatal(err)
	}
	if got, err := cache.Realisation(ctx, w, r.ID); err != nil || got.OutPath != r.OutPath {
		t.Errorf("realisation %v, %v", got, err)
	}
	if got, err := cache.Traced(ctx, w, o.Path, "out"); err != nil || got.OutPath != o.Path {
		t.Errorf("trace %v, %v", got, err)
	}
	log, err := cache.Log(ctx, w, o.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if text, err := io.ReadAll(log); err != nil || string(text) != "built\n" {
		t.Errorf("log %q, %v", text, err)
	}
}

func TestWrites(t *testing.T) {
	for _, compression := range []string{"zstd", "gzip", "none"} {
		for name, uri := range map[string]string{"folder": filepath.Join(t.TempDir(), "new"), "http": serve(t, webFolder(t.TempDir()))} {
			t.Run(name+"/"+compression, func(t *testing.T) {
				w, err := cache.OpenWriter(uri+"?write-nar-listing=1&compression="+compression, dir, fast())
				if err != nil {
					t.Fatal(err)
				}
				roundTrip(t, w)
				if left, _ := filepath.Glob(uri + "/nar/.tmp-*"); left != nil {
					t.Errorf("left behind: %s", left)
				}
			})
		}
	}
}

func TestWriterSigns(t *testing.T) {
	one, err := archive.GenerateKey("one-1")
	if err != nil {
		t.Fatal(err)
	}
	two, err := archive.GenerateKey("two-1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := one.WriteFile(file); err != nil {
		t.Fatal(err)
	}
	opts := fast()
	opts.Keys = []archive.SecretKey{two}
	w, err := cache.OpenWriter(t.TempDir()+"?secret-key="+file, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	o := newObject(t, "x", []byte("x"), archive.Uncompressed)
	o.Signatures = []string{one.SignInfo(&o.Info), "other:" + strings.Repeat("A", 86) + "=="}
	n, err := cache.Put(t.Context(), w, &o.Info, write(o.nar))
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Signatures) != 3 {
		t.Errorf("signatures: %s", n.Signatures)
	}
	for _, k := range []archive.SecretKey{one, two} {
		if _, ok := archive.VerifyInfo(&n.Info, []archive.PublicKey{k.Public()}); !ok {
			t.Errorf("%s did not sign", k.Name())
		}
	}
	trace := &cache.Trace{Drv: o.Path, Output: "out", OutPath: o.Path}
	if err := w.PutTrace(t.Context(), trace); err != nil {
		t.Fatal(err)
	}
	got, err := cache.Traced(t.Context(), w, o.Path, "out")
	if err != nil || len(got.Signatures) != 2 || !slices.ContainsFunc(got.Signatures, func(s string) bool { return one.Public().Verify([]byte(got.Fingerprint()), s) }) {
		t.Errorf("trace %+v, %v", got, err)
	}
}

// TestWriterRefuses writes what is not what it says; nothing of it may be seen.
func TestWriterRefuses(t *testing.T) {
	root := t.TempDir()
	w, err := cache.OpenWriter(root, dir, fast())
	if err != nil {
		t.Fatal(err)
	}
	o := newObject(t, "x", []byte("x"), archive.Uncompressed)
	cause := errors.New("reading broke")
	for name, c := range map[string]struct {
		write func(io.Writer) error
		want  error
	}{
		"other contents": {write(newObject(t, "x", []byte("y"), archive.Uncompressed).nar), store.ErrHashMismatch},
		"too little":     {write(o.nar[:50]), store.ErrHashMismatch},
		"error":          {func(w io.Writer) error { w.Write(o.nar); return cause }, cause},
	} {
		if _, err := w.Upload(t.Context(), &o.Info, c.write); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if files, _ := filepath.Glob(root + "/*/*"); len(files) != 0 {
		t.Errorf("left behind: %s", files)
	}
	if err := os.WriteFile(root+"/nix-cache-info", []byte("StoreDir: /gnu/store\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.Init(t.Context()); !errors.Is(err, cache.ErrFormat) {
		t.Errorf("cache of another store: %v", err)
	}
	if w, err = cache.OpenWriter(serve(t, answer(405)), dir, fast()); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Put(t.Context(), w, &o.Info, write(o.nar)); err == nil {
		t.Error("a server that refuses everything is written")
	}
}

func TestWriterRetries(t *testing.T) {
	root, broken := t.TempDir(), 0
	handler := webFolder(root)
	uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken++; broken%2 == 1 {
			io.CopyN(io.Discard, r.Body, 100)
			w.WriteHeader(503)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	w, err := cache.OpenWriter(uri, dir, fast())
	if err != nil {
		t.Fatal(err)
	}
	o := newObject(t, "x", noise(300_000), archive.Uncompressed)
	if _, err := cache.Put(t.Context(), w, &o.Info, write(o.nar)); err != nil {
		t.Fatal(err)
	}
	if n, err := w.NarInfo(t.Context(), o.Path); err != nil || readNAR(t, w, n) != nil {
		t.Errorf("%v", err)
	}
}

func TestReadOnly(t *testing.T) {
	w, err := cache.OpenWriter(serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		http.NotFound(w, r)
	})), dir, fast())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Init(t.Context()); !errors.Is(err, cache.ErrReadOnly) {
		t.Errorf("got %v", err)
	}
}

func TestParameters(t *testing.T) {
	folder := t.TempDir()
	for _, bad := range []string{"compresion=none", "compression=rar", "compression=xz", "priority=first", "want-mass-query=maybe", "store=relative", "scheme=ftp", "secret-key=/does/not/exist", "compression-level=99"} {
		if _, err := cache.OpenWriter(folder+"?"+bad, dir, nil); err == nil || !strings.Contains(err.Error(), strings.Split(bad, "=")[0]) && !strings.Contains(err.Error(), "/does/not/exist") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	var warned []string
	opts := &cache.Options{Warn: func(s string) { warned = append(warned, s) }}
	c := open(t, folder+"?priority=7&want-mass-query=true&trusted=1&future=1&path-info-cache-size=3", opts)
	info, err := c.Info(t.Context())
	if err != nil || info.Priority != 7 || !info.WantMassQuery || !cache.Trusted(c) {
		t.Errorf("%+v, %v", info, err)
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "future") {
		t.Errorf("warned of %q", warned)
	}
	if c := open(t, folder+"?store=/gnu/store", nil); c.URI() != "file://"+folder {
		t.Errorf("URI %s", c.URI())
	}
	for _, bad := range []string{"", "relative", "ssh://host", "http://", "http://host/#x", "s3://", "s3://a/b", "file://relative/x", "daemon"} {
		if _, err := cache.Open(bad, dir, nil); err == nil {
			t.Errorf("%q is a cache", bad)
		}
	}
}

func TestCompressionLevel(t *testing.T) {
	text := bytes.Repeat(noise(5000), 1)
	for i := range 40_000 {
		text = append(text, text[(i*i)%4000:][:i%23]...)
	}
	o := newObject(t, "x", text, archive.Uncompressed)
	sizes := map[string]int64{}
	for _, level := range []string{"1", "22"} {
		w, err := cache.OpenWriter(t.TempDir()+"?compression-level="+level, dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		n, err := cache.Put(t.Context(), w, &o.Info, write(o.nar))
		if err != nil || readNAR(t, w, n) != nil {
			t.Fatal(err)
		}
		sizes[level] = n.FileSize
	}
	if sizes["22"] >= sizes["1"] {
		t.Errorf("sizes by level: %v", sizes)
	}
}

func TestIndexDebugInfo(t *testing.T) {
	id := strings.Repeat("ab", 20)
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	for _, name := range []string{"", "lib", "lib/debug", "lib/debug/.build-id", "lib/debug/.build-id/ab"} {
		if err := w.WriteHeader(&nar.Header{Path: name, Type: nar.Directory}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteHeader(&nar.Header{Path: "lib/debug/.build-id/ab/" + id[2:] + ".debug", Type: nar.Regular}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	hash := store.SHA256.Sum(b.Bytes())
	p, err := dir.SourcePath("x-debug", hash, store.References{})
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	c, err := cache.OpenWriter(folder+"?index-debug-info=true", dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := cache.Put(t.Context(), c, &store.Info{Path: p, NarHash: hash, NarSize: int64(b.Len())}, write(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(folder + "/debuginfo/" + id + ".debug")
	if want := `{"archive":"../` + n.URL + `","member":"lib/debug/.build-id/ab/` + id[2:] + `.debug"}`; err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}
