package meta_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/meta"
)

// killed returns what a database is like on the disk when its process is killed while it has nothing to do.
func killed(t testing.TB, dir string) string {
	t.Helper()
	waitFor(t, func() bool { // the journals of an earlier process become tables, are emptied, and go
		names, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
		begun := journals(dir)
		return len(begun) == 1 && slices.Min(names) == begun[0]
	})
	to := filepath.Join(t.TempDir(), "db")
	if err := meta.Copy(to, dir); err != nil {
		t.Fatal(err)
	}
	return to
}

// small are options of a database that opens fast.
var small = &meta.Options{MemTableSize: 8 << 20, Ballast: -1}

func openSmall(t testing.TB, dir string) *meta.DB {
	t.Helper()
	db, err := meta.Open(dir, store.DefaultDir, small)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// add commits a transaction of some objects, and returns their names.
func add(t testing.TB, db *meta.DB, name string, count int) []string {
	t.Helper()
	var names []string
	commit(t, db, func(b *meta.Batch) {
		for n := range count {
			names = append(names, fmt.Sprintf("%s-%d", name, n))
			p := path(t, names[n])
			b.PutObject(meta.DigestOf(p), sample(t, p))
		}
	})
	return names
}

// has reports which of the objects a database knows.
func has(t testing.TB, db *meta.DB, names []string) []bool {
	t.Helper()
	var known []bool
	for _, name := range names {
		_, err := db.Object(meta.DigestOf(path(t, name)))
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			t.Fatal(err)
		}
		known = append(known, err == nil)
	}
	return known
}

// journals returns the journals that have begun.
func journals(dir string) []string {
	names, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
	return slices.DeleteFunc(names, func(name string) bool {
		fi, err := os.Stat(name)
		return err != nil || fi.Size() == 0
	})
}

func journal(t testing.TB, dir string) string {
	t.Helper()
	names := journals(dir)
	if len(names) == 0 {
		t.Fatal("no journal")
	}
	return slices.Max(names)
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// used is the part of a journal that was written.
func used(b []byte) []byte { return bytes.TrimRight(b, "\x00") }

// damaged checks that a database is refused, and that its journal stays as it is.
func damaged(t *testing.T, dir string) {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
	var before [][]byte
	for _, name := range names {
		before = append(before, read(t, name))
	}
	db, err := meta.Open(dir, store.DefaultDir, small)
	if err == nil {
		db.Close()
	}
	if !errors.Is(err, meta.ErrDamaged) {
		t.Fatalf("open: %v", err)
	}
	for i, name := range names {
		if !bytes.Equal(before[i], read(t, name)) {
			t.Errorf("%s was changed", name)
		}
	}
}

// TestJournalDamage damages the journal of a database whose process was killed at every place, and in larger pieces. All transactions
// but the last one have witnesses in those that follow.
func TestJournalDamage(t *testing.T) {
	dir := t.TempDir()
	db := openSmall(t, dir)
	for n := range 20 {
		add(t, db, fmt.Sprint(n), 3)
	}
	dead := killed(t, dir)
	name := journal(t, dead)
	whole := read(t, name)
	last := len(used(whole))
	add(t, db, "last", 3)
	dead = killed(t, dir)
	name = journal(t, dead)
	whole = read(t, name)
	for at := 20; at < last; at += 211 { // what is behind the header, which is all zeros but for a number that nobody needs
		b := slices.Clone(whole)
		b[at] ^= 0x10
		write(t, name, b)
		damaged(t, dead)
	}
	for what, b := range map[string][]byte{
		"no bytes":      nil,
		"zeros":         make([]byte, len(whole)),
		"cut":           whole[:last-1],
		"zeroed page":   slices.Concat(whole[:4096], make([]byte, 4096), whole[8192:]),
		"zeroed end":    slices.Concat(whole[:last-1], make([]byte, len(whole)-last+1)),
		"other header":  slices.Concat([]byte{1, 2, 3, 4, 5, 6, 7, 8}, whole[8:]),
		"shifted":       slices.Concat(whole[:500], whole[501:]),
		"repeated page": slices.Concat(whole[:4096], whole[:4096], whole[8192:]),
	} {
		t.Run(what, func(t *testing.T) {
			write(t, name, b)
			damaged(t, dead)
		})
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	damaged(t, dead)
}

// TestWitness damages the last transaction, which only the witness knows, a while after it.
func TestWitness(t *testing.T) {
	dir := t.TempDir()
	db := openSmall(t, dir)
	add(t, db, "a", 3)
	before := len(used(read(t, journal(t, killed(t, dir)))))
	add(t, db, "b", 3)
	waitFor(t, func() bool {
		dead := killed(t, dir)
		name := journal(t, dead)
		write(t, name, read(t, name)[:before])
		db, err := meta.Open(dead, store.DefaultDir, small)
		if err == nil {
			db.Close()
		}
		return errors.Is(err, meta.ErrDamaged)
	})
}

func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("does not happen")
		}
	}
}

