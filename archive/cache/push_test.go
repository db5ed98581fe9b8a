package cache_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/store"
)

// shelf is a store of objects of the test's own.
type shelf map[store.Path]*object

func (s shelf) Info(_ context.Context, p store.Path) (*store.Info, error) {
	if o := s[p]; o != nil {
		return &o.Info, nil
	}
	return nil, store.ErrNotValid
}

func (s shelf) NAR(_ context.Context, p store.Path, w io.Writer) error {
	if s[p] == nil {
		return store.ErrNotValid
	}
	_, err := w.Write(s[p].nar)
	return err
}

// chain is n objects, each of which refers to the one before.
func chain(tb testing.TB, n int) (shelf, []*store.Info) {
	s := shelf{}
	var infos []*store.Info
	for i := range n {
		o := newObject(tb, "o"+strings.Repeat("x", i), noise(1000*(n-i)), archive.Uncompressed)
		if i > 0 {
			o.References = []store.Path{infos[i-1].Path}
			o.CA = store.ContentAddress{}
		}
		s[o.Path] = o
		infos = append(infos, &o.Info)
	}
	return s, infos
}

// watched is a cache that checks that closures are complete at any time.
type watched struct {
	cache.Writer
	t     *testing.T
	fails store.Path // whose upload fails
	mu    sync.Mutex
	there map[store.Path]bool
}

func (w *watched) Upload(ctx context.Context, info *store.Info, archive func(io.Writer) error) (*cache.NarInfo, error) {
	if info.Path == w.fails {
		return nil, errBroken
	}
	return w.Writer.Upload(ctx, info, archive)
}

var errBroken = errors.New("broken")

func (w *watched) Publish(ctx context.Context, n *cache.NarInfo) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ref := range n.References {
		if !w.there[ref] {
			w.t.Errorf("%s becomes visible before %s", n.Path, ref)
		}
	}
	w.there[n.Path] = true
	return w.Writer.Publish(ctx, n)
}

func TestPush(t *testing.T) {
	from, infos := chain(t, 20)
	folder := t.TempDir()
	writer, err := cache.OpenWriter(folder, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{Writer: writer, t: t, there: map[store.Path]bool{}, fails: infos[7].Path}
	if err := cache.Push(t.Context(), w, infos, from, nil); !errors.Is(err, errBroken) {
		t.Fatalf("got %v", err)
	}
	if len(w.there) > 7 {
		t.Errorf("%d objects are there, of which 7 can be", len(w.there))
	}
	w.fails = store.Path{}
	missing, err := cache.Missing(t.Context(), w, infos)
	if err != nil || len(missing) != 20-len(w.there) || slices.Contains(missing, nil) {
		t.Fatalf("%d are missing, %v", len(missing), err)
	}
	var mu sync.Mutex
	reports := map[bool]int{}
	opts := &cache.PushOptions{Jobs: 3, Report: func(r cache.PushReport) { mu.Lock(); reports[r.Done != nil]++; mu.Unlock() }}
	if err := cache.Push(t.Context(), w, missing, from, opts); err != nil {
		t.Fatal(err)
	}
	if missing, err = cache.Missing(t.Context(), w, infos); err != nil || len(missing) != 0 {
		t.Errorf("%d are missing, %v", len(missing), err)
	}
	if reports[true] != reports[false] || reports[true] == 0 {
		t.Errorf("reports %v", reports)
	}
	files, _ := filepath.Glob(folder + "/nar/*")
	if len(files) != 20 {
		t.Errorf("%d archives", len(files))
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm()&0o044 != 0o044 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
}
