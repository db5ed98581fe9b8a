package serve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/archive/cache/serve"
	"cairn/archive/nar"
	"cairn/store"
)

const dir store.Dir = "/nix/store"

// shelf is a store of two files' archives.
type shelf struct {
	mu    sync.Mutex
	infos map[string]*store.Info
	nars  map[store.Path][]byte
	asked atomic.Int64
	hold  chan struct{} // not nil: archives wait for it
	fail  bool          // archives break in the middle
	keep  atomic.Bool   // nothing is given away
}

func newShelf(tb testing.TB) (*shelf, []*store.Info) {
	s := &shelf{infos: map[string]*store.Info{}, nars: map[store.Path][]byte{}}
	return s, []*store.Info{s.add(tb, "small", []byte("hello")), s.add(tb, "large", bytes.Repeat([]byte("0123456789abcdef"), 100_000))}
}

func (s *shelf) add(tb testing.TB, name string, data []byte) *store.Info {
	var b bytes.Buffer
	if err := nar.DumpString(&b, data, false); err != nil {
		tb.Fatal(err)
	}
	hash := store.SHA256.Sum(b.Bytes())
	p, err := dir.SourcePath(name, hash, store.References{})
	if err != nil {
		tb.Fatal(err)
	}
	i := &store.Info{Path: p, NarHash: hash, NarSize: int64(b.Len())}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.infos[p.Digest()], s.nars[p] = i, b.Bytes()
	return i
}

func (s *shelf) remove(p store.Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.infos, p.Digest())
	delete(s.nars, p)
}

func (s *shelf) Info(ctx context.Context, p store.Path) (*store.Info, error) {
	return s.ByDigest(ctx, p.Digest())
}

