package build_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/base32"
)

// object is what a cache may have.
type object struct {
	info store.Info
	nar  []byte
}

// newObject makes a file whose path does not follow from its contents.
func newObject(name string, refs ...*object) *object {
	digest := store.SHA256.Sum([]byte("path of " + name)).Bytes()
	p, err := store.ParsePath("/nix/store/" + base32.Encode(digest[:20]) + "-" + name)
	if err != nil {
		panic(err)
	}
	return objectAt(p, refs...)
}

func objectAt(p store.Path, refs ...*object) *object {
	text := p.String() + "\n"
	o := &object{info: store.Info{Path: p}}
	for _, r := range refs {
		text += r.info.Path.String() + "\n"
		o.info.References = append(o.info.References, r.info.Path)
	}
	return o.contains(text)
}

func (o *object) contains(text string) *object {
	var b bytes.Buffer
	if err := nar.DumpString(&b, []byte(text), false); err != nil {
		panic(err)
	}
	o.nar = b.Bytes()
	o.info.NarHash, o.info.NarSize = store.SHA256.Sum(o.nar), int64(len(o.nar))
	store.SortPaths(o.info.References)
	return o
}

// depot is a cache behind HTTP, with manners that a test chooses.
type depot struct {
	t      testing.TB
	key    archive.SecretKey
	server *httptest.Server
	mu     sync.Mutex
	files  map[string][]byte
	asked  map[string]int
	now    int
	most   int // requests at the same time
	// manners are asked first; true says that they have answered.
	manners func(w http.ResponseWriter, r *http.Request) bool
}

