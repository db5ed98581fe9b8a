package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/store"
	"cairn/store/meta"
)

// Realisation returns the realisation of an output, or an error that is store.ErrNotValid.
func (s *Store) Realisation(id store.DrvOutput) (*store.Realisation, error) {
	r, err := s.db.Realisation(id)
	if errors.Is(err, meta.ErrNotFound) || err == nil && !s.IsValid(r.OutPath) {
		return nil, fmt.Errorf("realisation %s: %w", id, store.ErrNotValid)
	}
	return r, err
}

// AddRealisation records that an output is a valid path. Signatures are added to those there are;
// what it depends on stays when r does not say it; a realisation by another path stays.
func (s *Store) AddRealisation(ctx context.Context, r *store.Realisation) error {
	if r.OutPath.IsZero() {
		return fmt.Errorf("add realisation %s: no output path", r.ID)
	}
	d := meta.DigestOf(r.OutPath)
	unlock, err := s.locks.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	if !s.IsValid(r.OutPath) {
		return fmt.Errorf("add realisation %s: %w", r.ID, notValid(r.OutPath))
	}
	add := *r
	if old, err := s.Realisation(r.ID); err == nil {
		if old.OutPath != r.OutPath {
			return fmt.Errorf("add realisation %s by %s: it is realised by %s", r.ID, r.OutPath, old.OutPath)
		}
		add.Signatures = append(add.Signatures, old.Signatures...)
		if len(add.Dependents) == 0 {
			add.Dependents = old.Dependents
		}
	}
	add.Signatures = sortedTexts(add.Signatures)
	var b meta.Batch
	b.PutRealisation(&add)
	s.flag(d, false, true)
	if err := s.db.Commit(&b); err != nil {
		return fmt.Errorf("add realisation %s: %w", r.ID, err)
	}
	return nil
}

// RealisationsOf returns the outputs that p realises.
func (s *Store) RealisationsOf(p store.Path) ([]store.DrvOutput, error) {
	if !s.IsValid(p) {
		return nil, notValid(p)
	}
	return s.db.RealisationsOf(meta.DigestOf(p))
}

// LinkOutput records that the derivation drv, valid or not, has made the valid path out, so that
// Outputs and Derivers know it although the derivation does not say so. It stays when the derivation goes.
// Signatures are added to those there are.
func (s *Store) LinkOutput(ctx context.Context, drv store.Path, output string, out store.Path, signatures ...string) error {
	if drv.IsZero() || out.IsZero() {
		return fmt.Errorf("link output %q: no path", output)
	}
	dd, od := meta.DigestOf(drv), meta.DigestOf(out)
	unlock, err := s.locks.lock(ctx, dd, od)
	if err != nil {
		return err
	}
	defer unlock()
	if !s.IsValid(out) {
		return fmt.Errorf("link output %q: %w", output, notValid(out))
	}
	if old, err := s.db.Output(dd, output); err == nil && old.Path == out {
		if !old.Realised {
			return nil // the derivation says so itself
		}
		if signatures = sortedTexts(append(signatures, old.Signatures...)); slices.Equal(signatures, old.Signatures) {
			return nil
		}
	}
	var b meta.Batch
	b.PutOutput(dd, output, out, true, sortedTexts(signatures)...)
	s.flag(dd, true, false)
	s.flag(od, false, true)
	return s.db.Commit(&b)
}

// LinkedOutput returns what LinkOutput has recorded of an output whose path is valid, without an id, or an error that is
// store.ErrNotValid.
func (s *Store) LinkedOutput(drv store.Path, output string) (*store.Realisation, error) {
	o, err := s.db.Output(meta.DigestOf(drv), output)
	if errors.Is(err, meta.ErrNotFound) || err == nil && (!o.Realised || !s.IsValid(o.Path)) {
		return nil, fmt.Errorf("realisation of %s!%s: %w", drv, output, store.ErrNotValid)
	}
	if err != nil {
		return nil, err
	}
	return &store.Realisation{OutPath: o.Path, Signatures: o.Signatures}, nil
}

// Outputs returns the outputs of a valid derivation whose paths are known, valid or not.
func (s *Store) Outputs(drv store.Path) (map[string]store.Path, error) {
	if !s.IsValid(drv) {
		return nil, notValid(drv)
	}
	list, err := s.db.Outputs(meta.DigestOf(drv))
	if err != nil {
		return nil, err
	}
	outputs := make(map[string]store.Path, len(list))
	for _, o := range list {
		outputs[o.Name] = o.Path
	}
	return outputs, nil
}

// Derivers returns the valid derivations that have p as an output, sorted; p need not be valid.
func (s *Store) Derivers(p store.Path) ([]store.Path, error) {
	if p.IsZero() {
		return nil, nil
	}
	rows, err := s.db.Derivers(meta.DigestOf(p))
	if err != nil {
		return nil, err
	}
	var ps []store.Path
	for _, r := range rows {
		if n := s.graph.lookup(r.Drv); n != nil {
			ps = append(ps, s.path(n))
		}
	}
	return store.SortPaths(ps), nil
}
