package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// figure is a measurement without a peer. Its measure reports each value with bench.tell.
type figure struct {
	name    string
	measure func(*gauge)
}

var figures = []figure{
	{"build-growth", buildGrowth},
	{"large-graph", largeGraph},
	{"pauses", pauses},
	{"large-object", largeObject},
}

// gauge is a figure that is being measured.
type gauge struct {
	t      *testing.T
	name   string
	rounds int
}

// tell prints and records a value. A bound of 0 is none.
func (g *gauge) tell(name, work string, value, bound float64, unit string) {
	g.t.Helper()
	r := &result{Row: name, Work: work, Rounds: g.rounds, Value: value, Bound: bound, Unit: unit, Reached: bound == 0 || value <= bound}
	g.t.Log(r)
	record(g.t, r)
}

// TestFigures measures what has no peer.
func TestFigures(t *testing.T) {
	n := rounds(t)
	for _, f := range figures {
		t.Run(f.name, func(t *testing.T) { f.measure(&gauge{t: t, name: f.name, rounds: n}) })
	}
}

// buildGrowth tells what a build costs among many, compared with what it costs among few. Linear is 1. A busy machine makes it 2; a walk over all jobs
// for each job makes it 10, and 4 is enforced.
func buildGrowth(g *gauge) {
	s := startCairn(g.t, arena(g.t), "cairn")
	sizes := []int{100, 2000}
	if small() {
		sizes = []int{100, 500}
	}
	var cost []time.Duration
	for _, size := range sizes {
		var took sample
		for round := range g.rounds {
			took = append(took, s.buildTrivial(g.t, size, round))
		}
		cost = append(cost, (took.median() / time.Duration(size)).Round(10*time.Microsecond))
	}
	least, most := slices.Min(sizes), slices.Max(sizes)
	growth := float64(cost[1]) / float64(cost[0])
	g.tell(g.name, fmt.Sprintf("cost of a build among %d (%v) through that among %d (%v)", most, cost[1], least, cost[0]), growth, 2, "×")
	if growth > 4 {
		g.t.Errorf("a build costs %v among %d and %v among %d: that is not linear", cost[0], least, cost[1], most)
	}
}
