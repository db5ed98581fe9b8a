package cache_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/store"
)

// object is one in a cache of the test's own.
type object struct {
	*cache.NarInfo
	nar, packed []byte
}

// newObject makes an object of a file, packed.
func newObject(tb testing.TB, name string, data []byte, c archive.Compression) *object {
	tb.Helper()
	var plain, packed bytes.Buffer
	if err := nar.DumpString(&plain, data, false); err != nil {
		tb.Fatal(err)
	}
	w, err := archive.NewCompressor(&packed, c)
	if err != nil {
		tb.Fatal(err)
	}
	w.Write(plain.Bytes())
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	hash := store.SHA256.Sum(plain.Bytes())
	p, err := dir.SourcePath(name, hash, store.References{})
	if err != nil {
		tb.Fatal(err)
	}
	n := &cache.NarInfo{
		Info:     store.Info{Path: p, NarHash: hash, NarSize: int64(plain.Len()), CA: store.ContentAddress{Method: store.Recursive, Hash: hash}},
		URL:      "nar/" + name + ".nar",
		FileHash: store.SHA256.Sum(packed.Bytes()), FileSize: int64(packed.Len()), Compression: string(c),
	}
	return &object{n, plain.Bytes(), packed.Bytes()}
}

func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHostileArchives(t *testing.T) {
	good := newObject(t, "good", noise(200_000), archive.Zstd)
	bomb := newObject(t, "bomb", make([]byte, 96<<20), archive.Zstd)
	change := func(fn func(n *cache.NarInfo)) *cache.NarInfo {
		n := *good.NarInfo
		fn(&n)
		return &n
	}
	flipped := bytes.Clone(good.packed)
	flipped[len(flipped)/2] ^= 1
	same := func(n *cache.NarInfo) {}
	forget := func(n *cache.NarInfo) { n.FileHash, n.FileSize = store.Hash{}, 0 }
	for name, c := range map[string]struct {
		info *cache.NarInfo
		body io.Reader
		want error
	}{
		"good":                  {change(same), bytes.NewReader(good.packed), nil},
		"no file hash":          {change(forget), bytes.NewReader(good.packed), nil},
		"wrong NarHash":         {change(func(n *cache.NarInfo) { n.NarHash = n.FileHash }), bytes.NewReader(good.packed), store.ErrHashMismatch},
		"wrong FileHash":        {change(func(n *cache.NarInfo) { n.FileHash = n.NarHash }), bytes.NewReader(good.packed), store.ErrHashMismatch},
		"NarSize too small":     {change(func(n *cache.NarInfo) { n.NarSize-- }), bytes.NewReader(good.packed), cache.ErrFormat},
		"NarSize too large":     {change(func(n *cache.NarInfo) { n.NarSize++ }), bytes.NewReader(good.packed), cache.ErrFormat},
		"FileSize too small":    {change(func(n *cache.NarInfo) { n.FileSize-- }), bytes.NewReader(good.packed), cache.ErrFormat},
		"FileSize too large":    {change(func(n *cache.NarInfo) { n.FileSize++ }), bytes.NewReader(good.packed), cache.ErrUnavailable},
		"a byte is wrong":       {change(forget), bytes.NewReader(flipped), errAny},
		"truncated":             {change(forget), bytes.NewReader(good.packed[:50_000]), cache.ErrFormat},
		"empty":                 {change(forget), bytes.NewReader(nil), cache.ErrFormat},
		"not packed so":         {change(func(n *cache.NarInfo) { forget(n); n.Compression = "xz" }), bytes.NewReader(good.packed), cache.ErrFormat},
		"something follows":     {change(forget), io.MultiReader(bytes.NewReader(good.packed), bytes.NewReader(make([]byte, 100))), cache.ErrFormat},
		"endless":               {change(func(n *cache.NarInfo) { forget(n); n.Compression = "none" }), zeros{}, cache.ErrFormat},
		"endless after the end": {change(forget), io.MultiReader(bytes.NewReader(good.packed), zeros{}), cache.ErrFormat},
		"bomb":                  {change(func(n *cache.NarInfo) { n.FileHash, n.FileSize = bomb.FileHash, bomb.FileSize }), bytes.NewReader(bomb.packed), cache.ErrFormat},
		"unknown compression":   {change(func(n *cache.NarInfo) { n.Compression = "rar" }), bytes.NewReader(good.packed), errAny},
		"another scheme":        {change(func(n *cache.NarInfo) { n.URL = "file:///etc/passwd" }), bytes.NewReader(good.packed), errAny},
		"credentials in URL":    {change(func(n *cache.NarInfo) { n.URL = "http://u:p@127.0.0.1/x" }), bytes.NewReader(good.packed), cache.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/nar/") {
					io.Copy(w, c.body)
					return
				}
				http.NotFound(w, r)
			}))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			err := drain(t, open(t, uri, fast()), c.info)
			runtime.ReadMemStats(&after)
			if c.want == nil && err != nil || c.want != nil && (err == nil || c.want != errAny && !errors.Is(err, c.want)) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 64 {
				t.Errorf("took %d MiB", took)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

var errAny = errors.New("any")

// drain reads an archive to its end.
func drain(tb testing.TB, c cache.Cache, n *cache.NarInfo) error {
	r, err := c.NAR(tb.Context(), n)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

func TestHostileNarInfos(t *testing.T) {
	good := newObject(t, "good", []byte("hello"), archive.Uncompressed)
	other := newObject(t, "other", []byte("hello"), archive.Uncompressed)
	text := good.Text()
	for name, c := range map[string]struct {
		handle http.HandlerFunc
		want   error
	}{
		"good":         {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }, nil},
		"gzip":         {func(w http.ResponseWriter, r *http.Request) { encoded(w, text) }, nil},
		"another path": {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, other.Text()) }, cache.ErrFormat},
		"another store": {func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, strings.Replace(text, "/nix/", "/gnu/", 1))
		}, errAny},
		"a page":          {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>log in</html>\n") }, cache.ErrFormat},
		"huge":            {func(w http.ResponseWriter, r *http.Request) { io.Copy(w, io.LimitReader(zeros{}, 64<<20)) }, cache.ErrFormat},
		"endless":         {func(w http.ResponseWriter, r *http.Request) { io.Copy(w, zeros{}) }, cache.ErrFormat},
		"endless in gzip": {func(w http.ResponseWriter, r *http.Request) { encodedZeros(w) }, cache.ErrFormat},
		"not gzip": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, text)
		}, cache.ErrFormat},
		"unknown encoding": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "rar")
			io.WriteString(w, text)
		}, cache.ErrFormat},
		"cut": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, text)
		}, cache.ErrUnavailable},
		"404":           {http.NotFound, store.ErrNotValid},
		"410":           {answer(410), store.ErrNotValid},
		"403":           {answer(403), store.ErrNotValid},
		"401":           {answer(401), cache.ErrUnavailable},
		"400":           {answer(400), cache.ErrUnavailable},
		"500":           {answer(500), cache.ErrUnavailable},
		"503":           {answer(503), cache.ErrUnavailable},
		"304":           {answer(304), cache.ErrUnavailable},
		"redirect loop": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", 302) }, cache.ErrFormat},
		"redirect to a file": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(302)
		}, cache.ErrFormat},
		"retry after an hour": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(503)
		}, cache.ErrUnavailable},
		"huge head": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Much", strings.Repeat("x", 1<<20))
			io.WriteString(w, text)
		}, cache.ErrUnavailable},
		"silence": {func(w http.ResponseWriter, r *http.Request) { sleep(r, time.Minute) }, cache.ErrUnavailable},
		"silence after head": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			sleep(r, time.Minute)
		}, cache.ErrUnavailable},
		"a byte at a time": {func(w http.ResponseWriter, r *http.Request) {
			for i := range text {
				io.WriteString(w, text[i:i+1])
				w.(http.Flusher).Flush()
				sleep(r, 100*time.Millisecond)
			}
		}, cache.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := fast()
			opts.StalledTimeout, opts.Attempts = time.Minute, 2
			if c.want == cache.ErrUnavailable {
				opts.StalledTimeout = 4 * time.Second // who comes later than that, on a busy machine, is as unavailable
			}
			start := time.Now()
			n, err := open(t, serve(t, c.handle), opts).NarInfo(t.Context(), good.Path)
			if c.want == nil && err != nil || c.want != nil && (err == nil || c.want != errAny && !errors.Is(err, c.want)) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err == nil && n.Text() != text {
				t.Errorf("got %s", n.Text())
			}
			if d := time.Since(start); d > 50*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

func answer(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func sleep(r *http.Request, d time.Duration) {
	select {
	case <-r.Context().Done():
	case <-time.After(d):
	}
}

func encoded(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	io.WriteString(z, text)
	z.Close()
}

func encodedZeros(w http.ResponseWriter) {
	w.Header().Set("Content-Encoding", "gzip")
	w.(http.Flusher).Flush()
	io.Copy(gzip.NewWriter(w), zeros{})
}

// TestServersBelowHTTP has peers that do not even speak HTTP.
func TestServersBelowHTTP(t *testing.T) {
	good := newObject(t, "good", []byte("hello"), archive.Uncompressed)
	for name, talk := range map[string]func(net.Conn){
		"closes at once": func(c net.Conn) {},
		"says nothing":   func(c net.Conn) { io.Copy(io.Discard, c) },
		"garbage":        func(c net.Conn) { c.Write(noise(100_000)) },
		"endless head":   func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n"); io.Copy(c, zeros{}) },
		"slow head":      func(c net.Conn) { dribble(c, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 1000)) },
		"two lengths": func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
		},
		"endless 1xx": func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "HTTP/1.1 103 Early\r\n\r\n"); err != nil {
					return
				}
			}
		},
		"broken chunk": func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n")
		},
		"endless chunk head": func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")
			io.Copy(c, zeros{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						if name != "closes at once" {
							c.Read(make([]byte, 4096))
						}
						talk(c)
					}()
				}
			}()
			opts := fast()
			opts.StalledTimeout, opts.Attempts = time.Second, 2
			start := time.Now()
			_, err = open(t, "http://"+l.Addr().String(), opts).NarInfo(t.Context(), good.Path)
			if !errors.Is(err, cache.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

func dribble(c net.Conn, text string) {
	for i := range text {
		if _, err := io.WriteString(c, text[i:i+1]); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	opts := fast()
	opts.Backoff = time.Hour // is not tried again
	c := open(t, "http://"+l.Addr().String(), opts)
	if _, err := c.Info(t.Context()); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := open(t, "/does/not/exist", nil).Info(t.Context()); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// flaky breaks each answer after some bytes.
type flaky struct {
	data     []byte
	each     int // bytes before the break
	ranges   bool
	requests atomic.Int32
	tag      func(request int32) string
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := f.requests.Add(1)
	w.Header().Set("ETag", f.tag(n))
	from := 0
	if spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && f.ranges && r.Header.Get("If-Range") == f.tag(n) {
		from, _ = strconv.Atoi(strings.TrimSuffix(spec, "-"))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(f.data)-1, len(f.data)))
		w.Header().Set("Content-Length", strconv.Itoa(len(f.data)-from))
		w.WriteHeader(http.StatusPartialContent)
	} else {
		w.Header().Set("Content-Length", strconv.Itoa(len(f.data)))
	}
	end := min(from+f.each, len(f.data))
	if !f.ranges {
		end = min(f.each*int(n), len(f.data))
	}
	w.Write(f.data[from:end])
	if end < len(f.data) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestDownloadIsResumed(t *testing.T) {
	o := newObject(t, "big", noise(2_000_000), archive.Zstd)
	for _, ranges := range []bool{true, false} {
		f := &flaky{data: o.packed, each: 150_000, ranges: ranges, tag: func(int32) string { return `"1"` }}
		s := httptest.NewUnstartedServer(f)
		s.Config.ErrorLog = nil
		s.Start()
		t.Cleanup(s.Close)
		var told int64
		opts := fast()
		opts.Attempts = 3 // fewer than there are breaks
		opts.Progress = func(_ *cache.NarInfo, done, total int64) {
			if told = done; total != o.FileSize {
				t.Errorf("total is %d", total)
			}
		}
		if err := drain(t, open(t, s.URL, opts), o.NarInfo); err != nil {
			t.Errorf("ranges %v: %v", ranges, err)
		}
		if n := f.requests.Load(); n < 10 || told != o.FileSize {
			t.Errorf("ranges %v: %d requests, progress %d of %d", ranges, n, told, o.FileSize)
		}
	}
}

func TestDownloadEndsWhenNothingComes(t *testing.T) {
	o := newObject(t, "big", noise(2_000_000), archive.Zstd)
	f := &flaky{data: o.packed, each: 1000, ranges: true, tag: func(int32) string { return `"1"` }}
	opts := fast()
	opts.Attempts = 5
	if err := drain(t, open(t, serve(t, f), opts), o.NarInfo); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if n := f.requests.Load(); n != 5 {
		t.Errorf("%d requests", n)
	}
}

// TestDownloadOfChangedFile gets the new file's rest after the old one's start.
func TestDownloadOfChangedFile(t *testing.T) {
	o := newObject(t, "big", noise(2_000_000), archive.Zstd)
	f := &flaky{data: o.packed, each: 150_000, ranges: true, tag: func(n int32) string { return fmt.Sprintf("%q", strconv.Itoa(int(n))) }}
	opts := fast()
	if err := drain(t, open(t, serve(t, f), opts), o.NarInfo); err == nil {
		t.Error("no error, though nothing was ever the same file")
	}
}

func TestStalledDownloadIsResumed(t *testing.T) {
	o := newObject(t, "big", noise(500_000), archive.Uncompressed)
	var requests atomic.Int32
	uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			w.Header().Set("Content-Length", strconv.Itoa(len(o.packed)))
			w.Write(o.packed[:200_000])
			w.(http.Flusher).Flush()
			sleep(r, time.Minute)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.packed))
	}))
	opts := fast()
	opts.StalledTimeout = 500 * time.Millisecond
	if err := drain(t, open(t, uri, opts), o.NarInfo); err != nil || requests.Load() != 2 {
		t.Errorf("%d requests, %v", requests.Load(), err)
	}
}

