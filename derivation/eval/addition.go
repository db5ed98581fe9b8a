package eval

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"cairn/archive/nar"
	"cairn/store"
)

func (a *Addition) open() (io.ReadCloser, error) {
	if a.File == "" {
		return io.NopCloser(strings.NewReader(a.Text)), nil
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(nar.Dump(w, a.File)) }()
	return r, nil
}

// narHash hashes the archive of a file or folder.
func narHash(file string) (store.Hash, error) {
	h := store.SHA256.New()
	if err := nar.Dump(h, file); err != nil {
		return store.Hash{}, err
	}
	return store.NewHash(store.SHA256, h.Sum(nil)), nil
}

// Write writes what Open reads, for whoever needs no reader.
func (a *Addition) Write(w io.Writer) error {
	if a.File == "" {
		_, err := io.Copy(w, bytes.NewReader([]byte(a.Text)))
		return err
	}
	if err := nar.Dump(w, a.File); err != nil {
		return fmt.Errorf("read %s: %w", a.File, err)
	}
	return nil
}
