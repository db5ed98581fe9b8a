package readdress_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"cairn/store"
	"cairn/store/readdress"
	"cairn/store/refscan"
	"cairn/store/storetest"
)

// memory is a store in memory: the smallest thing that a copier can work on.
type memory map[store.Path]object

type object struct {
	info    *store.Info
	archive []byte
}

func (m memory) Info(_ context.Context, p store.Path) (*store.Info, error) {
	if o, ok := m[p]; ok {
		return o.info, nil
	}
	return nil, store.ErrNotValid
}

// NAR writes in small pieces, so that paths are cut anywhere.
func (m memory) NAR(_ context.Context, p store.Path, w io.Writer) error {
	for b := m[p].archive; len(b) > 0; {
		n := min(len(b), 7)
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (m memory) Add(_ context.Context, info *store.Info, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil {
		m[info.Path] = object{info, b}
	}
	return err
}

func (m memory) put(t *testing.T, path, contents string, refs ...store.Path) *store.Info {
	t.Helper()
	p, err := store.ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	archive := storetest.File(contents)
	info := &store.Info{Path: p, NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive)), References: refs}
	m[p] = object{info, archive}
	return info
}

// Others are replaced as whole paths only, the own digest everywhere. tests/compat compares the paths with those of nix.
func TestCopy(t *testing.T) {
	const low, top = "gja8i56ryqx3c6p2wijv1lgi023ih96s", "086x67i4lp945j4qdsgqcyczyyvc3gmf"
	m := memory{}
	l := m.put(t, "/nix/store/"+low+"-low", "low\n")
	topPath, _ := store.ParsePath("/nix/store/" + top + "-top")
	padding := strings.Repeat(".", 200<<10)
	u := m.put(t, topPath.String(), "full /nix/store/"+low+"-low base "+low+"-low other /foo/"+low+"-low"+padding+" self /nix/store/"+top+"-top bare "+top+padding+"/nix/store/"+low+"-low",
		l.Path, topPath)
	for _, form := range []refscan.SelfHash{refscan.Blanked, refscan.WithOffsets} {
		copies := map[store.Path]store.Path{}
		c := &readdress.Copier{From: m, To: m, SelfHash: form}
		if err := c.Copy(t.Context(), []*store.Info{l, u}, func(old, new store.Path) { copies[old] = new }); err != nil {
			t.Fatal(err)
		}
		newLow, newTop := copies[l.Path], copies[topPath]
		got := m[newTop]
		if err := got.info.CheckContentAddress(); err != nil && form == refscan.Blanked {
			t.Error(err)
		}
		want := strings.ReplaceAll(strings.ReplaceAll(string(m[topPath].archive), "/nix/store/"+low, "/nix/store/"+newLow.Digest()), top, newTop.Digest())
		if string(got.archive) != want || !strings.Contains(want, "base "+low) {
			t.Error("contents are not those with new paths")
		}
		if got.info.NarHash != store.SHA256.Sum(got.archive) || got.info.NarSize != int64(len(got.archive)) || len(got.info.References) != 2 {
			t.Errorf("info: %+v", got.info)
		}
		h := refscan.HashModulo(store.SHA256, newTop.Digest())
		h.Write(got.archive)
		if h.Sum(form) != got.info.CA.Hash {
			t.Error("the hash modulo the new digest is not the content address")
		}
		// What is addressed by content already stays where it is.
		if err := c.Copy(t.Context(), []*store.Info{m[newLow].info, got.info}, func(old, new store.Path) {
			if old != new {
				t.Errorf("%s became %s", old, new)
			}
		}); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(m[newTop].archive, got.archive) {
			t.Error("a second copy differs")
		}
	}
}
