package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
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
	content, err := s.content()
	if err != nil {
		return err
	}
	if w.parts != nil && content.Size() > w.parts.above {
		return w.parts.put(ctx, w, u, head, content)
	}
	_, err = w.exchange(ctx, http.MethodPut, u, head, content)
	return err
}

// reception is what a server says to what was sent.
type reception struct {
	head http.Header
	text []byte // as much as is of interest
}

// maxReception is the size limit of what is read of an answer to an upload.
const maxReception = 64 << 10

// exchange sends content, as often as is worth it.
func (w *web) exchange(ctx context.Context, method string, u *url.URL, head http.Header, content *io.SectionReader) (*reception, error) {
	head = maps.Clone(head)
	if head == nil {
		head = http.Header{}
	}
	if w.hashContent {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(content, 0, content.Size())); err != nil {
			return nil, err
		}
		head.Set(contentHash, hex.EncodeToString(h.Sum(nil)))
	}
	for attempt := 1; ; attempt++ {
		r, p := w.send(ctx, method, u, head, io.NewSectionReader(content, 0, content.Size()))
		if p == nil {
			return r, nil
		}
		if p.dial || !w.wait(ctx, attempt, p) {
			return nil, p.err
		}
	}
}

// send is one attempt to send.
func (w *web) send(ctx context.Context, method string, u *url.URL, head http.Header, content *io.SectionReader) (*reception, *problem) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up := &uploading{r: content, limit: w.opts.StalledTimeout, stalled: func() { cancel(fmt.Errorf("%w: %w", ErrUnavailable, errStalled)) }}
	up.timer = time.AfterFunc(up.limit, up.stalled)
	defer up.timer.Stop()
	a, p := w.ask(ctx, method, u, head, up, content.Size())
	if p != nil {
		p.again = p.again || errors.Is(p.err, errStalled)
		return nil, p
	}
	up.timer.Reset(up.limit)
	text, err := io.ReadAll(io.LimitReader(a.Body, maxReception))
	a.close()
	if err != nil {
		return nil, &problem{err: fmt.Errorf("%s: %w: %w", hideURL(u), ErrUnavailable, err), again: true}
	}
	return &reception{a.Header, text}, nil
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
