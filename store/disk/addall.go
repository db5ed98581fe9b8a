package disk

import (
	"bytes"
	"context"
	"fmt"
	"runtime"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// Archive is an object whose NAR is in memory.
type Archive struct {
	Info *store.Info
	NAR  []byte
}

// AddAll makes small objects valid, those referred to first, in one commit. Each is checked as Add checks it.
// When one is wrong, those before it are added and those behind it are not.
func (s *Store) AddAll(ctx context.Context, list []Archive) error {
	b := &bulk{s: s, together: map[store.Path]bool{}}
	defer b.end()
	list, wrong := b.prefix(list, func(a Archive) error { return s.checkInfo(a.Info) })
	paths := make([]store.Path, len(list))
	digests := make([]meta.Digest, len(list))
	size := int64(0)
	for i, a := range list {
		paths[i], digests[i] = a.Info.Path, meta.DigestOf(a.Info.Path)
		size += int64(len(a.NAR))
	}
	defer s.holdFor(ctx, paths...)()
	unlock, err := s.locks.lock(ctx, digests...)
	if err != nil {
		return err
	}
	defer unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if _, err := s.room(size); err != nil {
		return err
	}
	list, err = b.prefix(list, func(a Archive) error { return b.admit(ctx, a) })
	if err != nil {
		wrong = err
	}
	if err := b.unpack(ctx); err != nil {
		wrong = err
	}
	if err := b.commit(); err != nil {
		return err
	}
	return wrong
}

// bulk is an AddAll under way.
type bulk struct {
	s        *Store
	items    []*bulkItem         // that are not valid yet
	together map[store.Path]bool // their paths
	releases []func()            // of their references
}

type bulkItem struct {
	Archive
	tree   *tree
	err    error // why it cannot be added
	object *pending
}

// prefix returns what comes before the first archive that is wrong, and why that is.
func (b *bulk) prefix(list []Archive, check func(Archive) error) ([]Archive, error) {
	for i, a := range list {
		if err := check(a); err != nil {
			return list[:i], fmt.Errorf("add %s: %w", a.Info.Path, err)
		}
	}
	return list, nil
}

// admit notes an archive whose object is not valid yet and whose references are valid or noted. One that mends a damaged object it takes at once.
func (b *bulk) admit(ctx context.Context, a Archive) error {
	ok, err := b.s.present(a.Info.Path)
	if err != nil || b.together[a.Info.Path] {
		return err
	}
	if ok {
		if b.s.Damage(a.Info.Path) == nil {
			return nil
		}
		return b.s.again(ctx, a.Info, bytes.NewReader(a.NAR))
	}
	release, err := b.s.holdRefs(a.Info.Path, a.Info.References, b.together)
	if err != nil {
		return err
	}
	b.releases = append(b.releases, release)
	b.together[a.Info.Path] = true
	b.items = append(b.items, &bulkItem{Archive: a})
	return nil
}

// unpack makes the trees, on all cores, and keeps the items before the first that fails.
func (b *bulk) unpack(ctx context.Context) error {
	parallel(ctx, runtime.GOMAXPROCS(0), b.items, func(_ context.Context, it *bulkItem) error {
		info := *it.Info // its size may not be known
		it.Info, it.tree = &info, b.s.newTree(info.Path)
		it.err = it.tree.unpack(it.Info, it.NAR)
		return nil
	})
	staged := map[store.Path]string{}
	hashes := b.s.hashesWith(staged)
	for i, it := range b.items {
		if it.err == nil {
			staged[it.Info.Path] = it.tree.temp
			it.object, it.err = b.s.pending(it.Info, it.tree, hashes)
		}
		if it.err != nil {
			drop(b.items[i:])
			b.items = b.items[:i]
			return fmt.Errorf("add %s: %w", it.Info.Path, noSpace(it.err))
		}
	}
	return nil
}

// drop removes trees that are not renamed.
func drop(items []*bulkItem) {
	for _, it := range items {
		it.tree.drop()
	}
}

// unpack checks an archive that is in memory and makes its tree. When it fails it leaves none.
func (t *tree) unpack(info *store.Info, archive []byte) (err error) {
	failpoint.Hit("disk/add/received")
	if err := checkArchive(info, store.SHA256.Sum(archive), int64(len(archive))); err != nil {
		return err
	}
	check := newContentCheck(info)
	for _, w := range check.writers() {
		w.Write(archive)
	}
	r := bytes.NewReader(archive)
	if err := t.restore(r); err != nil {
		return err
	}
	failpoint.Hit("disk/add/unpacked")
	if r.Len() != 0 {
		err = fmt.Errorf("%d bytes follow the archive: %w", r.Len(), nar.ErrFormat)
	} else {
		err = check.verify(info, t.temp)
	}
	if err != nil {
		t.drop()
	}
	return err
}

func (b *bulk) commit() error {
	if len(b.items) == 0 {
		return nil
	}
	objects := make([]*pending, len(b.items))
	for i, it := range b.items {
		objects[i] = it.object
	}
	err := b.s.commit(objects)
	if err != nil {
		for _, p := range objects {
			p.drop()
		}
		err = fmt.Errorf("add %d paths, %s and others: %w", len(objects), objects[0].path, noSpace(err))
	}
	return err
}

// end gives the references back.
func (b *bulk) end() {
	for _, release := range b.releases {
		release()
	}
}
