package disk

import (
	"context"
	"fmt"
	"io"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/failpoint"
)

// Import is a set of objects that are received one by one and become valid together, or not at all:
// until Commit nothing of it can be seen. It is for one goroutine.
type Import struct {
	s       *Store
	outputs []Output
	seen    map[store.Path]bool
	again   bool
}

// Import begins an import, which must be closed.
func (s *Store) Import() *Import { return &Import{s: s, seen: map[store.Path]bool{}} }

// ImportAgain begins an import of objects that are registered, whose files Commit replaces (see Replace) one by one.
func (s *Store) ImportAgain() *Import {
	return &Import{s: s, seen: map[store.Path]bool{}, again: true}
}

// Add reads exactly one NAR, checks it against info as Store.Add does, and puts it aside.
// References need not be there before Commit.
func (i *Import) Add(ctx context.Context, info *store.Info, r io.Reader) error {
	if err := i.add(ctx, info, r); err != nil {
		return fmt.Errorf("import %s: %w", info.Path, noSpace(err))
	}
	return nil
}

func (i *Import) add(ctx context.Context, info *store.Info, r io.Reader) error {
	if err := i.s.checkInfo(info); err != nil {
		return err
	}
	if i.seen[info.Path] || !i.again && i.s.IsValid(info.Path) {
		_, err := nar.Copy(io.Discard, r)
		return err
	}
	mine, temp := *info, i.s.temp()
	if err := i.s.receive(ctx, &mine, temp, r); err != nil {
		removeTree(temp)
		return err
	}
	failpoint.Hit("disk/import/received")
	i.seen[info.Path] = true
	i.outputs = append(i.outputs, Output{Info: &mine, TempPath: temp})
	return nil
}

// Commit makes all objects valid. A set too large for one transaction becomes valid in several, references
// first.
func (i *Import) Commit(ctx context.Context) error {
	if i.again {
		return i.replace(ctx)
	}
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
	for _, o := range i.outputs {
		removeTree(o.TempPath)
	}
	i.outputs = nil
}
