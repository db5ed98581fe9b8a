package meta_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/meta"
)

// TestNoRoomToMerge opens a database where there is no room to merge its tables: it takes and deletes rows all the same, however many tables that
// makes, and merges them when there is room.
func TestNoRoomToMerge(t *testing.T) {
	const reserve = 8 << 20
	dir := t.TempDir()
	var free atomic.Int64
	free.Store(1 << 40)
	meta.PretendFree(t, func() int64 { return free.Load() })
	opts := &meta.Options{Reserve: reserve, NoSync: true}
	open := func() *meta.DB {
		t.Helper()
		db, err := meta.Open(dir, store.DefaultDir, opts)
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	there := map[int]bool{}
	change := func(db *meta.DB, from, to int, add bool) {
		t.Helper()
		for i := from; i < to; i++ {
			b := new(meta.Batch)
			if add {
				b.PutObject(numbered(i), &meta.Object{Name: "x", References: make([]meta.Digest, 20_000)})
			} else {
				forget := db.Forget()
				if err := forget.Object(b, numbered(i), false, false); err != nil {
					t.Fatal(err)
				}
				defer forget.Close()
			}
			if err := db.Commit(b); err != nil {
				t.Fatal(err)
			}
			there[i] = add
		}
	}
	db := open()
	change(db, 0, 200, true) // some 80 MB
	if !meta.Merging(db) {
		t.Error("tables are not merged where there is room")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "999999.sst") // of a process that died while it merged
	if err := os.WriteFile(left, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}

	const little = reserve + 1<<20 // with which it opens, but nothing is merged, however little there is to merge
	free.Store(little)
	db = open()
	if meta.Merging(db) {
		t.Fatal("tables are merged without room")
	}
	if _, err := os.Stat(left); err == nil {
		t.Errorf("%s is still there", left)
	}
	free.Store(5 * reserve) // enough for rows
	change(db, 200, 500, true)
	change(db, 0, 50, false)
	if n := meta.ZeroTables(db); n < 12 {
		t.Errorf("%d tables in level 0: too few to show anything", n)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	free.Store(little)
	db = open()
	free.Store(1 << 40)
	for i, deadline := 500, time.Now().Add(time.Minute); meta.ZeroTables(db) > 4 && time.Now().Before(deadline); i++ {
		change(db, i, i+1, true)
		time.Sleep(10 * time.Millisecond)
	}
	if n := meta.ZeroTables(db); n > 4 {
		t.Errorf("%d tables in level 0 are not merged where there is room", n)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open()
	defer db.Close()
	if !meta.Merging(db) {
		t.Error("tables are not merged where there is room")
	}
	for i, want := range there {
		if _, err := db.Object(numbered(i)); (err == nil) != want {
			t.Errorf("object %d: %v", i, err)
		}
	}
}

func numbered(i int) (d meta.Digest) {
	d[0], d[1], d[2] = byte(i), byte(i>>8), 1
	return d
}
