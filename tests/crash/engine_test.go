package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/meta"
	"cairn/store/profile"
	"cairn/store/storetest"
)

// engine is work on a store without a daemon: for what daemons of our time do not do, or not often.
type engine func(d *driver, ctx context.Context, s *disk.Store) error

// run repeats the work, each time on the store as it opens then.
func (d *driver) run(l *load) error {
	for range max(l.steps, 1) {
		if err := d.once(context.Background(), l); err != nil {
			return err
		}
	}
	return nil
}

func (d *driver) once(ctx context.Context, l *load) error {
	s, err := disk.Open(ctx, d.layout, &disk.Options{Meta: meta.Options{MemTableSize: 8 << 20}, Backups: disk.BackupOptions{Keep: 2}})
	if err != nil {
		return err
	}
	if err := l.engine(d, ctx, s); err != nil {
		fmt.Fprintln(d.errs, "engine:", err)
	}
	return s.Close()
}

// openWork opens and closes the store, which is what a start after a crash does.
func (d *driver) openWork(context.Context, *disk.Store) error {
	time.Sleep(20 * time.Millisecond) // for what goes on in the background
	return nil
}

// engineWork imports more than a transaction holds, leases, replaces, and backs up.
func (d *driver) engineWork(ctx context.Context, s *disk.Store) error {
	lease := s.Lease("crash", time.Hour)
	i := s.Import()
	defer i.Close()
	var paths []store.Path
	for n := range 40 {
		archive := storetest.File(fmt.Sprint(n, rand.Uint64()))
		info := storetest.Source(s.Dir(), "large-row", archive, paths[max(0, n-1):]...)
		for range 64 {
			info.Signatures = append(info.Signatures, fmt.Sprintf("key:%0500d", rand.Uint64()))
		}
		if err := i.Add(ctx, info, bytes.NewReader(archive)); err != nil {
			return err
		}
		paths = append(paths, info.Path)
	}
	last := paths[len(paths)-1]
	if err := lease.Hold(last); err != nil {
		return err
	}
	if err := d.note("leased", last); err != nil {
		return err
	}
	if err := i.Commit(ctx); err != nil {
		return err
	}
	if err := d.root(d.roots, "import", last); err != nil {
		return err
	}
	if err := d.trim(3); err != nil {
		return err
	}
	archive := storetest.Tree(fmt.Sprint(rand.Uint64()))
	info := storetest.Source(s.Dir(), "replaced", archive)
	if err := s.Add(ctx, info, bytes.NewReader(archive)); err != nil {
		return err
	}
	if err := d.root(d.roots, "add", info.Path); err != nil {
		return err
	}
	if err := s.Replace(ctx, info.Path, bytes.NewReader(archive)); err != nil {
		return err
	}
	return d.backUp(s)
}

// profileWork adds something and makes it a generation.
func (d *driver) profileWork(ctx context.Context, s *disk.Store) error {
	archive := storetest.File(fmt.Sprint(rand.Uint64()))
	info := storetest.Source(s.Dir(), "generation", archive)
	if err := s.Add(ctx, info, bytes.NewReader(archive)); err != nil {
		return err
	}
	return d.newGeneration(info.Path)
}

// rebuildWork has a database rebuilt: from a backup, from an object that came after that, and with one that is damaged.
func (d *driver) rebuildWork(ctx context.Context, s *disk.Store) error {
	var paths []store.Path
	for n := range 3 {
		if n == 2 {
			if err := d.backUp(s); err != nil {
				return err
			}
		}
		archive := storetest.Tree(fmt.Sprint(rand.Uint64()))
		info := storetest.Source(s.Dir(), "rebuilt", archive)
		if err := s.Add(ctx, info, bytes.NewReader(archive)); err != nil {
			return err
		}
		if err := d.root(d.roots, "add", info.Path); err != nil {
			return err
		}
		paths = append(paths, info.Path)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := d.note("damage", paths[0]); err != nil {
		return err
	}
	if err := damage(s.RealPath(paths[0])); err != nil {
		return err
	}
	r, err := disk.Rebuild(ctx, d.layout, &disk.RebuildOptions{Force: true})
	if err != nil {
		return err
	}
	if r.Proven != 1 || len(r.Damaged) < 1 || r.Restored < 1 {
		return fmt.Errorf("rebuilt with %d proven, %d damaged, %d restored", r.Proven, len(r.Damaged), r.Restored)
	}
	return os.RemoveAll(r.OldDatabase)
}

// backUp makes a backup and notes it.
func (d *driver) backUp(s *disk.Store) error {
	b, err := s.Backup()
	if err == nil && b == nil {
		err = errors.New("no backup was made")
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(event{Verb: "backup", Link: b.File})
}

// newGeneration makes a generation, switches to it and deletes old ones.
func (d *driver) newGeneration(path store.Path) error {
	p := profile.Open(filepath.Join(d.layout.StateDir, "profiles", "crash"))
	g, err := p.New(path.String())
	if err != nil {
		return err
	}
	if err := d.noteGeneration("generation", g.Number, path); err != nil {
		return err
	}
	if err := d.noteGeneration("switching", g.Number, path); err != nil {
		return err
	}
	if err := p.Switch(g.Number); err != nil {
		return err
	}
	if err := d.noteGeneration("switched", g.Number, path); err != nil {
		return err
	}
	list, err := p.List()
	if err != nil {
		return err
	}
	for _, old := range list[:max(0, len(list)-3)] {
		if err := d.noteGeneration("deleting", old.Number, store.Path{}); err != nil {
			return err
		}
		if err := p.Delete(old.Number); err != nil {
			return err
		}
		if err := d.noteGeneration("deleted", old.Number, store.Path{}); err != nil {
			return err
		}
	}
	return nil
}

func (d *driver) noteGeneration(verb string, n int, p store.Path) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(event{Verb: verb, N: n, Path: p})
}
