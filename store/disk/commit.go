package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// maxGroup is how many additions go through the steps together at most.
const maxGroup = 512

// pending is an object whose tree is complete below a temporary name.
type pending struct {
	path   store.Path
	object *meta.Object
	tree   *tree
	rows   *meta.Batch // what else is committed with it; perhaps nil
	isDrv  bool        // rows has its outputs
	placed bool        // renamed to its final name
}

// drop removes the tree of an object that was not committed.
func (p *pending) drop() {
	if !p.placed {
		p.tree.drop()
	}
}

// addition is objects that become valid together, references first, and who waits for it.
// The caller holds the keyed locks of all, and their references.
type addition struct {
	objects []*pending
	err     error
	done    chan error
}

// commit makes objects valid, together with those of others who wait.
func (s *Store) commit(objects []*pending) error {
	a := &addition{objects: objects, done: make(chan error, 1)}
	s.quit.RLock()
	select {
	case <-s.stop:
		s.quit.RUnlock()
		return ErrClosed
	default:
	}
	s.additions <- a
	s.added.Store(int64(time.Since(s.begun)))
	s.quit.RUnlock()
	err := <-a.done
	if err == nil && s.optimising != nil {
		s.optimiseLater(objects)
	}
	return err
}

// commitLoop is the goroutine that takes additions from complete trees to valid paths.
func (s *Store) commitLoop() {
	for {
		select {
		case a := <-s.additions:
			s.commitGroup(s.gather(a))
		case <-s.stop:
			select {
			case a := <-s.additions: // handed over before the stop
				s.commitGroup(s.gather(a))
				continue
			default:
				return
			}
		}
	}
}

func (s *Store) gather(first *addition) []*addition {
	group := []*addition{first}
	for len(group) < maxGroup {
		select {
		case a := <-s.additions:
			group = append(group, a)
		default:
			return group
		}
	}
	return group
}

func (s *Store) commitGroup(group []*addition) {
	failpoint.Hit("disk/add/complete")
	s.each(group, s.flushGroup)
	for _, a := range group {
		if a.err == nil {
			a.err = s.rename(a)
		}
	}
	s.each(group, s.syncNames)
	s.each(group, s.commitRows)
	for _, a := range group {
		if a.err != nil && s.allValid(a) { // the error was that of a later transaction
			a.err = nil
		}
		if a.err != nil && !errors.Is(a.err, meta.ErrBroken) { // the next start knows whether the row is there
			s.takeBack(a)
		}
		failpoint.Hit("disk/add/entered")
		a.done <- a.err
	}
}

func (s *Store) allValid(a *addition) bool {
	for _, p := range a.objects {
		if !s.graph.valid(p.path) {
			return false
		}
	}
	return true
}

// each runs a step for the additions that have come so far; its error is that of all of them.
func (s *Store) each(group []*addition, step func([]*addition) error) {
	var good []*addition
	for _, a := range group {
		if a.err == nil {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		return
	}
	if err := step(good); err != nil {
		for _, a := range good {
			if a.err == nil {
				a.err = noSpace(err)
			}
		}
	}
}

// flushGroup makes the bytes of all trees durable.
func (s *Store) flushGroup(group []*addition) error {
	var trees []string
	for _, a := range group {
		for _, p := range a.objects {
			trees = append(trees, p.tree.temp)
		}
	}
	if err := s.flushTrees(trees); err != nil {
		return err
	}
	return failpoint.Err("disk/add/flushed")
}

// flushTrees makes the bytes of trees durable.
func (s *Store) flushTrees(trees []string) error {
	if s.opts.NoSync {
		return nil
	}
	var few []string
	for _, tree := range trees {
		list, complete, err := entriesOf(tree, fewEntries-len(few))
		if err != nil {
			return err
		}
		if !complete {
			return retry(func() error { return unix.Syncfs(int(s.dir.Fd())) })
		}
		few = append(few, list...)
	}
	return syncFiles(few)
}

// syncDir makes names in the store directory durable.
func (s *Store) syncDir() error {
	if s.opts.NoSync {
		return nil
	}
	return retry(s.dir.Sync)
}

// syncNames makes the final names durable.
func (s *Store) syncNames([]*addition) error {
	if err := s.syncDir(); err != nil {
		return err
	}
	return failpoint.Err("disk/add/named")
}

// rename gives trees their final names. What stands there without being valid is a stray.
func (s *Store) rename(a *addition) error {
	for _, p := range a.objects {
		if err := s.place(p.tree.temp, s.RealPath(p.path)); err != nil {
			return noSpace(err)
		}
		p.placed = true
		if err := failpoint.Err("disk/add/renamed"); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) place(temp, final string) error {
	at := int(s.dir.Fd())
	err := unix.Renameat2(at, filepath.Base(temp), at, filepath.Base(final), unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL): // the second is of file systems that know no flags
		return &os.LinkError{Op: "rename", Old: temp, New: final, Err: err}
	}
	if exists(final) {
		if err := s.discard(final); err != nil {
			return err
		}
	}
	return os.Rename(temp, final)
}

// commitRows writes the rows of all additions, in as few transactions as they fit, and
// enters them into the graph. An addition that does not fit into one is split, references first.
func (s *Store) commitRows(group []*addition) error {
	var batch meta.Batch
	var inside []*pending
	flush := func() error {
		if err := s.db.Commit(&batch); err != nil {
			return err
		}
		failpoint.Hit("disk/add/committed")
		for _, p := range inside {
			s.enter(p)
		}
		batch, inside = meta.Batch{}, nil
		return nil
	}
	for _, a := range group {
		for _, p := range a.objects {
			var b meta.Batch
			b.PutObject(meta.DigestOf(p.path), p.object)
			if p.rows != nil {
				b.Append(p.rows)
			}
			if batch.Size()+b.Size() > s.db.MaxBatch() && len(inside) > 0 {
				if err := flush(); err != nil {
					return err
				}
				if err := failpoint.Err("disk/add/split"); err != nil {
					return err
				}
			}
			batch.Append(&b)
			inside = append(inside, p)
		}
	}
	return flush()
}

// enter makes a committed object valid.
func (s *Store) enter(p *pending) {
	d := meta.DigestOf(p.path)
	if missing, ok := s.graph.insert(d, p.object); !ok {
		panic(fmt.Sprintf("BUG: reference %s of %s went away while it was held", missing, p.path))
	}
	if p.isDrv {
		s.flag(d, true, false)
	}
	s.mended(p.path)
}

// flag notes which rows an object may have besides its own.
func (s *Store) flag(d meta.Digest, isDrv, isOut bool) {
	s.graph.mu.Lock()
	defer s.graph.mu.Unlock()
	if n := s.graph.row(d); n != nil {
		n.isDrv = n.isDrv || isDrv
		n.isOut = n.isOut || isOut
	}
}

// takeBack removes what a failed addition has renamed and did not become valid.
func (s *Store) takeBack(a *addition) {
	for _, p := range a.objects {
		if !p.placed || s.graph.valid(p.path) {
			continue
		}
		to, err := s.toTrash(s.RealPath(p.path))
		failpoint.Hit("disk/add/taken-back")
		if err == nil {
			_, err = removeTree(to)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.log.Warn("a failed addition stays until the next start", "path", p.path.String(), "error", err)
		}
	}
}