func newKey(t testing.TB, name string) archive.SecretKey {
	t.Helper()
	k, err := archive.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newDepot(t testing.TB, key archive.SecretKey, objects ...*object) *depot {
	d := &depot{t: t, key: key, files: map[string][]byte{}, asked: map[string]int{}}
	d.files["/nix-cache-info"] = []byte("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
	d.put(objects...)
	d.server = httptest.NewServer(d)
	t.Cleanup(func() {
		d.server.CloseClientConnections()
		d.server.Close()
	})
	return d
}

func (d *depot) put(objects ...*object) {
	for _, o := range objects {
		d.narInfo(o, func(*cache.NarInfo) {})
	}
}

// narInfo puts an object, with a description that is changed after it is signed.
func (d *depot) narInfo(o *object, change func(*cache.NarInfo)) {
	n := &cache.NarInfo{Info: o.info, URL: "nar/" + o.info.Path.Digest() + ".nar", Compression: "none", FileSize: int64(len(o.nar)), FileHash: o.info.NarHash}
	if !d.key.IsZero() {
		n.Signatures = []string{d.key.SignInfo(&n.Info)}
	}
	change(n)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files["/"+cache.FileName(o.info.Path)] = []byte(n.Text())
	d.files["/"+n.URL] = o.nar
}

func (d *depot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.asked[r.URL.Path]++
	d.now++
	d.most = max(d.most, d.now)
	manners := d.manners
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.now--
		d.mu.Unlock()
	}()
	if manners != nil && manners(w, r) {
		return
	}
	d.mu.Lock()
	data, ok := d.files[r.URL.Path]
	d.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// count returns how many requests there were for names that contain part.
func (d *depot) count(part string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, k := range d.asked {
		if strings.Contains(name, part) {
			n += k
		}
	}
	return n
}

// cached makes a rig whose builder fetches from caches, by URI, and trusts a key. It is patient: a busy machine is no bad cache.
func cached(t testing.TB, key archive.SecretKey, uris ...string) *rig {
	return cachedFor(t, time.Minute, key, uris...)
}

// cachedFor is cached with how long it waits for a cache that says nothing.
func cachedFor(t testing.TB, patience time.Duration, key archive.SecretKey, uris ...string) *rig {
	s := settings.Defaults()
	s.Substituters, s.ConnectTimeout, s.StalledTimeout, s.DownloadAttempts = uris, patience, patience, 1
	if !key.IsZero() {
		s.TrustedPublicKeys = []string{key.Public().String()}
	}
	return newRig(t, &build.Options{Settings: s})
}

func objects(list ...*object) []protocol.Target {
	var targets []protocol.Target
	for _, o := range list {
		targets = append(targets, protocol.Target{Path: o.info.Path})
	}
	return targets
}

// fetch makes objects valid and returns what it was warned of.
func (r *rig) fetch(list ...*object) (string, error) {
	r.Helper()
	rec := &recorder{}
	results, err := r.build.Build(r.ctx, objects(list...), build.Normal, rec)
	for _, res := range results {
		if !res.Status.OK() {
			err = fmt.Errorf("%s: %v: %s", res.Target, res.Status, res.Error)
		}
	}
	for _, o := range list {
		if err == nil && !r.store.IsValid(o.info.Path) {
			r.Errorf("%s is not valid", o.info.Path)
		}
	}
	return rec.warnings(), err
}

func (c *recorder) warnings() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, e := range c.events {
		if e.Kind == build.Warning {
			b.WriteString(e.Text + "\n")
		}
	}
	return b.String()
}

func TestFetch(t *testing.T) {
	key := newKey(t, "k")
	c := newObject("c")
	b := newObject("b", c)
	a := newObject("a", b, c)
	d := newDepot(t, key, a, b, c)
	r := cached(t, key, d.server.URL)
	m, err := r.build.Missing(r.ctx, objects(a), nil)
	if err != nil || len(m.Substitute) != 3 || m.NarSize != a.info.NarSize+b.info.NarSize+c.info.NarSize || m.DownloadSize != m.NarSize {
		t.Errorf("%+v, %v", m, err)
	}
	if warned, err := r.fetch(a); err != nil || warned != "" {
		t.Fatalf("%v, warned of %q", err, warned)
	}
	info, err := r.store.Info(r.ctx, a.info.Path)
	if err != nil || len(info.Signatures) != 1 || info.Ultimate || info.NarHash != a.info.NarHash {
		t.Errorf("%+v, %v", info, err)
	}
	if !r.store.IsValid(c.info.Path) || !r.store.IsValid(b.info.Path) {
		t.Error("references are not there")
	}
	if n := d.count(".narinfo"); n != 3 {
		t.Errorf("%d narinfos were asked for, want 3", n)
	}
	// What is there is not asked for.
	before := d.count("")
	if _, err := r.fetch(a); err != nil || d.count("") != before {
		t.Errorf("%v, %d requests more", err, d.count("")-before)
	}
}

// TestFetchSelf fetches what refers to itself.
func TestFetchSelf(t *testing.T) {
	key := newKey(t, "k")
	a := newObject("a")
	a.info.References = []store.Path{a.info.Path}
	r := cached(t, key, newDepot(t, key, a).server.URL)
	if _, err := r.fetch(a); err != nil {
		t.Fatal(err)
	}
}

// TestFetchInParallel asks for a closure of 200 paths, many at a time and never more than http-connections.
func TestFetchInParallel(t *testing.T) {
	key := newKey(t, "k")
	var list []*object
	for i := range 200 {
		var refs []*object
		for j := max(0, i-20); j < i; j += 7 {
			refs = append(refs, list[j])
		}
		list = append(list, newObject(fmt.Sprintf("o%d", i), refs...))
	}
	top := newObject("top", list...)
	d := newDepot(t, key, append(list, top)...)
	d.manners = func(w http.ResponseWriter, r *http.Request) bool {
		time.Sleep(2 * time.Millisecond) // or one would be answered before the next is asked
		return false
	}
	r := cached(t, key, d.server.URL)
	if _, err := r.fetch(top); err != nil {
		t.Fatal(err)
	}
	if n := d.count(".narinfo"); n != 201 {
		t.Errorf("%d narinfos were asked for, want 201", n)
	}
	if limit := r.build.Settings().HTTPConnections; d.most < 4 || d.most > limit {
		t.Errorf("%d requests at the same time, the limit is %d", d.most, limit)
	}
}

// TestFewConnections downloads and asks over one connection, without mistaking one for the slowness of the other.
func TestFewConnections(t *testing.T) {
	key := newKey(t, "k")
	var list []*object
	for i := range 6 {
		list = append(list, newObject(fmt.Sprintf("o%d", i)))
	}
	d := newDepot(t, key, list...)
	d.manners = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/nar/") {
			time.Sleep(300 * time.Millisecond)
		}
		return false
	}
	r := cached(t, key, d.server.URL)
	set := r.build.Settings().Clone()
	set.HTTPConnections = 1
	b := r.build.With(set)
	done := make(chan string, len(list))
	for _, o := range list {
		go func() {
			rec := &recorder{}
			if _, err := b.Build(r.ctx, objects(o), build.Normal, rec); err != nil {
				done <- err.Error()
				return
			}
			done <- rec.warnings()
		}()
	}
	for range list {
		if text := <-done; text != "" {
			t.Error(text)
		}
	}
	if d.most != 1 {
		t.Errorf("%d requests at the same time, want 1", d.most)
	}
}

