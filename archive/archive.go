// Package archive is how store objects leave a store and are believed in another one: keys and
// signatures, the list of keys that may do something, compression, and two streams of objects.
//
// # Keys
//
// Keys are Ed25519 in Nix's text form, "name:base64"; the public half has 32 bytes, the secret one 64, seed
// and public half. A signature is "name:base64" of 64 bytes. The name says which key to try; it is not secret
// and proves nothing. Base 64 is strict, so that each key has one text. A secret key never becomes text by
// accident: printing it prints its name.
//
// # ACL
//
// The access list is a text file that says which keys may do what (acl.go).
//
// # Streams
//
// An export stream (export.go) is Nix's: unsigned, no content addresses; whoever imports it trusts the
// sender. A bundle (bundle.go) is ours: one signature covers the descriptions of all objects,
// each object's bytes are checked against its description, and any changed, missing or additional
// byte is refused.
// Both carry objects in an order in which references come first.
//
// # Compression
//
// This package is the only door to zstd. Compressed bytes depend on the version of the compressor, so that
// their hash never identifies anything.
package archive

import (
	"errors"
	"fmt"
	"slices"

	"cairn/store"
)

// Errors that callers test for with errors.Is.
var (
	// ErrUnauthorized says that the key that signed may not do what is asked.
	ErrUnauthorized = errors.New("key is not authorized")
	// ErrCorrupt says that bytes are not what was signed or announced.
	ErrCorrupt = errors.New("archive is damaged")
	// ErrKey says that a text is no key.
	ErrKey = errors.New("not a key")
)

// Sort returns infos in an order in which references come before what refers to them.
// The order depends only on the set. References to objects outside the set are ignored.
func Sort(infos []*store.Info) ([]*store.Info, error) {
	s := sorter{state: make(map[store.Path]bool, len(infos)), info: make(map[store.Path]*store.Info, len(infos))}
	paths := make([]store.Path, 0, len(infos))
	for _, i := range infos {
		s.info[i.Path] = i
		paths = append(paths, i.Path)
	}
	for _, p := range store.SortPaths(paths) {
		if err := s.visit(p); err != nil {
			return nil, err
		}
	}
	return s.sorted, nil
}

type sorter struct {
	info   map[store.Path]*store.Info
	state  map[store.Path]bool // present: seen; true: done
	sorted []*store.Info
}

// visit appends an object after its references. It keeps its own stack: chains are as long as they like.
func (s *sorter) visit(root store.Path) error {
	type frame struct {
		info *store.Info
		refs []store.Path
	}
	var stack []frame
	push := func(p store.Path) error {
		done, seen := s.state[p]
		info := s.info[p]
		if done || info == nil {
			return nil
		}
		if seen {
			return fmt.Errorf("sort objects: %s and others refer to each other", p)
		}
		s.state[p] = false
		refs := slices.DeleteFunc(slices.Clone(info.References), func(r store.Path) bool { return r == p })
		stack = append(stack, frame{info: info, refs: store.SortPaths(refs)})
		return nil
	}
	if err := push(root); err != nil {
		return err
	}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.refs) == 0 {
			s.state[top.info.Path] = true
			s.sorted = append(s.sorted, top.info)
			stack = stack[:len(stack)-1]
			continue
		}
		next := top.refs[0]
		top.refs = top.refs[1:]
		if err := push(next); err != nil {
			return err
		}
	}
	return nil
}
