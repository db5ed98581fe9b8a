package cache

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cairn/store"
)

// newS3 is a cache in a bucket of an S3 server: HTTP with signed requests, and large files in parts.
//
// With an endpoint, or a bucket whose name has dots, the bucket is in the path, otherwise in the host's name.
func newS3(rest string, p *Parameters, opts *Options) (*web, error) {
	bucket, prefix, _ := strings.Cut(rest, "/")
	if err := checkBucket(bucket); err != nil {
		return nil, err
	}
	id, err := findIdentity(p.Profile, opts.Getenv)
	if err != nil {
		return nil, err
	}
	region := cmp.Or(p.Region, opts.Getenv("AWS_REGION"), opts.Getenv("AWS_DEFAULT_REGION"), "us-east-1")
	base, err := bucketURL(bucket, region, p)
	if err != nil {
		return nil, err
	}
	prefix = strings.Trim(prefix, "/")
	base.Path = cmp.Or(base.Path, "/")
	w := &web{base: &url.URL{Scheme: "s3", Host: bucket, Path: strings.TrimSuffix("/"+prefix, "/")}, client: newClient(opts), opts: opts, explain: explainS3, hashContent: true, parts: newParts(p)}
	w.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if prefix != "" {
		prefix += "/"
	}
	w.locate = func(name string) (*url.URL, error) {
		u := *base
		u.Path = strings.TrimSuffix(base.Path, "/") + "/" + prefix + strings.TrimLeft(name, "/")
		u.RawPath = escapeS3(u.Path)
		return &u, nil
	}
	w.authorize = func(r *http.Request) { id.sign(r, region, "s3", time.Now()) }
	return w, nil
}

func checkBucket(name string) error {
	if len(name) < 3 || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || strings.Contains(name, "..") {
		return errors.New("what stands behind s3:// is no name of a bucket")
	}
	return nil
}

// bucketURL returns where a bucket is.
func bucketURL(bucket, region string, p *Parameters) (*url.URL, error) {
	scheme := cmp.Or(p.Scheme, "https")
	host := p.Endpoint
	if s, rest, ok := strings.Cut(host, "://"); ok {
		if _, err := parseScheme(s); err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
		scheme, host = s, rest
	}
	host = strings.TrimRight(host, "/")
	if strings.ContainsAny(host, "/@?#") {
		return nil, fmt.Errorf("endpoint %q is not HOST or HOST:PORT", hide(host))
	}
	switch {
	case host != "":
		return &url.URL{Scheme: scheme, Host: host, Path: "/" + bucket}, nil
	case strings.Contains(bucket, "."):
		return &url.URL{Scheme: scheme, Host: "s3." + region + ".amazonaws.com", Path: "/" + bucket}, nil
	}
	return &url.URL{Scheme: scheme, Host: bucket + ".s3." + region + ".amazonaws.com"}, nil
}

// escapeS3 escapes a path as signatures want it: everything but unreserved characters and slashes.
func escapeS3(path string) string {
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("/-_.~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// maxS3Error is the size limit of an error's text.
const maxS3Error = 64 << 10

// explainS3 tells a file that is missing from a bucket or a right that is: both come as 404 and 403.
func explainS3(resp *http.Response) error {
	var e struct {
		Code    string
		Message string
	}
	if resp.Request.Method == http.MethodHead || xml.NewDecoder(io.LimitReader(resp.Body, maxS3Error)).Decode(&e) != nil {
		e.Code = ""
	}
	if region := resp.Header.Get("X-Amz-Bucket-Region"); region != "" && resp.StatusCode/100 == 3 {
		return &s3Error{fmt.Errorf("%w: %s", ErrUnavailable, status(resp.StatusCode)), "the bucket is in another region: add region=" + clip(region) + " to the URI"}
	}
	switch e.Code {
	case "NoSuchBucket":
		return fmt.Errorf("%w: there is no such bucket", ErrUnavailable)
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed":
		return &s3Error{fmt.Errorf("%w: %s: %s", ErrUnavailable, e.Code, clip(e.Message)), "credentials come from profile=NAME in the URI, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file ~/.aws/credentials"}
	case "NoSuchKey":
		return fmt.Errorf("%s: %w", status(resp.StatusCode), store.ErrNotValid)
	}
	return nil
}

// s3Error is an error with a next step.
type s3Error struct {
	error
	hint string
}

func (e *s3Error) Unwrap() error { return e.error }

// Hint is the next step.
func (e *s3Error) Hint() string { return e.hint }
