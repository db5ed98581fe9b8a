package serve

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/store"
)

// errRefused has a status of its own.
type errRefused struct{ status int }

func (e errRefused) Error() string { return http.StatusText(e.status) }

var (
	errNotFound = errRefused{http.StatusNotFound}
	errBusy     = errRefused{http.StatusServiceUnavailable}
)

// reply is a response under way.
type reply struct {
	http.ResponseWriter
	server *Server
	status int
	began  bool
}

func (r *reply) WriteHeader(status int) {
	r.status, r.began = status, true
	r.ResponseWriter.WriteHeader(status)
}

// Write gives the client a while to take each piece.
func (r *reply) Write(b []byte) (int, error) {
	if !r.began {
		r.WriteHeader(http.StatusOK)
	}
	rc := http.NewResponseController(r.ResponseWriter)
	if err := rc.SetWriteDeadline(time.Now().Add(r.server.opts.Patience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := r.ResponseWriter.Write(b)
	r.server.counts.bytes.Add(int64(n))
	return n, err
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := &reply{ResponseWriter: w, server: s, status: http.StatusOK}
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // nobody reads it
		s.refuse(out, r, errRefused{http.StatusRequestEntityTooLarge})
		return
	}
	kind, err := s.route(out, r)
	if err != nil {
		s.refuse(out, r, err)
	}
	s.counts.requests[kind][out.status/100%6].Add(1)
}

// refuse answers with an error, or breaks off what was begun.
func (s *Server) refuse(w *reply, r *http.Request, err error) {
	if w.began {
		s.opts.Logger.Debug("reply broke off", "path", r.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
	status := http.StatusInternalServerError
	if e, ok := errors.AsType[errRefused](err); ok {
		status = e.status
	} else if errors.Is(err, store.ErrNotValid) || errors.Is(err, ErrWithheld) {
		status = http.StatusNotFound
	}
	if errors.Is(err, ErrWithheld) {
		s.opts.Logger.Warn("refused", "path", r.URL.Path, "error", err)
	}
	switch status {
	case http.StatusInternalServerError:
		s.opts.Logger.Warn("request failed", "path", r.URL.Path, "error", err)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", "GET, HEAD")
	}
	w.Header().Del("Content-Length")
	w.Header().Del("ETag")
	w.Header().Del("Cache-Control")                // which is that of what would have come
	http.Error(w, http.StatusText(status), status) // no more: an error may tell what is not for everybody
}

func (s *Server) route(w *reply, r *http.Request) (kind, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return kindOther, errRefused{http.StatusMethodNotAllowed}
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	folder, rest, below := strings.Cut(name, "/")
	if !below {
		return s.routeTop(w, r, name)
	}
	switch folder {
	case "nar":
		return kindNAR, s.nar(w, r, rest)
	case "log":
		return kindLog, s.log(w, r, rest)
	case "realisations":
		return kindRealisation, s.realisation(w, r, rest)
	case "build-trace-v2":
		return kindRealisation, s.trace(w, r, rest)
	}
	return kindOther, errNotFound
}

func (s *Server) routeTop(w *reply, r *http.Request, name string) (kind, error) {
	switch name {
	case cache.InfoName:
		return kindInfo, s.text(w, r, "text/x-nix-cache-info", s.info, "")
	case "metrics":
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		s.counts.write(w)
		return kindOther, nil
	}
	if digest, ok := strings.CutSuffix(name, ".narinfo"); ok {
		return kindNarInfo, s.narInfo(w, r, digest)
	}
	if digest, ok := strings.CutSuffix(name, ".ls"); ok {
		return kindListing, s.listing(w, r, digest)
	}
	return kindOther, errNotFound
}

// text sends a whole text, unless the client has it. An empty tag is made of the text.
func (s *Server) text(w *reply, r *http.Request, mediaType, text, tag string) error {
	if tag == "" {
		tag = `"` + store.SHA256.Sum([]byte(text)).Nix32()[:32] + `"`
	}
	w.Header().Set("Content-Type", mediaType)
	if s.unchanged(w, r, tag) {
		return nil
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := io.WriteString(w, text)
	return err
}

// unchanged sets the tag and answers 304 when the client has it.
func (s *Server) unchanged(w *reply, r *http.Request, tag string) bool {
	w.Header().Set("ETag", tag)
	for have := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		if have = strings.TrimPrefix(strings.TrimSpace(have), "W/"); have == tag || have == "*" {
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}

// describe returns an object by its digest.
func (s *Server) describe(ctx context.Context, digest string) (*described, error) {
	if len(digest) != store.DigestLen {
		return nil, errNotFound
	}
	now := time.Now()
	if d := s.objects.get(digest, now.Add(-s.opts.Fresh)); d != nil {
		s.counts.remember.Add(1)
		return d, nil
	}
	info, err := s.source.ByDigest(ctx, digest)
	if err != nil {
		s.objects.forget(digest)
		return nil, err
	}
	d := s.newDescribed(info)
	d.at = now
	s.objects.put(digest, d)
	return d, nil
}

func (s *Server) newDescribed(info *store.Info) *described {
	n := &cache.NarInfo{Info: *info, Compression: string(s.opts.Compression)}
	n.URL = "nar/" + info.Path.Digest() + "-" + info.NarHash.Nix32() + ".nar" + s.opts.Compression.Suffix()
	if s.opts.Compression == archive.Uncompressed {
		n.FileHash, n.FileSize = info.NarHash, info.NarSize
	}
	n.Signatures = cache.Sign(s.opts.Keys, info.Signatures, info.Fingerprint())
	text := n.Text()
	return &described{info: info, text: text, tag: `"` + store.SHA256.Sum([]byte(text)).Nix32()[:32] + `"`}
}

func (s *Server) narInfo(w *reply, r *http.Request, digest string) error {
	d, err := s.describe(r.Context(), digest)
	if err != nil {
		return err
	}
	return s.text(w, r, "text/x-nix-narinfo", d.text, d.tag)
}

// stream waits for a turn to send something long.
func (s *Server) stream(ctx context.Context) (done func(), err error) {
	timer := time.NewTimer(queue)
	defer timer.Stop()
	select {
	case s.streams <- struct{}{}:
		s.counts.streams.Add(1)
		return func() { s.counts.streams.Add(-1); <-s.streams }, nil
	case <-timer.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// nar sends an archive: "<digest>-<NarHash>.nar", or with ".zst" behind it.
func (s *Server) nar(w *reply, r *http.Request, name string) error {
	name, packed := strings.CutSuffix(name, archive.Zstd.Suffix())
	name, ok := strings.CutSuffix(name, ".nar")
	digest, hash, ok2 := strings.Cut(name, "-")
	if !ok || !ok2 {
		return errNotFound
	}
	d, err := s.describe(r.Context(), digest)
	if err != nil {
		return err
	}
	if d.info.NarHash.Nix32() != hash {
		return errNotFound
	}
	w.Header().Set("Content-Type", "application/x-nix-nar")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	if packed {
		return s.packed(w, r, d)
	}
	return s.plain(w, r, d)
}

// streamLevel is quick and takes little memory: many archives are packed at a time, each for one client.
const streamLevel = 1

func (s *Server) packed(w *reply, r *http.Request, d *described) error {
	if s.unchanged(w, r, `"`+d.info.NarHash.Nix32()+`-zstd"`) || r.Method == http.MethodHead {
		return nil
	}
	done, err := s.stream(r.Context())
	if err != nil {
		return err
	}
	defer done()
	c, err := archive.NewLevelCompressor(w, archive.Zstd, streamLevel)
	if err != nil {
		return err
	}
	if err := s.copy(r.Context(), c, d); err != nil {
		return err
	}
	return c.Close()
}

// copy writes an object's archive, and forgets objects that cannot be read: they may be gone, or withheld, since they were described.
func (s *Server) copy(ctx context.Context, w io.Writer, d *described) error {
	err := s.source.NAR(ctx, d.info.Path, w)
	if err != nil && !errors.Is(err, errSectionDone) {
		s.objects.forget(d.info.Path.Digest())
	}
	return err
}

func (s *Server) plain(w *reply, r *http.Request, d *described) error {
	tag := `"` + d.info.NarHash.Nix32() + `"`
	w.Header().Set("Accept-Ranges", "bytes")
	if s.unchanged(w, r, tag) {
		return nil
	}
	size := d.info.NarSize
	from, to, part := parseRange(r, tag, size)
	if from >= size && part {
		w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		return errRefused{http.StatusRequestedRangeNotSatisfiable}
	}
	status := http.StatusOK
	if part {
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", "bytes "+strconv.FormatInt(from, 10)+"-"+strconv.FormatInt(to-1, 10)+"/"+strconv.FormatInt(size, 10))
	}
	w.Header().Set("Content-Length", strconv.FormatInt(to-from, 10))
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return nil
	}
	done, err := s.stream(r.Context())
	if err != nil {
		return err
	}
	defer done()
	out := &section{w: w, status: status, skip: from, left: to - from}
	if err := s.copy(r.Context(), out, d); err != nil && !errors.Is(err, errSectionDone) {
		return err
	}
	if out.left > 0 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// parseRange understands one range; whatever else is asked for, the whole is the answer.
func parseRange(r *http.Request, tag string, size int64) (from, to int64, part bool) {
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if cond := r.Header.Get("If-Range"); !ok || cond != "" && cond != tag {
		return 0, size, false
	}
	first, last, ok := strings.Cut(spec, "-")
	a, err := strconv.ParseUint(first, 10, 62)
	if !ok || strings.Contains(spec, ",") {
		return 0, size, false
	}
	b, err2 := strconv.ParseUint(last, 10, 62)
	switch {
	case first == "" && err2 == nil && b > 0: // the last b bytes
		return max(size-int64(b), 0), size, true
	case err != nil:
		return 0, size, false
	case last == "":
		return int64(a), size, true
	case err2 != nil || b < a:
		return 0, size, false
	}
	return int64(a), min(int64(b)+1, size), true
}

var errSectionDone = errors.New("all that was asked for is written")

// section passes on a part of what is written to it.
type section struct {
	w          *reply
	status     int
	skip, left int64
}

func (s *section) Write(b []byte) (int, error) {
	all := len(b)
	n := min(s.skip, int64(len(b)))
	s.skip -= n
	b = b[n:]
	if s.left == 0 {
		return 0, errSectionDone
	}
	b = b[:min(s.left, int64(len(b)))]
	if len(b) == 0 {
		return all, nil
	}
	if !s.w.began {
		s.w.WriteHeader(s.status)
	}
	got, err := s.w.Write(b)
	s.left -= int64(got)
	if err != nil {
		return 0, err
	}
	return all, nil
}

func (s *Server) listing(w *reply, r *http.Request, digest string) error {
	d, err := s.describe(r.Context(), digest)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	tag := `"` + d.info.NarHash.Nix32() + `-ls"`
	if s.unchanged(w, r, tag) {
		return nil
	}
	done, err := s.stream(r.Context())
	if err != nil {
		return err
	}
	defer done()
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(s.copy(r.Context(), pw, d)) }()
	l, err := nar.List(bufio.NewReaderSize(pr, 64<<10))
	pr.CloseWithError(err)
	if err != nil {
		return err
	}
	text, err := l.JSON()
	if err != nil {
		return err
	}
	return s.text(w, r, "application/json", string(text), tag)
}

func (s *Server) log(w *reply, r *http.Request, base string) error {
	drv, err := s.dir.Path(base)
	if err != nil {
		return errNotFound
	}
	done, err := s.stream(r.Context())
	if err != nil {
		return err
	}
	defer done()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	var to io.Writer = w
	if r.Method == http.MethodHead {
		to = io.Discard
	}
	return s.source.Log(r.Context(), drv, to)
}

func (s *Server) realisation(w *reply, r *http.Request, name string) error {
	text, ok := strings.CutSuffix(name, ".doi")
	id, err := store.ParseDrvOutput(text)
	if !ok || err != nil {
		return errNotFound
	}
	known, err := s.source.Realisation(r.Context(), id)
	if err != nil {
		return err
	}
	signed := *known
	signed.Signatures = cache.Sign(s.opts.Keys, known.Signatures, known.Fingerprint())
	return s.text(w, r, "application/json", signed.JSON(), "")
}

func (s *Server) trace(w *reply, r *http.Request, name string) error {
	text, ok := strings.CutSuffix(name, ".doi")
	base, output, ok2 := strings.Cut(text, "/")
	drv, err := s.dir.Path(base)
	if !ok || !ok2 || err != nil || !drv.IsDerivation() || store.CheckName(output) != nil {
		return errNotFound
	}
	t := &cache.Trace{Drv: drv, Output: output}
	if t.OutPath, err = s.source.Output(r.Context(), drv, output); err != nil {
		return err
	}
	t.Signatures = cache.Sign(s.opts.Keys, nil, t.Fingerprint())
	return s.text(w, r, "application/json", t.JSON(), "")
}
