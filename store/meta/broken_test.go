package meta_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/meta"
)

// TestBroken has transactions fail. Nobody knows what the journal has then, so that nothing is written before the next opening.
func TestBroken(t *testing.T) {
	dir := t.TempDir()
	db, err := meta.Open(dir, store.DefaultDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := path(t, "a")
	put := func(b *meta.Batch) { b.PutObject(meta.DigestOf(p), sample(t, p)) }
	commit(t, db, put)
	meta.Unknown(db, unix.EIO)
	var b meta.Batch
	b.PutObject(meta.DigestOf(path(t, "b")), sample(t, path(t, "b")))
	if err := db.Commit(&b); !errors.Is(err, meta.ErrBroken) || !errors.Is(err, unix.EIO) {
		t.Errorf("commit: %v", err)
	}
	if _, err := db.Object(meta.DigestOf(p)); err != nil {
		t.Errorf("read: %v", err)
	}
	if err := db.Close(); !errors.Is(err, meta.ErrBroken) {
		t.Errorf("close: %v", err)
	}
	if err := meta.CloseBadger(db); err != nil { // as the end of the process does
		t.Fatal(err)
	}
	if _, err := open(t, dir).Object(meta.DigestOf(p)); err != nil {
		t.Errorf("opened again: %v", err)
	}
}
