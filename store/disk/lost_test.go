package disk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/store/disk"
	"cairn/store/meta"
)

// lostStore returns the layout of a closed store with an object, and where the object is.
func lostStore(t *testing.T) (disk.Layout, string) {
	t.Helper()
	l := newLayout(t)
	s := open(t, l)
	object := l.RealPath(text(t, s, "kept", "do not lose me"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return l, object
}

func refuses(t *testing.T, l disk.Layout, object string, want error) {
	t.Helper()
	for range 2 { // the refusal itself makes nothing that the next start would take for a database
		s, err := disk.Open(t.Context(), l, nil)
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, want) {
			t.Fatalf("open: %v, want %v", err, want)
		}
		if _, err := os.Lstat(object); err != nil {
			t.Fatalf("the object is gone: %v", err)
		}
	}
}

func TestObjectsWithoutDatabaseAreNotDeleted(t *testing.T) {
	for name, lose := range map[string]func(db string) error{
		"no directory":    os.RemoveAll,
		"empty directory": func(db string) error { return errors.Join(os.RemoveAll(db), os.Mkdir(db, 0o700)) },
		"no manifest":     func(db string) error { return os.Remove(filepath.Join(db, "MANIFEST")) },
	} {
		t.Run(name, func(t *testing.T) {
			l, object := lostStore(t)
			if err := lose(filepath.Join(l.StateDir, "db")); err != nil {
				t.Fatal(err)
			}
			refuses(t, l, object, disk.ErrNoDatabase)
		})
	}
}

func TestDamagedTablesAreRefused(t *testing.T) {
	l, object := lostStore(t)
	tables, err := filepath.Glob(filepath.Join(l.StateDir, "db", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables %v, %v", tables, err)
	}
	for _, table := range tables {
		data, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		data[40] ^= 0x10 // in the first block
		if err := os.WriteFile(table, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refuses(t, l, object, meta.ErrDamaged)
}

// TestNoDamageDeletesObjects damages one file of the database after the other in many ways. Whatever comes of opening it,
// every object stays where it is, and what opens knows every object.
func TestNoDamageDeletesObjects(t *testing.T) {
	ways := map[string]func(data []byte) []byte{
		"empty":  func([]byte) []byte { return nil },
		"half":   func(data []byte) []byte { return data[:len(data)/2] },
		"zeroes": func(data []byte) []byte { return make([]byte, len(data)) },
		"flip":   func(data []byte) []byte { data[len(data)/3] ^= 4; return data },
	}
	for name, damage := range ways {
		for _, pattern := range []string{"MANIFEST", "*.sst", "KEYREGISTRY", "*.vlog"} {
			t.Run(pattern+" "+name, func(t *testing.T) {
				l, object := lostStore(t)
				files, err := filepath.Glob(filepath.Join(l.StateDir, "db", pattern))
				if err != nil || len(files) == 0 {
					t.Fatalf("files %v, %v", files, err)
				}
				for _, file := range files {
					data, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(file, damage(data), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					s, err := disk.Open(t.Context(), l, nil)
					if err == nil {
						if n, _ := s.Count(); n != 1 {
							t.Errorf("opens with %d objects", n)
						}
						s.Close()
					} else if !errors.Is(err, disk.ErrNoDatabase) && !errors.Is(err, meta.ErrDamaged) {
						t.Errorf("open: %v", err)
					}
					if _, err := os.Lstat(object); err != nil {
						t.Fatalf("the object is gone: %v", err)
					}
				}
			})
		}
	}
}

// TestTornStraysAreKept starts after a transaction that was not finished: what it may have been about is set aside, and what else
// an interrupted process left is removed.
func TestTornStraysAreKept(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	object := l.RealPath(text(t, s, "kept", "do not lose me"))
	db, dead := filepath.Join(l.StateDir, "db"), filepath.Join(l.StateDir, "dead")
	if err := meta.Copy(dead, db); err != nil { // as when the process is killed
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(db), os.Rename(dead, db)); err != nil {
		t.Fatal(err)
	}
	stray := strings.Replace(object, "-kept", "-stray", 1)
	stray = filepath.Join(filepath.Dir(stray), "0"+filepath.Base(stray)[1:])
	for _, name := range []string{stray, filepath.Join(l.RealDir, ".tmp-1")} {
		if err := os.WriteFile(name, nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	tear(t, filepath.Join(db, "00001.mem"))
	s = open(t, l)
	if n, _ := s.Count(); n != 1 {
		t.Errorf("%d objects", n)
	}
	names, _ := filepath.Glob(filepath.Join(l.RealDir, ".lost", "*"))
	if len(names) != 1 || filepath.Base(names[0]) != filepath.Base(stray) {
		t.Errorf("set aside: %v", names)
	}
	if left, _ := filepath.Glob(filepath.Join(l.RealDir, ".tmp-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := os.RemoveAll(filepath.Join(l.RealDir, ".lost")); err != nil {
		t.Fatal(err)
	}
}

// tear begins another transaction in a journal.
func tear(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[len(bytes.TrimRight(b, "\x00")):], "\x40\x00\x20\x20\x00begun")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
