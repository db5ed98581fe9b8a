// Package store holds the nouns of a hash-addressed store and the two contracts that
// everything which holds store objects fulfils.
//
// A store object is an immutable tree below a store directory:
//
//	STORE "/" <32 base-32 digits> "-" <name>
//
// The digits are 160 bits of a fingerprint (makepath.go) of how the object came to be:
// by content (text, nar, flat file) or by the derivation that makes it.
// Everything here is a plain value: comparable where it identifies, parsed once at the edge,
// zero when absent. There is no I/O.
//
// Formats are those of Nix, bit for bit; see each type's comment.
package store

import (
	"context"
	"errors"
	"io"
)

// Errors that callers test for with errors.Is.
var (
	// ErrNotValid says that a path is no valid object of the store that was asked.
	ErrNotValid = errors.New("path is not valid")
	// ErrUntrusted says that an object is neither content-addressed nor signed by a key
	// that the store accepts, so that only a trusted peer could have added it.
	ErrUntrusted = errors.New("lacks a signature by a trusted key")
	// ErrHashMismatch says that contents do not have the hash that was announced.
	ErrHashMismatch = errors.New("hash mismatch")
)

// Reader is anything that holds store objects: the local store, a daemon, a bundle, a cache.
type Reader interface {
	// Info returns what is known of a path, or an error that is ErrNotValid.
	Info(ctx context.Context, path Path) (*Info, error)
	// NAR writes the archive of a valid path to w.
	NAR(ctx context.Context, path Path, w io.Writer) error
}

// Writer is anything that accepts store objects.
type Writer interface {
	// Add reads exactly one NAR from nar and makes info.Path valid.
	// All references except the object itself must be valid already.
	// Adding a valid path again reads the NAR and changes nothing.
	Add(ctx context.Context, info *Info, nar io.Reader) error
}

// ReadWriter is both.
type ReadWriter interface {
	Reader
	Writer
}
