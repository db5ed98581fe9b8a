package daemon

import (
	"context"
	"errors"
	"fmt"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
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

// registerDrvOutput believes trusted peers and keys that may import.
func (x *session) registerDrvOutput(ctx context.Context, q realisation) (reply, error) {
	r := q.r
	if q.byPath {
		id, err := x.server.drvOutput(q.path)
		if err != nil {
			return nil, fmt.Errorf("register output %s of %s: %w", q.path.Output, q.path.Drv, err)
		}
		r.ID = id
	}
	if !x.may(archive.Import) {
		if known, err := x.server.store.Realisation(r.ID); err == nil && known.OutPath == r.OutPath {
			return nil, nil // nothing new
		}
		if err := x.signed(r.Fingerprint(), r.Signatures); err != nil {
			return nil, fmt.Errorf("register %s: it %w", r.ID, err)
		}
		list, err := x.signers()
		if err != nil {
			return nil, err
		}
		r.Signatures = keepSignatures(r.Fingerprint(), nil, r.Signatures, list)
	}
	return nil, x.server.store.AddRealisation(ctx, &r)
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

// findRealisation returns what is known here or, if nothing is, what a cache says.
func (x *session) findRealisation(ctx context.Context, o output) (*store.Realisation, error) {
	if o.byPath {
		id, err := x.server.drvOutput(o.path)
		if err != nil {
			return nil, err
		}
		o.id = id
	}
	r, err := x.server.store.Realisation(o.id)
	if !errors.Is(err, store.ErrNotValid) || x.builder().Caches().None() {
		return r, err
	}
	s := x.search()
	if err := s.AskOutputs(ctx, []substitute.Output{{ID: o.id, Drv: o.path.Drv}}); err != nil {
		return nil, err
	}
	if r, _ := s.Realised(o.id); r != nil {
		return r, nil
	}
	return nil, err
}
