package gc

import (
	"sync"
	"time"
)

// reportEvery is how long nobody is left without an event.
const reportEvery = time.Second

// reporter passes events on, and repeats the last one with the time that has passed, so that a single object
// of a million files does not look as if nothing went on any more.
type reporter struct {
	fn   func(Event)
	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex // guards what follows; held while fn runs
	last Event
	at   time.Time // when it came; zero: not yet
	told time.Time // when fn was called last
}

func newReporter(fn func(Event)) *reporter {
	r := &reporter{fn: fn, stop: make(chan struct{})}
	r.wg.Go(r.run)
	return r
}

func (r *reporter) tell(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.at, r.told = e, time.Now(), time.Now()
	r.fn(e)
}

// close ends the repetition; no event comes after it.
func (r *reporter) close() {
	close(r.stop)
	r.wg.Wait()
}

func (r *reporter) run() {
	ticker := time.NewTicker(reportEvery / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.again()
		case <-r.stop:
			return
		}
	}
}

// again repeats the last event when it is time.
func (r *reporter) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() || time.Since(r.told) < reportEvery*3/4 {
		return
	}
	e, passed := r.last, time.Since(r.at)
	e.Elapsed += passed
	e.Left = max(0, e.Left-passed)
	r.told = time.Now()
	r.fn(e)
}
