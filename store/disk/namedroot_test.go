package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/disk"
)

func TestParseNamedRoot(t *testing.T) {
	l := newLayout(t)
	at := filepath.Join(l.StateDir, "gcroots", "named") + "/"
	for rest, want := range map[string]disk.NamedRoot{
		"0/a":           {Name: "a"},
		"1000/a.b@1":    {UID: 1000, Name: "a.b", Expires: time.Unix(1, 0)},
		"4294967295/=?": {UID: 4294967295, Name: "=?"},
	} {
		want.Link = at + rest
		if r, ok := l.ParseNamedRoot(at + rest); !ok || r != want {
			t.Errorf("%s: %+v, %v", rest, r, ok)
		}
	}
	for _, rest := range []string{
		"", "0", "0/", "a/b", "01/a", "+1/a", "-1/a", "4294967296/a", "0/.a", "0/a/b", "0/a@", "0/a@0", "0/a@01", "0/a@-1", "0/a@99999999999", "0/a@1@2",
		"0/" + strings.Repeat("a", 245), "../named/0/a",
	} {
		if r, ok := l.ParseNamedRoot(at + rest); ok {
			t.Errorf("%q is taken for %+v", rest, r)
		}
	}
}

func TestNamedRoots(t *testing.T) {
	l := newLayout(t)
	s := open(t, l)
	a, b := text(t, s, "a", "a"), text(t, s, "b", "b")
	add := func(uid int, name string, expires time.Time) disk.NamedRoot {
		t.Helper()
		r, err := s.AddNamedRoot(disk.NamedRoot{UID: uid, Name: name, Path: a, Expires: expires})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	soon := time.Now().Add(time.Hour)
	add(1, "x", soon)
	add(1, "x", time.Time{}) // for ever now
	add(2, "x", soon)
	if r := add(1, "", time.Time{}); r.Name != a.Base() {
		t.Errorf("without a name it is called %s", r.Name)
	}
	for name, r := range map[string]disk.NamedRoot{
		"over":      {Name: "y", Path: a, Expires: time.Now().Add(-time.Second)},
		"far":       {Name: "y", Path: a, Expires: time.Now().AddDate(600, 0, 0)},
		"name":      {Name: "../y", Path: a},
		"no object": {Name: "y"},
	} {
		if _, err := s.AddNamedRoot(r); err == nil {
			t.Errorf("%s: added", name)
		}
	}
	if _, err := s.Delete(t.Context(), []store.Path{b}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddNamedRoot(disk.NamedRoot{Name: "y", Path: b}); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("root of what is gone: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, l)
	list, err := s.NamedRoots()
	if err != nil || len(list) != 3 || list[1].Name != "x" || !list[1].Expires.IsZero() || list[2].UID != 2 || list[2].Expires.Unix() != soon.Unix()+1 {
		t.Errorf("after a restart: %+v, %v", list, err)
	}
	for _, r := range list {
		if r.Path != a || time.Since(r.Created) > time.Minute || time.Since(r.Created) < 0 {
			t.Errorf("%+v", r)
		}
	}
	if _, err := s.DeleteNamedRoots(2, []string{"x", "z"}); !errors.Is(err, disk.ErrNoRoot) {
		t.Errorf("delete one that is missing: %v", err)
	}
	if gone, err := s.DeleteNamedRoots(2, []string{"x"}); err != nil || len(gone) != 1 {
		t.Errorf("delete: %+v, %v", gone, err)
	}
	dir := filepath.Dir(list[1].Link)
	if err := os.Symlink(a.String(), filepath.Join(dir, "old@1000")); err != nil {
		t.Fatal(err)
	}
	s.DropExpiredRoots()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
