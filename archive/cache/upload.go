package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"cairn/archive"
	"cairn/store"
)

func (w *web) has(ctx context.Context, name string) (bool, error) {
	u, err := w.locate(name)
	if err != nil {
		return false, err
	}
	for attempt := 1; ; attempt++ {
		a, p := w.ask(ctx, http.MethodHead, u, nil, nil, 0)
		switch {
		case p == nil:
			a.close()
			return true, nil
		case errors.Is(p.err, store.ErrNotValid):
			return false, nil
		case p.dial || !w.wait(ctx, attempt, p):
			return false, p.err
		}
	}
}

func (w *web) stage() (*staged, error) { return stageNameless(w.opts.TempDir) }

func (w *web) put(ctx context.Context, name string, s *staged, kind fileKind) error {
	u, err := w.locate(name)
	if err != nil {
		return err
	}
	head := http.Header{"Content-Type": {kind.mediaType}}
	if kind.encoding != "" && kind.encoding != archive.Uncompressed {
		head.Set("Content-Encoding", string(kind.encoding))
	}
	for attempt := 1; ; attempt++ {
		p := w.send(ctx, u, head, s)
		if p == nil {
			return nil
		}
		if p.dial || !w.wait(ctx, attempt, p) {
			return p.err
		}
	}
}

// send is one attempt to put.
func (w *web) send(ctx context.Context, u *url.URL, head http.Header, s *staged) *problem {
	r, size, err := s.content()
	if err != nil {
		return &problem{err: err}
	}
	if w.hashContent {
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return &problem{err: err}
		}
		head.Set(contentHash, hex.EncodeToString(h.Sum(nil)))
		r.Seek(0, io.SeekStart)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up := &uploading{r: r, limit: w.opts.StalledTimeout, stalled: func() { cancel(fmt.Errorf("%w: %w", ErrUnavailable, errStalled)) }}
	up.timer = time.AfterFunc(up.limit, up.stalled)
	defer up.timer.Stop()
	a, p := w.ask(ctx, http.MethodPut, u, head, up, size)
	if p != nil {
		p.again = p.again || errors.Is(p.err, errStalled)
		return p
	}
	a.drain()
	return nil
}

// uploading is content that is being sent. It ends the request when the server takes nothing for too long.
type uploading struct {
	r       io.Reader
	limit   time.Duration
	stalled func()
	timer   *time.Timer
}

// Read gives the next piece. The last read is followed by the wait for the answer, which the client bounds.
func (u *uploading) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	u.timer.Reset(u.limit)
	if err != nil {
		u.timer.Reset(2 * u.limit)
	}
	return n, err
}