// silent is a server that accepts connections and says nothing.
func silent(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
	})
	return "http://" + l.Addr().String()
}

func deadURL(t testing.TB) string {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	return s.URL
}

// TestBadCaches has a bad cache before a good one: it costs one warning, is left alone afterwards, and everything is fetched.
func TestBadCaches(t *testing.T) {
	key, other := newKey(t, "k"), newKey(t, "other")
	a, b := newObject("a"), newObject("b")
	for _, c := range []struct {
		name string
		make func(t *testing.T) (string, *depot)
		warn string // of the first fetch
		left bool   // the cache is left alone after that
	}{
		{"refused", func(t *testing.T) (string, *depot) { return deadURL(t), nil }, "is not used for 60 seconds", true},
		{"black hole", func(t *testing.T) (string, *depot) { return silent(t), nil }, "is not used for 60 seconds", true},
		{"slow narinfo", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			d.manners = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, ".narinfo") {
					<-r.Context().Done()
				}
				return false
			}
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"server error", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key)
			d.manners = func(w http.ResponseWriter, r *http.Request) bool {
				http.Error(w, "no", http.StatusBadGateway)
				return true
			}
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"wrong contents", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			for _, o := range []*object{a, b} {
				d.files["/nar/"+o.info.Path.Digest()+".nar"] = bytes.Replace(o.nar, []byte("/nix/store"), []byte("/NIX/store"), 1)
			}
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"no archive", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key)
			for _, o := range []*object{a, b} {
				lie := &object{info: o.info, nar: []byte("this is no archive")}
				d.put(lie)
			}
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"endless archive", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key)
			d.narInfo(a, func(n *cache.NarInfo) { n.FileSize, n.FileHash = 0, store.Hash{} })
			d.manners = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/nar/") {
					return false
				}
				w.Write(a.nar)
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 64<<10)); err != nil {
						break
					}
				}
				return true
			}
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"cut off", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			d.manners = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/nar/") {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(a.nar)))
				w.Write(a.nar[:len(a.nar)/2])
				panic(http.ErrAbortHandler)
			}
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"stands still", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			d.manners = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/nar/") {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(a.nar)))
				w.Write(a.nar[:len(a.nar)/2])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return true
			}
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"narinfo of another path", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			d.files["/"+cache.FileName(a.info.Path)] = d.files["/"+cache.FileName(b.info.Path)]
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"garbage", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			d.files["/"+cache.FileName(a.info.Path)] = []byte("<html>pay here</html>")
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
		{"unsigned", func(t *testing.T) (string, *depot) {
			d := newDepot(t, archive.SecretKey{}, a, b)
			return d.server.URL, d
		}, "as it's not signed by any of the keys", false},
		{"wrong key", func(t *testing.T) (string, *depot) {
			d := newDepot(t, other, a, b)
			return d.server.URL, d
		}, "as it's not signed by any of the keys", false},
		{"signature of other contents", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key)
			d.narInfo(a, func(n *cache.NarInfo) { n.NarHash = b.info.NarHash })
			return d.server.URL, d
		}, "as it's not signed by any of the keys", false},
		{"false content address", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key)
			d.narInfo(a, func(n *cache.NarInfo) { n.CA = store.ContentAddress{Method: store.Recursive, Hash: n.NarHash} })
			return d.server.URL, d
		}, "ignoring substitute", false},
		{"archive is gone", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			delete(d.files, "/nar/"+a.info.Path.Digest()+".nar")
			return d.server.URL, d
		}, "", false},
		{"another store", func(t *testing.T) (string, *depot) {
			d := newDepot(t, key, a, b)
			d.files["/nix-cache-info"] = []byte("StoreDir: /gnu/store\n")
			return d.server.URL, d
		}, "is not used for 60 seconds", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			uri, bad := c.make(t)
			good := newDepot(t, key, a, b)
			patience := time.Minute
			switch c.name {
			case "black hole", "slow narinfo", "stands still":
				patience = 2 * time.Second
			}
			r := cachedFor(t, patience, key, uri+"?priority=1", good.server.URL)
			warned, err := r.fetch(a)
			if err != nil {
				t.Fatalf("%v; warned of %q", err, warned)
			}
			if c.warn == "" && warned != "" || !strings.Contains(warned, c.warn) || strings.Count(warned, "\n") > 1 {
				t.Errorf("warned of %q, want %q", warned, c.warn)
			}
			if bad == nil {
				return
			}
			before := bad.count("")
			if before == 0 {
				t.Error("the bad cache was not asked")
			}
			if warned, err := r.fetch(b); err != nil || c.left && warned != "" {
				t.Errorf("second fetch: %v, warned of %q", err, warned)
			}
			if again := bad.count("") > before; again == c.left {
				t.Errorf("asked again: %v", again)
			}
		})
	}
}

