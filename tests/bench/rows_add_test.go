package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// must fails the row.
func (b *bout) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// add adds files or trees and checks that there is an object for each.
func (s *side) add(files ...string) time.Duration {
	s.t.Helper()
	out, took := s.do(append([]string{"nix-store", "--add"}, files...), append([]string{"store", "add"}, files...))
	if got := len(strings.Fields(out)); got != len(files) {
		s.t.Fatalf("%s: %d paths of %d files added", s.name, got, len(files))
	}
	return took
}

// addFile adds a large file that is new to both in each round.
func addFile(b *bout) play {
	file := filepath.Join(b.root, "large")
	b.must(write(file, "large", int64(b.size)<<20))
	return play{
		before: func(round int) { b.must(touch(file, round)) },
		run: func(s *side, round int) time.Duration {
			took := s.add(file)
			s.expect(1)
			s.collect() // both together would fill the memory
			return took
		},
	}
}

// addAgain adds a large file that is there. It has been the same for a while, as files that are added again are. Nix's commands send it all once
// more; what its evaluator does is several times faster, since it hashes first and asks.
func addAgain(b *bout) play {
	file := filepath.Join(b.root, "large")
	b.must(write(file, "large", int64(b.size)<<20))
	time.Sleep(3 * time.Second)
	for _, s := range b.sides() {
		s.add(file)
	}
	nix := []string{"nix-instantiate", "--eval", "-E", fmt.Sprintf(`"${builtins.path { path = %s; }}"`, file)}
	return play{run: func(s *side, round int) time.Duration {
		out, took := s.do(nix, []string{"store", "add", file})
		if !strings.Contains(out, "-large") {
			b.t.Fatalf("%s: adding again prints %q", s.name, out)
		}
		s.expect(1)
		return took
	}}
}

// addTree adds a tree of files that are new to both in each round.
func addTree(b *bout) play {
	tree := filepath.Join(b.root, "tree")
	return play{
		before: func(round int) { b.must(plant(tree, fmt.Sprint("tree", round), b.size, 4096, false)) },
		run: func(s *side, round int) time.Duration {
			took := s.add(tree)
			s.expect(1)
			s.collect()
			return took
		},
	}
}

// clients is how many add at once.
const clients = 8

// manyClients has clients add small files at the same time, each many in one command.
func manyClients(b *bout) play {
	files := make([][]string, clients)
	before := func(round int) {
		for c := range files {
			dir := filepath.Join(b.root, fmt.Sprint("files-", c))
			b.must(os.MkdirAll(dir, 0o755))
			files[c] = nil
			for i := range b.size {
				f := filepath.Join(dir, fmt.Sprint("file-", i))
				b.must(write(f, fmt.Sprint("file", round, c, i), 1000))
				files[c] = append(files[c], f)
			}
		}
	}
	run := func(s *side, round int) time.Duration {
		var wg sync.WaitGroup
		begin := time.Now()
		for c := range files {
			wg.Go(func() { s.add(files[c]...) })
		}
		wg.Wait()
		took := time.Since(begin)
		s.expect((round + 1) * clients * b.size)
		return took
	}
	return play{before: before, run: run}
}

// optimise makes links of trees that are new to both in each round. What is linked when it is added has its price there, so that is told, too.
func optimise(b *bout) play {
	tree := filepath.Join(b.root, "tree")
	added, adding := map[*side]string{}, map[*side]sample{}
	linked := 0
	before := func(round int) {
		b.must(plant(tree, fmt.Sprint("doubles", round), b.size, 4096, true))
		for _, s := range b.sides() {
			s.collect()
			out, took := s.do([]string{"nix-store", "--add", tree}, []string{"store", "add", tree})
			added[s], adding[s] = filepath.Join(s.real, filepath.Base(strings.TrimSpace(out))), append(adding[s], took)
		}
		files, inodes := countInodes(b, added[b.cairn])
		linked = files - inodes
	}
	run := func(s *side, round int) time.Duration {
		_, took := s.do([]string{"nix-store", "--optimise", "--quiet"}, []string{"store", "optimise"})
		files, inodes := countInodes(b, added[s])
		if files != b.size || inodes != b.size/2 {
			b.t.Fatalf("%s: %d files of %d different contents after optimising, not %d of %d", s.name, files, inodes, b.size, b.size/2)
		}
		b.note = fmt.Sprintf("adding them: nix %s, cairn %s ms, which links %d then", adding[b.nix], adding[b.cairn], linked)
		return took
	}
	return play{before: before, run: run}
}

// countInodes counts the names of regular files below a directory, and the files that they stand for.
func countInodes(b *bout, dir string) (names, inodes int) {
	seen := map[uint64]bool{}
	b.must(filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		names++
		seen[fi.Sys().(*syscall.Stat_t).Ino] = true
		return nil
	}))
	return names, len(seen)
}
