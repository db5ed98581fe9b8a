package cache

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// staged is a file on its way into a cache.
type staged struct {
	file *os.File
	name string // where it is; empty when it has no name any more
}

// stageIn makes a file in a folder. Its name starts with a dot, so that no cache serves it by accident.
func stageIn(folder string) (*staged, error) {
	name := filepath.Join(folder, ".tmp-"+rand.Text())
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	return &staged{f, name}, nil
}

// stageNameless makes a file that vanishes with its descriptor.
func stageNameless(folder string) (*staged, error) {
	f, err := os.CreateTemp(folder, "cairn-cache-*")
	if err != nil {
		return nil, err
	}
	return &staged{file: f}, os.Remove(f.Name())
}

// content returns the whole file.
func (s *staged) content() (*io.SectionReader, error) {
	st, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(s.file, 0, st.Size()), nil
}

// discard frees it, and removes it unless it was taken.
func (s *staged) discard() error {
	err := s.file.Close()
	if s.name != "" {
		err = errors.Join(err, os.Remove(s.name))
	}
	return err
}
