package profile_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cairn/store/profile"
)

func TestPolicy(t *testing.T) {
	now := time.Date(2026, 6, 30, 0, 0, 0, 0, time.UTC)
	days := func(n int) time.Time { return now.AddDate(0, 0, -n) }
	list := []profile.Generation{
		{Number: 1, Path: "a", Created: days(100)},
		{Number: 3, Path: "b", Created: days(50)},
		{Number: 4, Path: "c", Created: days(40), Current: true},
		{Number: 7, Path: "d", Created: days(20)},
		{Number: 8, Path: "e", Created: days(1)},
	}
	day := 24 * time.Hour
	for _, c := range []struct {
		name   string
		policy profile.Policy
		want   []int
	}{
		{"all but the current one", profile.Policy{}, []int{1, 3, 7, 8}},
		{"last", profile.Policy{KeepLast: 2}, []int{1, 3}},
		{"more than there are", profile.Policy{KeepLast: 9}, nil},
		{"days, and what was current before", profile.Policy{KeepFor: 30 * day}, []int{1, 3}},
		{"days, with an older one that was current", profile.Policy{KeepFor: 45 * day}, []int{1}},
		{"days that keep all", profile.Policy{KeepFor: 200 * day}, nil},
		{"days of which none is younger", profile.Policy{KeepFor: time.Hour}, []int{1, 3, 7}},
		{"either", profile.Policy{KeepLast: 1, KeepFor: 30 * day}, []int{1, 3}},
		{"booted", profile.Policy{Targets: []string{"a"}}, []int{3, 7, 8}},
	} {
		if got := c.policy.Drop(list, now); !slices.Equal(got, c.want) {
			t.Errorf("%s: drops %v, want %v", c.name, got, c.want)
		}
	}
	if got := (profile.Policy{KeepLast: 1, KeepFor: day}).Drop(nil, now); got != nil {
		t.Errorf("of nothing it drops %v", got)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	user := filepath.Join(dir, "per-user", "alice")
	if err := os.MkdirAll(user, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{filepath.Join(dir, "system"), filepath.Join(user, "profile")} {
		for range 2 {
			if _, err := profile.Open(p).New("/target"); err != nil {
				t.Fatal(err)
			}
		}
	}
	os.Symlink("/x", filepath.Join(dir, "default"))
	os.Symlink("/x", filepath.Join(dir, "odd-0-link"))
	os.WriteFile(filepath.Join(dir, "file-1-link"), nil, 0o644)
	got, err := profile.Find(dir)
	if want := []string{filepath.Join(user, "profile"), filepath.Join(dir, "system")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("profiles %v (%v), want %v", got, err, want)
	}
	if got, err := profile.Find(filepath.Join(dir, "none")); err != nil || got != nil {
		t.Errorf("where nothing is: %v, %v", got, err)
	}
}
