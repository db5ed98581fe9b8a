package disk

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/failpoint"
)

// Import is a set of objects that are received one by one and become valid together, or not at all:
// until Commit nothing of it can be seen. It is for one goroutine; small objects are unpacked by others.
type Import struct {
	s       *Store
	outputs []Output
	seen    map[store.Path]bool
	again   bool
	unpack  errgroup.Group // of small objects
	failed  atomic.Bool    // one of them is wrong
	left    int64          // bytes of them until free space is looked at again
	noted   atomic.Int64   // keys of all trees; see tree
}

// smallArchive is up to which size an archive is kept in memory until it is unpacked.
const smallArchive = 256 << 10

// Import begins an import, which must be closed.
func (s *Store) Import() *Import {
	i := &Import{s: s, seen: map[store.Path]bool{}}
	i.unpack.SetLimit(2 * runtime.GOMAXPROCS(0))
	return i
}

// ImportAgain begins an import of objects that are registered, whose files Commit replaces (see Replace) one by one.
func (s *Store) ImportAgain() *Import {
	i := s.Import()
	i.again = true
	return i
}

// Add reads exactly one NAR, checks it against info as Store.Add does, and puts it aside.
// References need not be there before Commit.
func (i *Import) Add(ctx context.Context, info *store.Info, r io.Reader) error {
	return i.take(info, r, i.receive(ctx))
}

// AddLater is Add, but what is wrong with a small object may be an error of a later call, at the latest of Commit.
func (i *Import) AddLater(ctx context.Context, info *store.Info, r io.Reader) error {
	if 0 < info.NarSize && info.NarSize <= smallArchive {
		return i.take(info, r, i.later)
	}
	return i.Add(ctx, info, r)
}

// take reads an archive with receive, unless there is no need for it.
func (i *Import) take(info *store.Info, r io.Reader, receive func(info *store.Info, t *tree, r io.Reader) error) error {
	err := i.s.checkInfo(info)
	if err == nil && (i.seen[info.Path] || !i.again && i.s.IsValid(info.Path) && i.s.Damage(info.Path) == nil) {
		_, err = nar.Copy(io.Discard, r)
	} else if err == nil {
		mine := *info
		t := i.s.newTree(info.Path)
		t.noted = &i.noted
		err = receive(&mine, t, r)
	}
	if err != nil {
		return fmt.Errorf("import %s: %w", info.Path, noSpace(err))
	}
	return nil
}

func (i *Import) receive(ctx context.Context) func(*store.Info, *tree, io.Reader) error {
	return func(info *store.Info, t *tree, r io.Reader) error {
		if err := i.s.receive(ctx, info, t, r); err != nil {
			t.drop()
			return err
		}
		failpoint.Hit("disk/import/received")
		i.putAside(info, t)
		return nil
	}
}

func (i *Import) putAside(info *store.Info, t *tree) {
	i.seen[info.Path] = true
	i.outputs = append(i.outputs, Output{Info: info, TempPath: t.temp, tree: t})
}

// later reads a small archive and leaves the rest to another goroutine.
func (i *Import) later(info *store.Info, t *tree, r io.Reader) error {
	if i.failed.Load() {
		return i.unpack.Wait()
	}
	if i.left -= info.NarSize; i.left < 0 {
		var err error
		if i.left, err = i.s.spaceInterval(); err != nil {
			return err
		}
	}
	archive := make([]byte, info.NarSize)
	if _, err := io.ReadFull(r, archive); err != nil {
		return err
	}
	i.putAside(info, t)
	i.unpack.Go(func() error {
		err := t.unpack(info, archive)
		failpoint.Hit("disk/import/received")
		if err != nil {
			i.failed.Store(true)
			return fmt.Errorf("import %s: %w", info.Path, noSpace(err))
		}
		return nil
	})
	return nil
}

// Commit makes all objects valid. A set too large for one transaction becomes valid in several, references
// first.
func (i *Import) Commit(ctx context.Context) error {
	if err := i.unpack.Wait(); err != nil {
		return err
	}
	if i.again {
		return i.replace(ctx)
	}
	failpoint.Hit("disk/import/complete")
	if err := i.s.Register(ctx, i.outputs); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	i.outputs = nil
	return nil
}

func (i *Import) replace(ctx context.Context) error {
	for _, o := range i.outputs {
		if err := i.s.ReplaceTree(ctx, o.Info.Path, o.TempPath); err != nil {
			return err
		}
	}
	i.outputs = nil
	return nil
}

// Close drops what was not committed.
func (i *Import) Close() {
	i.unpack.Wait()
	for _, o := range i.outputs {
		o.tree.drop()
	}
	i.outputs = nil
}
