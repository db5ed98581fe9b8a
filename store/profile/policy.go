package profile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// Policy says which generations stay. What any of its rules keeps, stays; the current one always does.
// The zero value keeps nothing else.
type Policy struct {
	// KeepLast is how many of the highest numbers stay.
	KeepLast int
	// KeepFor keeps what was current at any time since so long ago: the younger ones, and the newest of the
	// older ones, to which one could have rolled back then. Zero: no rule.
	KeepFor time.Duration
	// Targets keeps what points to one of these, such as the system that the machine has booted.
	Targets []string
}

// Drop returns the numbers of the generations that go, in order. The list is as Profile.List returns it.
func (p Policy) Drop(list []Generation, now time.Time) []int {
	keep := make([]bool, len(list))
	for i, g := range list {
		keep[i] = g.Current || i >= len(list)-p.KeepLast || slices.Contains(p.Targets, g.Path)
	}
	if p.KeepFor > 0 {
		since, last := now.Add(-p.KeepFor), -1
		for i, g := range list {
			if g.Created.Before(since) {
				last = i
			} else {
				keep[i] = true
			}
		}
		if last >= 0 {
			keep[last] = true
		}
	}
	var drop []int
	for i, g := range list {
		if !keep[i] {
			drop = append(drop, g.Number)
		}
	}
	return drop
}

var linkPattern = regexp.MustCompile(`^(.+)-[1-9][0-9]*-link$`)

// Find returns the paths of the profiles in a directory and those below it: whatever has generations.
// A directory that is not there has none, nor has one that may not be read.
func Find(dir string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		if m := linkPattern.FindStringSubmatch(d.Name()); m != nil && d.Type() == os.ModeSymlink {
			found = append(found, filepath.Join(filepath.Dir(name), m[1]))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find profiles: %w", err)
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}
