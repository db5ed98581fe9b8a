package meta

import (
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
)

// Badger merges tables when it likes, those of level 0 as soon as it is opened, and writes new tables before the old ones go. Where there is no
// room for that it dies, at each opening again, and with it whoever wants to make room. Such a database is opened without merging: its
// tables become more and more, until there is room and all are merged at once; the next opening is as usual.

// Tables of level 0, which any reading may have to look into.
const (
	usualZeroTables = 4       // are merged
	mostZeroTables  = 10      // stop transactions until they are
	anyZeroTables   = 1 << 20 // stop no transaction
)

// removeLeftTables removes tables that the manifest does not list, if there is one, which a process has left that died while it merged. Badger does, too, but they
// may be what it has no room for.
func (d *DB) removeLeftTables(listed map[uint64]badger.TableManifest) error {
	if listed == nil {
		return nil
	}
	names, err := filepath.Glob(filepath.Join(d.dir, "*.sst"))
	if err != nil {
		return err
	}
	for _, name := range names {
		id, ok := table.ParseFileID(name)
		if _, is := listed[id]; !ok || is {
			continue
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// mayMerge reports whether there is room for what Badger merges when it is opened with so many bytes in journals: them, level 0 and
// the first level that has tables, and as much as any other level takes.
func (d *DB) mayMerge(listed map[uint64]badger.TableManifest, written int64) (bool, error) {
	levels := map[uint8]int64{}
	all, first := written, uint8(255)
	for id, t := range listed {
		fi, err := os.Stat(table.NewFilename(id, d.dir))
		if err != nil {
			return false, err
		}
		levels[t.Level] += fi.Size()
		all += fi.Size()
		if t.Level > 0 {
			first = min(first, t.Level)
		}
	}
	free, err := Free(d.dir)
	return free.Bytes >= written+levels[0]+levels[first]+min(all, d.opts.Reserve), err
}

// mergeAll merges all tables, in the background, when nothing else merges them, they are many and there is room.
func (d *DB) mergeAll() {
	if d.merging || len(d.mergers) > 0 || d.badger.Levels()[0].NumTables <= usualZeroTables || d.roomFor(d.tables.Load()+d.opts.Reserve, reserveInodes) != nil {
		return
	}
	d.mergers <- struct{}{}
	go func() {
		defer func() { <-d.mergers }()
		if err := d.badger.Flatten(1); err != nil {
			d.opts.Logger.Warn("database: merge tables", "error", err)
		}
	}()
}
