// Package s3 is a server for tests that speaks as much of S3 as binary caches need, and verifies signatures (version 4)
// the way Amazon's manual describes it, independently of the code that it tests.
package s3

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server is an S3 server with one bucket.
type Server struct {
	Bucket, Key, Secret, Region string
	Public                      bool // whoever does not sign may do everything, too

	mu      sync.Mutex // guards what follows
	objects map[string][]byte
	heads   map[string]http.Header
	uploads map[string]map[int][]byte // by id, parts by number
}

// New returns a server with an empty bucket.
func New() *Server {
	return &Server{Bucket: "my-bucket", Key: "AKIDEXAMPLE", Secret: "s3cr3t/k3y", Region: "eu-test-1", objects: map[string][]byte{}, heads: map[string]http.Header{}, uploads: map[string]map[int][]byte{}}
}

func (s *Server) fail(w http.ResponseWriter, code int, name string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(code)
	fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>no</Message></Error>`, name)
}

// Heads returns the headers with which each object was put.
func (s *Server) Heads() map[string]http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.heads)
}

// ServeHTTP answers PUT, GET and HEAD of objects.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	sum, said := sha256.Sum256(body), r.Header.Get("X-Amz-Content-Sha256")
	if said != "" && said != "UNSIGNED-PAYLOAD" && said != hex.EncodeToString(sum[:]) {
		s.fail(w, 400, "XAmzContentSHA256Mismatch")
		return
	}
	if s.Public && r.Header.Get("Authorization") == "" {
		// Nobody in particular.
	} else if code := s.check(r); code != "" {
		s.fail(w, 403, code)
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/"+s.Bucket+"/")
	if !ok {
		s.fail(w, 404, "NoSuchBucket")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Query().Has("uploads") || r.URL.Query().Has("uploadId") {
		s.parts(w, r, name, body)
		return
	}
	switch r.Method {
	case http.MethodPut:
		s.objects[name], s.heads[name] = body, http.Header{"Content-Type": r.Header["Content-Type"], "Content-Encoding": r.Header["Content-Encoding"]}
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

// Uploads returns how many uploads in parts are not complete.
func (s *Server) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

// parts answers requests of uploads in parts. It holds mu.
func (s *Server) parts(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	id := r.URL.Query().Get("uploadId")
	parts, known := s.uploads[id]
	switch {
	case r.Method == http.MethodPost && id == "":
		id = fmt.Sprintf("up/load+%d=", len(s.uploads))
		s.uploads[id] = map[int][]byte{}
		s.heads[name] = http.Header{"Content-Type": r.Header["Content-Type"]}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case !known:
		s.fail(w, 404, "NoSuchUpload")
	case r.Method == http.MethodPut:
		number, _ := strconv.Atoi(r.URL.Query().Get("partNumber"))
		parts[number] = body
		sum := sha256.Sum256(body)
		w.Header().Set("ETag", fmt.Sprintf("%q", hex.EncodeToString(sum[:8])))
	case r.Method == http.MethodPost:
		s.complete(w, name, id, body)
	case r.Method == http.MethodDelete:
		delete(s.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	}
}

// complete joins parts, as the request lists them.
func (s *Server) complete(w http.ResponseWriter, name, id string, body []byte) {
	var list struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	err := xml.Unmarshal(body, &list)
	var whole []byte
	for i, p := range list.Part {
		data := s.uploads[id][p.PartNumber]
		sum := sha256.Sum256(data)
		if p.PartNumber != i+1 || p.ETag != fmt.Sprintf("%q", hex.EncodeToString(sum[:8])) {
			err = fmt.Errorf("part %d", i)
		}
		whole = append(whole, data...)
	}
	if err != nil || len(list.Part) != len(s.uploads[id]) {
		fmt.Fprint(w, "<Error><Code>InvalidPart</Code></Error>") // with status 200, as S3 may
		return
	}
	delete(s.uploads, id)
	s.objects[name] = whole
	fmt.Fprint(w, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
}

// check verifies a signature as the manual says, from what came over the wire.
func (s *Server) check(r *http.Request) string {
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
	if scope[0] != s.Key {
		return "InvalidAccessKeyId"
	}
	if scope[2] != s.Region || !strings.HasPrefix(r.Header.Get("X-Amz-Date"), scope[1]) {
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
	key := []byte("AWS4" + s.Secret)
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
