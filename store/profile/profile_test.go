package profile_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/store/profile"
)

func numbers(t *testing.T, p *profile.Profile) []int {
	t.Helper()
	list, err := p.List()
	if err != nil {
		t.Fatal(err)
	}
	var ns []int
	for _, g := range list {
		ns = append(ns, g.Number)
	}
	return ns
}

func grow(t *testing.T, p *profile.Profile, target string) int {
	t.Helper()
	g, err := p.New(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Switch(g.Number); err != nil {
		t.Fatal(err)
	}
	return g.Number
}

func TestLife(t *testing.T) {
	p := profile.Open(filepath.Join(t.TempDir(), "profiles", "system"))
	if _, err := p.Current(); !errors.Is(err, profile.ErrNoGeneration) {
		t.Errorf("current of nothing: %v", err)
	}
	if list, err := p.List(); err != nil || len(list) > 0 {
		t.Errorf("list of nothing: %v, %v", list, err)
	}
	if _, err := p.RollBack(); !errors.Is(err, profile.ErrNoGeneration) {
		t.Errorf("roll back of nothing: %v", err)
	}
	for n := range 3 {
		if got := grow(t, p, fmt.Sprint("/store/", n)); got != n+1 {
			t.Errorf("generation %d, want %d", got, n+1)
		}
	}
	if g, err := p.New("/store/waiting"); err != nil || g.Number != 4 || g.Current || g.Path != "/store/waiting" || g.Created.IsZero() {
		t.Errorf("new: %+v, %v", g, err)
	}
	if g, err := p.Current(); err != nil || g.Number != 3 || !g.Current || g.Path != "/store/2" {
		t.Errorf("current: %+v, %v", g, err)
	}
	if target, err := os.Readlink(p.String()); err != nil || target != "system-3-link" {
		t.Errorf("link: %s, %v", target, err)
	}
	if g, err := p.RollBack(); err != nil || g.Number != 2 {
		t.Errorf("roll back: %+v, %v", g, err)
	}
	if err := p.Switch(9); !errors.Is(err, profile.ErrNoGeneration) {
		t.Errorf("switch to nothing: %v", err)
	}
	if err := p.Delete(1, 2); !errors.Is(err, profile.ErrCurrent) || !slices.Equal(numbers(t, p), []int{1, 2, 3, 4}) {
		t.Errorf("delete the current one: %v", err)
	}
	if err := p.Delete(1, 9); !errors.Is(err, profile.ErrNoGeneration) || !slices.Equal(numbers(t, p), []int{1, 2, 3, 4}) {
		t.Errorf("delete what is not there: %v", err)
	}
	if err := p.Delete(1, 3, 4); err != nil {
		t.Fatal(err)
	}
	if got := numbers(t, p); !slices.Equal(got, []int{2}) {
		t.Errorf("left: %v", got)
	}
	if _, err := p.RollBack(); !errors.Is(err, profile.ErrNoGeneration) {
		t.Errorf("roll back from the first: %v", err)
	}
	if n := grow(t, p, "/store/new"); n != 5 {
		t.Errorf("after deleting the newest, the next is %d, want 5", n)
	}
}

// TestMemory checks that numbers grow when the memory is damaged, lost, or older than the links.
func TestMemory(t *testing.T) {
	for _, memory := range []string{"", "garbage", "-5\n", "1\n", "99999999999999999999\n"} {
		p := profile.Open(filepath.Join(t.TempDir(), "p"))
		grow(t, p, "/a")
		grow(t, p, "/b")
		if err := os.WriteFile(filepath.Join(filepath.Dir(p.String()), ".p.last"), []byte(memory), 0o644); err != nil {
			t.Fatal(err)
		}
		if n := grow(t, p, "/c"); n != 3 {
			t.Errorf("memory %q: next is %d, want 3", memory, n)
		}
	}
}

func TestForeignLinks(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	p := profile.Open(filepath.Join(dir, "p"))
	p.Logger = slog.New(slog.NewTextHandler(&log, nil))
	grow(t, p, "/a")
	for _, err := range []error{
		os.Symlink("/x", filepath.Join(dir, "p-01-link")),
		os.Symlink("/x", filepath.Join(dir, "p--2-link")),
		os.Symlink("/x", filepath.Join(dir, "p-x-link")),
		os.Symlink("/x", filepath.Join(dir, "q-7-link")),
		os.WriteFile(filepath.Join(dir, "p-8-link"), nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := numbers(t, p); !slices.Equal(got, []int{1}) {
		t.Errorf("list: %v", got)
	}
	for _, name := range []string{"p-01-link", "p-x-link", "generation 8"} {
		if !strings.Contains(log.String(), name) {
			t.Errorf("no warning about %s in %s", name, log.String())
		}
	}
	if n := grow(t, p, "/b"); n != 9 {
		t.Errorf("next is %d, want 9", n)
	}
}

func TestForeignProfile(t *testing.T) {
	dir := t.TempDir()
	p := profile.Open(filepath.Join(dir, "p"))
	g, err := p.New("/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.String(), []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.Switch(g.Number); err == nil {
		t.Error("a file was replaced")
	}
	if b, _ := os.ReadFile(p.String()); string(b) != "precious" {
		t.Error("the file is damaged")
	}
	if err := os.Remove(p.String()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/somewhere/else", p.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Current(); err == nil || errors.Is(err, profile.ErrNoGeneration) {
		t.Errorf("current of a foreign link: %v", err)
	}
	for _, target := range []string{"", "a\x00b"} {
		if _, err := p.New(target); err == nil {
			t.Errorf("target %q accepted", target)
		}
	}
}

func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p := profile.Open(path)
			for range 5 {
				g, err := p.New("/x")
				if err != nil {
					t.Error(err)
					return
				}
				if err := p.Switch(g.Number); err != nil {
					t.Error(err)
				}
				if _, err := p.Current(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := numbers(t, profile.Open(path)); len(got) != 40 || got[39] != 40 {
		t.Errorf("generations %v", got)
	}
}