func (s *shelf) ByDigest(_ context.Context, digest string) (*store.Info, error) {
	s.asked.Add(1)
	if s.keep.Load() {
		return nil, fmt.Errorf("%s is damaged: %w", digest, serve.ErrWithheld)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.infos[digest]; i != nil {
		return i, nil
	}
	return nil, store.ErrNotValid
}

func (s *shelf) NAR(ctx context.Context, p store.Path, w io.Writer) error {
	if s.keep.Load() {
		return errors.New("it is damaged")
	}
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	data := s.nars[p]
	s.mu.Unlock()
	if data == nil {
		return store.ErrNotValid
	}
	if s.fail {
		w.Write(data[:len(data)/2])
		return errors.New("the disk broke")
	}
	for len(data) > 0 {
		n := min(len(data), 32<<10)
		if _, err := w.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (s *shelf) Log(_ context.Context, drv store.Path, w io.Writer) error {
	if drv.Name() != "x.drv" {
		return store.ErrNotValid
	}
	_, err := io.WriteString(w, "built\n")
	return err
}

func (s *shelf) Realisation(_ context.Context, id store.DrvOutput) (*store.Realisation, error) {
	for _, i := range s.infos {
		if id.Output == i.Path.Name() {
			return &store.Realisation{ID: id, OutPath: i.Path}, nil
		}
	}
	return nil, store.ErrNotValid
}

func (s *shelf) Output(_ context.Context, _ store.Path, output string) (store.Path, error) {
	for _, i := range s.infos {
		if output == i.Path.Name() {
			return i.Path, nil
		}
	}
	return store.Path{}, store.ErrNotValid
}

func start(tb testing.TB, s *shelf, opts *serve.Options) string {
	tb.Helper()
	server := httptest.NewServer(serve.New(dir, s, opts))
	tb.Cleanup(server.Close)
	return server.URL
}

// get asks with headers, "Name: value" each.
func get(tb testing.TB, method, url string, heads ...string) (*http.Response, []byte) {
	tb.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	for _, h := range heads {
		k, v, _ := strings.Cut(h, ": ")
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp, body
}

func TestOurReaderReadsIt(t *testing.T) {
	key, err := archive.GenerateKey("k-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []archive.Compression{archive.Zstd, archive.Uncompressed} {
		s, infos := newShelf(t)
		b, err := cache.Open(start(t, s, &serve.Options{Keys: []archive.SecretKey{key}, Compression: c, Priority: 7}), dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer cache.CloseIdle(b)
		if i, err := b.Info(t.Context()); err != nil || i.Priority != 7 || !i.WantMassQuery {
			t.Errorf("%+v, %v", i, err)
		}
		for _, want := range infos {
			n, err := b.NarInfo(t.Context(), want.Path)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := archive.VerifyInfo(&n.Info, []archive.PublicKey{key.Public()}); !ok {
				t.Error("is not signed")
			}
			r, err := b.NAR(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, s.nars[want.Path]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			r.Close()
			l, err := cache.Listing(t.Context(), b, want.Path)
			if err != nil || l.Root.Size == nil || *l.Root.Size == 0 {
				t.Errorf("%+v, %v", l, err)
			}
		}
		drv, _ := dir.Path("00000000000000000000000000000000-x.drv")
		if log, err := cache.Log(t.Context(), b, drv); err != nil {
			t.Error(err)
		} else if text, err := io.ReadAll(log); err != nil || string(text) != "built\n" {
			t.Errorf("log %q, %v", text, err)
		}
		if r, err := cache.Realisation(t.Context(), b, store.DrvOutput{Drv: infos[0].NarHash, Output: "small"}); err != nil || r.OutPath != infos[0].Path || len(r.Signatures) != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		if r, err := cache.Traced(t.Context(), b, drv, "small"); err != nil || r.OutPath != infos[0].Path || len(r.Signatures) != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		if _, err := cache.Traced(t.Context(), b, drv, "none"); !errors.Is(err, store.ErrNotValid) {
			t.Errorf("got %v", err)
		}
	}
}

func TestRanges(t *testing.T) {
	s, infos := newShelf(t)
	i := infos[1]
	uri := start(t, s, nil) + "/nar/" + i.Path.Digest() + "-" + i.NarHash.Nix32() + ".nar"
	all := s.nars[i.Path]
	tag := `"` + i.NarHash.Nix32() + `"`
	size := strconv.Itoa(len(all))
	for spec, c := range map[string]struct {
		status   int
		from, to int
		heads    []string
	}{
		"":                    {200, 0, len(all), nil},
		"bytes=0-":            {206, 0, len(all), nil},
		"bytes=100-199":       {206, 100, 200, nil},
		"bytes=1000000-":      {206, 1000000, len(all), nil},
		"bytes=-10":           {206, len(all) - 10, len(all), nil},
		"bytes=-99999999":     {206, 0, len(all), nil},
		"bytes=5-99999999":    {206, 5, len(all), nil},
		"bytes=0-0":           {206, 0, 1, nil},
		"bytes=0-1,5-6":       {200, 0, len(all), nil},
		"bytes=9-5":           {200, 0, len(all), nil},
		"bytes=x-":            {200, 0, len(all), nil},
		"bytes=-0":            {200, 0, len(all), nil},
		"lines=1-2":           {200, 0, len(all), nil},
		"bytes=" + size + "-": {416, 0, 0, nil},
		"bytes=7-8":           {206, 7, 9, []string{"If-Range: " + tag}},
		"bytes=7-9":           {200, 0, len(all), []string{`If-Range: "other"`}},
	} {
		heads := c.heads
		if spec != "" {
			heads = append(heads, "Range: "+spec)
		}
		resp, body := get(t, "GET", uri, heads...)
		if resp.StatusCode != c.status || c.status != 416 && !bytes.Equal(body, all[c.from:c.to]) {
			t.Errorf("%q: status %d, %d bytes", spec, resp.StatusCode, len(body))
		}
		if want := "bytes " + strconv.Itoa(c.from) + "-" + strconv.Itoa(c.to-1) + "/" + size; c.status == 206 && resp.Header.Get("Content-Range") != want {
			t.Errorf("%q: %s", spec, resp.Header.Get("Content-Range"))
		}
		if resp, body = get(t, "HEAD", uri, heads...); resp.StatusCode != c.status || len(body) != 0 {
			t.Errorf("HEAD %q: status %d, %d bytes", spec, resp.StatusCode, len(body))
		}
	}
}

func TestNotModified(t *testing.T) {
	s, infos := newShelf(t)
	uri := start(t, s, nil)
	name := "/" + infos[1].Path.Digest()
	nar := "/nar/" + infos[1].Path.Digest() + "-" + infos[1].NarHash.Nix32() + ".nar"
	for _, path := range []string{"/nix-cache-info", name + ".narinfo", name + ".ls", nar, nar + ".zst"} {
		resp, body := get(t, "GET", uri+path)
		tag := resp.Header.Get("ETag")
		if resp.StatusCode != 200 || tag == "" || len(body) == 0 {
			t.Errorf("%s: %d, %q", path, resp.StatusCode, tag)
		}
		for _, have := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
			if resp, body = get(t, "GET", uri+path, "If-None-Match: "+have); resp.StatusCode != 304 || len(body) != 0 {
				t.Errorf("%s: %d for %s", path, resp.StatusCode, have)
			}
		}
		if resp, _ = get(t, "GET", uri+path, `If-None-Match: "other"`); resp.StatusCode != 200 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestRefuses(t *testing.T) {
	s, infos := newShelf(t)
	uri := start(t, s, nil)
	digest, hash := infos[0].Path.Digest(), infos[0].NarHash.Nix32()
	for path, want := range map[string]int{
		"/": 404, "/x": 404, "/x.narinfo": 404, "/" + strings.Repeat("0", 32) + ".narinfo": 404, "/nar/": 404, "/nar/x": 404, "/nar/" + digest + ".nar": 404,
		"/nar/" + digest + "-" + infos[1].NarHash.Nix32() + ".nar": 404, "/nar/" + digest + "-" + hash + ".nar.xz": 404, "/nar/" + digest + "-" + hash + ".nar": 200,
		"/log/x": 404, "/log/../etc/passwd": 404, "/log/" + strings.Repeat("0", 32) + "-none.drv": 404, "/realisations/x.doi": 404, "/build-trace-v2/x/out.doi": 404,
		"/build-trace-v2/" + strings.Repeat("0", 32) + "-x.drv/..doi": 404, "/metrics": 200,
	} {
		if resp, _ := get(t, "GET", uri+path); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	for _, method := range []string{"PUT", "POST", "DELETE"} {
		if resp, _ := get(t, method, uri+"/nix-cache-info"); resp.StatusCode != 405 || resp.Header.Get("Allow") == "" {
			t.Errorf("%s: %d", method, resp.StatusCode)
		}
	}
	resp, err := http.Post(uri+"/nix-cache-info", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Errorf("content: %d", resp.StatusCode)
	}
}

// TestWithheld has objects found to be damaged after one was described: it is forgotten when its archive cannot be read, and is not there then.
func TestWithheld(t *testing.T) {
	s, infos := newShelf(t)
	var log bytes.Buffer
	url := start(t, s, &serve.Options{Logger: slog.New(slog.NewTextHandler(&log, nil)), Fresh: time.Hour})
	narInfo := url + "/" + infos[0].Path.Digest() + ".narinfo"
	archive := url + "/nar/" + infos[0].Path.Digest() + "-" + infos[0].NarHash.Nix32() + ".nar"
	if resp, _ := get(t, "GET", narInfo); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	s.keep.Store(true)
	if resp, _ := get(t, "GET", archive); resp.StatusCode != 500 {
		t.Errorf("an archive that cannot be read: %s", resp.Status)
	}
	for _, u := range []string{narInfo, archive, archive + ".zst", url + "/" + infos[0].Path.Digest() + ".ls"} {
		log.Reset()
		if resp, body := get(t, "GET", u); resp.StatusCode != 404 || strings.Contains(string(body), "damaged") {
			t.Errorf("%s: %s: %s", u, resp.Status, body)
		}
		if !strings.Contains(log.String(), "is damaged") {
			t.Errorf("%s: log %q", u, log.String())
		}
	}
	s.keep.Store(false)
	if resp, _ := get(t, "GET", narInfo); resp.StatusCode != 200 {
		t.Errorf("mended: %s", resp.Status)
	}
}

func TestMemory(t *testing.T) {
	s, infos := newShelf(t)
	uri := start(t, s, &serve.Options{Fresh: 300 * time.Millisecond, Remembered: 4})
	narinfo := uri + "/" + infos[0].Path.Digest() + ".narinfo"
	for range 20 {
		get(t, "GET", narinfo)
	}
	if n := s.asked.Load(); n > 10 {
		t.Errorf("the store was asked %d times for one object", n)
	}
	// What is gone is gone after a while, what is new is there at once.
	s.remove(infos[0].Path)
	time.Sleep(400 * time.Millisecond)
	if resp, _ := get(t, "GET", narinfo); resp.StatusCode != 404 {
		t.Errorf("gone, and %d", resp.StatusCode)
	}
	s.add(t, "small", []byte("hello"))
	if resp, _ := get(t, "GET", narinfo); resp.StatusCode != 200 {
		t.Errorf("there, and %d", resp.StatusCode)
	}
	for i := range 50 {
		o := s.add(t, "o"+strconv.Itoa(i), []byte{byte(i)})
		if resp, body := get(t, "GET", uri+"/"+o.Path.Digest()+".narinfo"); resp.StatusCode != 200 || !strings.Contains(string(body), o.Path.String()) {
			t.Errorf("%s: %d", o.Path, resp.StatusCode)
		}
	}
}

func TestBrokenArchiveBreaksTheConnection(t *testing.T) {
	s, infos := newShelf(t)
	s.fail = true
	uri := start(t, s, nil) + "/nar/" + infos[1].Path.Digest() + "-" + infos[1].NarHash.Nix32() + ".nar"
	for _, suffix := range []string{"", ".zst"} {
		resp, err := http.Get(uri + suffix)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err == nil {
			t.Errorf("%q: half an archive looks whole", suffix)
		}
	}
}

func TestBusy(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the queue")
	}
	s, infos := newShelf(t)
	s.hold = make(chan struct{})
	uri := start(t, s, &serve.Options{Streams: 1})
	nar := uri + "/nar/" + infos[0].Path.Digest() + "-" + infos[0].NarHash.Nix32() + ".nar"
	first := make(chan int, 1)
	go func() {
		resp, err := http.Get(nar)
		if err != nil {
			first <- 0
			return
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		first <- resp.StatusCode
	}()
	for {
		if _, body := get(t, "GET", uri+"/metrics"); strings.Contains(string(body), "cairn_cache_streams 1") {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	resp, _ := get(t, "GET", nar)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("second: %d", resp.StatusCode)
	}
	close(s.hold)
	if code := <-first; code != 200 {
		t.Errorf("first: %d", code)
	}
}

// TestServe has clients of all sorts, then ends.
func TestServe(t *testing.T) {
	before := runtime.NumGoroutine()
	s, infos := newShelf(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	server := serve.New(dir, s, &serve.Options{Connections: 8, Patience: time.Second})
	go func() { served <- server.Serve(ctx, l, 5*time.Second) }()
	uri := "http://" + l.Addr().String()
	nar := "/nar/" + infos[1].Path.Digest() + "-" + infos[1].NarHash.Nix32() + ".nar"

	// One that takes nothing of what it asked for, many times over; the others must not notice.
	slow, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	for range 200 {
		io.WriteString(slow, "GET "+nar+" HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	// More than there may be: they are closed.
	var idle []net.Conn
	for range 30 {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			idle = append(idle, c)
		}
	}
	for _, c := range idle {
		c.Close()
	}
	client := &http.Client{Transport: &http.Transport{}}
	for range 50 { // until slots are free again
		resp, err := client.Get(uri + nar)
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, s.nars[infos[1].Path]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		break
	}
	client.CloseIdleConnections()
	slow.SetReadDeadline(time.Now().Add(20 * time.Second))
	time.Sleep(1500 * time.Millisecond)
	n, err := io.Copy(io.Discard, slow)
	if max := int64(len(s.nars[infos[1].Path])) * 100; err != nil && errors.Is(err, context.DeadlineExceeded) || n > max {
		t.Errorf("the slow client got %d bytes, %v", n, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	for range 100 {
		if runtime.NumGoroutine() <= before+2 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

func BenchmarkNarInfo(b *testing.B) {
	s, infos := newShelf(b)
	server := serve.New(dir, s, nil)
	r := httptest.NewRequest("GET", "/"+infos[0].Path.Digest()+".narinfo", nil)
	for b.Loop() {
		w := httptest.NewRecorder()
		if server.ServeHTTP(w, r); w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}
