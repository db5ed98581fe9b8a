package cache_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/store"
)

// fakeS3 is an S3 server with one bucket that checks signatures.
type fakeS3 struct {
	bucket, key, secret, region string

	mu      sync.Mutex
	objects map[string][]byte
	heads   map[string]http.Header
	puts    []string
}

func newFakeS3() *fakeS3 {
	return &fakeS3{bucket: "my-bucket", key: "AKIDEXAMPLE", secret: "s3cr3t/k3y", region: "eu-test-1", objects: map[string][]byte{}, heads: map[string]http.Header{}}
}

func (s *fakeS3) fail(w http.ResponseWriter, code int, name string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(code)
	fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no</Message></Error>`, name)
}

func (s *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	sum, said := sha256.Sum256(body), r.Header.Get("X-Amz-Content-Sha256")
	if said != "" && said != "UNSIGNED-PAYLOAD" && said != hex.EncodeToString(sum[:]) {
		s.fail(w, 400, "XAmzContentSHA256Mismatch")
		return
	}
	if code := s.check(r); code != "" {
		s.fail(w, 403, code)
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/"+s.bucket+"/")
	if !ok {
		s.fail(w, 404, "NoSuchBucket")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Method {
	case http.MethodPut:
		s.objects[name], s.heads[name] = body, http.Header{"Content-Type": r.Header["Content-Type"], "Content-Encoding": r.Header["Content-Encoding"]}
		s.puts = append(s.puts, name)
	case http.MethodGet, http.MethodHead:
		data, there := s.objects[name]
		if !there {
			s.fail(w, 404, "NoSuchKey")
			return
		}
		for k, v := range s.heads[name] {
			if len(v) > 0 {
				w.Header()[k] = v
			}
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(data)))
	default:
		s.fail(w, 405, "MethodNotAllowed")
	}
}

// check verifies a signature as the manual says, from what came over the wire.
func (s *fakeS3) check(r *http.Request) string {
	fields := map[string]string{}
	algorithm, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	for f := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(f), "=")
		fields[k] = v
	}
	scope := strings.Split(fields["Credential"], "/")
	if algorithm != "AWS4-HMAC-SHA256" || len(scope) != 5 {
		return "AccessDenied"
	}
	if scope[0] != s.key {
		return "InvalidAccessKeyId"
	}
	if scope[2] != s.region || !strings.HasPrefix(r.Header.Get("X-Amz-Date"), scope[1]) {
		return "AuthorizationHeaderMalformed"
	}
	path, query, _ := strings.Cut(r.RequestURI, "?")
	canonical := r.Method + "\n" + path + "\n" + query + "\n"
	names := strings.Split(fields["SignedHeaders"], ";")
	if !slices.Contains(names, "host") || !slices.IsSorted(names) {
		return "SignatureDoesNotMatch"
	}
	for _, h := range names {
		v := strings.Join(r.Header.Values(h), ",")
		switch h {
		case "host":
			v = r.Host
		case "content-length":
			v = fmt.Sprint(r.ContentLength)
		}
		canonical += h + ":" + strings.TrimSpace(v) + "\n"
	}
	canonical += "\n" + fields["SignedHeaders"] + "\n" + r.Header.Get("X-Amz-Content-Sha256")
	sum := sha256.Sum256([]byte(canonical))
	text := algorithm + "\n" + r.Header.Get("X-Amz-Date") + "\n" + strings.Join(scope[1:], "/") + "\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + s.secret)
	for _, part := range append(scope[1:], text) {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(part))
		key = m.Sum(nil)
	}
	if hex.EncodeToString(key) != fields["Signature"] {
		return "SignatureDoesNotMatch"
	}
	return ""
}

// environment is one with these variables.
func environment(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func (s *fakeS3) options() *cache.Options {
	opts := fast()
	opts.Getenv = environment(map[string]string{"AWS_ACCESS_KEY_ID": s.key, "AWS_SECRET_ACCESS_KEY": s.secret})
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
	s := newFakeS3()
	endpoint := strings.TrimPrefix(serve(t, s), "http://")
	uri := "s3://my-bucket/some/prefix?scheme=http&region=eu-test-1&write-nar-listing=true&narinfo-compression=gzip&endpoint=" + endpoint
	w, err := cache.OpenWriter(uri, dir, s.options())
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, w)
	for name, head := range s.heads {
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
	s := newFakeS3()
	endpoint := strings.TrimPrefix(serve(t, s), "http://")
	p := newObject(t, "x", nil, archive.Uncompressed).Path
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := "[default]\naws_access_key_id=wrong\naws_secret_access_key=wrong\n[mine]\naws_access_key_id = " + s.key + "\naws_secret_access_key = " + s.secret + "\n"
	if err := os.WriteFile(filepath.Join(home, ".aws/credentials"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	good := map[string]string{"AWS_ACCESS_KEY_ID": s.key, "AWS_SECRET_ACCESS_KEY": s.secret}
	for name, c := range map[string]struct {
		bucket, query string
		env           map[string]string
		want          error
	}{
		"good":              {"my-bucket", "&region=eu-test-1", good, store.ErrNotValid},
		"region of the env": {"my-bucket", "", map[string]string{"AWS_ACCESS_KEY_ID": s.key, "AWS_SECRET_ACCESS_KEY": s.secret, "AWS_REGION": "eu-test-1"}, store.ErrNotValid},
		"other region":      {"my-bucket", "&region=us-east-1", good, cache.ErrUnavailable},
		"other bucket":      {"other-bucket", "&region=eu-test-1", good, cache.ErrUnavailable},
		"wrong secret":      {"my-bucket", "&region=eu-test-1", map[string]string{"AWS_ACCESS_KEY_ID": s.key, "AWS_SECRET_ACCESS_KEY": "x"}, cache.ErrUnavailable},
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
		} else if strings.Contains(err.Error(), s.secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	opts := fast()
	opts.Getenv = environment(map[string]string{"HOME": home})
	if _, err := cache.Open("s3://my-bucket?profile=none", dir, opts); err == nil {
		t.Error("a profile that is not there is accepted")
	}
}
