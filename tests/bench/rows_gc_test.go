package bench

import (
	"fmt"
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

// gc collects and checks that only the live objects are left.
func (b *bout) gc(s *side) time.Duration {
	_, took := s.do([]string{"nix-store", "--gc"}, []string{"gc"})
	s.expect(b.size)
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
