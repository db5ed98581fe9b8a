package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"cairn/archive/nar"
	"cairn/client"
	"cairn/store"
)

// maxForMany is what a process may take, in MiB, for a closure of small objects. perPath is what each path adds, in bytes: whoever speaks of a
// closure has a list of it.
const (
	maxForMany = 128
	perPath    = 3 << 10
)

// TestManyPaths brings a closure of many small objects all ways that there are: no list of paths is too long for a request, and memory grows with
// the list alone.
func TestManyPaths(t *testing.T) {
	w := &ways{dir: tempDir(t)}
	n := 2000
	if raceEnabled {
		n = 300
	}
	if s := os.Getenv("CAIRN_LOAD_PATHS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("CAIRN_LOAD_PATHS: %v", err)
		}
	}
	w.hosts(t)
	list, err := chain(w.a.layout.Dir, n)
	if err != nil {
		t.Fatal(err)
	}
	w.object = list[n-1].Path.String()
	allowed := maxForMany + n*perPath>>20
	for _, way := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"add", func(t *testing.T) { w.addAll(t, list) }},
		{"closure", func(t *testing.T) { w.run(t, w.a, "store", "closure", w.object) }},
		{"copy to a socket", func(t *testing.T) { w.copy(t, "unix://"+w.b.layout.SocketPath) }},
		{"copy to ssh", func(t *testing.T) { w.copy(t, w.here("ssh", "serve --legacy --write")) }},
		{"bundle", w.bundle},
		{"push to a cache", func(t *testing.T) { w.run(t, w.a, "cache", "push", "--quiet", w.cache(), w.object) }},
		{"copy from a cache", func(t *testing.T) { w.fetch(t, w.cache()) }},
		{"collect", func(t *testing.T) { w.run(t, w.a, "gc") }},
	} {
		began := time.Now()
		usage := w.watch(t, func() { way.do(t) })
		t.Logf("%-18s %6v  %s", way.name, time.Since(began).Round(10*time.Millisecond), usage)
		for who, mib := range usage {
			if mib > allowed && !raceEnabled {
				t.Errorf("%s of %d paths: %s took %d MiB; %d are allowed", way.name, n, who, mib, allowed)
			}
		}
	}
}

// chain describes n objects, each of which refers to five before it, the one just before among them.
func chain(dir store.Dir, n int) ([]*store.Info, error) {
	list := make([]*store.Info, n)
	for i := range list {
		var refs []store.Path
		for _, j := range []int{i - 1, i / 2, i / 3, i / 5, i / 7} {
			if j >= 0 && j < i {
				refs = append(refs, list[j].Path)
			}
		}
		contents := strconv.Itoa(i)
		info := &store.Info{References: store.SortPaths(refs)}
		var err error
		info.CA = store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum([]byte(contents))}
		if info.Path, err = dir.TextPath(fmt.Sprintf("small-object-%d", i), info.CA.Hash, info.References); err != nil {
			return nil, err
		}
		var archive bytes.Buffer
		if err := nar.DumpString(&archive, []byte(contents), false); err != nil {
			return nil, err
		}
		info.NarHash, info.NarSize = store.SHA256.Sum(archive.Bytes()), int64(archive.Len())
		list[i] = info
	}
	return list, nil
}

// numbers is the contents of a chain.
type numbers map[store.Path]int

// Info is asked by nobody.
func (n numbers) Info(context.Context, store.Path) (*store.Info, error) {
	return nil, store.ErrNotValid
}

// NAR writes an object.
func (n numbers) NAR(_ context.Context, p store.Path, w io.Writer) error {
	return nar.DumpString(w, []byte(strconv.Itoa(n[p])), false)
}

func (w *ways) addAll(t *testing.T, list []*store.Info) {
	c, err := client.Dial(t.Context(), w.a.layout.SocketPath, &client.Options{Dir: w.a.layout.Dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	from := numbers{}
	for i, info := range list {
		from[info.Path] = i
	}
	if err := c.AddFrom(t.Context(), list, from); err != nil {
		t.Fatalf("%v\n%s", err, w.a.log.String())
	}
	root := filepath.Join(w.a.layout.StateDir, "gcroots", "last")
	if err := os.Symlink(w.object, root); err != nil {
		t.Fatal(err)
	}
}
