package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// trivial is n derivations, new in every round, that do next to nothing in the sandbox.
const trivial = `{ n, round }: builtins.genList (i: derivation {
  name = "x-${toString round}-${toString i}"; system = builtins.currentSystem;
  builder = "/bin/sh"; args = [ "-c" "echo ${toString i} > $out" ];
}) n
`

// TestBuilds builds many derivations in one request. What one costs must not grow with how many there are.
func TestBuilds(t *testing.T) {
	n := rounds(t)
	both := sides(t)
	sizes := []int{100, 200, 500, 1000, 2000}
	if n < 3 {
		sizes = []int{100, 500}
	}
	cost := map[int]time.Duration{}
	for _, size := range sizes {
		took := make([]sample, len(both))
		for round := range n {
			for i, s := range both {
				took[i] = append(took[i], s.buildTrivial(t, size, round))
			}
		}
		nix, cairn := took[0], took[1]
		t.Logf("%4d builds in one request: %5.2f times as fast; each: cairn %s, nix %s", size,
			float64(nix.median())/float64(cairn.median()), cairn.per(size), nix.per(size))
		record(t, "builds", size, nix, cairn)
		cost[size] = cairn.median() / time.Duration(size)
	}
	// Linear is 1. A busy machine makes it 2; a walk over all jobs for each job makes it 10.
	if least, most := slices.Min(sizes), slices.Max(sizes); cost[most] > 4*cost[least] {
		t.Errorf("a build costs %v among %d and %v among %d: that is not linear", cost[least], least, cost[most], most)
	}
}

func (s *side) buildTrivial(t *testing.T, size, round int) time.Duration {
	t.Helper()
	file := filepath.Join(s.dir, "g.nix")
	if err := os.WriteFile(file, []byte(trivial), 0o644); err != nil {
		t.Fatal(err)
	}
	// The size is part of the round's number, so that nothing is built twice.
	out, _ := s.run("nix-instantiate", file, "--arg", "n", fmt.Sprint(size), "--arg", "round", fmt.Sprint(round*10000+size))
	drvs := strings.Fields(out)
	if len(drvs) != size {
		t.Fatalf("%s: %d derivations, not %d", s.name, len(drvs), size)
	}
	paths, took := s.run(append([]string{"nix-store", "--quiet", "-r"}, drvs...)...)
	if got := len(strings.Fields(paths)); got != size {
		t.Fatalf("%s: %d outputs of %d derivations", s.name, got, size)
	}
	return took
}
