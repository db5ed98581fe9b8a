package disk

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/refscan"
)

// checkArchive compares an archive with what was announced, and fills in info's size when it is zero.
func checkArchive(info *store.Info, hash store.Hash, size int64) error {
	if hash != info.NarHash {
		return fmt.Errorf("nar has %s, announced was %s: %w", hash, info.NarHash, store.ErrHashMismatch)
	}
	if info.NarSize != 0 && size != info.NarSize {
		return fmt.Errorf("nar has %d bytes, announced were %d: %w", size, info.NarSize, store.ErrHashMismatch)
	}
	info.NarSize = size
	return nil
}

// contentCheck compares an object's contents with its content address.
type contentCheck struct {
	ca  store.ContentAddress
	sum func() store.Hash // of what was written, in the form that fits if there are two; nil when nothing need be
	w   io.Writer
}

// newContentCheck prepares the check of an object's archive.
func newContentCheck(info *store.Info) *contentCheck {
	c := &contentCheck{ca: info.CA}
	if info.CA.Method != store.Recursive {
		return c
	}
	algo := info.CA.Hash.Algorithm()
	switch {
	case info.SelfReferences():
		m := refscan.HashModulo(algo, info.Path.Digest())
		c.w, c.sum = m, func() store.Hash { return eitherForm(m, info.CA.Hash) }
	case algo != store.SHA256:
		h := algo.New()
		c.w, c.sum = h, func() store.Hash { return store.NewHash(algo, h.Sum(nil)) }
	}
	return c
}

// eitherForm returns the form of a hash modulo that is the wanted one, or else the newer one.
func eitherForm(m *refscan.ModuloHasher, want store.Hash) store.Hash {
	if older := m.Sum(refscan.WithOffsets); older == want {
		return older
	}
	return m.Sum(refscan.Blanked)
}

// writers returns what wants to see the archive.
func (c *contentCheck) writers() []io.Writer {
	if c.w == nil {
		return nil
	}
	return []io.Writer{c.w}
}

// verify decides, once the archive was seen and the tree is at path.
func (c *contentCheck) verify(info *store.Info, path string) error {
	var got store.Hash
	switch {
	case c.ca.IsZero():
		return nil
	case c.sum != nil:
		got = c.sum()
	case c.ca.Method == store.Recursive:
		got = info.NarHash
	default:
		var err error
		if got, err = hashPlain(path, c.ca.Hash.Algorithm()); err != nil {
			return err
		}
	}
	if got != c.ca.Hash {
		return fmt.Errorf("contents have %s, the content address says %s: %w", got, c.ca.Hash, store.ErrHashMismatch)
	}
	return nil
}

// hashPlain hashes the bytes of a file that must be regular. Whether it is executable its address does not say:
// "nix store add-file" adds such files, and every generation of Nix takes them.
func hashPlain(path string, algo store.Algorithm) (store.Hash, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return store.Hash{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return store.Hash{}, err
	}
	if !fi.Mode().IsRegular() {
		return store.Hash{}, fmt.Errorf("it is not a regular file, which its content address says: %w", store.ErrHashMismatch)
	}
	h := algo.New()
	if _, err := io.Copy(h, f); err != nil {
		return store.Hash{}, err
	}
	return store.NewHash(algo, h.Sum(nil)), nil
}
