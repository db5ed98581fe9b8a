package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/disk"
)

// OfferError is why an offer was no good. It is refused; another may be better.
type OfferError struct {
	Path store.Path
	URI  string
	Err  error
}

func (e *OfferError) Error() string {
	return fmt.Sprintf("fetch '%s' from '%s': %v", e.Path, e.URI, e.Err)
}

func (e *OfferError) Unwrap() error { return e.Err }

// Progress is told how many bytes have come. Nil functions are not called.
type Progress struct {
	Unpacked func(int64) // of the archive
	Packed   func(int64) // from the cache, if it says so
}

// defaultStall is how long a download may make no progress when stalled-download-timeout is 0, and what is added to a cache's own patience.
const defaultStall = 30 * time.Second

// Fetch downloads the object of an offer and checks it. The import, which the caller must close, holds it until Commit.
// p is told how far it is. An error that is the cache's fault is an *OfferError.
func (s *Search) Fetch(ctx context.Context, o *Offer, p Progress) (*disk.Import, error) {
	return s.fetch(ctx, o, p, s.caches.pool.store.Import())
}

// FetchAgain is Fetch for an object that is registered, whose files Commit replaces.
func (s *Search) FetchAgain(ctx context.Context, o *Offer, p Progress) (*disk.Import, error) {
	return s.fetch(ctx, o, p, s.caches.pool.store.ImportAgain())
}

func (s *Search) fetch(ctx context.Context, o *Offer, p Progress, in *disk.Import) (*disk.Import, error) {
	err := o.fetchInto(ctx, in, p)
	if err == nil {
		o.source.works()
		return in, nil
	}
	in.Close()
	var bad *OfferError
	if errors.As(err, &bad) {
		s.Refuse(o, err)
		if !errors.Is(err, store.ErrNotValid) {
			o.source.fail(bad.Err)
			s.caches.report(ctx, o.source, bad.Err, s.watch.Warn)
		}
	}
	return nil, err
}

// fetchInto adds the object to an import.
func (o *Offer) fetchInto(ctx context.Context, in *disk.Import, p Progress) error {
	release, err := o.source.loadPlace(ctx)
	if err != nil {
		return err
	}
	defer release()
	if _, err := o.source.ready(ctx); err != nil {
		return o.blame(ctx, ctx, err)
	}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := o.source.stall()
	timer := time.AfterFunc(stall, func() { cancel(fmt.Errorf("nothing has come for %v", stall)) })
	defer timer.Stop()
	n := *o.there // with an address of its own
	if p.Packed != nil {
		defer o.source.follow(&n, p.Packed)()
	}
	body, err := o.source.opened().NAR(work, &n)
	if err != nil {
		return o.blame(ctx, work, err)
	}
	defer body.Close()
	r := &stream{r: body, alive: func(n int64) {
		timer.Reset(stall)
		if p.Unpacked != nil {
			p.Unpacked(n)
		}
	}}
	info := o.Info
	info.Ultimate, info.RegisteredAt = false, 0
	err = in.Add(ctx, &info, r)
	if err == nil {
		err = r.finish()
	}
	switch {
	case err == nil:
		return nil
	case r.err != nil:
		return o.blame(ctx, work, r.err)
	case errors.Is(err, store.ErrHashMismatch), errors.Is(err, nar.ErrFormat), errors.Is(err, io.ErrUnexpectedEOF):
		return o.blame(ctx, work, err)
	}
	return err // this store's own
}

// blame makes an error the offer's, unless the request has ended.
func (o *Offer) blame(ctx, work context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &OfferError{o.Path, o.source.uri, explain(work, err)}
}

// stall is how long a download may make no progress. The cache looks after that itself and tries again, so that this is the last resort.
func (s *source) stall() time.Duration {
	d := s.key.stalled
	if d <= 0 {
		d = defaultStall
	}
	return d*time.Duration(max(1, s.key.attempts)) + defaultStall
}

// stream reads an archive and remembers the error of its source.
type stream struct {
	r     io.Reader
	n     int64
	err   error
	alive func(int64)
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if n > 0 {
		s.alive(s.n)
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// finish reads the end, with which the source says that all was right.
func (s *stream) finish() error {
	var b [1]byte
	for {
		switch n, err := s.Read(b[:]); {
		case n > 0:
			return fmt.Errorf("something follows the archive: %w", nar.ErrFormat)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
