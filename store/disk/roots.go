package disk

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/base32"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// AddIndirectRoot makes what link points to a root for as long as link exists and points into the
// store: STATEDIR/gcroots/auto/<base-32 SHA-1 of link> -> link.
func (s *Store) AddIndirectRoot(link string) error {
	if !filepath.IsAbs(link) || filepath.Clean(link) != link {
		return fmt.Errorf("add indirect root %q: not an absolute clean path", link)
	}
	sum := sha1.Sum([]byte(link))
	auto := filepath.Join(s.layout.StateDir, "gcroots", "auto", base32.Encode(sum[:]))
	if err := s.replaceLink(link, auto); err != nil {
		return fmt.Errorf("add indirect root %s: %w", link, err)
	}
	if target, err := os.Readlink(link); err == nil {
		s.keepTarget(target)
	}
	return nil
}

// AddPermRoot makes link point to p, and makes it a root: by itself when it is below STATEDIR/gcroots,
// otherwise indirectly. An existing link is replaced when it points into the store.
func (s *Store) AddPermRoot(p store.Path, link string) error {
	if !filepath.IsAbs(link) || filepath.Clean(link) != link {
		return fmt.Errorf("add root %q: not an absolute clean path", link)
	}
	defer s.holdFor(context.Background(), p)() // until the link is there
	if !s.IsValid(p) {
		return fmt.Errorf("add root %s: %w", link, notValid(p))
	}
	if old, err := os.Readlink(link); err == nil {
		if _, _, err := s.layout.Dir.Within(old); err != nil {
			return fmt.Errorf("add root %s: it points to %s, which is not in the store", link, old)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("add root %s: something is there that is no link: %w", link, err)
	}
	if err := s.replaceLink(p.String(), link); err != nil {
		return fmt.Errorf("add root %s: %w", link, err)
	}
	if within(filepath.Join(s.layout.StateDir, "gcroots"), link) {
		return nil
	}
	return s.AddIndirectRoot(link)
}

// keepTarget saves the object that a new root points to from the running collection.
func (s *Store) keepTarget(target string) {
	p, _, err := s.layout.Dir.Within(target)
	if err != nil {
		return
	}
	s.graph.mu.Lock()
	defer s.graph.mu.Unlock()
	if n := s.graph.row(meta.DigestOf(p)); n != nil {
		s.graph.keep(n)
	}
}

// newRoot begins the temporary name of a root; the rest makes it unique.
const newRoot = ".cairn-new-"

// replaceLink makes a symbolic link by one rename, durably.
func (s *Store) replaceLink(target, link string) error {
	if err := makeDirs(filepath.Dir(link)); err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(link), newRoot+s.start+fmt.Sprint(s.names.Add(1)))
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	failpoint.Hit("disk/root/made")
	if err := os.Rename(temp, link); err != nil {
		os.Remove(temp)
		return err
	}
	failpoint.Hit("disk/root/renamed")
	if err := syncFile(filepath.Dir(link)); err != nil {
		return err
	}
	failpoint.Hit("disk/root/named")
	return nil
}

// makeDirs makes a directory and those above it that are missing, durably.
func makeDirs(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDirs(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // if it is no directory, what is made in it fails
	}
	if err != nil {
		return err
	}
	return syncFile(filepath.Dir(dir))
}

// dropNewRoots removes roots that a crash has left below their temporary names, where they would keep an object for ever.
func (s *Store) dropNewRoots() error {
	err := filepath.WalkDir(filepath.Join(s.layout.StateDir, "gcroots"), func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			s.log.Warn("roots are not looked at", "dir", path, "error", err) // a collection says so, and stops
			return nil
		case e.Type() == fs.ModeSymlink && strings.HasPrefix(e.Name(), newRoot):
			if err := os.Remove(path); !errors.Is(err, unix.EROFS) {
				return err
			}
			s.log.Warn("a root that was not finished stays", "root", path, "error", unix.EROFS)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove a root that was not finished: %w", err)
	}
	return nil
}
