package substitute_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cairn/archive/cache"
	"cairn/daemon/settings"
	"cairn/daemon/substitute"
	"cairn/store"
	"cairn/store/base32"
	"cairn/store/disk"
)

func newStore(t *testing.T) *disk.Store {
	t.Helper()
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(layout); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(context.Background(), layout, &disk.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// folder is a cache of files.
type folder struct {
	t   *testing.T
	dir string
}

func (f folder) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f folder) uri() string { return "file://" + f.dir }

// breaks makes the cache one of another store, which is as good as none.
func (f folder) breaks() { f.write("nix-cache-info", "StoreDir: /gnu/store\n") }

func (f folder) works() { f.write("nix-cache-info", "StoreDir: /cairn/store\n") }

func pathOf(t *testing.T, name string) store.Path {
	t.Helper()
	digest := store.SHA256.Sum([]byte(name)).Bytes()
	p, err := store.DefaultDir.ParsePath(store.DefaultDir.String() + "/" + base32.Encode(digest[:20]) + "-" + name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// has writes a narinfo. There is no archive.
func (f folder) has(p store.Path, refs ...store.Path) {
	hash := store.SHA256.Sum([]byte("x"))
	n := &cache.NarInfo{Info: store.Info{Path: p, NarHash: hash, NarSize: 1, References: refs}, URL: "nar/x.nar", Compression: "none"}
	f.write(cache.FileName(p), n.Text())
}

func settingsFor(uris ...string) *settings.Settings {
	s := settings.Defaults()
	s.Substituters, s.RequireSignatures = uris, false
	return s
}

// session asks for one path as a new session would, and returns whether it was found and what was warned of.
func session(t *testing.T, pool *substitute.Pool, set *settings.Settings, p store.Path) (bool, string) {
	t.Helper()
	var warned []string
	s := pool.Caches(set).Search(substitute.Watch{Warn: func(text string) { warned = append(warned, text) }})
	if err := s.AskAlone(context.Background(), []store.Path{p}); err != nil {
		t.Fatal(err)
	}
	o, asked := s.Offer(p)
	if !asked {
		t.Error("nobody was asked")
	}
	return o != nil, strings.Join(warned, "\n")
}

// TestBreaker leaves a cache that fails alone, for longer each time, and tells each session.
func TestBreaker(t *testing.T) {
	s := newStore(t)
	f := folder{t, t.TempDir()}
	p := pathOf(t, "a")
	f.has(p)
	set := settingsFor(f.uri())
	synctest.Test(t, func(t *testing.T) {
		pool := substitute.NewPool(s, nil)
		defer pool.Close()
		f.breaks()
		for _, seconds := range []int{60, 120, 240, 480, 960, 960} {
			f.breaks()
			for range 2 {
				if found, warned := session(t, pool, set, p); found || !strings.Contains(warned, fmt.Sprintf("is not used for %d seconds", seconds)) {
					t.Fatalf("after %d: found %v, warned of %q", seconds, found, warned)
				}
			}
			f.works() // but nobody looks
			time.Sleep(time.Duration(seconds)*time.Second - time.Second)
			if found, warned := session(t, pool, set, p); found || !strings.Contains(warned, "for 1 seconds") {
				t.Fatalf("at the end of %d: found %v, warned of %q", seconds, found, warned)
			}
			f.breaks()
			time.Sleep(2 * time.Second)
		}
		f.works()
		if found, warned := session(t, pool, set, p); !found || warned != "" {
			t.Fatalf("found %v, warned of %q", found, warned)
		}
		// What has worked once has a clean record.
		f.write(cache.FileName(p), "nonsense")
		time.Sleep(2 * time.Minute) // the narinfo is forgotten
		if found, warned := session(t, pool, set, p); found || !strings.Contains(warned, "is not used for 60 seconds") {
			t.Fatalf("found %v, warned of %q", found, warned)
		}
	})
}

// TestOneWarning tells a session once of each outage.
func TestOneWarning(t *testing.T) {
	s := newStore(t)
	f := folder{t, t.TempDir()}
	f.breaks()
	synctest.Test(t, func(t *testing.T) {
		pool := substitute.NewPool(s, nil)
		defer pool.Close()
		caches := pool.Caches(settingsFor(f.uri()))
		var warned []string
		ask := func() {
			search := caches.Search(substitute.Watch{Warn: func(text string) { warned = append(warned, text) }})
			if err := search.Ask(context.Background(), []store.Path{pathOf(t, "a")}); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		ask()
		if len(warned) != 1 {
			t.Errorf("warned of %q", warned)
		}
		time.Sleep(61 * time.Second)
		ask()
		if len(warned) != 2 {
			t.Errorf("after a minute warned of %q", warned)
		}
	})
}

// TestCancelledQuestion is no fault of the cache.
func TestCancelledQuestion(t *testing.T) {
	s := newStore(t)
	f := folder{t, t.TempDir()}
	f.works()
	p := pathOf(t, "a")
	f.has(p)
	pool := substitute.NewPool(s, nil)
	defer pool.Close()
	set := settingsFor(f.uri())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := pool.Caches(set).Search(substitute.Watch{}).Ask(ctx, []store.Path{p}); err == nil {
		t.Error("a cancelled question succeeded")
	}
	if found, warned := session(t, pool, set, p); !found || warned != "" {
		t.Errorf("the cache was blamed: found %v, warned of %q", found, warned)
	}
}

// TestMissingReferences asks for all references, and knows afterwards that they are nowhere.
func TestMissingReferences(t *testing.T) {
	s := newStore(t)
	f := folder{t, t.TempDir()}
	f.works()
	var refs []store.Path
	for i := range 50 {
		refs = append(refs, pathOf(t, fmt.Sprintf("r%d", i)))
	}
	p := pathOf(t, "a")
	f.has(p, refs...)
	pool := substitute.NewPool(s, nil)
	defer pool.Close()
	search := pool.Caches(settingsFor(f.uri())).Search(substitute.Watch{})
	if err := search.Ask(context.Background(), []store.Path{p}); err != nil {
		t.Fatal(err)
	}
	if o, _ := search.Offer(p); o == nil {
		t.Error("nobody offers the object")
	}
	for _, r := range refs {
		if o, asked := search.Offer(r); o != nil || !asked {
			t.Errorf("%s: %v, asked %v", r, o, asked)
		}
	}
}

// TestClosed answers when the pool is closed.
func TestClosed(t *testing.T) {
	s := newStore(t)
	f := folder{t, t.TempDir()}
	f.works()
	pool := substitute.NewPool(s, nil)
	caches := pool.Caches(settingsFor(f.uri()))
	pool.Close()
	search := caches.Search(substitute.Watch{})
	if err := search.Ask(context.Background(), []store.Path{pathOf(t, "a")}); err != nil {
		t.Fatal(err)
	}
}