// TestNoGoodCache has nobody else to ask.
func TestNoGoodCache(t *testing.T) {
	key := newKey(t, "k")
	a := newObject("a")
	d := newDepot(t, key, a)
	d.files["/nar/"+a.info.Path.Digest()+".nar"] = nil
	r := cached(t, key, deadURL(t), d.server.URL)
	_, err := r.fetch(a)
	if err == nil || !strings.Contains(err.Error(), a.info.Path.String()) || !strings.Contains(err.Error(), d.server.URL) {
		t.Errorf("error is %v", err)
	}
	gone := newObject("gone")
	if _, err := r.fetch(gone); err == nil || !strings.Contains(err.Error(), "there is no substituter that can build it") {
		t.Errorf("error is %v", err)
	}
}

// TestPriority asks the cache with the lower number only.
func TestPriority(t *testing.T) {
	key := newKey(t, "k")
	a := newObject("a")
	first, second := newDepot(t, key, a), newDepot(t, key, a)
	second.files["/nix-cache-info"] = []byte("StoreDir: /nix/store\nPriority: 10\n")
	r := cached(t, key, first.server.URL, second.server.URL)
	if _, err := r.fetch(a); err != nil {
		t.Fatal(err)
	}
	if first.count(".nar") != 0 || second.count(".nar") != 2 {
		t.Errorf("requests: %v, %v", first.asked, second.asked)
	}
	if r = cached(t, key, first.server.URL+"?priority=5", second.server.URL); true {
		if _, err := r.fetch(a); err != nil || first.count(".nar") != 2 || second.count(".nar") != 2 {
			t.Errorf("%v; requests: %v, %v", err, first.asked, second.asked)
		}
	}
}

