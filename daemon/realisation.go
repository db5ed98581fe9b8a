package daemon

import (
	"context"
	"errors"
	"fmt"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
	"cairn/derivation"
	"cairn/store"
)

// output identifies an output, by hash or by the derivation's path.
type output struct {
	id     store.DrvOutput
	path   protocol.PathOutput
	byPath bool
}

func readOutput(d *protocol.Decoder) output {
	if d.Has(protocol.FeatureRealisations) {
		return output{path: d.PathOutput(), byPath: true}
	}
	return output{id: d.DrvOutput()}
}

// drvOutput returns the hash form of an output of a derivation, which must be valid.
func (s *Server) drvOutput(o protocol.PathOutput) (store.DrvOutput, error) {
	d, err := s.hashes.load(o.Drv)
	if err != nil {
		return store.DrvOutput{}, err
	}
	return s.hashes.get().DrvOutput(d, o.Output)
}

// realisation is the request of RegisterDrvOutput.
type realisation struct {
	output
	r store.Realisation
}

func readRealisation(d *protocol.Decoder) realisation {
	switch {
	case d.Has(protocol.FeatureRealisations):
		return realisation{output{path: d.PathOutput(), byPath: true}, d.Unkeyed()}
	case d.Version >= protocol.Minor(31):
		return realisation{r: d.Realisation()}
	}
	r := store.Realisation{ID: d.DrvOutput()}
	r.OutPath = d.BasePath()
	return realisation{r: r}
}

// registerDrvOutput records under both names, by hash and by path, as far as the other one is known. It believes peers and keys that may import.
func (x *session) registerDrvOutput(ctx context.Context, q realisation) (reply, error) {
	r := q.r
	if q.byPath {
		id, err := x.server.drvOutput(q.path)
		if err != nil && !errors.Is(err, store.ErrNotValid) {
			return nil, fmt.Errorf("register output %s of %s: %w", q.path.Output, q.path.Drv, err)
		}
		r.ID = id
	}
	if err := x.admitRealisation(q, &r); err != nil {
		return nil, err
	}
	if q.byPath {
		return nil, x.server.realise(ctx, q.path, r.ID, r.OutPath, nil, r.Signatures)
	}
	at := protocol.PathOutput{Drv: x.server.hashes.known(r.ID.Drv), Output: r.ID.Output}
	if err := x.server.store.AddRealisation(ctx, &r); err != nil {
		return nil, err
	}
	return nil, x.server.realise(ctx, at, store.DrvOutput{}, r.OutPath, nil, nil)
}

// admitRealisation says whether the peer may register what it wants to.
func (x *session) admitRealisation(q realisation, r *store.Realisation) error {
	if x.may(archive.Import) {
		return nil
	}
	if r.ID.Drv.IsZero() {
		return fmt.Errorf("register output %s of %s: its derivation is not valid here, and it %w", q.path.Output, q.path.Drv, store.ErrUntrusted)
	}
	if known, err := x.server.store.Realisation(r.ID); err == nil && known.OutPath == r.OutPath {
		r.Signatures = nil // nothing new
		return nil
	}
	if err := x.signed(r.Fingerprint(), r.Signatures); err != nil {
		return fmt.Errorf("register %s: it %w", r.ID, err)
	}
	list, err := x.signers()
	if err != nil {
		return err
	}
	r.Signatures = keepSignatures(r.Fingerprint(), nil, r.Signatures, list)
	return nil
}

// realise records a realisation under those of its names that are not zero. Signatures of one generation sign
// its own name.
func (s *Server) realise(ctx context.Context, at protocol.PathOutput, id store.DrvOutput, out store.Path, byHash, byPath []string) error {
	if !at.Drv.IsZero() {
		if old, err := s.store.LinkedOutput(at.Drv, at.Output); err == nil && old.OutPath != out {
			return fmt.Errorf("register output %s of %s as %s: it is realised by %s", at.Output, at.Drv, out, old.OutPath)
		}
	}
	if !id.Drv.IsZero() {
		if err := s.store.AddRealisation(ctx, &store.Realisation{ID: id, OutPath: out, Signatures: byHash}); err != nil {
			return err
		}
	}
	if at.Drv.IsZero() {
		return nil
	}
	return s.store.LinkOutput(ctx, at.Drv, at.Output, out, byPath...)
}

func (x *session) queryRealisation(ctx context.Context, o output) (reply, error) {
	return x.replyRealisation(ctx, o, func(store.Path) bool { return true })
}

// replyRealisation tells where an output is, if its path is one that may be told.
func (x *session) replyRealisation(ctx context.Context, o output, may func(store.Path) bool) (reply, error) {
	r, err := x.findRealisation(ctx, o)
	if err != nil && !errors.Is(err, store.ErrNotValid) {
		return nil, err
	}
	if r != nil && !may(r.OutPath) {
		r = nil
	}
	return func(e *protocol.Encoder) error {
		e.Bool(r != nil)
		switch {
		case r == nil:
		case o.byPath:
			e.Unkeyed(*r)
		case e.Version < protocol.Minor(31):
			e.Path(r.OutPath)
		default:
			e.Realisation(*r)
		}
		return nil
	}, nil
}

// findRealisation returns what is known here under either name or, if nothing is, what a cache says.
func (x *session) findRealisation(ctx context.Context, o output) (*store.Realisation, error) {
	if o.byPath {
		r, err := x.server.store.LinkedOutput(o.path.Drv, o.path.Output)
		if !errors.Is(err, store.ErrNotValid) {
			return r, err
		}
		if o.id, err = x.server.drvOutput(o.path); err != nil {
			return nil, err
		}
	}
	r, err := x.server.store.Realisation(o.id)
	if err == nil && o.byPath {
		return r, x.server.realise(ctx, o.path, store.DrvOutput{}, r.OutPath, nil, nil)
	}
	if !errors.Is(err, store.ErrNotValid) || x.builder().Caches().None() {
		return r, err
	}
	s := x.search()
	if err := s.AskOutputs(ctx, []substitute.Output{{ID: o.id, Drv: o.path.Drv}}); err != nil {
		return nil, err
	}
	if r, _ := s.Realised(o.id); r != nil {
		if o.byPath {
			r.Signatures = r.Traced
		}
		return &r.Realisation, nil
	}
	return nil, err
}

// learn records the realisations of a derivation that is about to become valid under their hash, if they came by path, when
// its hash was not known.
func (s *Server) learn(ctx context.Context, d *derivation.Derivation) error {
	kind, err := d.Kind()
	if err != nil || kind != derivation.Floating && kind != derivation.Deferred {
		return err
	}
	drv, err := d.Path(s.store.Dir())
	if err != nil {
		return err
	}
	for _, name := range d.OutputNames() {
		id, err := s.hashes.get().DrvOutput(d, name)
		if err != nil {
			return err
		}
		s.hashes.note(id.Drv, drv)
		r, err := s.store.LinkedOutput(drv, name)
		if err != nil {
			continue // there is none
		}
		if err := s.store.AddRealisation(ctx, &store.Realisation{ID: id, OutPath: r.OutPath}); err != nil {
			s.log.Warn("record realisation under its hash", "derivation", drv, "error", err)
		}
	}
	return nil
}
