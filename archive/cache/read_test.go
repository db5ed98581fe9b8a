package cache_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/store"
)

// fast are options under which nothing waits long.
func fast() *cache.Options {
	return &cache.Options{ConnectTimeout: 2 * time.Second, StalledTimeout: 2 * time.Second, Backoff: time.Millisecond}
}

func open(tb testing.TB, uri string, opts *cache.Options) cache.Cache {
	tb.Helper()
	c, err := cache.Open(uri, dir, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { cache.CloseIdle(c) })
	return c
}

func vectors(tb testing.TB, name string) string {
	tb.Helper()
	path, err := filepath.Abs("../../tests/vectors/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func serve(tb testing.TB, h http.Handler) string {
	tb.Helper()
	s := httptest.NewServer(h)
	tb.Cleanup(s.Close)
	return s.URL
}

// places are ways to reach a folder.
func places(tb testing.TB, folder string) map[string]string {
	return map[string]string{"path": folder, "file": "file://" + folder, "http": serve(tb, http.FileServer(http.Dir(folder)))}
}

// paths are the objects of a cache in a folder.
func paths(tb testing.TB, folder string) []store.Path {
	tb.Helper()
	files, err := filepath.Glob(folder + "/*.narinfo")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no narinfos in %s: %v", folder, err)
	}
	var all []store.Path
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			tb.Fatal(err)
		}
		n, err := cache.ParseNarInfo(dir, string(data))
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, n.Path)
	}
	return all
}

func readNAR(tb testing.TB, c cache.Cache, n *cache.NarInfo) error {
	tb.Helper()
	r, err := c.NAR(tb.Context(), n)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := nar.Copy(io.Discard, r); err != nil {
		return err
	}
	_, err = r.Read(make([]byte, 1))
	if err == io.EOF {
		return nil
	}
	if err == nil {
		return errors.New("something follows the archive")
	}
	return err
}

func TestReadsCachesOfNix(t *testing.T) {
	for _, folder := range []string{"cacheplain", "cache", "ca-cache"} {
		for name, uri := range places(t, vectors(t, folder)) {
			t.Run(folder+"/"+name, func(t *testing.T) {
				c := open(t, uri, fast())
				info, err := c.Info(t.Context())
				if err != nil || info.StoreDir != dir || info.Priority != cache.DefaultPriority {
					t.Errorf("info is %+v, %v", info, err)
				}
				for _, p := range paths(t, vectors(t, folder)) {
					n, err := c.NarInfo(t.Context(), p)
					if err != nil {
						t.Fatal(err)
					}
					if err := readNAR(t, c, n); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

func TestMissingIsNotValid(t *testing.T) {
	p, err := dir.Path("00000000000000000000000000000000-none")
	if err != nil {
		t.Fatal(err)
	}
	for name, uri := range places(t, vectors(t, "cache")) {
		c := open(t, uri, fast())
		if _, err := c.NarInfo(t.Context(), p); !errors.Is(err, store.ErrNotValid) {
			t.Errorf("%s: narinfo: %v", name, err)
		}
		if _, err := cache.Log(t.Context(), c, p); !errors.Is(err, store.ErrNotValid) {
			t.Errorf("%s: log: %v", name, err)
		}
		if _, err := cache.Traced(t.Context(), c, p, "out"); !errors.Is(err, store.ErrNotValid) {
			t.Errorf("%s: trace: %v", name, err)
		}
	}
}
