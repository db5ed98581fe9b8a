package meta_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/store"
	"cairn/store/meta"
)

func open(t testing.TB, dir string) *meta.DB {
	t.Helper()
	db, err := meta.Open(dir, store.DefaultDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func path(t testing.TB, name string) store.Path {
	t.Helper()
	p, err := store.DefaultDir.TextPath(name, store.SHA256.Sum([]byte(name)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func commit(t testing.TB, db *meta.DB, fill func(b *meta.Batch)) {
	t.Helper()
	var b meta.Batch
	fill(&b)
	if err := db.Commit(&b); err != nil {
		t.Fatal(err)
	}
}

func sample(t testing.TB, p store.Path) *meta.Object {
	return &meta.Object{
		Name: p.Name(), NarHash: [32]byte{1, 2, 3}, Seal: meta.Seal{4, 5}, NarSize: 1234, RegisteredAt: 5678, Ultimate: true,
		Deriver: path(t, "some.drv"), CA: store.ContentAddress{Method: store.Recursive, Hash: store.SHA512.Sum(nil)},
		References: []meta.Digest{meta.DigestOf(p), meta.DigestOf(path(t, "ref"))}, Signatures: []string{"a:b", "c:d"},
	}
}

func TestObjects(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	a, b := path(t, "a"), path(t, "b")
	full := sample(t, a)
	bare := &meta.Object{Name: "b"}
	commit(t, db, func(w *meta.Batch) {
		w.PutObject(meta.DigestOf(a), full)
		w.PutObject(meta.DigestOf(b), bare)
	})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Commit(new(meta.Batch)); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
	var late meta.Batch
	late.DeleteLease("x")
	if err := db.Commit(&late); !errors.Is(err, meta.ErrClosed) {
		t.Errorf("commit to a closed database: %v", err)
	}
	db = open(t, dir)
	if got, err := db.Object(meta.DigestOf(a)); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, full)
	}
	count := 0
	err := db.Objects(func(d meta.Digest, o *meta.Object) error {
		count++
		if d == meta.DigestOf(b) && (o.Name != "b" || len(o.References) > 0 || len(o.Signatures) > 0 || !o.Deriver.IsZero()) {
			t.Errorf("bare object: %+v", o)
		}
		return nil
	})
	if err != nil || count != 2 {
		t.Errorf("%d objects, %v", count, err)
	}
	if _, err := db.Object(meta.DigestOf(path(t, "none"))); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("no object: %v", err)
	}
}

// TestReading reads while objects come, change and go: it sees what there was when it began.
func TestReading(t *testing.T) {
	db := open(t, t.TempDir())
	before := []meta.Digest{{1}, {2}, {3}}
	commit(t, db, func(b *meta.Batch) {
		for _, d := range before {
			b.PutObject(d, &meta.Object{Name: "before"})
		}
	})
	var seen []meta.Digest
	if err := db.Objects(func(d meta.Digest, o *meta.Object) error {
		if seen = append(seen, d); o.Name != "before" {
			t.Errorf("%v is %q", d, o.Name)
		}
		if len(seen) > 1 {
			return nil
		}
		commit(t, db, func(b *meta.Batch) {
			f := db.Forget()
			defer f.Close()
			b.PutObject(meta.Digest{2}, &meta.Object{Name: "after"})
			b.PutObject(meta.Digest{4}, &meta.Object{Name: "after"})
			if err := f.Object(b, meta.Digest{3}, false, false); err != nil {
				t.Fatal(err)
			}
		})
		if n := meta.Reading(db); n != 1 {
			t.Errorf("somebody reads at %d versions", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(seen, before) {
		t.Errorf("seen: %v", seen)
	}
	if o, err := db.Object(meta.Digest{2}); err != nil || o.Name != "after" {
		t.Errorf("%v, %v", o, err)
	}
	if n := meta.Reading(db); n != 0 {
		t.Errorf("in the end, somebody reads at %d versions", n)
	}
}

func TestForget(t *testing.T) {
	db := open(t, t.TempDir())
	drv, other, out, static := meta.DigestOf(path(t, "x.drv")), meta.DigestOf(path(t, "y.drv")), path(t, "x"), path(t, "static")
	id := store.DrvOutput{Drv: store.SHA256.Sum([]byte("x")), Output: "out"}
	commit(t, db, func(w *meta.Batch) {
		w.PutObject(drv, &meta.Object{Name: "x.drv"})
		w.PutObject(meta.DigestOf(out), &meta.Object{Name: "x"})
		w.PutRealisation(&store.Realisation{ID: id, OutPath: out})
		w.PutOutput(drv, "out", out, true)
		w.PutOutput(drv, "dev", static, false)
		w.PutOutput(other, "out", out, false)
	})
	forget := func(d meta.Digest) {
		t.Helper()
		f := db.Forget()
		defer f.Close()
		commit(t, db, func(w *meta.Batch) {
			if err := f.Object(w, d, true, true); err != nil {
				t.Fatal(err)
			}
		})
	}
	forget(meta.DigestOf(out))
	if _, err := db.Realisation(id); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("realisation: %v", err)
	}
	if o, err := db.Outputs(drv); err != nil || len(o) != 1 || o[0].Name != "dev" || o[0].Path != static {
		t.Errorf("outputs of the derivation: %v, %v", o, err)
	}
	if d, err := db.Derivers(meta.DigestOf(out)); err != nil || !slices.Equal(d, []meta.Deriver{{Drv: other, Output: "out"}}) {
		t.Errorf("derivers of the output: %v, %v", d, err)
	}
	forget(drv)
	if o, err := db.Outputs(drv); err != nil || len(o) > 0 {
		t.Errorf("outputs of the forgotten derivation: %v, %v", o, err)
	}
	if d, err := db.Derivers(meta.DigestOf(static)); err != nil || len(d) > 0 {
		t.Errorf("derivers of its output: %v, %v", d, err)
	}
}

func TestLeases(t *testing.T) {
	db := open(t, t.TempDir())
	want := &meta.Lease{Owner: "me", Expires: 99, Paths: []store.Path{path(t, "a"), path(t, "b")}}
	commit(t, db, func(w *meta.Batch) { w.PutLease(want); w.PutLease(&meta.Lease{Owner: "gone"}); w.DeleteLease("gone") })
	var got []*meta.Lease
	if err := db.Leases(func(l *meta.Lease) error { got = append(got, l); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("got %+v", got)
	}
}

func TestLimits(t *testing.T) {
	db := open(t, t.TempDir())
	var b meta.Batch
	for n := 0; b.Size() <= db.MaxBatch(); n++ {
		p := path(t, fmt.Sprint(n))
		b.PutObject(meta.DigestOf(p), sample(t, p))
	}
	if err := db.Commit(&b); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("too large a batch: %v", err)
	}
	var long meta.Batch
	long.PutObject(meta.Digest{}, &meta.Object{Name: "x", Signatures: []string{strings.Repeat("x", 1<<16)}})
	if err := db.Commit(&long); err == nil {
		t.Error("too long a signature is accepted")
	}
}

// TestMaxBatchFits commits the largest batch of the smallest rows, which must fit Badger's own limits.
func TestMaxBatchFits(t *testing.T) {
	db := open(t, t.TempDir())
	var b meta.Batch
	for n := 0; b.Size() < db.MaxBatch()-200; n++ {
		b.DeleteLease(fmt.Sprint(n))
	}
	if err := db.Commit(&b); err != nil {
		t.Error(err)
	}
	var c meta.Batch
	big := make([]meta.Digest, 40000)
	for n := byte(0); c.Size() < db.MaxBatch()-900_000; n++ {
		c.PutObject(meta.Digest{n}, &meta.Object{Name: "x", References: big})
	}
	if err := db.Commit(&c); err != nil {
		t.Error(err)
	}
}

func TestConcurrentCommits(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for n := range 50 {
				p := path(t, fmt.Sprint(w, "-", n))
				var b meta.Batch
				b.PutObject(meta.DigestOf(p), &meta.Object{Name: p.Name()})
				if err := db.Commit(&b); err != nil {
					t.Error(err)
				}
				if _, err := db.Object(meta.DigestOf(p)); err != nil {
					t.Errorf("own write: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	if _, err := meta.Open(dir, store.DefaultDir, nil); err == nil {
		t.Error("opened twice")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := meta.Open(dir, "/nix/store", nil); err == nil || !strings.Contains(err.Error(), "/cairn/store") {
		t.Errorf("opened for another store directory: %v", err)
	}
	// What a kill can leave: files that were made and not written.
	for _, name := range []string{"00099.mem", "000099.vlog"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if err := context.Cause(t.Context()); err != nil {
		t.Fatal(err)
	}
}
