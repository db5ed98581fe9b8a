package bench

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cairn/client"
	"cairn/store"
)

// adders is how many clients add, one object after the other, while others collect.
const adders = 8

// pauses tells how long an addition waits while many objects are collected, and how long it waits otherwise. Nothing in it is idle:
// the clients add as fast as they can, so that the times include waiting for a processor.
func pauses(g *gauge) {
	size, quiet := 100000, 5*time.Second
	if small() {
		size, quiet = 3000, 500*time.Millisecond
	}
	s := startCairn(g.t, arena(g.t), "cairn")
	s.load(&forest{tag: "dead", count: size, bytes: smallBytes})
	s.expect(size)
	a := newAddition(g, s)
	var stalls [2]time.Duration
	without := a.during(func() { stalls[0] = longestStall(func() { time.Sleep(quiet) }) })
	var took time.Duration
	with := a.during(func() { stalls[1] = longestStall(func() { _, took = s.run(s.cairn, "gc") }) })
	a.close()
	s.expect(len(without) + len(with)) // all that was dead is gone, and what was added while it went is there
	g.t.Logf("the collection took %v with %d clients adding; a process that only slept was woken up to %v too late without it, %v with it",
		took.Round(time.Millisecond), adders, stalls[0].Round(time.Millisecond), stalls[1].Round(time.Millisecond))
	g.spread("add-quiet", fmt.Sprintf("%d clients add, nothing else", adders), without, 0)
	g.spread("add-gc", fmt.Sprintf("%d clients add while %d objects are deleted", adders, size), with, 50)
}

// spread tells the distribution of waiting times; bound is that of the longest, in ms.
func (g *gauge) spread(name, work string, waits sample, bound float64) {
	g.t.Helper()
	slices.Sort(waits)
	at := func(share float64) float64 { return 1000 * waits[int(share*float64(len(waits)-1))].Seconds() }
	work += fmt.Sprintf(" (%d additions): ", len(waits))
	for _, p := range []struct {
		name  string
		share float64
	}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}} {
		g.tell(name+"-"+p.name, work+p.name, at(p.share), 0, "ms")
	}
	g.tell(name+"-max", work+"longest", at(1), bound, "ms")
}

// addition is clients that add small objects, each of them new.
type addition struct {
	g     *gauge
	conns []*client.Conn
	next  atomic.Int64
}

func newAddition(g *gauge, s *side) *addition {
	a := &addition{g: g}
	for range adders {
		c, err := client.Dial(g.t.Context(), s.socket, &client.Options{Dir: s.store})
		if err != nil {
			g.t.Fatal(err)
		}
		a.conns = append(a.conns, c)
	}
	return a
}

// close ends the connections, and with them what keeps the objects alive.
func (a *addition) close() {
	for _, c := range a.conns {
		c.Close()
	}
}

// during adds for as long as fn runs and returns how long each addition took.
func (a *addition) during(fn func()) sample {
	a.g.t.Helper()
	var wg sync.WaitGroup
	var stop atomic.Bool
	waits := make([]sample, len(a.conns))
	errs := make([]error, len(a.conns))
	for i, c := range a.conns {
		wg.Go(func() {
			for !stop.Load() && errs[i] == nil {
				begin := time.Now()
				errs[i] = a.one(c)
				waits[i] = append(waits[i], time.Since(begin))
			}
		})
	}
	func() {
		defer wg.Wait()
		defer stop.Store(true)
		fn()
	}()
	for _, err := range errs {
		if err != nil {
			a.g.t.Fatal(err)
		}
	}
	return slices.Concat(waits...)
}

func (a *addition) one(c *client.Conn) error {
	text := fmt.Sprintf("%d\n%s", a.next.Add(1), strings.Repeat("x", smallBytes))
	_, err := c.AddToStore(a.g.t.Context(), "small", store.Text, store.SHA256, nil, strings.NewReader(text))
	return err
}

// longestStall tells by how much a short sleep was too long at most while fn ran: what no program on this machine could have avoided.
func longestStall(fn func()) (longest time.Duration) {
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() {
		for !stop.Load() {
			begin := time.Now()
			time.Sleep(time.Millisecond)
			longest = max(longest, time.Since(begin)-time.Millisecond)
		}
	})
	func() {
		defer wg.Wait()
		defer stop.Store(true)
		fn()
	}()
	return longest
}
