package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/gc"
	"cairn/store/meta"
)

// web is the graph of a large store: object 0 reaches all others, each through a tree of four and four more references, most of them to
// a few objects that everything uses. Every other object has a deriver, half of which are objects.
type web struct {
	dir   store.Dir
	count int
}

func (w *web) digest(i int) meta.Digest {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(i)+1)
	var d meta.Digest
	rand.NewChaCha8(seed).Read(d[:])
	return d
}

func (w *web) path(i int) store.Path {
	p, err := w.dir.Path(w.digest(i).String() + "-" + w.name(i))
	if err != nil {
		panic(err)
	}
	return p
}

func (w *web) name(i int) string { return fmt.Sprintf("some-package-%d-1.2.%d", i, i%10) }

// object returns the row of an object; all of its references have higher numbers.
func (w *web) object(i int, digests []meta.Digest) *meta.Object {
	o := &meta.Object{Name: w.name(i), NarSize: 1000, RegisteredAt: 1}
	for child := 4*i + 1; child <= 4*i+4 && child < w.count; child++ {
		o.References = append(o.References, digests[child])
	}
	random := rand.New(rand.NewPCG(uint64(i), 1))
	for range 4 {
		if left := w.count - 1 - i; left > 0 {
			skew := random.Float64()
			o.References = append(o.References, digests[w.count-1-int(float64(left)*skew*skew*skew)])
		}
	}
	switch i % 4 {
	case 0:
		o.Deriver = w.path(min(i+1, w.count-1))
	case 2:
		o.Deriver = w.path(w.count + i)
	}
	return o
}

// register writes the rows, references first.
func (w *web) register(db *meta.DB) error {
	digests := make([]meta.Digest, w.count)
	for i := range digests {
		digests[i] = w.digest(i)
	}
	var batch meta.Batch
	for i := w.count - 1; i >= 0; i-- {
		var b meta.Batch
		b.PutObject(digests[i], w.object(i, digests))
		if batch.Size()+b.Size() > db.MaxBatch() {
			if err := db.Commit(&batch); err != nil {
				return err
			}
			batch = meta.Batch{}
		}
		batch.Append(&b)
	}
	return db.Commit(&batch)
}

// fill makes rows and files of a store that no daemon has open. The files are empty; every fourth object is a directory with two of them.
func (w *web) fill(t *testing.T, l disk.Layout) {
	t.Helper()
	db, err := meta.Open(filepath.Join(l.StateDir, "db"), w.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.register(db); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range w.count {
		files := []string{l.RealPath(w.path(i))}
		if i%4 == 3 {
			if err := os.Mkdir(files[0], 0o755); err != nil {
				t.Fatal(err)
			}
			files = []string{filepath.Join(files[0], "a"), filepath.Join(files[0], "b")}
		}
		for _, name := range files {
			if err := os.WriteFile(name, nil, 0o444); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// layout is where the side's store is, for who opens it without the daemon.
func (s *side) layout() disk.Layout {
	l, err := disk.NewLayout("", func(name string) string {
		for _, v := range s.env {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// status returns a field of the daemon's status, in MiB.
func (s *side) status(field string) float64 {
	s.t.Helper()
	return processStatus(s.t, s.cmd.Process.Pid, field)
}

// largeGraph tells what a store of a million objects costs: to load, to mark, and in memory.
func largeGraph(g *gauge) {
	size := 1000000
	if small() {
		size = 20000
	}
	root := arena(g.t)
	s := newSide(g.t, root, "cairn", nil).startCairn()
	s.stop()
	w := &web{dir: s.store, count: size}
	begin := time.Now()
	w.fill(g.t, s.layout())
	if err := os.Symlink(w.path(0).String(), filepath.Join(s.state, "gcroots", "top")); err != nil {
		g.t.Fatal(err)
	}
	g.t.Logf("%d objects in %v", size, time.Since(begin).Round(time.Second))
	s.start(s.cairn, "daemon")
	time.Sleep(5 * time.Second) // until the database has merged what was written at once
	s.stop()
	var ready, marked sample
	for range g.rounds {
		begin := time.Now()
		s.start(s.cairn, "daemon")
		s.run(s.cairn, "store", "path-info", w.path(0).String())
		ready = append(ready, time.Since(begin))
		if len(ready) < g.rounds {
			s.stop()
		}
	}
	work := fmt.Sprintf("%d objects", size)
	g.tell("load", work+": start of the daemon until it answers", ready.median().Seconds(), 5, "s")
	time.Sleep(2 * time.Second) // until the daemon has given back what loading took
	g.tell("memory", work+": daemon, after loading", s.status("VmRSS"), 600, "MiB")
	g.t.Logf("anonymous %.0f, files %.0f, shared %.0f, most %.0f MiB", s.status("RssAnon"), s.status("RssFile"), s.status("RssShmem"), s.status("VmHWM"))
	for range 3 {
		s.run(s.cairn, "gc")
	}
	g.tell("memory-gc", work+": daemon, after three collections", s.status("VmRSS"), 600, "MiB")
	g.tell("memory-most", work+": daemon, most ever", s.status("VmHWM"), 0, "MiB")
	s.stop()
	opened, err := disk.Open(g.t.Context(), s.layout(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer opened.Close()
	objects, references := opened.Count()
	for range g.rounds {
		marked = append(marked, markAll(g.t, opened, size))
	}
	g.tell("mark", fmt.Sprintf("%d objects, %d references: mark", objects, references), marked.median().Seconds(), 1, "s")
}

// markAll finds all objects alive and returns how long marking took.
func markAll(t *testing.T, s *disk.Store, size int) time.Duration {
	runtime.GC()
	var begin, end time.Time
	r, err := gc.Collect(context.Background(), s, gc.Options{Action: gc.ReturnDead, NoProcesses: true, Progress: func(e gc.Event) {
		if e.Phase == gc.PhaseMark {
			begin = time.Now()
		}
	}})
	end = time.Now()
	if err != nil || r.Live != size || len(r.Paths) > 0 {
		t.Fatalf("%d live, %d dead, %v", r.Live, len(r.Paths), err)
	}
	return end.Sub(begin)
}
