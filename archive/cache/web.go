package cache

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"cairn/archive"
	"cairn/store"
)

// web is a cache behind HTTP.
type web struct {
	base   *url.URL // without credentials; its path does not end in a slash
	client *http.Client
	opts   *Options
	// authorize adds what a request needs to be answered. It is called once for each attempt.
	authorize func(r *http.Request)
	// locate returns the URL of a file.
	locate func(name string) (*url.URL, error)
	// explain finds the error in an answer that says more than its status; nil: nobody does.
	explain func(resp *http.Response) error
	// hashContent says that the hash of what is put has to be sent.
	hashContent bool
	// parts is how large files are put; nil: whole.
	parts *parts
}

// maxRedirects is how many redirects are followed.
const maxRedirects = 10

// maxHeader is the size limit of the head of an answer.
const maxHeader = 64 << 10

func newWeb(bare string, opts *Options) (*web, error) {
	u, err := url.Parse(bare)
	if err != nil || u.Host == "" {
		return nil, errors.New("not a URL with a host")
	}
	if u.Fragment != "" {
		return nil, errors.New("a URL of a cache has no #fragment")
	}
	known, err := readNetrc(opts.NetrcFile)
	if err != nil {
		return nil, err
	}
	var own credentials
	if u.User != nil {
		own.user = u.User.Username()
		own.password, _ = u.User.Password()
	}
	u.User = nil
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	w := &web{base: u, client: newClient(opts), opts: opts}
	w.locate = w.locateBelow
	w.authorize = func(r *http.Request) {
		if !own.isZero() && r.URL.Host == u.Host && r.URL.Scheme == u.Scheme {
			own.apply(r)
			return
		}
		known.of(r.URL.Hostname(), r.URL.Host == u.Host).apply(r)
	}
	return w, nil
}

// newClient makes a client with connections of its own.
func newClient(opts *Options) *http.Client {
	dialer := &net.Dialer{Timeout: opts.ConnectTimeout, KeepAlive: 15 * time.Second}
	var config *tls.Config
	if opts.TLS != nil {
		config = opts.TLS.Clone()
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    opts.ConnectTimeout,
		ResponseHeaderTimeout:  opts.StalledTimeout,
		IdleConnTimeout:        90 * time.Second,
		MaxConnsPerHost:        opts.Connections,
		MaxIdleConnsPerHost:    opts.Connections,
		MaxIdleConns:           2 * opts.Connections,
		MaxResponseHeaderBytes: maxHeader,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a packed archive is hashed as it is stored
		ExpectContinueTimeout:  time.Second,
	}
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}
}

// checkRedirect bounds redirects. net/http keeps credentials from other hosts; from plain connections this does.
func checkRedirect(r *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects: %w", maxRedirects, ErrFormat)
	case r.URL.Scheme != "http" && r.URL.Scheme != "https":
		return fmt.Errorf("redirect to %s:, which is not the web: %w", clip(r.URL.Scheme), ErrFormat)
	case r.URL.Scheme == "http" && via[0].URL.Scheme == "https":
		r.Header.Del("Authorization")
	}
	return nil
}

func (w *web) uri() string { return hideURL(w.base) }

func (w *web) close() { w.client.CloseIdleConnections() }

// locateBelow returns the URL of a file. As in Nix, a narinfo may name another server.
func (w *web) locateBelow(name string) (*url.URL, error) {
	text := name
	if !strings.HasPrefix(name, "http://") && !strings.HasPrefix(name, "https://") {
		text = w.base.String() + "/" + strings.TrimLeft(name, "/")
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("file name %q makes no URL: %w", clip(name), ErrFormat)
	}
	return u, nil
}

func (w *web) get(ctx context.Context, name string, size int64) (io.ReadCloser, error) {
	u, err := w.locate(name)
	if err != nil {
		return nil, err
	}
	b := &body{web: w, ctx: ctx, url: u, size: size}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b.decoded()
}

// decoded undoes what the server did to the file on the way.
func (b *body) decoded() (io.ReadCloser, error) {
	encoding := strings.ToLower(strings.TrimSpace(b.head.Get("Content-Encoding")))
	if encoding == "" || encoding == "identity" {
		return b, nil
	}
	b.size = 0 // it is that of the file, not of what comes
	c, err := archive.ParseContentEncoding(encoding)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", err, ErrFormat), b.Close())
	}
	return &decoded{body: b, kind: c}, nil
}

// decoded is a body whose encoding is undone.
type decoded struct {
	body  *body
	kind  archive.Compression
	plain io.ReadCloser // nil until the first Read
}

func (d *decoded) Read(p []byte) (int, error) {
	if d.plain == nil {
		var err error
		if d.plain, err = archive.NewDecompressor(d.body, d.kind); err != nil {
			return 0, d.blame(err)
		}
	}
	n, err := d.plain.Read(p)
	if err != nil && err != io.EOF {
		err = d.blame(err)
	}
	return n, err
}

