package nar

import (
	"encoding/json"
	"fmt"
	"io"
)

// ParseListing reads a ".ls" file and checks that it lists what an archive could hold.
func ParseListing(r io.Reader) (*Listing, error) {
	l := &Listing{}
	d := json.NewDecoder(r)
	if err := d.Decode(l); err != nil {
		return nil, fmt.Errorf("parse listing: %w: %w", err, ErrFormat)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("parse listing: something follows it: %w", ErrFormat)
	}
	if l.Version != 1 {
		return nil, fmt.Errorf("parse listing: version %d is not 1: %w", l.Version, ErrFormat)
	}
	if err := l.Root.check(0); err != nil {
		return nil, fmt.Errorf("parse listing: %w", err)
	}
	return l, nil
}

func (n *Node) check(depth int) error {
	if err := checkDepth(depth); err != nil {
		return err
	}
	if n == nil {
		return fmt.Errorf("a node is missing: %w", ErrFormat)
	}
	switch n.Type {
	case Regular.String():
		return n.checkRegular()
	case Symlink.String():
		return checkTarget(n.Target)
	case Directory.String():
		return n.checkEntries(depth)
	}
	return fmt.Errorf("node of type %.20q: %w", n.Type, ErrFormat)
}

func (n *Node) checkRegular() error {
	if n.Size == nil || *n.Size < 0 || n.Offset < 0 {
		return fmt.Errorf("a file has no size, or a negative one: %w", ErrFormat)
	}
	return nil
}

func (n *Node) checkEntries(depth int) error {
	if n.Entries == nil {
		return fmt.Errorf("a directory has no entries: %w", ErrFormat)
	}
	for name, below := range n.Entries {
		if err := checkName(name); err != nil {
			return err
		}
		if err := below.check(depth + 1); err != nil {
			return err
		}
	}
	return nil
}
