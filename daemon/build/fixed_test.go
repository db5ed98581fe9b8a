package build_test

import (
	"testing"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/store"
)

// TestUnexpectedHashIsKept checks that what was fetched with another hash than was promised is there under its own name.
func TestUnexpectedHashIsKept(t *testing.T) {
	r := newRig(t, nil)
	other := store.ContentAddress{Method: store.Flat, Hash: store.SHA256.Sum([]byte("other\n"))}
	d := r.add(drv{name: "fetched", script: "echo other > $out", hash: store.SHA256.Sum([]byte("promised\n")).SRI(), method: store.Flat})
	list, err := r.build.Build(t.Context(), all(d), build.Normal, nil)
	if err != nil {
		t.Fatal(err)
	}
	if list[0].Status != protocol.OutputRejected {
		t.Errorf("%v: %s", list[0].Status, list[0].Error)
	}
	p, err := r.store.Dir().ContentPath("fetched", other, store.References{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := r.store.Info(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := info.CheckContentAddress(); err != nil || info.CA != other {
		t.Errorf("%v, %v", info.CA, err)
	}
}
