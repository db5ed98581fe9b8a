package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// nextPrefix begins the name of a complete and durable tree that takes the place of a damaged one, on file systems
// that cannot exchange two names. The rest of the name is the object's.
const nextPrefix = ".next-"

// Replace gives an object whose files are damaged or gone new ones: r has exactly one NAR, whose hash must be the
// registered one. What is registered does not change.
// A crash leaves the old files or the new ones, never none.
func (s *Store) Replace(ctx context.Context, p store.Path, r io.Reader) error {
	return s.replaceWith(ctx, p, func(info *store.Info, t *tree) error { return s.receive(ctx, info, t, r) })
}

// ReplaceTree is Replace with a tree on the store's file system, which is gone afterwards, also when it was refused.
// It gets the metadata of store objects, and is read to learn its hash.
func (s *Store) ReplaceTree(ctx context.Context, p store.Path, path string) error {
	defer removeTree(path)
	return s.replaceWith(ctx, p, func(info *store.Info, t *tree) error {
		if err := moveTree(path, t.temp); err != nil {
			return err
		}
		if err := canonicalise(t.temp); err != nil {
			return err
		}
		return s.checkTree(ctx, info, t.temp)
	})
}

// checkTree compares a tree with what is registered.
func (s *Store) checkTree(ctx context.Context, info *store.Info, path string) error {
	check := newContentCheck(info)
	c := counter{h: store.SHA256.New()}
	w := io.MultiWriter(append(check.writers(), contextWriter{ctx, &c})...)
	if err := nar.Dump(w, path); err != nil {
		return err
	}
	if got := store.NewHash(store.SHA256, c.h.Sum(nil)); got != info.NarHash {
		return fmt.Errorf("contents have %s, registered is %s: %w", got, info.NarHash, store.ErrHashMismatch)
	}
	return check.verify(info, path)
}

// replaceWith replaces an object by the tree that write makes and checks.
func (s *Store) replaceWith(ctx context.Context, p store.Path, write func(info *store.Info, t *tree) error) error {
	if p.IsZero() {
		return notValid(p)
	}
	d := meta.DigestOf(p)
	defer s.holdFor(ctx, p)()
	unlock, err := s.locks.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	info, release, err := s.registered(p)
	if err != nil {
		return err
	}
	defer release()
	t := s.newTree(p)
	defer t.drop()
	if err := write(info, t); err != nil {
		return fmt.Errorf("replace %s: %w", p, noSpace(err))
	}
	if err := s.swap(t.temp, s.RealPath(p)); err != nil {
		return fmt.Errorf("replace %s: %w", p, noSpace(err))
	}
	s.graph.found(d)
	s.mended(p)
	return nil
}

// Registered returns what is known of a path that has a row, whether its files are there or not.
func (s *Store) Registered(p store.Path) (*store.Info, error) {
	s.graph.mu.RLock()
	n := s.graph.rowOf(p)
	s.graph.mu.RUnlock()
	if n == nil {
		return nil, notValid(p)
	}
	return s.rowInfo(p)
}

// registered returns what is known of an object that has a row, whether its files are there or not, and holds its
// references, which must be valid if it is to become so.
func (s *Store) registered(p store.Path) (*store.Info, func(), error) {
	if s.isClosed() {
		return nil, nil, ErrClosed
	}
	info, err := s.Registered(p)
	if err != nil {
		return nil, nil, err
	}
	if s.graph.valid(p) {
		return info, func() {}, nil
	}
	release, err := s.holdRefs(p, info.References, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("replace %s: %w", p, err)
	}
	return info, release, nil
}

// swap puts the tree at temp where final is and deletes what was there. The caller has the keyed lock.
func (s *Store) swap(temp, final string) error {
	if err := s.flushTrees([]string{temp}); err != nil {
		return err
	}
	failpoint.Hit("disk/replace/flushed")
	old, err := s.exchange(temp, final)
	if err != nil {
		return err
	}
	failpoint.Hit("disk/replace/exchanged")
	if err := s.syncDir(); err != nil || old == "" {
		return err
	}
	failpoint.Hit("disk/replace/named")
	if old, err = s.toTrash(old); err != nil {
		return err
	}
	failpoint.Hit("disk/replace/trashed")
	if _, err := removeTree(old); err != nil {
		s.log.Warn("trash stays", "error", err)
	}
	return nil
}

// exchange renames temp to final and returns where what was there is now, if anything was.
func (s *Store) exchange(temp, final string) (string, error) {
	if absent(final) {
		return "", os.Rename(temp, final)
	}
	err := errors.ErrUnsupported
	if !s.noExchange && failpoint.Err("disk/replace/exchange") == nil {
		err = retry(func() error {
			return unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE)
		})
	}
	if err == nil {
		return temp, nil
	}
	if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, unix.EINVAL) {
		return "", fmt.Errorf("exchange %s: %w", final, err)
	}
	return s.exchangeInSteps(temp, final)
}

// exchangeInSteps is exchange for file systems that cannot do it at once. There is a moment without the object,
// which finish ends after a crash.
func (s *Store) exchangeInSteps(temp, final string) (string, error) {
	next := filepath.Join(filepath.Dir(final), nextPrefix+filepath.Base(final))
	if err := os.Rename(temp, next); err != nil {
		return "", err
	}
	if err := s.syncDir(); err != nil {
		return "", err
	}
	failpoint.Hit("disk/replace/next")
	old, err := s.toTrash(final)
	failpoint.Hit("disk/replace/away")
	if err != nil {
		removeTree(next)
		return "", err
	}
	return old, os.Rename(next, final)
}

// isInterrupted reports whether a name in the store directory says that something was between two steps: a replacement, or the linking of files.
func isInterrupted(name string) bool {
	return strings.HasPrefix(name, nextPrefix) || strings.HasPrefix(name, busyPrefix)
}

// finish ends what a crash has interrupted, and returns a name that there may not have been before.
func (s *Store) finish(interrupted string) (given []string, err error) {
	path := filepath.Join(s.layout.RealDir, interrupted)
	if object, ok := strings.CutPrefix(interrupted, busyPrefix); ok {
		return nil, s.finishBusy(path, object)
	}
	object := strings.TrimPrefix(interrupted, nextPrefix)
	return []string{object}, s.finishNext(path, object)
}

func (s *Store) finishNext(next, object string) error {
	final := filepath.Join(s.layout.RealDir, object)
	if !absent(final) {
		return s.discard(next)
	}
	return os.Rename(next, final)
}

func (s *Store) finishBusy(busy, object string) error {
	if s.nodeNamed(object) != nil {
		if err := canonicalise(filepath.Join(s.layout.RealDir, object)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Remove(busy)
}
