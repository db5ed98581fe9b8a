package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// live fills both stores with as many live objects as the row's size says.
func (b *bout) live() {
	f := &forest{tag: "live", count: b.size, bytes: smallBytes}
	for _, s := range b.sides() {
		s.load(f)
		s.root("live", f.top(s.store))
	}
}

// gc collects and checks that only the live objects are left, and that nothing is left for later.
func (b *bout) gc(s *side) time.Duration {
	_, took := s.do(collectNix, collectCairn)
	s.expect(b.size)
	if left, _ := os.ReadDir(filepath.Join(s.real, ".trash")); len(left) > 0 {
		b.t.Fatalf("%s: %d trees are still in the trash", s.name, len(left))
	}
	return took
}

// collect deletes as many dead objects as there are live ones.
func collect(b *bout) play {
	b.live()
	before := func(round int) {
		f := &forest{tag: fmt.Sprint("dead", round), count: b.size, bytes: smallBytes}
		for _, s := range b.sides() {
			s.load(f)
			s.expect(2 * b.size)
		}
	}
	return play{before: before, run: func(s *side, round int) time.Duration { return b.gc(s) }}
}

// collectNothing finds all objects alive.
func collectNothing(b *bout) play {
	b.live()
	return play{run: func(s *side, round int) time.Duration { return b.gc(s) }}
}
