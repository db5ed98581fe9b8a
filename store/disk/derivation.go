package disk

import (
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"cairn/derivation"
	"cairn/store"
	"cairn/store/meta"
)

// maxDerivation is the size limit of a ".drv" file, in bytes.
const maxDerivation = 256 << 20

// derivationRows checks a pending object whose name ends in ".drv": it must be the derivation that its path
// and references say, and claim only outputs that follow from it. Then it adds the rows that
// say which outputs it has. The caller holds its references; hashes knows those that become valid with it.
func (s *Store) derivationRows(p *pending, info *store.Info, hashes *derivation.Hashes) error {
	drv, err := readDerivation(p.tree.temp, info.Path)
	if err != nil {
		return err
	}
	path, err := drv.Path(s.layout.Dir)
	if err != nil {
		return err
	}
	if path != info.Path {
		return fmt.Errorf("it is not the derivation that its path says, which would be %s: %w", path, store.ErrHashMismatch)
	}
	if !slices.Equal(drv.References(), store.SortPaths(slices.Clone(info.References))) {
		return fmt.Errorf("its references are not those of the derivation: %w", store.ErrHashMismatch)
	}
	if err := hashes.CheckOutputs(drv, s.layout.Dir); err != nil {
		return err
	}
	p.rows = new(meta.Batch)
	for name, o := range drv.Outputs {
		if !o.Path.IsZero() {
			p.rows.PutOutput(meta.DigestOf(info.Path), name, o.Path, false)
			p.isDrv = true
		}
	}
	return nil
}

// hashesWith returns hashes modulo that know derivations which are not valid yet, too: staged says where
// they are.
func (s *Store) hashesWith(staged map[store.Path]string) *derivation.Hashes {
	return derivation.NewHashes(func(p store.Path) (*derivation.Derivation, error) {
		if file, ok := staged[p]; ok {
			return readDerivation(file, p)
		}
		return s.Derivation(p)
	})
}

// Derivation reads the valid derivation at path.
func (s *Store) Derivation(path store.Path) (*derivation.Derivation, error) {
	if !s.IsValid(path) {
		return nil, notValid(path)
	}
	if err := s.Damage(path); err != nil {
		return nil, err
	}
	return readDerivation(s.RealPath(path), path)
}

// Hashes returns the hashes modulo of this store's derivations.
func (s *Store) Hashes() *derivation.Hashes { return s.hashes }

func readDerivation(file string, path store.Path) (*derivation.Derivation, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxDerivation {
		return nil, fmt.Errorf("%s is no derivation, as its name says: not a file of at most %d MiB", path, maxDerivation>>20)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return derivation.ParseAt(path, data)
}
