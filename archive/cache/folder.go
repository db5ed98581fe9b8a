package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"cairn/store"
)

// folder is a cache in a directory.
type folder struct{ root string }

func newFolder(root string) (*folder, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("%q is not an absolute path", root)
	}
	return &folder{filepath.Clean(root)}, nil
}

func (f *folder) uri() string { return "file://" + f.root }

func (f *folder) close() {}

// path returns where a file is. Names come from narinfos and must stay inside.
func (f *folder) path(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("file name %q leaves the cache: %w", clip(name), ErrFormat)
	}
	return filepath.Join(f.root, name), nil
}

func (f *folder) get(_ context.Context, name string, _ int64) (io.ReadCloser, error) {
	path, err := f.path(name)
	if err != nil {
		return nil, err
	}
	// Whatever is there, opening it must not wait.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG):
		return nil, f.missing(path)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file: %w", path, ErrFormat)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// missing tells a file that is missing from a cache that is: one on a disk that is not mounted, say.
func (f *folder) missing(path string) error {
	if _, err := os.Stat(f.root); err != nil {
		return fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	return fmt.Errorf("%s is not there: %w", path, store.ErrNotValid)
}

func (f *folder) has(_ context.Context, name string) (bool, error) {
	path, err := f.path(name)
	if err != nil {
		return false, err
	}
	_, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// stage makes a file beside the archives, which then need not be copied.
func (f *folder) stage() (*staged, error) {
	below := filepath.Join(f.root, "nar")
	if err := os.MkdirAll(below, 0o777); err != nil {
		return nil, err
	}
	return stageIn(below)
}

// put renames what was staged, after it is on disk.
func (f *folder) put(_ context.Context, name string, s *staged, _ fileKind) error {
	path, err := f.path(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(s.name, path); err != nil {
		return err
	}
	s.name = ""
	return nil
}
