package disk_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/meta"
)

// sealOf returns the seal of an object's row, and what it should be, which is read from its files.
func sealOf(t *testing.T, s *disk.Store, p store.Path) (got, want meta.Seal) {
	t.Helper()
	got, err := disk.SealOf(s, p)
	if err != nil {
		t.Fatal(err)
	}
	h := store.BLAKE3.New()
	if err := nar.Dump(h, s.RealPath(p)); err != nil {
		t.Fatal(err)
	}
	return got, meta.Seal(h.Sum(nil))
}

func TestSeal(t *testing.T) {
	large := func(seed byte) []byte {
		b := bytes.Repeat([]byte{seed}, 2<<20)
		b[1] = 'x' // so that no two blocks are alike
		return b
	}
	file := func(t *testing.T, s *disk.Store, method store.Method, data []byte) store.Path {
		t.Helper()
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
		info, err := s.AddFromPath(context.Background(), "file", method, store.SHA256, store.References{}, name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Path
	}
	stream := func(t *testing.T, s *disk.Store, data []byte) store.Path {
		t.Helper()
		info, err := s.AddStream(context.Background(), "file", store.Flat, store.SHA256, nil, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		return info.Path
	}
	archiveOf := func(data []byte) []byte {
		var b bytes.Buffer
		if err := nar.DumpString(&b, data, false); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	announced := func(archive []byte) *store.Info {
		p, err := disk.Layout{Dir: "/cairn/store"}.Dir.Path("00000000000000000000000000000000-input")
		if err != nil {
			t.Fatal(err)
		}
		return &store.Info{Path: p, NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive))}
	}
	ways := map[string]struct {
		add func(t *testing.T, s *disk.Store) store.Path
		now bool // it has a seal when it comes
	}{
		"file":         {func(t *testing.T, s *disk.Store) store.Path { return file(t, s, store.Flat, large('a')) }, true},
		"archive":      {func(t *testing.T, s *disk.Store) store.Path { return file(t, s, store.Recursive, large('b')) }, true},
		"medium file":  {func(t *testing.T, s *disk.Store) store.Path { return file(t, s, store.Flat, large('c')[:20<<10]) }, true},
		"small file":   {func(t *testing.T, s *disk.Store) store.Path { return file(t, s, store.Flat, large('d')[:10<<10]) }, false},
		"stream":       {func(t *testing.T, s *disk.Store) store.Path { return stream(t, s, large('e')) }, true},
		"small stream": {func(t *testing.T, s *disk.Store) store.Path { return stream(t, s, large('f')[:20<<10]) }, true},
		"add": {func(t *testing.T, s *disk.Store) store.Path {
			archive := archiveOf(large('g'))
			info := announced(archive)
			if err := s.Add(context.Background(), info, bytes.NewReader(archive)); err != nil {
				t.Fatal(err)
			}
			return info.Path
		}, true},
		"add all": {func(t *testing.T, s *disk.Store) store.Path {
			archive := archiveOf(large('h')[:100<<10])
			info := announced(archive)
			if err := s.AddAll(context.Background(), []disk.Archive{{Info: info, NAR: archive}}); err != nil {
				t.Fatal(err)
			}
			return info.Path
		}, true},
		"import": {func(t *testing.T, s *disk.Store) store.Path {
			archive := archiveOf(large('i')[:100<<10])
			info := announced(archive)
			i := s.Import()
			defer i.Close()
			if err := i.AddLater(context.Background(), info, bytes.NewReader(archive)); err != nil {
				t.Fatal(err)
			}
			if err := i.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			return info.Path
		}, true},
		"tree": {func(t *testing.T, s *disk.Store) store.Path {
			dir := t.TempDir()
			for _, n := range []string{"one", "two"} {
				if err := os.WriteFile(filepath.Join(dir, n), large(n[0]), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			info, err := s.AddFromPath(context.Background(), "tree", store.Recursive, store.SHA256, store.References{}, dir)
			if err != nil {
				t.Fatal(err)
			}
			return info.Path
		}, false},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			s := open(t, newLayout(t))
			p := way.add(t, s)
			got, want := sealOf(t, s, p)
			if way.now && got != want || !way.now && got != (meta.Seal{}) {
				t.Errorf("seal is %x when it comes, its archive has %x", got, want)
			}
			if found := problems(t, s); len(found) > 0 {
				t.Errorf("problems: %v", found)
			}
			got, want = sealOf(t, s, p)
			if small := name == "small file"; small && got != (meta.Seal{}) || !small && got != want {
				t.Errorf("seal is %x after it was read, its archive has %x", got, want)
			}
		})
	}
}

// TestSealWrong has a seal that is not the object's, which must do no harm, and files that are not, which must be found.
func TestSealWrong(t *testing.T) {
	s := open(t, newLayout(t))
	p := text(t, s, "large", string(bytes.Repeat([]byte("large"), 20000)))
	if err := disk.BreakSeal(s, p); err != nil {
		t.Fatal(err)
	}
	if found := problems(t, s); len(found) > 0 {
		t.Errorf("problems with a wrong seal: %v", found)
	}
	if got, want := sealOf(t, s, p); got != want {
		t.Errorf("seal is %x after it was read, its archive has %x", got, want)
	}
	contents, err := os.ReadFile(s.RealPath(p))
	if err != nil {
		t.Fatal(err)
	}
	damage(t, s.RealPath(p))
	found := problems(t, s)
	if len(found) != 1 || found[0].Kind != disk.Modified || found[0].Got.IsZero() {
		t.Errorf("problems of a damaged object: %+v", found)
	}
	var b bytes.Buffer
	if err := nar.DumpString(&b, contents, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Replace(context.Background(), p, &b); err != nil {
		t.Fatal(err)
	}
	if got, want := sealOf(t, s, p); got != want {
		t.Errorf("seal is %x after the object was replaced, its archive has %x", got, want)
	}
}
