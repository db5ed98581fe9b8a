package meta

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"testing"

	"cairn/store"
)

// filled returns a database with a row of each kind, and a backup of it.
func filled(t testing.TB) (*DB, []byte) {
	t.Helper()
	d, err := Open(t.TempDir(), store.DefaultDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	p, err := store.DefaultDir.TextPath("x", store.SHA256.Sum(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	id := store.DrvOutput{Drv: store.SHA256.Sum(nil), Output: "out"}
	var b Batch
	b.PutObject(DigestOf(p), &Object{Name: "x", NarSize: 7, Signatures: []string{"a:b"}, References: []Digest{DigestOf(p)}})
	b.PutObject(Digest{1}, &Object{Name: "y"})
	b.PutRealisation(&store.Realisation{ID: id, OutPath: p, Signatures: []string{"s"}})
	b.PutOutput(Digest{1}, "out", p, true, "s")
	b.PutLease(&Lease{Owner: "o", Expires: 7, Paths: []store.Path{p}})
	if err := d.Commit(&b); err != nil {
		t.Fatal(err)
	}
	var w bytes.Buffer
	if _, err := d.Backup(&w, 3); err != nil {
		t.Fatal(err)
	}
	return d, w.Bytes()
}

// restore reads a backup into a batch.
func restore(data []byte) (*Batch, *BackupHeader, error) {
	var b Batch
	h, err := ReadBackup(bytes.NewReader(data), &Rows{
		Object:      func(d Digest, o *Object) error { b.PutObject(d, o); return nil },
		Realisation: func(r *store.Realisation) error { b.PutRealisation(r); return nil },
		Output: func(drv Digest, o *Output) error {
			b.PutOutput(drv, o.Name, o.Path, o.Realised, o.Signatures...)
			return nil
		},
		Lease: func(l *Lease) error { b.PutLease(l); return nil },
	})
	return &b, h, err
}

func TestBackup(t *testing.T) {
	d, data := filled(t)
	b, h, err := restore(data)
	if err != nil {
		t.Fatal(err)
	}
	if last, err := d.LastBackup(); h.Sequence != 3 || last != 3 || h.Database != d.Name() || h.Version != d.Version() || err != nil {
		t.Errorf("header %+v of database %x, version %d, last backup %d, %v", h, d.Name(), d.Version(), last, err)
	}
	other, err := Open(t.TempDir(), store.DefaultDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Commit(b); err != nil {
		t.Fatal(err)
	}
	got, want := rows(t, other), rows(t, d)
	if len(want) != 7 || len(got) != len(want) {
		t.Errorf("%d rows came back, %d were there", len(got), len(want))
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("row %x is %x, was %x", key, got[key], value)
		}
	}
	if err := d.Commit(b); err != nil || d.Version() == h.Version {
		t.Errorf("version %d after a change, %v", d.Version(), err)
	}
}

// rows returns all but settings.
func rows(t *testing.T, d *DB) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := d.scan(nil, func(key, value []byte) error {
		if key[0] != tableSettings {
			all[string(key)] = string(value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDamagedBackup changes and cuts each byte.
func TestDamagedBackup(t *testing.T) {
	_, data := filled(t)
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 0x20
		for _, b := range [][]byte{bad, data[:i]} {
			batch, _, err := restore(b)
			if !errors.Is(err, ErrBackup) {
				t.Errorf("byte %d of %d bytes: %v", i, len(b), err)
			}
			if len(batch.rows) > 0 {
				t.Errorf("byte %d of %d bytes: rows before the end was checked", i, len(b))
			}
		}
	}
	if _, _, err := restore(append(bytes.Clone(data), 0)); !errors.Is(err, ErrBackup) {
		t.Errorf("longer by a byte: %v", err)
	}
}

func FuzzBackup(f *testing.F) {
	_, data := filled(f)
	f.Add(data)
	f.Add([]byte(backupMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := restore(b); err != nil && !errors.Is(err, ErrBackup) {
			t.Error(err)
		}
	})
}

// FuzzRows reads rows without what protects them in a file.
func FuzzRows(f *testing.F) {
	f.Add([]byte("\x01\x00\x07\x00\x00\x00\x00"))
	f.Add(append(make([]byte, 2), make([]byte, 8)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := readRows(bufio.NewReader(bytes.NewReader(b)), store.DefaultDir, &Rows{}); err != nil && !errors.Is(err, ErrBackup) {
			t.Error(err)
		}
	})
}

// BenchmarkBackup backs up 100,000 objects with five references each.
func BenchmarkBackup(b *testing.B) {
	d, err := Open(b.TempDir(), store.DefaultDir, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	const count = 100_000
	for i := 0; i < count; {
		var batch Batch
		for ; i < count && batch.Size() < d.MaxBatch()/2; i++ {
			digest := func(n int) Digest { return Digest(store.SHA256.Sum(fmt.Append(nil, n)).Bytes()[:20]) }
			o := &Object{Name: fmt.Sprint("object-", i), NarHash: [32]byte(store.SHA256.Sum(fmt.Append(nil, "nar", i)).Bytes()), NarSize: int64(i)}
			for r := range 5 {
				o.References = append(o.References, digest(i/(r+2)))
			}
			batch.PutObject(digest(i), o)
		}
		if err := d.Commit(&batch); err != nil {
			b.Fatal(err)
		}
	}
	n := uint64(1)
	for b.Loop() {
		var w bytes.Buffer
		if _, err := d.Backup(&w, n); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(w.Len()), "bytes")
		n++
	}
}
