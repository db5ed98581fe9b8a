package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// smallBytes is the size of a small path's file.
const smallBytes = 1000

// closureOf asks for a closure and checks how many it is.
func (s *side) closureOf(top string, want int) time.Duration {
	s.t.Helper()
	out, took := s.do([]string{"nix-store", "-qR", top}, []string{"store", "query", "closure", top})
	if got := strings.Count(out, "\n"); got != want {
		s.t.Fatalf("%s: a closure of %d paths, not %d", s.name, got, want)
	}
	return took
}

// transfer is what rows that move closures have in common: each side's second daemon, and a closure that is new in each round.
func transfer(b *bout, move func(from, to *side, f *forest) time.Duration) play {
	to := map[*side]*side{}
	for _, s := range b.sides() {
		to[s] = s.twin()
	}
	var f *forest
	before := func(round int) {
		f = &forest{tag: fmt.Sprint("closure", round), count: b.size, bytes: smallBytes}
		for _, s := range b.sides() {
			s.load(f)
		}
	}
	run := func(s *side, round int) time.Duration {
		took := move(s, to[s], f)
		to[s].closureOf(f.top(s.store), b.size)
		to[s].expect((round + 1) * b.size)
		return took
	}
	return play{before: before, run: run}
}

// copyClosure copies from daemon to daemon.
func copyClosure(b *bout) play {
	return transfer(b, func(from, to *side, f *forest) time.Duration {
		uri, top := "unix://"+to.socket, f.top(from.store)
		_, took := from.do([]string{"nix", "copy", "--no-check-sigs", "--to", uri, top}, []string{"store", "copy", "--no-check-sigs", "--to", uri, top})
		return took
	})
}

// exportImport writes an archive to a file and reads it elsewhere. Nix is told all paths, ours finds the closure itself, and signs and checks what it exports.
func exportImport(b *bout) play {
	archive := filepath.Join(b.root, "archive")
	trusted := map[*side]bool{}
	return transfer(b, func(from, to *side, f *forest) time.Duration {
		export := []string{"nix-store", "--export"}
		if from.cairn == "" {
			for i := range f.count {
				export = append(export, f.path(from.store, i))
			}
		} else if !trusted[to] {
			to.trust(from)
			trusted[to] = true
		}
		file, err := os.Create(archive)
		b.must(err)
		defer file.Close()
		took := from.pipe(nil, file, from.command(export, []string{"archive", "--export", "-r", f.top(from.store)})...)
		_, err = file.Seek(0, 0)
		b.must(err)
		return took + to.pipe(file, nil, to.command([]string{"nix-store", "--import"}, []string{"archive", "--import"})...)
	})
}

// trust lets a side import what another signs.
func (s *side) trust(from *side) {
	s.t.Helper()
	key, err := os.Open(filepath.Join(from.conf, "signing-key.pub"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer key.Close()
	s.pipe(key, nil, s.cairn, "archive", "--authorize")
}

// closure asks for a closure that stays the same.
func closure(b *bout) play {
	f := &forest{tag: "live", count: b.size, bytes: smallBytes}
	for _, s := range b.sides() {
		s.load(f)
	}
	return play{run: func(s *side, round int) time.Duration { return s.closureOf(f.top(s.store), b.size) }}
}

// verify reads and hashes all that there is, once more: the first time cairn takes two hashes of what is not one file, and then the faster of them.
// So what the first time takes is told, too.
func verify(b *bout) play {
	f := &forest{tag: "verified", count: b.size, files: 4, bytes: 60000}
	for _, s := range b.sides() {
		s.load(f)
		s.expect(b.size)
	}
	run := func(s *side, round int) time.Duration {
		_, took := s.do(verifyNix, verifyCairn)
		return took
	}
	b.note = fmt.Sprintf("the first time: nix %s, cairn %s ms", sample{run(b.nix, 0)}, sample{run(b.cairn, 0)})
	// That they have read everything shows in that both find a few bytes, in a file that looks as before.
	after := func() {
		for _, s := range b.sides() {
			file := filepath.Join(s.real, filepath.Base(f.path(s.store, b.size/2)), "file-0003")
			b.must(touch(file, 0))
			b.must(os.Chtimes(file, time.Unix(1, 0), time.Unix(1, 0)))
			if err := s.fails(s.command(verifyNix, verifyCairn)...); !strings.Contains(err, filepath.Base(f.path(s.store, b.size/2))) {
				b.t.Fatalf("%s: verifying does not find the damaged path: %s", s.name, err)
			}
		}
	}
	return play{run: run, after: after}
}

// Commands that verify. That of Nix hashes on all processors; its older one, nix-store --verify --check-contents, on one.
var (
	verifyNix   = []string{"nix", "store", "verify", "--all", "--no-trust"}
	verifyCairn = []string{"store", "verify"}
)
