package disk

import (
	"context"
	"fmt"
	"os"
	"slices"

	"cairn/derivation"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// Output is an object that was made in place: a tree on the store's file system, and what is known of it.
type Output struct {
	Info      *store.Info
	TempPath  string // where the tree is; gone when Register returns nil
	Canonical bool   // it has the metadata of store objects: nar.Restore has made it, and nobody else has touched it
	tree      *tree  // it is canonical, and has a temporary name of ours; else nil
}

// Register makes outputs valid, all at once. Their hashes are taken as given: whoever made them has
// just computed them. Trees get the metadata of store objects, unless they have them. Outputs may refer to themselves and to
// each other, but not in a circle. An output that is valid already is removed,
// unless it mends what is damaged.
func (s *Store) Register(ctx context.Context, outputs []Output) error {
	if err := s.register(ctx, outputs); err != nil {
		return fmt.Errorf("register outputs: %w", noSpace(err))
	}
	return nil
}

func (s *Store) register(ctx context.Context, outputs []Output) error {
	outputs, err := sortOutputs(outputs)
	if err != nil {
		return err
	}
	var ds []meta.Digest
	paths := map[store.Path]bool{}
	for _, o := range outputs {
		if err := s.checkInfo(o.Info); err != nil {
			return fmt.Errorf("%s: %w", o.Info.Path, err)
		}
		ds = append(ds, meta.DigestOf(o.Info.Path))
		paths[o.Info.Path] = true
		defer s.holdFor(ctx, o.Info.Path)()
	}
	unlock, err := s.locks.lock(ctx, ds...)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.Room(); err != nil {
		return err
	}
	var objects []*pending
	staged := map[store.Path]string{}
	a := adoption{s: s, together: paths, staged: staged, hashes: s.hashesWith(staged)}
	for _, o := range outputs {
		p, release, err := a.adopt(o)
		if err != nil {
			return fmt.Errorf("%s: %w", o.Info.Path, err)
		}
		defer release()
		if p != nil {
			defer p.drop()
			objects = append(objects, p)
		}
	}
	if len(objects) == 0 {
		return nil
	}
	return s.commit(objects)
}

// adoption is what the outputs of one registration share.
type adoption struct {
	s        *Store
	together map[store.Path]bool   // all that become valid together
	staged   map[store.Path]string // where they are
	hashes   *derivation.Hashes    // that know them
}

// adopt moves an output's tree to a temporary name of ours and makes it canonical.
// It returns nil when the path is valid already.
func (a *adoption) adopt(o Output) (*pending, func(), error) {
	s := a.s
	nothing := func() {}
	ok, err := s.present(o.Info.Path)
	if err != nil {
		return nil, nothing, err
	}
	if ok {
		return nil, nothing, a.again(o)
	}
	release, err := s.holdRefs(o.Info.Path, o.Info.References, a.together)
	if err != nil {
		return nil, nothing, err
	}
	t := o.tree
	if t == nil {
		t = s.newTree(o.Info.Path)
		if err := moveTree(o.TempPath, t.temp); err != nil {
			release()
			return nil, nothing, err
		}
		failpoint.Hit("disk/register/moved")
	}
	a.staged[o.Info.Path] = t.temp
	p, err := s.pending(o.Info, t, a.hashes)
	if err == nil && o.tree == nil {
		if !o.Canonical {
			err = canonicalise(t.temp)
		}
		failpoint.Hit("disk/register/canonical")
	}
	if err != nil {
		release()
		t.drop()
		return nil, nothing, err
	}
	return p, release, nil
}

// again drops an output that is valid already, or gives its tree to the damaged object that it is.
func (a *adoption) again(o Output) error {
	if a.s.Damage(o.Info.Path) != nil {
		temp := a.s.temp()
		defer removeTree(temp)
		if err := moveTree(o.TempPath, temp); err != nil {
			return err
		}
		if err := canonicalise(temp); err != nil {
			return err
		}
		return a.s.renew(o.Info, temp)
	}
	if o.tree != nil {
		o.tree.drop()
		return nil
	}
	_, err := removeTree(o.TempPath)
	return err
}

// moveTree renames a tree, which its owner, unless that is root, must be able to write for that.
func moveTree(from, to string) error {
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !fi.IsDir() || fi.Mode()&0o200 != 0 || os.Geteuid() == 0 {
		return os.Rename(from, to)
	}
	if err := os.Chmod(from, 0o700); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return os.Chmod(to, fi.Mode())
}

// sortOutputs orders outputs, those referred to first, and refuses circles and doubles.
func sortOutputs(outputs []Output) ([]Output, error) {
	index := map[store.Path]int{}
	for i, o := range outputs {
		if _, ok := index[o.Info.Path]; ok {
			return nil, fmt.Errorf("%s is there twice", o.Info.Path)
		}
		index[o.Info.Path] = i
	}
	var order []Output
	state := make([]int, len(outputs)) // 0 new, 1 open, 2 done
	var visit func(i int) error
	visit = func(i int) error {
		state[i] = 1
		for _, r := range outputs[i].Info.References {
			j, ok := index[r]
			if !ok || j == i || state[j] == 2 {
				continue
			}
			if state[j] == 1 {
				return fmt.Errorf("%s and %s refer to each other in a circle", outputs[i].Info.Path, r)
			}
			if err := visit(j); err != nil {
				return err
			}
		}
		state[i] = 2
		order = append(order, outputs[i])
		return nil
	}
	for i := range outputs {
		if state[i] == 0 {
			if err := visit(i); err != nil {
				return nil, err
			}
		}
	}
	return slices.Clip(order), nil
}
