package daemon

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// The graph of references lives as long as the process, so that Go's rule, to collect when as much again has been allocated, would double what it
// takes. What may be allocated between two collections is headroom instead, or what fills the heap to usual, a fifth of what lives at least, as much
// again at most: a store of a million objects has 220 MiB of graph, of which a collection takes a tenth of a second.
//
// Memory that was needed once goes back only when Go has a limit: what lives, what may be allocated, what is not used of what the heap has, and what is
// not heap, or leastLimit, which a daemon with a small store reaches when it writes much. A heap at its limit is collected without end, with half of the
// processors, so that the limit follows what lives: each collection is looked at. When the database makes a table, that is 30 MiB more from one to the next.
// What such a time has left goes back when nothing has been collected for a while (idle): Go itself looks after two minutes only.
const (
	headroom    = 48 << 20 // bytes
	usual       = 88 << 20 // bytes that a heap has when less than five sixths of them live
	leastGrowth = 20       // percent
	whileOpen   = 25       // percent, while stores are opened
	unused      = 8        // the part of what lives that the heap has besides: 1/8
	notHeap     = 8 << 20  // bytes: stacks, the collector's own
	leastLimit  = usual + notHeap
)

// idle is after how long without a collection a process gives back what it does not use, once.
const idle = 2 * time.Second

// spareProcessors is how many goroutines more run at a time than there are processors. Go gives each a processor for 10 ms, in the order in which they
// came, and waits as long before it takes the processor of one that waits for the disk: a request is handed on between goroutines some ten times,
// and with two processors, of which one makes a table of the database and the other collects garbage, it waited for each. The kernel lets those go first that
// have slept. With two more, adding a tree of many files takes some 5 % longer, in the kernel; with none, additions during a collection wait up to 94 ms.
const spareProcessors = 1

// SpareProcessors has some goroutines wait for the kernel instead of Go, unless the environment says how many run at a time.
func SpareProcessors(getenv func(string) string) {
	if getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + spareProcessors)
	}
}

// Heap keeps the heap of this process close to what lives in it.
type Heap struct {
	wg       sync.WaitGroup
	stop     chan struct{}
	old      int   // growth
	oldLimit int64 // of memory
}

// TendHeap begins to tend the memory of this process, unless its environment has GOGC or GOMEMLIMIT: then the person who set them does, and
// nothing is changed. Close ends it.
func TendHeap(getenv func(string) string) *Heap {
	m := &Heap{stop: make(chan struct{})}
	if getenv("GOGC") != "" || getenv("GOMEMLIMIT") != "" {
		m.old = -1
		return m
	}
	m.old, m.oldLimit = debug.SetGCPercent(whileOpen), debug.SetMemoryLimit(-1)
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
		given := true // back, since the last collection
		for known := uint64(0); ; {
			next := collection()
			if now := live(); known == 0 || now > known+known/16 || now < known-known/16 { // setting them stops the world for a moment
				debug.SetGCPercent(growth(now))
				debug.SetMemoryLimit(limit(now))
				known = max(now, 1)
			}
			var quiet <-chan time.Time
			if !given {
				quiet = time.After(idle)
			}
			select {
			case <-next:
				given = false
			case <-quiet:
				debug.FreeOSMemory()
				<-next // as that collects
				given = true
			case <-m.stop:
				return
			}
		}
	})
}

// collection returns a channel that is closed when the next collection has found out what lives.
func collection() <-chan struct{} {
	done := make(chan struct{})
	runtime.AddCleanup(new(forgotten), func(done chan struct{}) { close(done) }, done)
	return done
}

// forgotten is what nobody refers to, large enough to be an object of its own.
type forgotten struct{ _ [4]*forgotten }

// Close ends the tending and sets things as they were.
func (m *Heap) Close() {
	close(m.stop)
	m.wg.Wait()
	if m.old >= 0 {
		debug.SetGCPercent(m.old)
		debug.SetMemoryLimit(m.oldLimit)
	}
}

// room returns how much may be allocated, in bytes, when so many live.
func room(live uint64) uint64 {
	return max(live*leastGrowth/100, min(headroom, live, usual-min(live, usual)))
}

// growth returns by how many percent a heap may grow of which so many bytes live.
func growth(live uint64) int {
	if live == 0 {
		return 100
	}
	return int(max(leastGrowth, 100*room(live)/live))
}

// limit returns what a process may take, in bytes, of whose heap so many live.
func limit(live uint64) int64 { return int64(max(leastLimit, live+live/unused+room(live)+notHeap)) }

// live is how much of the heap the last collection found alive, in bytes.
func live() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
