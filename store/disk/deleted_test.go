package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"cairn/store/disk"
)

// TestDeleted removes the directories of an open store, and puts others into their place.
func TestDeleted(t *testing.T) {
	for name, spoil := range map[string]func(disk.Layout) error{
		"everything": func(l disk.Layout) error { return os.RemoveAll(filepath.Dir(l.StateDir)) },
		"state":      func(l disk.Layout) error { return os.RemoveAll(l.StateDir) },
		"database":   func(l disk.Layout) error { return os.RemoveAll(filepath.Join(l.StateDir, "db")) },
		"moved":      func(l disk.Layout) error { return os.Rename(l.StateDir, l.StateDir+"-old") },
		"store": func(l disk.Layout) error {
			if err := os.Rename(l.RealDir, l.RealDir+"-old"); err != nil {
				return err
			}
			return os.Mkdir(l.RealDir, 0o755)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			s, err := disk.Open(t.Context(), l, nil)
			if err != nil {
				t.Fatal(err)
			}
			if s.Deleted() {
				t.Error("deleted before it was")
			}
			paths := addTwins(t, s, 2)
			if err := spoil(l); err != nil {
				t.Fatal(err)
			}
			_, stateErr := os.Stat(l.StateDir)
			if !s.Deleted() {
				t.Error("not deleted")
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if _, err := os.Stat(l.StateDir); (err == nil) != (stateErr == nil) {
				t.Errorf("closing brought the state back: %v", err)
			}
			if err := disk.Init(l); err != nil {
				t.Fatal(err)
			}
			next, err := disk.Open(t.Context(), l, nil)
			if name == "state" || name == "database" || name == "moved" {
				if !errors.Is(err, disk.ErrNoDatabase) {
					t.Errorf("objects without their database: %v", err)
				}
				for _, p := range paths {
					if _, err := os.Lstat(l.RealPath(p)); err != nil {
						t.Error(err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if valid := next.ValidPaths(paths); len(valid) != 0 || next.Deleted() {
				t.Errorf("the new store has %v", valid)
			}
			if err := next.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