// TestTrust: what needs no signature.
func TestTrust(t *testing.T) {
	a := newObject("a")
	d := newDepot(t, archive.SecretKey{}, a)
	r := cached(t, archive.SecretKey{}, d.server.URL)
	if _, err := r.fetch(a); err == nil {
		t.Error("an unsigned object was taken")
	}
	loose := r.build.Settings().Clone()
	loose.RequireSignatures = false
	if _, err := r.build.With(loose).Build(r.ctx, objects(a), build.Normal, nil); err != nil || !r.store.IsValid(a.info.Path) {
		t.Errorf("require-sigs = false: %v", err)
	}
	r = cached(t, archive.SecretKey{}, d.server.URL+"?trusted=true")
	if _, err := r.fetch(a); err != nil {
		t.Errorf("trusted=true: %v", err)
	}
	text := "hello\n"
	ca := store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum([]byte(text))}
	p, err := r.layout.Dir.ContentPath("proved", ca, store.References{})
	if err != nil {
		t.Fatal(err)
	}
	proved := objectAt(p).contains(text)
	proved.info.CA = ca
	d.put(proved)
	r = cached(t, archive.SecretKey{}, d.server.URL)
	if _, err := r.fetch(proved); err != nil {
		t.Errorf("content-addressed: %v", err)
	}
	key := newKey(t, "acl")
	if err := os.MkdirAll(r.layout.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.layout.ConfDir+"/acl", []byte(key.Public().String()+" import\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newObject("b")
	signed := newDepot(t, key, b)
	set := r.build.Settings().Clone()
	set.Substituters = []string{signed.server.URL}
	if _, err := r.build.With(set).Build(r.ctx, objects(b), build.Normal, nil); err != nil || !r.store.IsValid(b.info.Path) {
		t.Errorf("key of the access list: %v", err)
	}
}

// TestNoNegativeMemory finds what was pushed after somebody has asked for it in vain.
func TestNoNegativeMemory(t *testing.T) {
	key := newKey(t, "k")
	a := newObject("a")
	d := newDepot(t, key)
	r := cached(t, key, d.server.URL)
	if _, err := r.fetch(a); err == nil {
		t.Fatal("what is not there was fetched")
	}
	d.put(a)
	if _, err := r.fetch(a); err != nil {
		t.Error(err)
	}
}

// TestReferenceCircle refuses objects that refer to each other.
func TestReferenceCircle(t *testing.T) {
	key := newKey(t, "k")
	a, b := newObject("a"), newObject("b")
	a.info.References, b.info.References = []store.Path{b.info.Path}, []store.Path{a.info.Path}
	r := cached(t, key, newDepot(t, key, a, b).server.URL)
	if _, err := r.fetch(a); err == nil {
		t.Error("a circle was fetched")
	}
}

// outputObject makes what a cache has for an output.
func (r *rig) outputObject(d store.Path, output, text string) *object {
	r.Helper()
	full, err := r.store.Derivation(d)
	if err != nil {
		r.Fatal(err)
	}
	return objectAt(full.Outputs[output].Path).contains(text)
}

func TestFetchOutputs(t *testing.T) {
	key := newKey(t, "k")
	d := newDepot(t, key)
	r := cached(t, key, d.server.URL)
	low := r.add(drv{name: "low", script: "echo built > $out"})
	top := r.add(drv{name: "top", script: "read x < @low@; echo $x > $out", inputs: map[string]store.Path{"low": low}})
	d.put(r.outputObject(low, "out", "fetched\n"))
	m, err := r.build.Missing(r.ctx, all(top), nil)
	if err != nil || len(m.Build) != 1 || m.Build[0] != top || len(m.Substitute) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if got := r.read(r.realise(top)); got != "fetched\n" {
		t.Errorf("top is %q", got)
	}
	if res := r.result(low); res.Status != protocol.AlreadyValid {
		t.Errorf("low: %v", res.Status)
	}
	direct := r.add(drv{name: "direct", script: "exit 1", outputs: []string{"out", "dev"}})
	d.put(r.outputObject(direct, "out", "o"), r.outputObject(direct, "dev", "d"))
	if res := r.result(direct); res.Status != protocol.Substituted || res.Outputs["dev"].OutPath.IsZero() {
		t.Errorf("direct: %+v", res)
	}
	// All wanted outputs or none.
	half := r.add(drv{name: "half", script: "echo b > $out; echo b > $dev", outputs: []string{"out", "dev"}})
	d.put(r.outputObject(half, "out", "fetched"))
	if res := r.result(half); res.Status != protocol.Built || r.read(res.Outputs["out"].OutPath) != "b\n" {
		t.Errorf("half: %+v", res)
	}
	own := r.add(drv{name: "own", script: "echo built > $out", env: map[string]string{"allowSubstitutes": ""}})
	d.put(r.outputObject(own, "out", "fetched"))
	if res := r.result(own); res.Status != protocol.Built {
		t.Errorf("allowSubstitutes: %v", res.Status)
	}
	off := r.build.Settings().Clone()
	off.Substitute = false
	alone := r.add(drv{name: "alone", script: "echo built > $out"})
	d.put(r.outputObject(alone, "out", "fetched"))
	if list, err := r.build.With(off).Build(r.ctx, all(alone), build.Normal, nil); err != nil || list[0].Status != protocol.Built {
		t.Errorf("substitute = false: %+v, %v", list, err)
	}
}

// TestFetchFailsBuild builds what could not be fetched after all, and keeps what else runs.
func TestFetchFailsBuild(t *testing.T) {
	key := newKey(t, "k")
	d := newDepot(t, key)
	r := cached(t, key, d.server.URL)
	low := r.add(drv{name: "low", script: "echo built > $out"})
	other := r.add(drv{name: "other", script: "echo other > $out"})
	top := r.add(drv{name: "top", script: "read x < @low@; read y < @other@; echo $x $y > $out", inputs: map[string]store.Path{"low": low, "other": other}})
	o := r.outputObject(low, "out", "fetched\n")
	d.put(o)
	d.mu.Lock()
	d.files["/nar/"+o.info.Path.Digest()+".nar"] = []byte("rubbish")
	d.mu.Unlock()
	rec := &recorder{}
	list, err := r.build.Build(r.ctx, all(top), build.Normal, rec)
	if err != nil || !list[0].Status.OK() {
		t.Fatalf("%+v, %v", list, err)
	}
	if got := r.read(list[0].Outputs["out"].OutPath); got != "built other\n" {
		t.Errorf("top is %q", got)
	}
	if n := rec.count(build.Started); n != 3 {
		t.Errorf("%d builds, want 3", n)
	}
}

// TestFetchFailsOneTarget plans again for the target that needs it, and for no other: what was built stays built, what failed is not
// tried twice.
func TestFetchFailsOneTarget(t *testing.T) {
	key := newKey(t, "k")
	d := newDepot(t, key)
	d.manners = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/nar/") {
			time.Sleep(500 * time.Millisecond) // so that the others are done
		}
		return false
	}
	r := cached(t, key, d.server.URL)
	low := r.add(drv{name: "low", script: "echo built > $out"})
	top := r.add(drv{name: "top", script: "read x < @low@; echo $x > $out", inputs: map[string]store.Path{"low": low}})
	good := r.add(drv{name: "good", script: "echo good > $out"})
	fails := r.add(drv{name: "fails", script: "exit 1"})
	o := r.outputObject(low, "out", "fetched\n")
	d.put(o)
	d.mu.Lock()
	d.files["/nar/"+o.info.Path.Digest()+".nar"] = []byte("rubbish")
	d.mu.Unlock()
	going := r.build.Settings().Clone()
	going.KeepGoing = true
	rec := &recorder{}
	list, err := r.build.With(going).Build(r.ctx, all(top, good, fails), build.Normal, rec)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []protocol.Status{protocol.Built, protocol.Built, protocol.PermanentFailure} {
		if list[i].Status != want {
			t.Errorf("target %d: %v %s, want %v", i, list[i].Status, list[i].Error, want)
		}
	}
	if n := rec.count(build.Started); n != 4 {
		t.Errorf("%d builds, want 4", n)
	}
}

