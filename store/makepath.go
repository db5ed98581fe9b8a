package store

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"cairn/store/base32"
)

// References are what an object refers to: other paths, and perhaps itself,
// which a path under computation cannot name yet.
type References struct {
	Others []Path // sorted, unique
	Self   bool
}

// SplitSelf makes References of a list that may contain the object itself.
func SplitSelf(self Path, refs []Path) References {
	var r References
	for _, p := range refs {
		if p == self {
			r.Self = true
			continue
		}
		r.Others = append(r.Others, p)
	}
	r.Others = SortPaths(r.Others)
	return r
}

// SortPaths sorts and removes doubles, in place.
func SortPaths(ps []Path) []Path {
	slices.SortFunc(ps, Path.Compare)
	return slices.Compact(ps)
}

// makePath hashes a fingerprint: kind ":sha256:" hex(inner) ":" dir ":" name.
func (d Dir) makePath(kind string, inner Hash, name string) (Path, error) {
	if err := CheckName(name); err != nil {
		return Path{}, err
	}
	sum := sha256.Sum256([]byte(kind + ":" + inner.Algorithm().String() + ":" + inner.Hex() + ":" + string(d) + ":" + name))
	return Path{s: string(d) + "/" + base32.Encode(Compress(sum[:], 20)) + "-" + name}, nil
}

// Compress folds a digest to size bytes by XOR.
func Compress(digest []byte, size int) []byte {
	out := make([]byte, size)
	for i, b := range digest {
		out[i%size] ^= b
	}
	return out
}

// TextPath returns the path of a text object: a plain file with references found by whoever wrote it.
func (d Dir) TextPath(name string, contents Hash, refs []Path) (Path, error) {
	return d.makePath(kindWithReferences("text", References{Others: SortPaths(slices.Clone(refs))}), contents, name)
}

// SourcePath returns the path of an object addressed by the SHA-256 of its NAR.
func (d Dir) SourcePath(name string, narHash Hash, refs References) (Path, error) {
	refs.Others = SortPaths(slices.Clone(refs.Others))
	return d.makePath(kindWithReferences("source", refs), narHash, name)
}

// FixedPath returns the path of an object with a fixed content address of any kind but text.
func (d Dir) FixedPath(name string, ca ContentAddress, refs References) (Path, error) {
	if ca.Method == Recursive && ca.Hash.Algorithm() == SHA256 {
		return d.SourcePath(name, ca.Hash, refs)
	}
	if refs.Self || len(refs.Others) > 0 {
		return Path{}, fmt.Errorf("object %q with content address %s cannot have references", clip(name), ca)
	}
	inner := SHA256.Sum([]byte("fixed:out:" + ca.Method.Prefix() + ca.Hash.Algorithm().String() + ":" + ca.Hash.Hex() + ":"))
	return d.makePath("output:out", inner, name)
}

// ContentPath returns the path that a content address, a name and references make.
func (d Dir) ContentPath(name string, ca ContentAddress, refs References) (Path, error) {
	if ca.Method != Text {
		return d.FixedPath(name, ca, refs)
	}
	if refs.Self {
		return Path{}, fmt.Errorf("text object %q cannot refer to itself", clip(name))
	}
	return d.TextPath(name, ca.Hash, refs.Others)
}

// OutputPath returns the path of output of an input-addressed derivation called drvName,
// whose hash modulo is inner.
func (d Dir) OutputPath(drvName, output string, inner Hash) (Path, error) {
	return d.makePath("output:"+output, inner, OutputName(drvName, output))
}

// OutputName returns the object name of a derivation's output: the derivation's name,
// followed by the output unless that is "out".
func OutputName(drvName, output string) string {
	if output == "out" {
		return drvName
	}
	return drvName + "-" + output
}

// ScratchPath returns a path that a build may write to when the final one is unknown
// (final is zero) or already there. It is never valid.
func (d Dir) ScratchPath(drv Path, output string, name string, final Path) (Path, error) {
	kind := "rewrite:" + drv.Base()
	if final.IsZero() {
		kind += ":name:" + output
	} else {
		kind += ":" + final.Base()
	}
	return d.makePath(kind, NewHash(SHA256, make([]byte, 32)), name)
}

func kindWithReferences(kind string, refs References) string {
	var b strings.Builder
	b.WriteString(kind)
	for _, p := range refs.Others {
		b.WriteByte(':')
		b.WriteString(p.String())
	}
	if refs.Self {
		b.WriteString(":self")
	}
	return b.String()
}
