package meta

import (
	"bytes"
	"slices"
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
	o := &Object{Name: "x", Seal: Seal{1}, Deriver: p, CA: store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum(nil)},
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
		err := decodeObject(store.DefaultDir, b, &o)
		if err == nil {
			again(t, "object", b, o.encode)
		}
		sameNode(t, b, &o, err)
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

// sameNode checks that a row says the same to the graph as to everybody else.
func sameNode(t *testing.T, b []byte, o *Object, err error) {
	t.Helper()
	var n Node
	if nodeErr := decodeNode(b, &n); (nodeErr == nil) != (err == nil) {
		t.Errorf("%x: as object: %v, as node: %v", b, err, nodeErr)
	}
	if err != nil {
		return
	}
	var deriver Digest
	if !o.Deriver.IsZero() {
		deriver = DigestOf(o.Deriver)
	}
	if string(n.Name) != o.Name || n.NarSize != o.NarSize || n.Deriver != deriver || !slices.Equal(n.References, o.References) {
		t.Errorf("%x: object %+v, node %+v", b, o, n)
	}
}