// TestFetchSources fetches sources of a derivation that came without them, and a derivation that is not here.
func TestFetchSources(t *testing.T) {
	key := newKey(t, "k")
	src := newObject("src")
	d := newDepot(t, key, src)
	r := cached(t, key, d.server.URL)
	full := r.make(drv{name: "d", script: "read x < " + src.info.Path.String() + "; echo $x > $out"})
	full.InputSrcs = []store.Path{src.info.Path}
	if err := r.hashes.FillOutputs(full, r.layout.Dir); err != nil {
		t.Fatal(err)
	}
	p, err := full.Path(r.layout.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if res := r.build.BuildDerivation(r.ctx, p, full, build.Normal, nil); res.Status != protocol.Built {
		t.Errorf("%+v", res)
	}
	drvObject := objectAt(p, src).contains(string(full.ATerm()))
	drvObject.info.CA = store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum(full.ATerm())}
	d.put(drvObject)
	r = cached(t, key, d.server.URL)
	if res := r.result(p); res.Status != protocol.Built {
		t.Errorf("%+v", res)
	}
}

// TestFetchFloating finds outputs by realisations.
func TestFetchFloating(t *testing.T) {
	key := newKey(t, "k")
	maker := newRig(t, nil)
	d := newDepot(t, key)
	lines := func(r *rig) (store.Path, store.Path) {
		low := r.add(drv{name: "low", kind: derivation.Floating, script: "echo low > $out"})
		return low, r.add(drv{name: "top", kind: derivation.Floating, script: "echo @low@ > $out", inputs: map[string]store.Path{"low": low}})
	}
	low, top := lines(maker)
	publish := func(drv store.Path, sign bool) store.Path {
		res := maker.result(drv).Outputs["out"]
		info, err := maker.store.Info(maker.ctx, res.OutPath)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := maker.store.NAR(maker.ctx, res.OutPath, &b); err != nil {
			t.Fatal(err)
		}
		d.put(&object{info: *info, nar: b.Bytes()})
		if sign {
			res.Signatures = []string{key.SignRealisation(&res)}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.files["/"+cache.RealisationName(res.ID)] = []byte(res.JSON())
		return res.OutPath
	}
	publish(low, true)
	want := publish(top, true)
	r := cached(t, key, d.server.URL)
	lines(r)
	res := r.result(top)
	if res.Status != protocol.Substituted || res.Outputs["out"].OutPath != want {
		t.Fatalf("%+v", res)
	}
	if got, err := r.store.Realisation(res.Outputs["out"].ID); err != nil || len(got.Signatures) != 1 || len(got.Dependents) != 1 {
		t.Errorf("realisation: %+v, %v", got, err)
	}
	// So does a cache of the other generation, by the derivation's path.
	for name := range d.files {
		if strings.HasPrefix(name, "/realisations/") {
			delete(d.files, name)
		}
	}
	trace := cache.Trace{Drv: top, Output: "out", OutPath: want}
	trace.Signatures = []string{key.Sign([]byte(trace.Fingerprint()))}
	d.files["/"+cache.TraceName(top, "out")] = []byte(trace.JSON())
	r = cached(t, key, d.server.URL)
	lines(r)
	if res := r.result(top); res.Status != protocol.Substituted || res.Outputs["out"].OutPath != want {
		t.Errorf("trace: %+v", res)
	}
	if got, err := r.store.LinkedOutput(top, "out"); err != nil || len(got.Signatures) != 1 {
		t.Errorf("trace: %+v, %v", got, err)
	}
	delete(d.files, "/"+cache.TraceName(top, "out"))
	// Without a signature it is built.
	publish(low, false)
	publish(top, false)
	r = cached(t, key, d.server.URL)
	lines(r)
	if res := r.result(top); res.Status == protocol.Substituted || res.Outputs["out"].OutPath != want {
		t.Errorf("unsigned: %+v", res)
	}
}

// TestFetchFromOtherStore finds a fixed output in a cache of another store directory.
func TestFetchFromOtherStore(t *testing.T) {
	text := "the same everywhere\n"
	ca := store.ContentAddress{Method: store.Flat, Hash: store.SHA256.Sum([]byte(text))}
	p, err := store.Dir("/gnu/store").FixedPath("file", ca, store.References{})
	if err != nil {
		t.Fatal(err)
	}
	d := newDepot(t, archive.SecretKey{}, objectAt(p).contains(text))
	d.files["/nix-cache-info"] = []byte("StoreDir: /gnu/store\n")
	r := cached(t, archive.SecretKey{}, d.server.URL+"?store=/gnu/store")
	file := r.add(drv{name: "file", script: "exit 1", hash: ca.Hash.String(), method: store.Flat})
	res := r.result(file)
	if res.Status != protocol.Substituted || r.read(res.Outputs["out"].OutPath) != text {
		t.Fatalf("%+v", res)
	}
	if info, err := r.store.Info(r.ctx, res.Outputs["out"].OutPath); err != nil || info.CA != ca {
		t.Errorf("%+v, %v", info, err)
	}
	other := r.add(drv{name: "other", script: "echo > $out"})
	if res := r.result(other); res.Status != protocol.Built {
		t.Errorf("%+v", res)
	}
	// One with other contents is not taken.
	d.put(objectAt(p).contains("another thing\n"))
	r = cached(t, archive.SecretKey{}, d.server.URL+"?store=/gnu/store")
	file = r.add(drv{name: "file", script: "echo 'the same everywhere' > $out", hash: ca.Hash.String(), method: store.Flat})
	if res := r.result(file); res.Status != protocol.Built {
		t.Errorf("%+v", res)
	}
}

// TestSharedFetch has two requests wait for one download, which ends when both have left.
func TestSharedFetch(t *testing.T) {
	key := newKey(t, "k")
	a := newObject("a")
	d := newDepot(t, key, a)
	left := make(chan struct{})
	d.manners = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/nar/") {
			return false
		}
		w.Write(a.nar[:10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(left)
		return true
	}
	r := cached(t, key, d.server.URL)
	ended := make(chan error, 2)
	var stops []context.CancelFunc
	for range 2 {
		ctx, stop := context.WithCancel(r.ctx)
		stops = append(stops, stop)
		rec := &recorder{}
		go func() {
			_, err := r.build.Build(ctx, objects(a), build.Normal, rec)
			ended <- err
		}()
		wait(t, "the download has begun", func() bool { return rec.count(build.Fetching) == 1 })
	}
	if n := d.count("/nar/"); n != 1 {
		t.Errorf("%d downloads, want 1", n)
	}
	stops[0]()
	if err := <-ended; err == nil {
		t.Error("a cancelled request succeeded")
	}
	select {
	case <-left:
		t.Fatal("the download ended with the first request")
	case <-time.After(50 * time.Millisecond):
	}
	stops[1]()
	<-ended
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Error("the download goes on though nobody waits for it")
	}
}

// TestDeepPlan asks caches that have nothing for a deep chain, in few rounds.
func TestDeepPlan(t *testing.T) {
	key := newKey(t, "k")
	d := newDepot(t, key)
	r := cached(t, key, d.server.URL)
	in := r.add(drv{name: "d0", script: "echo > $out"})
	for i := range 60 {
		in = r.add(drv{name: fmt.Sprintf("d%d", i+1), script: "echo @in@ > $out", inputs: map[string]store.Path{"in": in}})
	}
	m, err := r.build.Missing(r.ctx, all(in), nil)
	if err != nil || len(m.Build) != 61 {
		t.Fatalf("%d to build, %v", len(m.Build), err)
	}
	if n := d.count(".narinfo"); n != 61 {
		t.Errorf("%d questions, want 61", n)
	}
}
