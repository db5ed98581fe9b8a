package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

const (
	fetchMaxSize = 64 << 30
	nobody       = 65534
)

// fetchURL is "builtin:fetchurl": the variable "url" is where to get a file whose hash the derivation says.
// "executable" = 1 makes it executable, "unpack" = 1 takes it for an archive (NAR), packed as the name says, and unpacks it; both
// need a recursive hash. Schemes: http, https, file. A file must be readable by everybody.
//
// A file with a flat hash is looked for at the hashed mirrors first, as MIRROR/ALGORITHM/HEX. Downloads that break are resumed;
// credentials come from the netrc file.
func (a *attempt) fetchURL(ctx context.Context, out string) error {
	if a.kind != derivation.Fixed {
		return failure(protocol.InputRejected, "derivation '%s': builtin:fetchurl needs a fixed output hash", a.key.drv)
	}
	text, err := a.variable("url")
	if err != nil {
		return err
	}
	executable, unpack := a.flag("executable"), a.flag("unpack")
	var last error
	for _, from := range append(a.mirrors(), text) {
		if last != nil {
			a.log.note(fmt.Sprintf("warning: %v", last))
		}
		if last = a.fetchFrom(ctx, from, out, executable, unpack); last == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		os.RemoveAll(out)
	}
	return failure(protocol.TransientFailure, "fetch '%s' for '%s': %v", redacted(text), a.key.drv, last)
}

// variable returns a variable, or structured attribute, that must be there.
func (a *attempt) variable(name string) (string, error) {
	attrs, err := a.structured()
	if err != nil {
		return "", err
	}
	v, ok := a.drv.Env[name]
	if attrs != nil {
		v, ok = attrs[name].(string)
	}
	if !ok {
		return "", failure(protocol.InputRejected, "derivation '%s': required attribute '%s' missing", a.key.drv, name)
	}
	return v, nil
}

// mirrors are where a file with the derivation's hash may be.
func (a *attempt) mirrors() []string {
	out := a.drv.Outputs["out"]
	if out.Method != store.Flat {
		return nil
	}
	var list []string
	for _, m := range a.b.settings.HashedMirrors {
		list = append(list, strings.TrimRight(m, "/")+"/"+out.Algo.String()+"/"+out.Hash.Hex())
	}
	return list
}

func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	return u.Redacted()
}

func (a *attempt) fetchFrom(ctx context.Context, from, out string, executable, unpack bool) error {
	u, err := url.Parse(from)
	if err != nil {
		return fmt.Errorf("url %q: %w", from, err)
	}
	fmt.Fprintf(a.log, "downloading '%s'...\n", u.Redacted())
	body, err := a.openURL(ctx, u)
	if err != nil {
		return err
	}
	defer body.Close()
	r := &bounded{r: body, left: fetchMaxSize, alive: a.log.touch}
	if unpack {
		return unpackTo(out, u.Path, r)
	}
	return writeTo(out, r, executable)
}

func (a *attempt) openURL(ctx context.Context, u *url.URL) (io.ReadCloser, error) {
	switch u.Scheme {
	case "file":
		return openPublic(u.Path)
	case "http", "https":
		return cache.File(ctx, u.String(), a.fetchOptions())
	}
	return nil, fmt.Errorf("scheme %q is not one of http, https, file", u.Scheme)
}

func (a *attempt) fetchOptions() *cache.Options {
	set := a.b.settings
	o := &cache.Options{ConnectTimeout: set.ConnectTimeout, StalledTimeout: set.StalledTimeout, Attempts: set.DownloadAttempts, NetrcFile: set.NetrcFile}
	if o.NetrcFile == "" {
		o.NetrcFile = filepath.Join(a.b.store.Layout().ConfDir, "netrc")
	}
	return o
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
		return nil, r.err
	}
	fi, err := r.f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || os.Geteuid() == 0 && fi.Mode()&0o004 == 0) {
		err = fmt.Errorf("%s is not a regular file that everybody may read", path)
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

var errTooLong = errors.New("it is too long")

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if n > 0 {
		b.alive()
	}
	if b.left -= int64(n); b.left < 0 {
		return n, errTooLong
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

// packings are what the names of packed files end in, and the compressions' names.
var packings = map[string]string{".zst": "zstd", ".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".lz4": "lz4", ".br": "br"}

func unpackTo(out, name string, r io.Reader) error {
	pack := archive.Uncompressed
	if p, ok := packings[filepath.Ext(name)]; ok {
		var err error
		if pack, err = archive.ParseCompression(p); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	d, err := archive.NewDecompressor(r, pack)
	if err != nil {
		return err
	}
	defer d.Close()
	return nar.Restore(bufio.NewReaderSize(d, ioSize), out, nil)
}
