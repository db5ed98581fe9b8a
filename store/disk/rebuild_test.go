package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/meta"
)

// town is a closed store with objects of all kinds.
type town struct {
	disk.Layout
	infos   map[string]*store.Info // by name
	backup  string
	realise store.DrvOutput
}

// newTown makes a store; some of it comes after the backup.
func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{Layout: newLayout(t), infos: map[string]*store.Info{}}
	s := open(t, w.Layout)
	keep := func(p store.Path) store.Path {
		info, err := s.Info(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		w.infos[p.Name()] = info
		return p
	}
	src := keep(addTwins(t, s, 1)[0])
	conf := keep(text(t, s, "conf", "uses "+src.String(), src))
	drv := &derivation.Derivation{Name: "tool", System: "x", Builder: "/bin/sh", InputSrcs: []store.Path{src},
		Outputs: map[string]derivation.Output{"out": {}}, Env: map[string]string{}}
	if err := s.Hashes().FillOutputs(drv, s.Dir()); err != nil {
		t.Fatal(err)
	}
	drvPath := keep(text(t, s, "tool.drv", string(drv.ATerm()), drv.References()...))
	archive := twins(t, "made of "+src.String())
	out := &store.Info{Path: drv.Outputs["out"].Path, NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive)), Deriver: drvPath,
		References: []store.Path{src}, Signatures: []string{"key:c2ln"}, Ultimate: true}
	if err := s.Add(t.Context(), out, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	keep(out.Path)
	w.realise = store.DrvOutput{Drv: store.SHA256.Sum([]byte("tool")), Output: "out"}
	if err := s.AddRealisation(t.Context(), &store.Realisation{ID: w.realise, OutPath: out.Path}); err != nil {
		t.Fatal(err)
	}
	lease := s.Lease("me", time.Hour)
	if err := lease.Hold(conf); err != nil {
		t.Fatal(err)
	}
	b, err := s.Backup()
	if err != nil || b == nil {
		t.Fatalf("backup: %v, %v", b, err)
	}
	w.backup = b.File
	if b, err := s.Backup(); b != nil || err != nil {
		t.Errorf("a backup without a change: %v, %v", b, err)
	}
	late := keep(text(t, s, "late", "uses "+conf.String(), conf))
	keep(text(t, s, "later", "uses "+late.String(), late))
	info, err := s.AddStream(t.Context(), "flat", store.Flat, store.SHA1, nil, strings.NewReader("flat"))
	if err != nil {
		t.Fatal(err)
	}
	keep(info.Path)
	closeStore(t, s)
	return w
}

