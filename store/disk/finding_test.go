package disk_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/failpoint"
	"cairn/store/storetest"
)

// isDamaged reports whether an error says that an object is known to be damaged.
func isDamaged(err error, p store.Path) bool {
	e, ok := errors.AsType[*disk.DamagedError](err)
	return ok && e.Path == p
}

// TestDamagedIsNotServed damages an object: what may be done with it before it is read, afterwards, and when it is mended.
func TestDamagedIsNotServed(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	archive := storetest.Tree("served")
	info := storetest.Source(s.Dir(), "served", archive)
	if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	p := info.Path
	user := text(t, s, "user", "user", p)
	if bad, err := s.DamagedIn(user); err != nil || bad != nil {
		t.Errorf("of a store without findings: %v, %v", bad, err)
	}
	damage(t, filepath.Join(l.RealPath(p), "bin", "run"))
	if err := s.NAR(t.Context(), p, io.Discard); err != nil {
		t.Errorf("nobody has read it: %v", err)
	}
	if found := problems(t, s); len(found) != 1 {
		t.Fatalf("found %v", found)
	}
	for range 2 { // the second time after a restart
		if err := s.NAR(t.Context(), p, io.Discard); !isDamaged(err, p) || !strings.Contains(err.Error(), "cairn store repair "+p.String()) {
			t.Errorf("archive of what is damaged: %v", err)
		}
		if err := s.NAR(t.Context(), user, io.Discard); err != nil {
			t.Errorf("of what refers to it: %v", err)
		}
		if bad, err := s.DamagedIn(user); err != nil || len(bad) != 1 || bad[0] != p {
			t.Errorf("in the closure: %v, %v", bad, err)
		}
		if i, err := s.Info(t.Context(), p); err != nil || i.NarHash != info.NarHash {
			t.Errorf("info: %v, %v", i, err)
		}
		if refs, err := s.Referrers(p); err != nil || len(refs) != 1 {
			t.Errorf("referrers: %v, %v", refs, err)
		}
		s.Close()
		s = open(t, l)
	}
	if err := s.Replace(t.Context(), p, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	if err := s.NAR(t.Context(), p, io.Discard); err != nil {
		t.Errorf("after a repair: %v", err)
	}
}

// TestDamagedIsMendedBy shows everything that ends a finding.
func TestDamagedIsMendedBy(t *testing.T) {
	archive := storetest.Tree("mended")
	ways := map[string]func(t *testing.T, s *disk.Store, info *store.Info) error{
		"Add": func(t *testing.T, s *disk.Store, info *store.Info) error {
			return s.Add(t.Context(), info, bytes.NewReader(archive))
		},
		"AddAll": func(t *testing.T, s *disk.Store, info *store.Info) error {
			return s.AddAll(t.Context(), []disk.Archive{{Info: info, NAR: archive}})
		},
		"AddStream": func(t *testing.T, s *disk.Store, info *store.Info) error {
			_, err := s.AddStream(t.Context(), "mended", store.Recursive, store.SHA256, nil, bytes.NewReader(archive))
			return err
		},
		"Import": func(t *testing.T, s *disk.Store, info *store.Info) error {
			i := s.Import()
			defer i.Close()
			if err := i.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
				return err
			}
			return i.Commit(t.Context())
		},
		"Register": func(t *testing.T, s *disk.Store, info *store.Info) error {
			dir, err := s.TempDir()
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			tree := filepath.Join(dir, "tree")
			if err := nar.Restore(bytes.NewReader(archive), tree, nil); err != nil {
				return err
			}
			return s.Register(t.Context(), []disk.Output{{Info: info, TempPath: tree}})
		},
		"deletion": func(t *testing.T, s *disk.Store, info *store.Info) error {
			if _, err := s.Delete(t.Context(), []store.Path{info.Path}); err != nil {
				return err
			}
			if list := s.Findings(); len(list) != 0 {
				t.Errorf("findings about what is deleted: %v", list)
			}
			return s.Add(t.Context(), info, bytes.NewReader(archive))
		},
		"reading": func(t *testing.T, s *disk.Store, info *store.Info) error {
			name := filepath.Join(s.RealPath(info.Path), "bin", "run")
			fresh := filepath.Join(t.TempDir(), "tree")
			if err := nar.Restore(bytes.NewReader(archive), fresh, nil); err != nil {
				return err
			}
			data, err := os.ReadFile(filepath.Join(fresh, "bin", "run"))
			if err != nil {
				return err
			}
			os.Chmod(name, 0o755)
			if err := os.WriteFile(name, data, 0o755); err != nil {
				return err
			}
			os.Chmod(name, 0o555)
			_, err = s.Verify(t.Context(), &disk.VerifyOptions{Contents: true, Paths: []store.Path{info.Path}}, nil)
			return err
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			s := open(t, newLayout(t))
			info := storetest.Source(s.Dir(), "mended", archive)
			if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(s.RealPath(info.Path), "bin", "run"))
			if whole, err := s.Intact(t.Context(), info.Path); whole || err != nil {
				t.Fatalf("intact: %v, %v", whole, err)
			}
			if err := s.Damage(info.Path); !isDamaged(err, info.Path) {
				t.Fatalf("before: %v", err)
			}
			if err := way(t, s, info); err != nil {
				t.Fatal(err)
			}
			if err := s.Damage(info.Path); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			var got bytes.Buffer
			if err := s.NAR(t.Context(), info.Path, &got); err != nil || !bytes.Equal(got.Bytes(), archive) {
				t.Errorf("its archive: %v", err)
			}
		})
	}
}

