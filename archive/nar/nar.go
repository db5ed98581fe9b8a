// Package nar reads and writes Nix archives: one file system object (a regular file, a symbolic
// link, or a directory of such objects) as bytes that depend on nothing but its contents.
//
// With str(x) = 64-bit little-endian length, bytes, zeros to a multiple of eight (package wire):
//
//	archive = str("nix-archive-1") node
//	node    = str("(") str("type") ( regular | symlink | directory ) str(")")
//	regular = str("regular") [ str("executable") str("") ] str("contents") str(data)
//	symlink = str("symlink") str("target") str(target)
//	directory = str("directory") { str("entry") str("(") str("name") str(name) str("node") node str(")") }
//
// Entries are sorted by the bytes of their names and unique. A name has 1 to 255 bytes, is neither "."
// nor ".." and contains neither slash nor NUL. A target has 1 to 4095 bytes and no NUL.
// Directories nest at most 256 deep.
// A tree has therefore one archive, and an archive that is read without error is the archive of its tree.
//
// # Reading
//
// The reader is a state machine over whole groups of tokens: between two places where the archive
// decides something, everything is a constant, which is compared as one block.
//
//	start ──magic, type──▶ node ─┬─ regular ──▶ data ──all read──▶ after
//	                             ├─ symlink ─────────────────────▶ after
//	                             └─ directory ──▶ inside
//	after:  depth 0 ──▶ end;  otherwise the entry is closed ──▶ inside
//	inside: "entry" ──▶ node of the next name;  ")" ──▶ after, one level up
//
// It reads the bytes of the archive and not one more, so that an archive can stand inside a
// stream; it does not buffer, so give it a buffered source. It takes no memory that depends on a
// number in the archive. The first error is final.
//
// # File systems
//
// Dump reads a tree and Restore makes one, both relative to directory handles and without following a
// symbolic link below the given path.
//
// Restore reads in one goroutine, and passes the archive on in a fixed number of blocks (tape.go): to the sums, one goroutine each, and
// to workers that make the files of a block together (plant.go). Only a file larger than a quarter of a block is written as it comes.
// An archive that fits into one block is done in the caller's goroutine. Nothing is copied but once into a block,
// and an archive of any size takes maxBlocks of memory. Restore creates every name exclusively, so an archive cannot write
// outside its target even when somebody else changes the tree meanwhile. What it makes is canonical: files 0444
// or 0555, directories 0555, modification times one second after the epoch.
// Only the owner's execute bit survives of a file's metadata.
//
// Not here: compression, hashing (give a hash as the writer), and the case hack of other systems.
package nar

import (
	"errors"
	"fmt"
	"strings"

	"cairn/archive/wire"
)

// Limits of what is read, written, dumped and restored.
const (
	MaxNameLen   = 255
	MaxTargetLen = 4095
	MaxDepth     = 256
)

const magic = "nix-archive-1"

// ErrFormat says that bytes are not a canonical archive.
var ErrFormat = errors.New("not a canonical nix archive")

// Type is the kind of a file system object.
type Type uint8

// The kinds.
const (
	Regular Type = iota + 1
	Directory
	Symlink
)

func (t Type) String() string {
	switch t {
	case Regular:
		return "regular"
	case Directory:
		return "directory"
	case Symlink:
		return "symlink"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Header describes an object of an archive.
type Header struct {
	Path       string // slash-separated; empty for the root
	Type       Type
	Executable bool   // of a regular file
	Size       int64  // of a regular file
	Target     string // of a symbolic link
	Offset     int64  // of a regular file's data in the archive
}

// Constant groups of tokens between two decisions, and the tokens that decide.
var (
	groupStart      = frame(magic, "(", "type")
	groupName       = frame("(", "name")
	groupNode       = frame("node", "(", "type")
	groupExecutable = frame("executable", "", "contents")

	tokenClose     = frame(")")
	tokenEntry     = frame("entry")
	tokenRegular   = frame("regular")
	tokenSymlink   = frame("symlink")
	tokenDirectory = frame("directory")
	tokenContents  = frame("contents")
	tokenTarget    = frame("target")
)

// frame returns the encoding of tokens.
func frame(tokens ...string) string {
	var b strings.Builder
	w := wire.NewWriter(&b)
	for _, t := range tokens {
		w.String(t)
	}
	w.Flush()
	return b.String()
}

// checkName checks the name of a directory entry.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("entry is called %q: %w", name, ErrFormat)
	}
	if len(name) > MaxNameLen {
		return fmt.Errorf("entry name of %d bytes, the limit is %d: %w", len(name), MaxNameLen, ErrFormat)
	}
	if i := strings.IndexAny(name, "/\x00"); i >= 0 {
		return fmt.Errorf("entry name %q contains %q: %w", name, name[i], ErrFormat)
	}
	return nil
}

// checkTarget checks the target of a symbolic link.
func checkTarget(target string) error {
	if target == "" || len(target) > MaxTargetLen {
		return fmt.Errorf("link target of %d bytes, allowed are 1 to %d: %w", len(target), MaxTargetLen, ErrFormat)
	}
	if strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("link target %q contains NUL: %w", target, ErrFormat)
	}
	return nil
}

func checkDepth(depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("directories nest deeper than %d: %w", MaxDepth, ErrFormat)
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
