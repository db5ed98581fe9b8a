package store

import (
	"fmt"
	"slices"
	"strings"
)

// Info is what a store knows of a valid path.
type Info struct {
	Path         Path           `json:"path"`
	NarHash      Hash           `json:"narHash"` // always SHA-256
	NarSize      int64          `json:"narSize"` // bytes
	References   []Path         `json:"references"`
	Deriver      Path           `json:"deriver,omitzero"`
	RegisteredAt int64          `json:"registrationTime,omitempty"` // seconds since 1970
	Ultimate     bool           `json:"ultimate,omitempty"`         // built here
	Signatures   []string       `json:"signatures,omitempty"`       // "name:base64"
	CA           ContentAddress `json:"ca,omitzero"`
}

// SelfReferences reports whether the object refers to itself.
func (i *Info) SelfReferences() bool { return slices.Contains(i.References, i.Path) }

// Fingerprint returns the text that a signature of the object signs:
// "1;" path ";" "sha256:"nix32 ";" size ";" references sorted and joined with commas.
func (i *Info) Fingerprint() string {
	refs := SortPaths(slices.Clone(i.References))
	texts := make([]string, len(refs))
	for n, p := range refs {
		texts[n] = p.String()
	}
	return fmt.Sprintf("1;%s;%s;%d;%s", i.Path, i.NarHash, i.NarSize, strings.Join(texts, ","))
}

// PathsOf returns the paths of objects.
func PathsOf(infos []*Info) []Path {
	paths := make([]Path, len(infos))
	for i, info := range infos {
		paths[i] = info.Path
	}
	return paths
}

// CheckContentAddress checks that the content address, the name and the references make the path.
// It does not look at contents.
func (i *Info) CheckContentAddress() error {
	if i.CA.IsZero() {
		return fmt.Errorf("path %s is not content-addressed", i.Path)
	}
	want, err := i.Path.Dir().ContentPath(i.Path.Name(), i.CA, SplitSelf(i.Path, i.References))
	if err != nil {
		return fmt.Errorf("path %s: %w", i.Path, err)
	}
	if want != i.Path {
		return fmt.Errorf("path %s: content address %s makes %s", i.Path, i.CA, want)
	}
	return nil
}
