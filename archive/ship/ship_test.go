package ship_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/archive/ship"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/store"
	"cairn/store/disk"
)

// side is a store, its daemon and a connection to it.
type side struct {
	*client.Conn
	store  *disk.Store
	layout disk.Layout
	key    archive.PublicKey
	asked  int
}

func newSide(t *testing.T, name string) *side {
	t.Helper()
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := archive.GenerateKey(name)
	if err == nil {
		err = errors.Join(disk.Init(layout), key.WriteFile(filepath.Join(layout.ConfDir, "signing-key.sec")))
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), layout, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := build.New(s, nil)
	dir, err := os.MkdirTemp("", "ship-")
	if err != nil {
		t.Fatal(err)
	}
	layout.SocketPath = filepath.Join(dir, "s")
	l, err := daemon.Listen(layout)
	if err != nil {
		t.Fatal(err)
	}
	d := daemon.New(s, b, nil)
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background(), l) }()
	c, err := client.Dial(t.Context(), layout.SocketPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := errors.Join(d.Close(), <-served, b.Close(), s.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return &side{Conn: c, store: s, layout: layout, key: key.Public()}
}

// Missing is the sink's question.
func (s *side) Missing(ctx context.Context, paths []store.Path) ([]store.Path, error) {
	s.asked++
	valid, err := s.ValidPaths(ctx, paths)
	if err != nil {
		return nil, err
	}
	have := map[store.Path]bool{}
	for _, p := range valid {
		have[p] = true
	}
	var missing []store.Path
	for _, p := range paths {
		if !have[p] {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

// add puts a file into the store.
func (s *side) add(t *testing.T, name, text string, refs ...store.Path) store.Path {
	t.Helper()
	var b bytes.Buffer
	if err := nar.DumpString(&b, []byte(text), false); err != nil {
		t.Fatal(err)
	}
	info, err := s.AddToStore(t.Context(), name, store.Recursive, store.SHA256, refs, &b)
	if err != nil {
		t.Fatal(err)
	}
	return info.Path
}

func (s *side) authorize(t *testing.T, key archive.PublicKey) {
	t.Helper()
	if _, err := archive.Authorize(filepath.Join(s.layout.ConfDir, "acl"), key, archive.Import); err != nil {
		t.Fatal(err)
	}
}

// count returns how many objects a side has.
func (s *side) count(t *testing.T) int {
	t.Helper()
	all, err := s.AllPaths(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestShip(t *testing.T) {
	from, to := newSide(t, "from-1"), newSide(t, "to-1")
	leaf := from.add(t, "leaf", strings.Repeat("leaf", 1000))
	middle := from.add(t, "middle", leaf.String(), leaf)
	root := from.add(t, "root", middle.String(), middle)
	roots := []store.Path{root}

	_, err := ship.Ship(t.Context(), from, to, roots)
	if err == nil || !strings.Contains(err.Error(), "from-1") || to.count(t) != 0 {
		t.Fatalf("a signer that nobody authorized: %v; %d objects arrived", err, to.count(t))
	}
	to.authorize(t, from.key)
	if from.Conn, err = client.Dial(t.Context(), from.layout.SocketPath, nil); err != nil { // a refusal costs the exporting session
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Conn.Close() })
	to.asked = 0
	r, err := ship.Ship(t.Context(), from, to, roots)
	if err != nil || r.Total != 3 || r.Objects != 3 || r.Bytes == 0 || to.asked != 1 || to.count(t) != 3 {
		t.Fatalf("got %+v, %v, %d questions, %d objects", r, err, to.asked, to.count(t))
	}
	r, err = ship.Ship(t.Context(), from, to, roots)
	if err != nil || r != (ship.Result{Total: 3}) {
		t.Errorf("again: %+v, %v", r, err)
	}
	next := from.add(t, "root", middle.String()+"\n", middle)
	r, err = ship.Ship(t.Context(), from, to, []store.Path{next})
	if err != nil || r.Total != 3 || r.Objects != 1 {
		t.Errorf("a change: %+v, %v", r, err)
	}
	if bad, err := to.Verify(t.Context(), true, false, nil); err != nil || bad {
		t.Errorf("verify: %v, %v", bad, err)
	}
}

// liar answers with a path that was not asked about.
type liar struct{ *side }

func (l liar) Missing(context.Context, []store.Path) ([]store.Path, error) {
	p, err := store.ParsePath("/cairn/store/00000000000000000000000000000000-x")
	return []store.Path{p}, err
}

func TestUnaskedAnswer(t *testing.T) {
	from := newSide(t, "from-1")
	root := from.add(t, "root", "text")
	if _, err := ship.Ship(t.Context(), from, liar{from}, []store.Path{root}); err == nil || !strings.Contains(err.Error(), "not asked about") {
		t.Errorf("got %v", err)
	}
}

// cut reads a part of the bundle and gives up.
type cut struct{ *side }

var errCut = errors.New("cut")

func (c cut) ImportBundle(_ context.Context, r io.Reader) ([]store.Path, error) {
	io.CopyN(io.Discard, r, 100)
	return nil, errCut
}

func TestCut(t *testing.T) {
	from, to := newSide(t, "from-1"), newSide(t, "to-1")
	root := from.add(t, "root", strings.Repeat("0123456789", 1<<20))
	r, err := ship.Ship(t.Context(), from, cut{to}, []store.Path{root})
	if !errors.Is(err, errCut) || r.Objects != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// dying imports one bundle, and then the line is dead.
type dying struct {
	*side
	imported int
}

func (d *dying) ImportBundle(ctx context.Context, r io.Reader) ([]store.Path, error) {
	if d.imported++; d.imported == 2 {
		return nil, errCut
	}
	return d.side.ImportBundle(ctx, r)
}

// TestResume has the line die in the second bundle of three: what the first has brought stays, and the next attempt sends the rest.
func TestResume(t *testing.T) {
	from, to := newSide(t, "from-1"), newSide(t, "to-1")
	to.authorize(t, from.key)
	p := from.add(t, "object", "0")
	for i := 1; i < 5; i++ {
		p = from.add(t, "object", p.String(), p)
	}
	load := func() *ship.Cargo {
		c, err := ship.Load(t.Context(), from, to, []store.Path{p})
		if err != nil {
			t.Fatal(err)
		}
		c.SetMost(2)
		return c
	}
	r, err := ship.Send(t.Context(), from, &dying{side: to}, load(), nil)
	if !errors.Is(err, errCut) || r.Objects != 2 || r.Bytes == 0 || to.count(t) != 2 {
		t.Fatalf("got %+v, %v; %d objects arrived", r, err, to.count(t))
	}
	if from.Conn, err = client.Dial(t.Context(), from.layout.SocketPath, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Conn.Close() })
	var told int64
	r, err = ship.Send(t.Context(), from, to, load(), func(n int64) { told = n })
	if err != nil || r.Total != 5 || r.Objects != 3 || r.Bytes != told || to.count(t) != 5 {
		t.Errorf("again: %+v, %v; told of %d bytes, %d objects arrived", r, err, told, to.count(t))
	}
}

func TestGoneAtTheSource(t *testing.T) {
	from, to := newSide(t, "from-1"), newSide(t, "to-1")
	to.authorize(t, from.key)
	p, err := store.ParsePath("/cairn/store/00000000000000000000000000000000-x")
	if err != nil {
		t.Fatal(err)
	}
	_, err = ship.Send(t.Context(), from, to, &ship.Cargo{Total: 1, Missing: []store.Path{p}}, nil)
	if err == nil || !strings.Contains(err.Error(), p.Base()) || to.count(t) != 0 {
		t.Errorf("got %v", err)
	}
}