func TestSlowReaderIsNoStall(t *testing.T) {
	o := newObject(t, "big", noise(8<<20), archive.Uncompressed)
	uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.packed))
	}))
	opts := fast()
	opts.StalledTimeout, opts.Attempts = 500*time.Millisecond, 1
	r, err := open(t, uri, opts).NAR(t.Context(), o.NarInfo)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
}

func TestRetriesWhatMayPass(t *testing.T) {
	o := newObject(t, "good", []byte("hello"), archive.Uncompressed)
	var requests atomic.Int32
	uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := requests.Add(1); n <= 3 {
			w.WriteHeader([]int{500, 429, 503}[n-1])
			return
		}
		io.WriteString(w, o.Text())
	}))
	if _, err := open(t, uri, fast()).NarInfo(t.Context(), o.Path); err != nil || requests.Load() != 4 {
		t.Errorf("%d requests, %v", requests.Load(), err)
	}
}

func TestCancelEndsADownload(t *testing.T) {
	o := newObject(t, "good", noise(100_000), archive.Uncompressed)
	uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(o.packed[:1000])
		w.(http.Flusher).Flush()
		sleep(r, time.Minute)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := open(t, uri, &cache.Options{}).NAR(ctx, o.NarInfo)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestCredentials(t *testing.T) {
	o := newObject(t, "good", []byte("hello"), archive.Uncompressed)
	var seen atomic.Value
	elsewhere := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.Header.Get("Authorization"))
		io.WriteString(w, o.Text())
	}))
	elsewhere = strings.Replace(elsewhere, "127.0.0.1", "localhost", 1)
	uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user+":"+password != "ann:s3cr3t" && r.Header.Get("Authorization") != "Bearer t0ken" {
			w.WriteHeader(401)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/moved") {
			http.Redirect(w, r, elsewhere+"/x", 302)
			return
		}
		io.WriteString(w, o.Text())
	}))
	file := func(text string) string {
		name := filepath.Join(t.TempDir(), "netrc")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, c := range map[string]struct {
		user, netrc string
		want        error
	}{
		"none":            {"", "", cache.ErrUnavailable},
		"in the URI":      {"ann:s3cr3t@", "", nil},
		"wrong in URI":    {"ann:wrongpw@", "machine 127.0.0.1 login ann password s3cr3t", cache.ErrUnavailable},
		"netrc":           {"", "# mine\nmachine other login x password y\nmachine 127.0.0.1\n  login ann\n  password s3cr3t\n", nil},
		"netrc, default":  {"", "machine other login x password y default login ann password s3cr3t", nil},
		"netrc, bearer":   {"", "machine 127.0.0.1 password t0ken", nil},
		"netrc, other":    {"", "machine other login ann password s3cr3t", cache.ErrUnavailable},
		"netrc, no value": {"", "machine 127.0.0.1 login ann password", errAny},
	} {
		opts := fast()
		if c.netrc != "" {
			opts.NetrcFile = file(c.netrc)
		}
		_, err := read(t, strings.Replace(uri, "://", "://"+c.user, 1), opts, o.Path)
		if c.want == nil && err != nil || c.want != nil && (err == nil || c.want != errAny && !errors.Is(err, c.want)) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cr3t") || strings.Contains(err.Error(), "wrongpw")) {
			t.Errorf("%s: error shows the password: %v", name, err)
		}
	}
	opts := fast()
	if _, err := read(t, strings.Replace(uri, "://", "://ann:s3cr3t@", 1)+"/moved", opts, o.Path); err != nil {
		t.Error(err)
	}
	if seen.Load() != "" {
		t.Errorf("credentials went to another host: %v", seen.Load())
	}
	for _, bad := range []string{"http://ann:s3cr3t@%zz/", "ftp://ann:s3cr3t@host/", "s3://ann:s3cr3t@host/", "http://ann:s3cr3t@host/?secret=1"} {
		if _, err := cache.Open(bad, dir, nil); err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func read(t *testing.T, uri string, opts *cache.Options, p store.Path) (*cache.NarInfo, error) {
	c, err := cache.Open(uri, dir, opts)
	if err != nil {
		return nil, err
	}
	defer cache.CloseIdle(c)
	if strings.Contains(c.URI(), "@") {
		t.Errorf("URI is %s", c.URI())
	}
	return c.NarInfo(t.Context(), p)
}

func TestFoldersStayInside(t *testing.T) {
	o := newObject(t, "good", []byte("hello"), archive.Uncompressed)
	folder := t.TempDir()
	c := open(t, folder, nil)
	for _, bad := range []string{"../../etc/passwd", "/etc/passwd", "nar/../../x", ""} {
		n := *o.NarInfo
		if n.URL = bad; drain(t, c, &n) == nil {
			t.Errorf("%s is read", bad)
		}
	}
	n := *o.NarInfo
	n.URL = "nar"
	if err := os.Mkdir(folder+"/nar", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := drain(t, c, &n); !errors.Is(err, cache.ErrFormat) {
		t.Errorf("a directory: %v", err)
	}
}
