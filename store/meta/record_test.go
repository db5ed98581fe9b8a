package meta

import (
	"bytes"
	"testing"

	"cairn/store"
)

// FuzzRecord decodes anything as each kind of record. What is accepted must come out again byte for byte.
func FuzzRecord(f *testing.F) {
	p, err := store.DefaultDir.TextPath("x", store.SHA256.Sum(nil), nil)
	if err != nil {
		f.Fatal(err)
	}
	id := store.DrvOutput{Drv: store.SHA256.Sum(nil), Output: "out"}
	o := &Object{Name: "x", Deriver: p, CA: store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum(nil)},
		References: []Digest{{1}, {2}}, Signatures: []string{"a:b", ""}}
	r := &store.Realisation{ID: id, OutPath: p, Signatures: []string{"s"}, Dependents: map[store.DrvOutput]store.Path{id: p}}
	l := &Lease{Owner: "o", Expires: 7, Paths: []store.Path{p}}
	ob, err := o.encode()
	if err != nil {
		f.Fatal(err)
	}
	rb, err := encodeRealisation(r)
	if err != nil {
		f.Fatal(err)
	}
	lb, err := l.encode()
	if err != nil {
		f.Fatal(err)
	}
	empty, _ := (&Object{Name: "x"}).encode()
	for _, seed := range [][]byte{ob, rb, lb, empty, nil, {1}, {2}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Object
		if decodeObject(store.DefaultDir, b, &o) == nil {
			again(t, "object", b, o.encode)
		}
		if r, err := decodeRealisation(store.DefaultDir, id, b); err == nil {
			again(t, "realisation", b, func() ([]byte, error) { return encodeRealisation(r) })
		}
		if l, err := decodeLease(store.DefaultDir, "o", b); err == nil {
			again(t, "lease", b, l.encode)
		}
		if o, err := decodeOutput(store.DefaultDir, "out", b); err == nil {
			var w Batch
			w.PutOutput(Digest{}, o.Name, o.Path, o.Realised, o.Signatures...)
			again(t, "output", b, func() ([]byte, error) { return w.rows[0].value, nil })
		}
	})
}

func again(t *testing.T, what string, b []byte, encode func() ([]byte, error)) {
	t.Helper()
	c, err := encode()
	if err != nil || !bytes.Equal(b, c) {
		t.Errorf("%s:\n got %x, %v\nwant %x", what, c, err, b)
	}
}