func (w *town) rebuild(t *testing.T, opts *disk.RebuildOptions) *disk.RebuildResult {
	t.Helper()
	r, err := disk.Rebuild(t.Context(), w.Layout, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// check compares the store with what was there; the names of objects that may be missing are given.
func (w *town) check(t *testing.T, without ...string) {
	t.Helper()
	s, err := disk.Open(t.Context(), w.Layout, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, want := range w.infos {
		got, err := s.Info(t.Context(), want.Path)
		if contains(without, name) {
			if !errors.Is(err, store.ErrNotValid) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.NarHash != want.NarHash || got.NarSize != want.NarSize || fmt.Sprint(got.References) != fmt.Sprint(want.References) || got.CA != want.CA {
			t.Errorf("%s is\n%+v, was\n%+v", name, got, want)
		}
	}
	_, err = s.Verify(t.Context(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) {
		if !contains(without, p.Path.Name()) && p.Kind != disk.Dangling {
			t.Errorf("%s: %v", p.Path, p.Err)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

// destruction is every way in which the tests lose a database.
var destruction = map[string]func(db string) error{
	"deleted":   os.RemoveAll,
	"emptied":   func(db string) error { return errors.Join(os.RemoveAll(db), os.Mkdir(db, 0o700)) },
	"truncated": func(db string) error { return spoil(db, func(b []byte) []byte { return b[:len(b)/2] }) },
	"zeroes":    func(db string) error { return spoil(db, func(b []byte) []byte { return make([]byte, len(b)) }) },
	"garbage": func(db string) error {
		return spoil(db, func(b []byte) []byte {
			for i := range b {
				b[i] ^= byte(i*7 + 1)
			}
			return b
		})
	},
}

// spoil changes all tables and the manifest.
func spoil(db string, how func([]byte) []byte) error {
	names, err := filepath.Glob(filepath.Join(db, "*.sst"))
	for _, name := range append(names, filepath.Join(db, "MANIFEST")) {
		data, readErr := os.ReadFile(name)
		err = errors.Join(err, readErr, os.WriteFile(name, how(data), 0o600))
	}
	return err
}

func TestRebuildFromBackup(t *testing.T) {
	for name, destroy := range destruction {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			if err := destroy(filepath.Join(w.StateDir, "db")); err != nil {
				t.Fatal(err)
			}
			if s, err := disk.Open(t.Context(), w.Layout, nil); !errors.Is(err, meta.ErrDamaged) && !errors.Is(err, disk.ErrNoDatabase) {
				s.Close()
				t.Fatalf("opened: %v", err)
			}
			before := w.rebuild(t, &disk.RebuildOptions{DryRun: true})
			r := w.rebuild(t, nil)
			if before.OldDatabase = r.OldDatabase; fmt.Sprint(before) != fmt.Sprint(r) {
				t.Errorf("a dry run says %+v, the other %+v", before, r)
			}
			if r.Backup != w.backup || r.Restored != 4 || r.Proven != 3 || len(r.Damaged)+len(r.Lost) != 0 || r.Leases != 1 {
				t.Errorf("result %+v", r)
			}
			w.check(t)
			w.checkRows(t)
		})
	}
}

// checkRows looks for what only a backup has.
func (w *town) checkRows(t *testing.T) {
	t.Helper()
	s := open(t, w.Layout)
	out := w.infos["tool"]
	if got, err := s.Info(t.Context(), out.Path); err != nil || fmt.Sprint(got) != fmt.Sprint(out) {
		t.Errorf("output is %+v, was %+v, %v", got, out, err)
	}
	if r, err := s.Realisation(w.realise); err != nil || r.OutPath != out.Path {
		t.Errorf("realisation %v, %v", r, err)
	}
	if list := s.Leases(); len(list) != 1 || list[0].Owner != "me" {
		t.Errorf("leases %v", list)
	}
	if b, err := s.Backup(); err != nil || b == nil {
		t.Errorf("next backup %v, %v", b, err)
	}
}

func TestRebuildWithoutBackup(t *testing.T) {
	w := newTown(t)
	if err := errors.Join(os.RemoveAll(filepath.Join(w.StateDir, "db")), os.RemoveAll(filepath.Join(w.StateDir, "backups"))); err != nil {
		t.Fatal(err)
	}
	r := w.rebuild(t, nil)
	if r.Proven != 6 || len(r.Lost) != 1 || r.Lost[0].Path != w.infos["tool"].Path || !strings.Contains(r.Lost[0].How, "tool.drv") {
		t.Errorf("result %+v", r)
	}
	if _, err := os.Lstat(filepath.Join(r.Aside, w.infos["tool"].Path.Base())); err != nil {
		t.Errorf("nothing may be deleted: %v", err)
	}
	w.check(t, "tool")
	s, err := disk.Open(t.Context(), w.Layout, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if drvs, err := s.Derivers(w.infos["tool"].Path); err != nil || len(drvs) != 1 || drvs[0] != w.infos["tool.drv"].Path {
		t.Errorf("derivers %v, %v", drvs, err)
	}
}

// TestRebuildFindsWhatIsAside rebuilds without the backup and then with it.
func TestRebuildFindsWhatIsAside(t *testing.T) {
	w := newTown(t)
	away := filepath.Join(w.Root, "away")
	if err := errors.Join(os.RemoveAll(filepath.Join(w.StateDir, "db")), os.Rename(w.backup, away)); err != nil {
		t.Fatal(err)
	}
	w.rebuild(t, nil)
	if _, err := disk.Rebuild(t.Context(), w.Layout, nil); !errors.Is(err, disk.ErrWhole) {
		t.Errorf("rebuilt again: %v", err)
	}
	if r := w.rebuild(t, &disk.RebuildOptions{Backup: away, Force: true}); r.Restored != 4 || r.Proven != 3 || r.Aside != "" {
		t.Errorf("result %+v", r)
	}
	w.check(t)
	w.checkRows(t)
}

func TestRebuildKeepsRowsOfDamagedObjects(t *testing.T) {
	w := newTown(t)
	src, out := w.RealPath(w.infos["twin0"].Path), w.RealPath(w.infos["tool"].Path)
	damage(t, filepath.Join(out, "data"))
	if err := errors.Join(os.RemoveAll(filepath.Join(w.StateDir, "db")), os.RemoveAll(src)); err != nil {
		t.Fatal(err)
	}
	r := w.rebuild(t, nil)
	if len(r.Damaged) != 2 || r.Restored != 2 || r.Proven != 3 {
		t.Errorf("result %+v", r)
	}
	w.check(t, "twin0", "tool")
	s, err := disk.Open(t.Context(), w.Layout, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Replace(t.Context(), w.infos["twin0"].Path, bytes.NewReader(twins(t, "twin0"))); err != nil {
		t.Error(err)
	}
	if err := s.Replace(t.Context(), w.infos["tool"].Path, bytes.NewReader(twins(t, "made of "+w.infos["twin0"].Path.String()))); err != nil {
		t.Error(err)
	}
	s.Close()
	w.check(t)
}

// TestBadBackupIsPassedOver uses the one before.
func TestBadBackupIsPassedOver(t *testing.T) {
	w := newTown(t)
	s := open(t, w.Layout)
	text(t, s, "more", "more")
	b, err := s.Backup()
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	data, err := os.ReadFile(b.File)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-40] ^= 1
	if err := errors.Join(os.WriteFile(b.File, data, 0o600), os.RemoveAll(filepath.Join(w.StateDir, "db"))); err != nil {
		t.Fatal(err)
	}
	if r := w.rebuild(t, nil); r.Backup != w.backup || len(r.BadBackups) != 1 || r.Restored != 4 {
		t.Errorf("result %+v", r)
	}
	w.check(t)
}

// TestOldDatabaseIsRefused puts an old copy of the database into its place.
func TestOldDatabaseIsRefused(t *testing.T) {
	w := newTown(t)
	db := filepath.Join(w.StateDir, "db")
	if err := os.CopyFS(db+"-copy", os.DirFS(db)); err != nil {
		t.Fatal(err)
	}
	s := open(t, w.Layout)
	added := text(t, s, "more", "more")
	if _, err := s.Backup(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := errors.Join(os.RemoveAll(db), os.Rename(db+"-copy", db)); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Open(t.Context(), w.Layout, nil); !errors.Is(err, meta.ErrDamaged) {
		t.Errorf("opened: %v", err)
	}
	if _, err := os.Lstat(w.RealPath(added)); err != nil {
		t.Error(err)
	}
	w.rebuild(t, nil)
	w.check(t)
}