func (d *decoded) blame(err error) error {
	if d.body.err != nil && d.body.err != io.EOF {
		return d.body.err
	}
	return fmt.Errorf("content encoding %s: %w: %w", d.kind, err, ErrFormat)
}

func (d *decoded) Close() error {
	var err error
	if d.plain != nil {
		err = d.plain.Close()
	}
	return errors.Join(err, d.body.Close())
}

// answer is what became of one request.
type answer struct {
	*http.Response
	cancel context.CancelCauseFunc // ends it, and what is still to come of it
}

func (a *answer) close() {
	a.cancel(nil)
	a.Body.Close()
}

// problem is why a request got no answer.
type problem struct {
	err   error
	again bool          // another attempt may do better
	dial  bool          // nobody was reached
	pause time.Duration // that the server asked for
}

// ask sends one request and sorts the answers.
func (w *web) ask(ctx context.Context, method string, u *url.URL, head http.Header, content io.Reader, length int64) (*answer, *problem) {
	ctx, cancel := context.WithCancelCause(ctx)
	r, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		cancel(nil)
		return nil, &problem{err: fmt.Errorf("%s: %w", hideURL(u), ErrFormat)}
	}
	for k, v := range head {
		r.Header[k] = v
	}
	if r.ContentLength = length; length == 0 {
		r.Body = nil
	}
	r.Header.Set("User-Agent", w.opts.UserAgent)
	w.authorize(r)
	resp, err := w.client.Do(r)
	if err != nil {
		defer cancel(nil)
		return nil, broken(ctx, u, err)
	}
	a := &answer{resp, cancel}
	if p := w.refused(u, resp); p != nil {
		a.drain()
		return nil, p
	}
	return a, nil
}

// maxDrain is how much of the body of a refusal is read to keep its connection.
const maxDrain = 16 << 10

// drain reads a little, so that the connection can be used again, and closes.
func (a *answer) drain() {
	timer := time.AfterFunc(time.Second, func() { a.cancel(nil) })
	io.Copy(io.Discard, io.LimitReader(a.Body, maxDrain))
	timer.Stop()
	a.close()
}

// broken describes a request that got no answer.
func broken(ctx context.Context, u *url.URL, err error) *problem {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // it shows the whole URL
	}
	switch {
	case ctx.Err() != nil:
		return &problem{err: fmt.Errorf("%s: %w", hideURL(u), context.Cause(ctx))}
	case errors.Is(err, ErrFormat):
		return &problem{err: fmt.Errorf("%s: %w", hideURL(u), err)}
	}
	p := &problem{err: fmt.Errorf("%s: %w: %w", hideURL(u), ErrUnavailable, err), again: true}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
		p.dial = true
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		p.dial = true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		p.again = false
	}
	return p
}

// refused describes an answer that is not a success, or returns nil.
func (w *web) refused(u *url.URL, resp *http.Response) *problem {
	code := resp.StatusCode
	switch {
	case code == http.StatusOK, code == http.StatusPartialContent, code == http.StatusCreated, code == http.StatusNoContent, code == http.StatusAccepted:
		return nil
	case w.explain != nil:
		if err := w.explain(resp); err != nil {
			return &problem{err: fmt.Errorf("%s: %w", hideURL(u), err)}
		}
	}
	switch code {
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		if resp.Request.Method == http.MethodPut || resp.Request.Method == http.MethodPost {
			return &problem{err: fmt.Errorf("%s: %s: %w", hideURL(u), status(code), ErrReadOnly)}
		}
		if code < http.StatusInternalServerError && code != http.StatusMethodNotAllowed {
			return &problem{err: fmt.Errorf("%s: %s: %w", hideURL(u), status(code), store.ErrNotValid)}
		}
	}
	p := &problem{err: fmt.Errorf("%s: %w: %s", hideURL(u), ErrUnavailable, status(code))}
	switch code {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		p.err = &unauthorizedError{p.err}
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusNetworkAuthenticationRequired:
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusTooEarly:
		p.again = true
	default:
		p.again = code >= 500
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		p.pause = time.Duration(min(s, 3600)) * time.Second
	}
	return p
}

func status(code int) string {
	return strings.TrimSpace(strconv.Itoa(code) + " " + http.StatusText(code))
}

// unauthorizedError says what to do about a refusal.
type unauthorizedError struct{ error }

func (e *unauthorizedError) Unwrap() error { return e.error }

// Hint is the next step.
func (e *unauthorizedError) Hint() string {
	return "the cache wants credentials: a line 'machine HOST login USER password SECRET' in the netrc file"
}

// maxPause is how long a server may ask to wait before the next attempt; who wants more is unavailable.
const maxPause = 10 * time.Second

// wait pauses after the failure of an attempt, the first being 1, and reports whether there should be another.
func (w *web) wait(ctx context.Context, attempt int, p *problem) bool {
	if !p.again || attempt >= w.opts.Attempts || p.pause > maxPause {
		return false
	}
	timer := time.NewTimer(max(p.pause, jitter(w.opts.Backoff<<min(attempt-1, 6))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
