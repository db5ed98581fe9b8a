package substitute

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/store"
)

// Output is an output of a derivation, in the ways of both generations of Nix: by hash and by path.
type Output struct {
	ID  store.DrvOutput
	Drv store.Path // zero when it is not known
}

// Realised is what a cache says of an output. Signatures of the two generations sign different texts.
type Realised struct {
	store.Realisation
	Traced []string // signatures of the trace, when the output was found by the derivation's path
}

// Realised returns where an output is, or nil when nobody says so. asked is false when that is not known yet.
func (s *Search) Realised(id store.DrvOutput) (r *Realised, asked bool) {
	if s.None() {
		return nil, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, asked = s.outputs[id]
	return r, asked
}

// AskOutputs finds where outputs are. A realisation is believed when it is signed as an object must be.
func (s *Search) AskOutputs(ctx context.Context, list []Output) error {
	if s.None() || len(list) == 0 {
		return nil
	}
	sources := s.caches.ordered(ctx, s.watch.Warn)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(defaultConnections) // each source has its own
	for _, o := range list {
		if _, asked := s.Realised(o.ID); asked {
			continue
		}
		g.Go(func() error {
			r, err := s.realisationOf(ctx, sources, o)
			if err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.outputs[o.ID] = r
			return nil
		})
	}
	return g.Wait()
}

// realisationOf asks one source after the other.
func (s *Search) realisationOf(ctx context.Context, sources []*source, o Output) (*Realised, error) {
	for _, src := range sources {
		if src.storeDir() != s.caches.pool.store.Dir() {
			continue
		}
		r, err := s.realisationFrom(ctx, src, o)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil:
			return r, nil
		case errors.Is(err, errRejected):
			s.caches.complain(fmt.Sprintf("ignoring realisation of '%s' from '%s': %v", o.ID, src.uri, err), s.watch.Warn)
		case !errors.Is(err, store.ErrNotValid):
			s.caches.report(ctx, src, err, s.watch.Warn)
		}
	}
	return nil, nil
}

// errRejected says that a realisation is not believed; the cache may be good otherwise.
var errRejected = errors.New("it is not acceptable")

// realisationFrom asks for an output by hash, then by path.
func (s *Search) realisationFrom(ctx context.Context, src *source, o Output) (*Realised, error) {
	var r *store.Realisation
	err := src.ask(ctx, func(ctx context.Context, c Cache) (err error) {
		rs, ok := c.(cache.Realisations)
		if !ok {
			return store.ErrNotValid
		}
		if r, err = rs.Realisation(ctx, o.ID); err == nil && r.ID != o.ID {
			return fmt.Errorf("it answers with %s when asked for the realisation of %s", r.ID, o.ID)
		}
		return err
	})
	if err == nil {
		return &Realised{Realisation: *r}, s.believe(src, r)
	}
	if o.Drv.IsZero() || !errors.Is(err, store.ErrNotValid) {
		return nil, err
	}
	return s.traceFrom(ctx, src, o)
}

func (s *Search) traceFrom(ctx context.Context, src *source, o Output) (*Realised, error) {
	var t *cache.Trace
	err := src.ask(ctx, func(ctx context.Context, c Cache) (err error) {
		rs, ok := c.(cache.Realisations)
		if !ok {
			return store.ErrNotValid
		}
		t, err = rs.Traced(ctx, o.Drv, o.ID.Output)
		return err
	})
	if err != nil {
		return nil, err
	}
	if t.OutPath.Dir() != s.caches.pool.store.Dir() {
		return nil, fmt.Errorf("it is in another store: %w", errRejected)
	}
	if !s.caches.free(src) && !s.caches.signed(t.Fingerprint(), t.Signatures) {
		return nil, fmt.Errorf("it %w: %w", store.ErrUntrusted, errRejected)
	}
	return &Realised{store.Realisation{ID: o.ID, OutPath: t.OutPath}, t.Signatures}, nil
}

// believe says whether a realisation is signed, and does not contradict what is known here.
func (s *Search) believe(src *source, r *store.Realisation) error {
	if r.OutPath.Dir() != s.caches.pool.store.Dir() {
		return fmt.Errorf("it is in another store: %w", errRejected)
	}
	if !s.caches.free(src) {
		if _, ok := archive.VerifyRealisation(r, s.caches.trusted()); !ok {
			return fmt.Errorf("it %w: %w", store.ErrUntrusted, errRejected)
		}
	}
	for id, p := range r.Dependents {
		if known, err := s.caches.pool.store.Realisation(id); err == nil && known.OutPath != p {
			return fmt.Errorf("it depends on %s as '%s', which is '%s' here: %w", p, id, known.OutPath, errRejected)
		}
	}
	return nil
}

// free reports whether a source needs no signatures.
func (c *Caches) free(s *source) bool { return s.trusted || !c.settings.RequireSignatures }

func (c *Caches) signed(text string, signatures []string) bool {
	_, ok := archive.VerifyText([]byte(text), signatures, c.trusted())
	return ok
}
