package daemon

import (
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// The graph of references lives as long as the process, so that Go's rule, to collect when as much again has been allocated, would double what it
// takes. What may be allocated between two collections is headroom instead, a fifth of what lives at least, as much again at most:
// a store of a million objects has 220 MiB of graph, of which a collection takes a tenth of a second.
const (
	headroom    = 48 << 20 // bytes
	leastGrowth = 20       // percent
	whileOpen   = 25       // percent, while stores are opened
	tendEvery   = 10 * time.Second
)

// Heap keeps the heap of this process close to what lives in it.
type Heap struct {
	wg   sync.WaitGroup
	stop chan struct{}
	old  int
}

// TendHeap begins to tend the memory of this process, unless its environment has GOGC or GOMEMLIMIT: then the person who set them does, and
// nothing is changed. Close ends it.
func TendHeap(getenv func(string) string) *Heap {
	m := &Heap{stop: make(chan struct{})}
	if getenv("GOGC") != "" || getenv("GOMEMLIMIT") != "" {
		m.old = -1
		return m
	}
	m.old = debug.SetGCPercent(whileOpen)
	return m
}

// Opened says that a store is open: what that took and nobody needs any more is given back, in the background.
func (m *Heap) Opened() {
	if m.old < 0 {
		return
	}
	m.wg.Go(func() {
		if live() > headroom {
			debug.FreeOSMemory()
		}
		ticker := time.NewTicker(tendEvery)
		defer ticker.Stop()
		for {
			debug.SetGCPercent(growth(live()))
			select {
			case <-ticker.C:
			case <-m.stop:
				return
			}
		}
	})
}

// Close ends the tending and sets things as they were.
func (m *Heap) Close() {
	close(m.stop)
	m.wg.Wait()
	if m.old >= 0 {
		debug.SetGCPercent(m.old)
	}
}

// growth returns by how many percent a heap may grow of which so many bytes live.
func growth(live uint64) int {
	return int(min(100, max(leastGrowth, 100*headroom/max(live, 1))))
}

// live is how much of the heap the last collection found alive, in bytes.
func live() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
