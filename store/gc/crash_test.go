package gc_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/gc"
	"cairn/store/storetest"
)

// crashRoot tells a child of TestCrash where its store is.
const crashRoot = "CAIRN_TEST_CRASH_ROOT"

// TestCrash kills a process that adds, registers, deletes and collects, at random moments, and checks each time that
// everything that was acknowledged is there, that it verifies, and that nothing else is visible.
// CAIRN_TEST_CRASHES sets the number of kills.
func TestCrash(t *testing.T) {
	if root := os.Getenv(crashRoot); root != "" {
		crashChild(t, root)
		return
	}
	kills := 20
	if n, err := strconv.Atoi(os.Getenv("CAIRN_TEST_CRASHES")); err == nil {
		kills = n
	}
	l, err := disk.NewLayout(storetest.TempDir(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(l); err != nil {
		t.Fatal(err)
	}
	must := map[string]bool{}
	for n := range kills {
		for _, path := range crashOnce(t, l.Root) {
			must[path] = true
		}
		checkAfterCrash(t, l, must)
		if t.Failed() {
			t.Fatalf("after kill %d", n+1)
		}
	}
	t.Logf("%d kills, %d objects acknowledged and there", kills, len(must))
}

// crashOnce runs a child, kills it, and returns the paths that it said to have until then.
func crashOnce(t *testing.T, root string) []string {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestCrash$", "-test.count=1")
	child.Env = append(os.Environ(), crashRoot+"="+root)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var paths []string
	first := time.Minute
	if rand.IntN(5) == 0 { // perhaps while it opens the store
		first = time.Duration(rand.IntN(100)) * time.Millisecond
	}
	kill := time.AfterFunc(first, func() { child.Process.Kill() })
	for scan := bufio.NewScanner(out); scan.Scan(); {
		line := scan.Text()
		if line == "open" { // from here on at any moment, the opening of the next store included
			kill.Reset(time.Duration(rand.IntN(300)) * time.Millisecond)
		}
		if path, ok := strings.CutPrefix(line, "have "); ok {
			paths = append(paths, path)
		} else if line != "open" {
			t.Errorf("child: %s", line)
		}
	}
	child.Wait()
	kill.Stop()
	return paths
}

func checkAfterCrash(t *testing.T, l disk.Layout, must map[string]bool) {
	t.Helper()
	s, err := disk.Open(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Verify(t.Context(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) {
		t.Errorf("verify %s: %v", p.Path, p.Err)
	}); err != nil {
		t.Error(err)
	}
	for text := range must {
		p, err := l.Dir.ParsePath(text)
		if err != nil || !s.IsValid(p) {
			t.Errorf("%s was acknowledged and is lost", text)
		}
	}
	entries, err := os.ReadDir(l.RealDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if slices.Contains([]string{".links", ".trash", ".lost"}, e.Name()) { // the last has what a transaction that was cut off would have made valid
			continue
		}
		if p, err := l.Dir.Path(e.Name()); err != nil || !s.IsValid(p) {
			t.Errorf("%s is visible and not valid", e.Name())
		}
	}
}

// crashChild works on the store until it is killed. It says "have <path>" after something was acknowledged that
// must stay.
func crashChild(t *testing.T, root string) {
	l, err := disk.NewLayout(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), l, &disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	keep := s.Lease("keep", 0)
	for p := range s.All() {
		if !strings.HasPrefix(p.Name(), "garbage") {
			if err := keep.Hold(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	say("open", store.Path{})
	c := &crasher{s: s, keep: keep, ctx: disk.WithLease(t.Context(), keep)}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { c.loop(t, c.add) })
		wg.Go(func() { c.loop(t, c.register) })
		wg.Go(func() { c.loop(t, c.garbage) })
	}
	wg.Go(func() { c.loop(t, c.importAll) })
	wg.Go(func() { c.loop(t, c.optimise) })
	wg.Go(func() { c.loop(t, c.repair) })
	wg.Go(func() { c.loop(t, c.delete) })
	wg.Go(func() {
		c.loop(t, func() error {
			_, err := gc.Collect(t.Context(), s, gc.Options{Action: gc.DeleteDead, NoProcesses: true})
			return err
		})
	})
	wg.Wait()
}

func say(verb string, p store.Path) {
	os.Stdout.WriteString(strings.TrimSpace(verb+" "+p.String()) + "\n")
}

type crasher struct {
	s    *disk.Store
	keep *disk.Lease
	ctx  context.Context
}

func (c *crasher) loop(t *testing.T, step func() error) {
	for {
		if err := step(); err != nil {
			fmt.Println("error:", err)
			return
		}
	}
}

func (c *crasher) add() error {
	archive := storetest.Tree(fmt.Sprint(rand.IntN(5))) // the same files below other names, for optimise
	info := storetest.Source(c.s.Dir(), fmt.Sprint("added", rand.Uint64()), archive)
	if err := c.s.Add(c.ctx, info, bytes.NewReader(archive)); err != nil {
		return err
	}
	text, err := c.s.AddStream(c.ctx, "text", store.Text, store.SHA256, []store.Path{info.Path}, strings.NewReader(info.Path.String()))
	if err != nil {
		return err
	}
	say("have", info.Path)
	say("have", text.Path)
	return nil
}

// register adds two outputs at once, the second refers to the first.
func (c *crasher) register() error {
	dir, err := c.s.TempDir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var outputs []disk.Output
	var refs []store.Path
	for n := range 2 {
		contents := fmt.Sprint(rand.Uint64(), refs)
		tree := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(tree, []byte(contents), 0o644); err != nil {
			return err
		}
		info := storetest.Source(c.s.Dir(), "built", storetest.File(contents), refs...)
		outputs = append(outputs, disk.Output{Info: info, TempPath: tree})
		refs = []store.Path{info.Path}
	}
	if err := c.s.Register(c.ctx, outputs); err != nil {
		return err
	}
	for _, o := range outputs {
		say("have", o.Info.Path)
	}
	return nil
}

// importAll adds a chain of objects that must become valid together.
func (c *crasher) importAll() error {
	i := c.s.Import()
	defer i.Close()
	var paths []store.Path
	for range 3 {
		archive := storetest.File(fmt.Sprint(rand.Uint64(), paths))
		info := storetest.Source(c.s.Dir(), "imported", archive, paths...)
		if err := i.Add(c.ctx, info, bytes.NewReader(archive)); err != nil {
			return err
		}
		paths = append(paths, info.Path)
	}
	if err := i.Commit(c.ctx); err != nil {
		return err
	}
	for _, p := range paths {
		say("have", p)
	}
	return nil
}

// optimise makes equal files links.
func (c *crasher) optimise() error {
	_, err := c.s.Optimise(context.Background(), nil)
	return err
}

// repair adds an object and replaces it by the same again and again, so that a verification tells whether there ever is none.
func (c *crasher) repair() error {
	archive := storetest.Tree(fmt.Sprint(rand.Uint64()))
	info := storetest.Source(c.s.Dir(), "repaired", archive)
	if err := c.s.Add(c.ctx, info, bytes.NewReader(archive)); err != nil {
		return err
	}
	for range 10 {
		if err := c.s.Replace(c.ctx, info.Path, bytes.NewReader(archive)); err != nil {
			return err
		}
	}
	say("have", info.Path)
	return nil
}

// garbage adds what nobody keeps.
func (c *crasher) garbage() error {
	archive := storetest.Tree(fmt.Sprint(rand.Uint64()))
	info := storetest.Source(c.s.Dir(), "garbage", archive)
	return c.s.Add(context.Background(), info, bytes.NewReader(archive))
}

// delete adds something and deletes it.
func (c *crasher) delete() error {
	info, err := c.s.AddStream(context.Background(), "garbage-deleted", store.Flat, store.SHA256, nil, strings.NewReader(fmt.Sprint(rand.Uint64())))
	if err != nil {
		return err
	}
	_, err = c.s.Delete(context.Background(), []store.Path{info.Path})
	if errors.Is(err, store.ErrNotValid) || errors.Is(err, disk.ErrAlive) { // the collector was faster, or is at it
		return nil
	}
	return err
}
