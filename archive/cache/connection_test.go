package cache_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
)

// counting is a server of one object that takes a while and counts connections.
type counting struct {
	*httptest.Server
	opened   atomic.Int64
	protocol atomic.Value
}

func newCounting(tb testing.TB, o *object, secure bool) *counting {
	c := &counting{}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.protocol.Store(r.Proto)
		time.Sleep(5 * time.Millisecond)
		if strings.HasPrefix(r.URL.Path, "/nar/") {
			w.Write(o.packed)
			return
		}
		io.WriteString(w, o.Text())
	}))
	c.Config.ErrorLog = log.New(io.Discard, "", 0)
	c.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			c.opened.Add(1)
		}
	}
	if secure {
		c.EnableHTTP2 = true
		c.StartTLS()
	} else {
		c.Start()
	}
	tb.Cleanup(c.Close)
	return c
}

// ask sends n questions at the same time.
func ask(t *testing.T, c cache.Cache, o *object, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := c.NarInfo(t.Context(), o.Path); err != nil {
				t.Error(err)
			}
			if there, err := c.(cache.Writer).Has(t.Context(), o.Path); err != nil || !there {
				t.Error(err)
			}
			if i%10 == 0 {
				if err := readNAR(t, c, o.NarInfo); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestConnectionsAreKept(t *testing.T) {
	o := newObject(t, "x", noise(100_000), archive.Zstd)
	s := newCounting(t, o, false)
	opts := &cache.Options{Connections: 10}
	c, err := cache.OpenWriter(s.URL, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.CloseIdle(c)
	for range 3 {
		ask(t, c, o, 200)
	}
	if n := s.opened.Load(); n > 10 {
		t.Errorf("%d connections for 1260 questions", n)
	}
}

func TestHTTP2(t *testing.T) {
	o := newObject(t, "x", noise(100_000), archive.Zstd)
	s := newCounting(t, o, true)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c, err := cache.OpenWriter(s.URL, dir, &cache.Options{TLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.CloseIdle(c)
	ask(t, c, o, 1) // a server's protocol is known after the first connection
	ask(t, c, o, 200)
	if s.protocol.Load() != "HTTP/2.0" || s.opened.Load() > 2 {
		t.Errorf("%s over %d connections", s.protocol.Load(), s.opened.Load())
	}
	// A server that nobody vouches for is not asked twice.
	c, err = cache.OpenWriter(s.URL, dir, &cache.Options{Backoff: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.CloseIdle(c)
	if _, err := c.NarInfo(t.Context(), o.Path); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkDownload(b *testing.B) {
	for _, c := range []archive.Compression{archive.Uncompressed, archive.Zstd} {
		b.Run(string(c), func(b *testing.B) {
			o := newObject(b, "x", append(noise(8<<20), make([]byte, 24<<20)...), c)
			f, err := cache.Open(serve(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(o.packed) })), dir, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(o.NarSize)
			for b.Loop() {
				if err := readNAR(b, f, o.NarInfo); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
