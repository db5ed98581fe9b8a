package cache

import (
	"bufio"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// contentHash is the header with the hash of what is sent, in base 16.
const contentHash = "X-Amz-Content-Sha256"

// emptyHash is that of nothing.
var emptyHash = hex.EncodeToString(sha256.New().Sum(nil))

// identity is who signs requests to S3. The zero value signs nothing.
type identity struct{ key, secret, token string }

// sign adds an AWS signature, version 4, to a request: of method, path, query, host, and headers that matter. Whoever sends
// content has put its hash in contentHash.
func (id identity) sign(r *http.Request, region, service string, now time.Time) {
	if id.key == "" {
		r.Header.Del(contentHash)
		return
	}
	if r.Header.Get(contentHash) == "" {
		r.Header.Set(contentHash, emptyHash)
	}
	if id.token != "" {
		r.Header.Set("X-Amz-Security-Token", id.token)
	}
	stamp := now.UTC().Format("20060102T150405Z")
	r.Header.Set("X-Amz-Date", stamp)
	names, headers := signedHeaders(r)
	request := strings.Join([]string{r.Method, cmp.Or(r.URL.EscapedPath(), "/"), r.URL.Query().Encode(), headers, names, r.Header.Get(contentHash)}, "\n")
	sum := sha256.Sum256([]byte(request))
	scope := stamp[:8] + "/" + region + "/" + service + "/aws4_request"
	text := "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + id.secret)
	for _, part := range []string{stamp[:8], region, service, "aws4_request"} {
		key = mac(key, part)
	}
	r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s", id.key, scope, names, hex.EncodeToString(mac(key, text))))
}

// signedHeaders returns the names of the headers that are signed, and their canonical text.
func signedHeaders(r *http.Request) (names, text string) {
	signed := map[string]string{"host": cmp.Or(r.Host, r.URL.Host)}
	for k, v := range r.Header {
		if k = strings.ToLower(k); strings.HasPrefix(k, "x-amz-") || k == "content-type" || k == "content-encoding" || k == "range" {
			signed[k] = strings.TrimSpace(strings.Join(v, ","))
		}
	}
	sorted := slices.Sorted(maps.Keys(signed))
	var b strings.Builder
	for _, k := range sorted {
		b.WriteString(k + ":" + signed[k] + "\n")
	}
	return strings.Join(sorted, ";"), b.String()
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	io.WriteString(h, text)
	return h.Sum(nil)
}

// findIdentity returns whom to be: the profile that was named; who the environment says; the profile that the environment
// names, or "default"; else nobody, which public buckets are for.
func findIdentity(profile string, getenv func(string) string) (identity, error) {
	if id := (identity{getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY"), getenv("AWS_SESSION_TOKEN")}); profile == "" && id.key != "" && id.secret != "" {
		return id, nil
	}
	home := getenv("HOME")
	named := cmp.Or(profile, getenv("AWS_PROFILE"))
	for _, f := range []struct{ path, section string }{
		{cmp.Or(getenv("AWS_SHARED_CREDENTIALS_FILE"), filepath.Join(home, ".aws/credentials")), cmp.Or(named, "default")},
		{cmp.Or(getenv("AWS_CONFIG_FILE"), filepath.Join(home, ".aws/config")), configSection(named)},
	} {
		if !filepath.IsAbs(f.path) {
			continue // no home
		}
		id, err := readIdentity(f.path, f.section)
		if err != nil {
			return identity{}, fmt.Errorf("read credentials: %w", err)
		}
		if id.key != "" && id.secret != "" {
			return id, nil
		}
	}
	if profile != "" {
		return identity{}, fmt.Errorf("no credentials for the profile %q in ~/.aws/credentials", clip(profile))
	}
	return identity{}, nil
}

func configSection(profile string) string {
	if profile == "" || profile == "default" {
		return "default"
	}
	return "profile " + profile
}

// readIdentity reads a section of a file of sections and "name = value" lines. Errors do not show values.
func readIdentity(path, section string) (identity, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return identity{}, nil
	}
	if err != nil {
		return identity{}, err
	}
	defer f.Close()
	var id identity
	inside := false
	lines := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if name, ok := strings.CutPrefix(line, "["); ok {
			inside = strings.TrimSpace(strings.TrimSuffix(name, "]")) == section
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		if !inside {
			continue
		}
		switch value = strings.TrimSpace(value); strings.TrimSpace(name) {
		case "aws_access_key_id":
			id.key = value
		case "aws_secret_access_key":
			id.secret = value
		case "aws_session_token":
			id.token = value
		}
	}
	return id, lines.Err()
}
