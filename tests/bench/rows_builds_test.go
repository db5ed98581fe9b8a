package bench

import (
	"fmt"
	"os"
	"path/filepath"
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

// trivialBuilds builds derivations that are new to both in each round.
func trivialBuilds(b *bout) play {
	return play{run: func(s *side, round int) time.Duration { return s.buildTrivial(b.t, b.size, round) }}
}

// buildTrivial builds derivations in one request; they come from Nix's evaluator, untimed, for both.
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
	paths, took := s.do(append([]string{"nix-store", "--quiet", "-r"}, drvs...), append([]string{"build", "--quiet"}, drvs...))
	if got := len(strings.Fields(paths)); got != size {
		t.Fatalf("%s: %d outputs of %d derivations", s.name, got, size)
	}
	return took
}
