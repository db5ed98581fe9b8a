package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/daemon/protocol"
	"cairn/derivation"
)

const (
	fetchTries   = 4
	fetchStall   = 60 * time.Second // without a byte
	fetchMaxSize = 64 << 30
	nobody       = 65534
)

// errGone is an answer that another try will not change.
var errGone = errors.New("not there")

// fetcher has no state but its connections. Contents are kept as they come: they are checked by hash.
var fetcher = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	DialContext:           (&net.Dialer{Timeout: 20 * time.Second}).DialContext,
	TLSHandshakeTimeout:   20 * time.Second,
	ResponseHeaderTimeout: fetchStall,
	IdleConnTimeout:       30 * time.Second,
	DisableCompression:    true,
	ForceAttemptHTTP2:     true,
}}

// fetchURL is "builtin:fetchurl": the variable "url" is where to get a file whose hash the derivation says.
// "executable" = 1 makes it executable, "unpack" = 1 takes it for an archive (NAR) and unpacks it; both
// need a recursive hash. Schemes: http, https, file. A file must be readable by everybody.
func (a *attempt) fetchURL(ctx context.Context, out string) error {
	if a.kind != derivation.Fixed {
		return failure(protocol.InputRejected, "derivation '%s': builtin:fetchurl needs a fixed output hash", a.key.drv)
	}
	attrs, err := a.structured()
	if err != nil {
		return err
	}
	get := func(name string) string {
		if words := attrs.words(a.drv.Env, name); len(words) > 0 {
			return words[0]
		}
		return ""
	}
	text := get("url")
	u, err := url.Parse(text)
	if err != nil {
		return fmt.Errorf("url %q: %w", text, err)
	}
	var last error
	for try := range fetchTries {
		if try > 0 {
			a.log.note(fmt.Sprintf("warning: %v; trying again", last))
			select {
			case <-time.After(time.Duration(1<<try) * 250 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		os.RemoveAll(out)
		if last = a.fetchOnce(ctx, u, out, get("executable") == "1", get("unpack") == "1"); last == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(last, errGone) {
			break
		}
	}
	return failure(protocol.TransientFailure, "fetch '%s' for '%s': %v", u.Redacted(), a.key.drv, last)
}

func (a *attempt) fetchOnce(ctx context.Context, u *url.URL, out string, executable, unpack bool) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stall := time.AfterFunc(fetchStall, func() { stop(fmt.Errorf("no data for %v", fetchStall)) })
	defer stall.Stop()
	fmt.Fprintf(a.log, "downloading '%s'...\n", u.Redacted())
	body, err := openURL(ctx, u)
	if err != nil {
		return err
	}
	defer body.Close()
	r := &bounded{r: body, left: fetchMaxSize, alive: func() { stall.Reset(fetchStall); a.log.touch() }}
	if unpack {
		err = unpackTo(out, u.Path, r)
	} else {
		err = writeTo(out, r, executable)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

func openURL(ctx context.Context, u *url.URL) (io.ReadCloser, error) {
	switch u.Scheme {
	case "file":
		return openPublic(u.Path)
	case "http", "https":
	default:
		return nil, fmt.Errorf("scheme %q is not one of http, https, file: %w", u.Scheme, errGone)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "cairn")
	resp, err := fetcher.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout:
		return nil, fmt.Errorf("the server answers %s", resp.Status)
	}
	return nil, fmt.Errorf("the server answers %s: %w", resp.Status, errGone)
}

// openPublic opens a regular file that everybody may read, on a thread that has no more rights than that.
// The thread ends with its goroutine.
func openPublic(path string) (io.ReadCloser, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			unix.SetfsgidRetGid(nobody)
			unix.SetfsuidRetUid(nobody)
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", r.err, errGone)
	}
	fi, err := r.f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || os.Geteuid() == 0 && fi.Mode()&0o004 == 0) {
		err = fmt.Errorf("%s is not a regular file that everybody may read: %w", path, errGone)
	}
	if err != nil {
		r.f.Close()
		return nil, err
	}
	return r.f, nil
}

// bounded reads at most left bytes and reports that it is alive.
type bounded struct {
	r     io.Reader
	left  int64
	alive func()
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if n > 0 {
		b.alive()
	}
	if b.left -= int64(n); b.left < 0 {
		return n, fmt.Errorf("more than %d bytes: %w", int64(fetchMaxSize), errGone)
	}
	return n, err
}

func writeTo(out string, r io.Reader, executable bool) error {
	mode := os.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func unpackTo(out, name string, r io.Reader) error {
	pack := archive.Uncompressed
	for _, c := range []archive.Compression{archive.Zstd, archive.Gzip, archive.Bzip2} {
		if strings.HasSuffix(name, c.Suffix()) {
			pack = c
		}
	}
	if strings.HasSuffix(name, ".xz") {
		return fmt.Errorf("archive %s is packed with xz, which is not supported: %w", name, errGone)
	}
	d, err := archive.NewDecompressor(r, pack)
	if err != nil {
		return err
	}
	defer d.Close()
	return nar.Restore(bufio.NewReaderSize(d, ioSize), out, nil)
}
