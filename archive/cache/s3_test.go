package cache_test

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/store"
	"cairn/tests/s3"
)

// environment is one with these variables.
func environment(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func s3Options(s *s3.Server) *cache.Options {
	opts := fast()
	opts.Getenv = environment(map[string]string{"AWS_ACCESS_KEY_ID": s.Key, "AWS_SECRET_ACCESS_KEY": s.Secret})
	return opts
}

// TestSignatureOfTheManual is the example "GET Object" of Amazon's documentation of S3.
func TestSignatureOfTheManual(t *testing.T) {
	r, err := http.NewRequest(http.MethodGet, "https://examplebucket.s3.amazonaws.com/test.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", "bytes=0-9")
	cache.SignS3(r, "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1", time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC))
	const want = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
	if got := r.Header.Get("Authorization"); !strings.HasSuffix(got, "Signature="+want) {
		t.Errorf("got %s", got)
	}
}

func TestS3(t *testing.T) {
	s := s3.New()
	endpoint := strings.TrimPrefix(serve(t, s), "http://")
	uri := "s3://my-bucket/some/prefix?scheme=http&region=eu-test-1&write-nar-listing=true&narinfo-compression=gzip&endpoint=" + endpoint
	w, err := cache.OpenWriter(uri, dir, s3Options(s))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, w)
	for name, head := range s.Heads() {
		if want := strings.HasSuffix(name, ".narinfo"); (head.Get("Content-Encoding") == "gzip") != want {
			t.Errorf("%s: %v", name, head)
		}
		if !strings.HasPrefix(name, "some/prefix/") {
			t.Errorf("%s is outside the prefix", name)
		}
	}
	o := newObject(t, "a+b?c=d", []byte("a name that must be escaped"), archive.Uncompressed)
	if _, err := w.Has(t.Context(), o.Path); err != nil {
		t.Error(err)
	}
	if err := w.PutLog(t.Context(), o.Path, strings.NewReader("log")); err != nil {
		t.Error(err)
	}
}

func TestS3Refusals(t *testing.T) {
	s := s3.New()
	endpoint := strings.TrimPrefix(serve(t, s), "http://")
	p := newObject(t, "x", nil, archive.Uncompressed).Path
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := "[default]\naws_access_key_id=wrong\naws_secret_access_key=wrong\n[mine]\naws_access_key_id = " + s.Key + "\naws_secret_access_key = " + s.Secret + "\n"
	if err := os.WriteFile(filepath.Join(home, ".aws/credentials"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	good := map[string]string{"AWS_ACCESS_KEY_ID": s.Key, "AWS_SECRET_ACCESS_KEY": s.Secret}
	for name, c := range map[string]struct {
		bucket, query string
		env           map[string]string
		want          error
	}{
		"good":              {"my-bucket", "&region=eu-test-1", good, store.ErrNotValid},
		"region of the env": {"my-bucket", "", map[string]string{"AWS_ACCESS_KEY_ID": s.Key, "AWS_SECRET_ACCESS_KEY": s.Secret, "AWS_REGION": "eu-test-1"}, store.ErrNotValid},
		"other region":      {"my-bucket", "&region=us-east-1", good, cache.ErrUnavailable},
		"other bucket":      {"other-bucket", "&region=eu-test-1", good, cache.ErrUnavailable},
		"wrong secret":      {"my-bucket", "&region=eu-test-1", map[string]string{"AWS_ACCESS_KEY_ID": s.Key, "AWS_SECRET_ACCESS_KEY": "x"}, cache.ErrUnavailable},
		"nobody":            {"my-bucket", "&region=eu-test-1", nil, store.ErrNotValid}, // AccessDenied: it may be there
		"profile":           {"my-bucket", "&region=eu-test-1&profile=mine", map[string]string{"HOME": home}, store.ErrNotValid},
		"AWS_PROFILE":       {"my-bucket", "&region=eu-test-1", map[string]string{"HOME": home, "AWS_PROFILE": "mine"}, store.ErrNotValid},
		"default profile":   {"my-bucket", "&region=eu-test-1", map[string]string{"HOME": home}, cache.ErrUnavailable},
	} {
		opts := fast()
		opts.Getenv = environment(c.env)
		b := open(t, "s3://"+c.bucket+"?scheme=http&endpoint="+url.QueryEscape(endpoint)+c.query, opts)
		if _, err := b.NarInfo(t.Context(), p); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		} else if strings.Contains(err.Error(), s.Secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	opts := fast()
	opts.Getenv = environment(map[string]string{"HOME": home})
	if _, err := cache.Open("s3://my-bucket?profile=none", dir, opts); err == nil {
		t.Error("a profile that is not there is accepted")
	}
}

func TestS3InParts(t *testing.T) {
	s := s3.New()
	broken := atomic.Int32{}
	uri := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("partNumber") == "3" && broken.Add(1) == 1 {
			w.WriteHeader(503)
			return
		}
		s.ServeHTTP(w, r)
	}))
	uri = "s3://my-bucket?scheme=http&region=eu-test-1&compression=none&write-nar-listing=1&multipart-threshold=100000&multipart-chunk-size=150000&endpoint=" + strings.TrimPrefix(uri, "http://")
	w, err := cache.OpenWriter(uri, dir, s3Options(s))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, w)
	if broken.Load() < 2 || s.Uploads() != 0 {
		t.Errorf("part 3 was put %d times, %d uploads are left", broken.Load(), s.Uploads())
	}
	// One that cannot be completed is given up.
	broken.Store(-1000)
	o := newObject(t, "broken", noise(600_000), archive.Uncompressed)
	refusing := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("partNumber") == "2" {
			w.WriteHeader(400)
			return
		}
		s.ServeHTTP(w, r)
	}))
	uri = uri[:strings.Index(uri, "&endpoint=")] + "&endpoint=" + strings.TrimPrefix(refusing, "http://")
	if w, err = cache.OpenWriter(uri, dir, s3Options(s)); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Put(t.Context(), w, &o.Info, write(o.nar)); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if s.Uploads() != 0 {
		t.Errorf("%d uploads are left", s.Uploads())
	}
}
