package gc_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"cairn/store"
	"cairn/store/gc"
)

// chainOf adds n small objects in groups of ten that refer to the one before, and returns the last of each group.
func chainOf(r *rig, tag string, n int) []store.Path {
	var tops []store.Path
	var last []store.Path
	for i := range n {
		if i%10 == 0 {
			last = nil
		}
		p := r.text(fmt.Sprint(tag, i), last...)
		last = []store.Path{p}
		if i%10 == 9 {
			tops = append(tops, p)
		}
	}
	return tops
}

// BenchmarkCollect deletes 10,000 dead objects among 10,000 live ones.
func BenchmarkCollect(b *testing.B) {
	r := newRig(b)
	r.link(r.text("root", chainOf(r, "live", 10000)...).String(), filepath.Join(r.layout.StateDir, "gcroots", "live"))
	for b.Loop() {
		b.StopTimer()
		chainOf(r, "dead", 10000)
		b.StartTimer()
		if res := r.collect(gc.Options{Action: gc.DeleteDead}); len(res.Paths) != 10000 {
			b.Fatal(len(res.Paths))
		}
	}
}

// BenchmarkNothing collects when there is nothing to collect.
func BenchmarkNothing(b *testing.B) {
	r := newRig(b)
	r.link(r.text("root", chainOf(r, "live", 10000)...).String(), filepath.Join(r.layout.StateDir, "gcroots", "live"))
	for b.Loop() {
		r.collect(gc.Options{Action: gc.DeleteDead})
	}
}

// BenchmarkClosure asks for a closure of 10,000 paths.
func BenchmarkClosure(b *testing.B) {
	r := newRig(b)
	root := r.text("root", chainOf(r, "live", 10000)...)
	for b.Loop() {
		if c, err := r.Closure(root); err != nil || len(c) != 10001 {
			b.Fatal(len(c), err)
		}
	}
}