// TestReplacedWhileRead gives a damaged object other files just when what was read of the old ones is about to be noted, or is.
func TestReplacedWhileRead(t *testing.T) {
	archive := storetest.Tree("replaced")
	replace := func(t *testing.T, s *disk.Store, info *store.Info) {
		if err := s.Replace(t.Context(), info.Path, bytes.NewReader(archive)); err != nil {
			t.Error(err)
		}
	}
	again := func(t *testing.T, s *disk.Store, info *store.Info) { // often with the inode of what is deleted
		if _, err := s.Delete(t.Context(), []store.Path{info.Path}); err != nil {
			t.Error(err)
		}
		if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
			t.Error(err)
		}
	}
	intact := func(t *testing.T, s *disk.Store, info *store.Info) {
		if _, err := s.Intact(t.Context(), info.Path); err != nil {
			t.Error(err)
		}
	}
	scrub := func(t *testing.T, s *disk.Store, _ *store.Info) {
		if err := errors.Join(s.StartScrub(), s.WaitScrub(t.Context())); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct {
		name, point  string
		read, change func(t *testing.T, s *disk.Store, info *store.Info)
	}{
		{"scrub, read", "disk/scrub/read", scrub, replace},
		{"scrub, found", "disk/scrub/found", scrub, replace},
		{"Intact, read", "disk/scrub/read", intact, again},
		{"Intact, found", "disk/scrub/found", intact, again},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, newLayout(t))
			info := storetest.Source(s.Dir(), "replaced", archive)
			if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(s.RealPath(info.Path), "bin", "run"))
			changed, waits := make(chan struct{}), make(chan struct{}, 8)
			var once sync.Once
			failpoint.Arm(func(name string) error {
				switch name {
				case c.point:
					once.Do(func() {
						go func() {
							defer close(changed)
							c.change(t, s, info)
						}()
						select {
						case <-changed:
						case <-waits:
						}
					})
				case "disk/scrub/mended":
					waits <- struct{}{}
				}
				return nil
			})
			defer failpoint.Arm(nil)
			c.read(t, s, info)
			<-changed
			if err := s.Damage(info.Path); err != nil {
				t.Errorf("good files are refused: %v", err)
			}
			if found := problems(t, s); len(found) != 0 {
				t.Errorf("found %v", found)
			}
		})
	}
}

// TestOtherContentsMendNothing offers a damaged object, whose path does not say its contents, other ones.
func TestOtherContentsMendNothing(t *testing.T) {
	s := open(t, newLayout(t))
	archive, other := storetest.Tree("right"), storetest.Tree("wrong")
	p, err := s.Dir().Path("7n5ka1y3xxqkhj3m0w5b3hjz3x0d3bxi-built")
	if err != nil {
		t.Fatal(err)
	}
	info := &store.Info{Path: p, NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive))}
	if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	damage(t, filepath.Join(s.RealPath(p), "bin", "run"))
	s.Intact(t.Context(), p)
	if err := s.Add(t.Context(), &store.Info{Path: p, NarHash: store.SHA256.Sum(other), NarSize: int64(len(other))}, bytes.NewReader(other)); err != nil {
		t.Errorf("add other contents: %v", err)
	}
	if err := s.Damage(p); !isDamaged(err, p) {
		t.Errorf("other contents have mended it: %v", err)
	}
	if err := s.Add(t.Context(), info, bytes.NewReader(archive)); err != nil {
		t.Error(err)
	}
	if err := s.Damage(p); err != nil {
		t.Error(err)
	}
}

// TestLostIsDamage finds objects without files at the start, and in closures.
func TestLostIsDamage(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	base := text(t, s, "base", "base")
	top := text(t, s, "top", "top", base)
	s.Close()
	vanish(t, l.RealPath(base))
	s = open(t, l)
	if bad, err := s.DamagedIn(top); err != nil || len(bad) != 1 || bad[0] != base {
		t.Errorf("in the closure: %v, %v", bad, err)
	}
	if again := text(t, s, "base", "base"); again != base {
		t.Fatal(again)
	}
	if bad, err := s.DamagedIn(top); err != nil || len(bad) != 0 || len(s.Findings()) != 0 {
		t.Errorf("when it is there again: %v, %v, %v", bad, err, s.Findings())
	}
}

// TestTwins finds objects with the same archive.
func TestTwins(t *testing.T) {
	s := open(t, newLayout(t))
	archive := storetest.Tree("twin")
	a, b := storetest.Source(s.Dir(), "a", archive), storetest.Source(s.Dir(), "b", archive)
	for _, i := range []*store.Info{a, b} {
		if err := s.Add(t.Context(), i, bytes.NewReader(archive)); err != nil {
			t.Fatal(err)
		}
	}
	text(t, s, "other", "other")
	if twins, err := s.Twins(a.Path); err != nil || len(twins) != 1 || twins[0] != b.Path {
		t.Errorf("twins: %v, %v", twins, err)
	}
	name := filepath.Join(s.RealPath(b.Path), "bin", "run")
	os.Remove(name) // not the links of its twin
	os.WriteFile(name, []byte("damaged"), 0o555)
	s.Intact(t.Context(), b.Path)
	if twins, err := s.Twins(a.Path); err != nil || len(twins) != 0 {
		t.Errorf("twins when it is damaged: %v, %v", twins, err)
	}
	if err := s.Add(t.Context(), b, bytes.NewReader(archive)); err != nil {
		t.Error(err)
	}
}