// TestPowerCut leaves any of the sectors that the last transaction wrote. As nobody was told that it is done, it may be there or not, but
// not in part, and all before it is. What comes then survives the same again.
func TestPowerCut(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 4 {
		dir := t.TempDir()
		var done []string
		for round := range 3 {
			db := openSmall(t, dir)
			for n := range rng.IntN(4) {
				done = append(done, add(t, db, fmt.Sprintf("%d-%d", round, n), 1+rng.IntN(30))...)
			}
			old := killed(t, dir)
			last := add(t, db, fmt.Sprintf("%d-last", round), 1+rng.IntN(60))
			now := killed(t, dir)
			name := filepath.Join(old, filepath.Base(journal(t, now)))
			b, written := read(t, name), read(t, journal(t, now))
			for at := 0; at < len(b); at += 512 {
				if rng.IntN(2) == 0 {
					copy(b[at:at+512], written[at:])
				}
			}
			write(t, name, b)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			dir = old
			db = openSmall(t, dir)
			if slices.Contains(has(t, db, done), false) {
				t.Fatal("something that was acknowledged is gone")
			}
			there := has(t, db, last)
			if slices.Contains(there, true) && slices.Contains(there, false) {
				t.Errorf("a part of a transaction is there: %v", there)
			}
			if there[0] {
				done = append(done, last...)
			}
			dir = killed(t, dir)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestManifestDamage cuts the manifest, whose end Badger forgives, so that tables are forgotten.
func TestManifestDamage(t *testing.T) {
	dir := t.TempDir()
	for n := range 2 { // each makes a table
		db := openSmall(t, dir)
		add(t, db, fmt.Sprint(n), 1)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dir, "MANIFEST")
	b := read(t, name)
	write(t, name, b[:len(b)-1])
	damaged(t, dir)
}

func TestLargeRecord(t *testing.T) {
	db := open(t, t.TempDir())
	p := path(t, "large")
	for count, want := range map[int]error{50_000: nil, 52_500: meta.ErrTooLarge} {
		o := sample(t, p)
		o.References = make([]meta.Digest, count)
		var b meta.Batch
		b.PutObject(meta.DigestOf(p), o)
		if err := db.Commit(&b); !errors.Is(err, want) {
			t.Errorf("%d references: %v", count, err)
		}
	}
}

// TestLostRows takes rows of objects away as Badger's compaction does when a table cannot be made: the rest is whole.
func TestLostRows(t *testing.T) {
	dir := t.TempDir()
	db := openSmall(t, dir)
	names := add(t, db, "a", 30)
	commit(t, db, func(b *meta.Batch) { // counted once, whether it is put again or deleted
		p := path(t, names[0])
		b.PutObject(meta.DigestOf(p), sample(t, p))
		forget := db.Forget()
		defer forget.Close()
		if err := forget.Object(b, meta.DigestOf(path(t, names[1])), false, false); err != nil {
			t.Fatal(err)
		}
		b.PutObject(meta.DigestOf(path(t, "new")), sample(t, path(t, "new")))
	})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openSmall(t, dir)
	if _, err := db.Backup(io.Discard, 1); err != nil {
		t.Fatal(err)
	}
	d := meta.DigestOf(path(t, names[2]))
	if err := meta.DropPrefix(db, append([]byte{2}, d[:]...)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Backup(io.Discard, 2); !errors.Is(err, meta.ErrDamaged) {
		t.Errorf("backup: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	damaged(t, dir)
}

// TestLargerMemTable opens what a process with larger memtables has left, which was killed.
func TestLargerMemTable(t *testing.T) {
	dir := t.TempDir()
	db, err := meta.Open(dir, store.DefaultDir, &meta.Options{MemTableSize: 16 << 20, Ballast: -1, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	const rows, together = 100_000, 2000
	digest := func(n int) meta.Digest { return meta.Digest{byte(n), byte(n >> 8), byte(n >> 16)} }
	for n := 0; n < rows; n += together {
		commit(t, db, func(b *meta.Batch) {
			for i := range together {
				b.PutObject(digest(n+i), &meta.Object{Name: "x"})
			}
		})
	}
	if n := len(journals(dir)); n != 1 {
		t.Fatalf("%d journals", n)
	}
	left := killed(t, dir)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is a table
		db := openSmall(t, left)
		for n := range rows {
			if _, err := db.Object(digest(n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
