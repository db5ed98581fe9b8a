package disk

import (
	"context"
	"errors"
	"hash"
	"io"
	"os"
	"slices"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/refscan"
)

// proof looks for a content address that makes an object's path, from nothing but its files. A path is a hash of 160 bits
// over the address, so that whoever finds one has the contents that it was made of; there is no other way to be right.
//
// Which references went into the path cannot be known, only guessed: those that the contents have, or none, as with
// sources that were added with neither.
type proof struct {
	ctx   context.Context
	path  store.Path
	file  string         // where it is
	index *refscan.Index // what it may refer to

	size  int64 // of its archive, in bytes
	hash  store.Hash
	found []store.Path
}

// errNoProof says that an object's path does not follow from its contents.
var errNoProof = errors.New("its path does not follow from its contents, and no backup knows it")

// read reads the object for its hash and references.
func (p *proof) read() error {
	c := counter{h: store.SHA256.New()}
	scan := p.index.Scanner(&c)
	err := nar.Dump(contextWriter{p.ctx, scan}, p.file)
	p.size, p.hash, p.found = c.n, store.NewHash(store.SHA256, c.h.Sum(nil)), scan.Found()
	return err
}

// prove returns what is known of the object if its contents prove its path.
func (p *proof) prove() (*store.Info, error) {
	if p.path.IsDerivation() {
		return p.proveDerivation()
	}
	for _, ca := range p.addresses() {
		for _, refs := range [][]store.Path{p.found, nil} {
			info := &store.Info{Path: p.path, NarHash: p.hash, NarSize: p.size, References: refs, CA: ca}
			if info.CheckContentAddress() == nil {
				return info, nil
			}
		}
	}
	return nil, errNoProof
}

// proveDerivation takes references from the derivation itself.
func (p *proof) proveDerivation() (*store.Info, error) {
	drv, err := readDerivation(p.file, p.path)
	if err != nil {
		return nil, err
	}
	info := &store.Info{Path: p.path, NarHash: p.hash, NarSize: p.size, References: drv.References(),
		CA: store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum(drv.ATerm())}}
	flat, err := hashPlain(p.file, store.SHA256)
	if err != nil || flat != info.CA.Hash || info.CheckContentAddress() != nil {
		return nil, errNoProof
	}
	return info, nil
}

// addresses returns the content addresses that the contents can have.
func (p *proof) addresses() []store.ContentAddress {
	list := []store.ContentAddress{{Method: store.Recursive, Hash: p.hash}}
	algorithms := []store.Algorithm{store.SHA256, store.BLAKE3, store.SHA512, store.SHA1, store.MD5}
	if slices.Contains(p.found, p.path) {
		m := refscan.HashModulo(store.SHA256, p.path.Digest())
		if nar.Dump(contextWriter{p.ctx, m}, p.file) == nil {
			for _, form := range []refscan.SelfHash{refscan.Blanked, refscan.WithOffsets} {
				list = append(list, store.ContentAddress{Method: store.Recursive, Hash: m.Sum(form)})
			}
		}
	}
	if fi, err := os.Lstat(p.file); err == nil && fi.Mode().IsRegular() {
		for _, a := range algorithms {
			h, err := hashPlain(p.file, a)
			if err != nil {
				continue
			}
			if list = append(list, store.ContentAddress{Method: store.Flat, Hash: h}); a == store.SHA256 {
				list = append(list, store.ContentAddress{Method: store.Text, Hash: h})
			}
		}
	}
	return append(list, p.otherTrees(algorithms[1:])...)
}

// otherTrees returns addresses by other hashes of the archive.
func (p *proof) otherTrees(algorithms []store.Algorithm) []store.ContentAddress {
	hashes := make([]hash.Hash, len(algorithms))
	writers := []io.Writer{}
	for i, a := range algorithms {
		hashes[i] = a.New()
		writers = append(writers, hashes[i])
	}
	if nar.Dump(contextWriter{p.ctx, io.MultiWriter(writers...)}, p.file) != nil {
		return nil
	}
	var list []store.ContentAddress
	for i, a := range algorithms {
		list = append(list, store.ContentAddress{Method: store.Recursive, Hash: store.NewHash(a, hashes[i].Sum(nil))})
	}
	return list
}
