package build

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

// Causes of a cancelled build.
var (
	errLeft     = errors.New("nobody waits for it any more")
	errShutdown = errors.New("the daemon is shutting down")
)

// core is what all views of a Builder share.
//
// mu guards jobs, slots, queues, closed and every job's fields below its line. It is held for moments, never while anything is waited for;
// a watch's lock is taken under it.
type core struct {
	mu        sync.Mutex
	jobs      map[jobKey]*job
	closed    bool
	places    chan struct{} // a token for each running build
	finishing chan struct{} // a token for each build whose builder has ended
	queues    map[string]*queue
	downloads chan struct{} // a token for each running download
	serial    uint64
	slots     map[uint32]bool
	inside    ServeFunc // who serves builders that ask
	work      sync.WaitGroup
}

type jobKey struct {
	drv  store.Path
	mode Mode
}

// job is the build of one derivation, shared by all who want it.
//
//	waiting ──last input done, or one failed──▶ ready ──▶ running ──▶ ended
//	   └──────────────── last waiter left ──────────────────────────────▲
type job struct {
	b       *Builder
	key     jobKey
	drv     *derivation.Derivation
	kind    derivation.Kind
	facts   *storeFacts
	deps    []*job
	after   []*job                 // fetches that must end before this one becomes valid
	outputs map[string]store.Path  // what a job of mode fetchOutputs has fetched
	bad     *substitute.OfferError // the cache's failure that this job has failed for
	derived bool                   // the resolved form of another
	ctx     context.Context
	stop    context.CancelCauseFunc
	done    chan struct{} // closed when result is there

	// guarded by core.mu
	waiters    int // requests and jobs
	pending    int // deps that have not ended
	started    bool
	ended      bool
	keepGoing  bool
	dependents []*job
	begun      *Event // Started, for who comes later
	log        *logWriter
	child      *job         // the resolved derivation's
	broken     *job         // the first dep that failed
	inner      map[*job]int // what its builder has asked for and waits for, with how often
	lease      *disk.Lease  // holds what it needs and what it makes, until nobody waits for it

	watches atomic.Pointer[[]*watch] // the list is never changed, only replaced, under core.mu

	result *protocol.BuildResult
	paths  map[string]store.Path
}

// enter returns the job of a derivation, making it if there is none, and counts one more waiter.
// The caller holds mu.
func (c *core) enter(b *Builder, key jobKey, make func() *job) *job {
	j := c.jobs[key]
	if j == nil {
		j = make()
		j.b, j.key, j.done = b, key, newSignal()
		j.watches.Store(&[]*watch{})
		j.ctx, j.stop = context.WithCancelCause(b.life)
		c.jobs[key] = j
		c.depend(j)
	}
	j.waiters++
	return j
}

func newSignal() chan struct{} { return make(chan struct{}) }

// depend makes a new job wait for its inputs, which it keeps wanted.
func (c *core) depend(j *job) {
	for _, d := range j.deps {
		d.waiters++
		d.dependents = append(d.dependents, j)
		j.pending++
	}
	for _, d := range j.after {
		d.waiters++
	}
	if j.pending == 0 {
		c.start(j)
	}
}

// start runs a job whose inputs have ended. The caller holds mu.
func (c *core) start(j *job) {
	if j.started || j.ended {
		return
	}
	j.started = true
	c.work.Go(func() {
		r, paths := j.run()
		c.end(j, r, paths)
	})
}

// end publishes a job's result.
func (c *core) end(j *job, r *protocol.BuildResult, paths map[string]store.Path) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(j, r, paths)
}

func (c *core) endLocked(j *job, r *protocol.BuildResult, paths map[string]store.Path) {
	if j.ended {
		return
	}
	j.ended, j.result, j.paths = true, r, paths
	j.stop(nil)
	c.forget(j)
	for _, w := range *j.watches.Load() {
		w.ended(j)
	}
	close(j.done)
	for _, d := range j.dependents {
		d.pending--
		if !r.Status.OK() && d.broken == nil {
			d.broken = j
		}
		if d.pending == 0 || d.broken != nil && !d.keepGoing {
			c.start(d)
		}
	}
	for _, d := range j.deps {
		c.leave(d)
	}
	for _, d := range j.after {
		c.leave(d)
	}
	if j.waiters == 0 {
		j.release()
	}
}

// release lets go of the outputs of a job that has ended and that nobody waits for. The caller holds mu.
func (j *job) release() {
	if j.lease != nil {
		j.lease.Release()
	}
}

// leave takes one waiter away and ends a job that nobody waits for.
func (c *core) leave(j *job) {
	j.waiters--
	if j.waiters > 0 {
		return
	}
	if j.ended {
		j.release()
		return
	}
	c.forget(j)
	if j.started {
		j.stop(errLeft)
		return
	}
	c.endLocked(j, &protocol.BuildResult{Status: protocol.MiscFailure, Error: "cancelled: " + errLeft.Error()}, nil)
}

func (c *core) forget(j *job) {
	if c.jobs[j.key] == j {
		delete(c.jobs, j.key)
	}
}

// watch is a request's view of the jobs it waits for.
type watch struct {
	observer Observer
	mu       sync.Mutex // guards the rest, and calls of the observer
	counts   Counts
	left     bool
	jobs     []*job
}

func (w *watch) tell(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tellLocked(e)
}

func (w *watch) tellLocked(e Event) {
	if w.observer != nil && !w.left {
		w.observer.Event(e)
	}
}

// join makes a request hear of a job. The caller holds core.mu.
func (w *watch) join(j *job) {
	if list := *j.watches.Load(); !slices.Contains(list, w) {
		list = append(slices.Clip(list), w)
		j.watches.Store(&list)
	} else {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs = append(w.jobs, j)
	w.counts.of(j).Expected++
	if j.key.mode == fetchObject {
		w.expect(j, 1)
	}
	if j.begun != nil {
		if j.key.mode == fetchObject {
			w.counts.Fetch.Running++
		} else {
			w.counts.Running++
		}
		w.tellLocked(*j.begun)
	}
}

// expect adds what a fetch is expected to bring, or takes it away. The caller holds mu.
func (w *watch) expect(j *job, sign int64) {
	if o, _ := j.facts.search.Offer(j.key.drv); o != nil {
		w.counts.Download += sign * o.FileSize
		w.counts.Unpacked += sign * o.NarSize
	}
}

// of returns the count that a job belongs to.
func (c *Counts) of(j *job) *Count {
	switch {
	case j.key.mode == fetchObject:
		return &c.Fetch
	case j.derived || j.key.mode == fetchOutputs:
		return &Count{} // of no interest
	}
	return &c.Count
}

// part makes a request hear no more. The caller holds core.mu.
func (w *watch) part() {
	for _, j := range w.jobs {
		list := slices.DeleteFunc(slices.Clone(*j.watches.Load()), func(x *watch) bool { return x == w })
		j.watches.Store(&list)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = true
}

// progress tells the counts after change.
func (w *watch) progress(change func(*Counts)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.counts)
	w.tellLocked(Event{Kind: Progress, Counts: w.counts})
}

// warn tells a request, in a sentence, of something that it may not like.
func (w *watch) warn(text string) { w.tell(Event{Kind: Warning, Text: text}) }

// asking tells a request that a cache is asked for a path.
func (w *watch) asking(p store.Path, uri string) (answered func()) {
	e := Event{Kind: Asking, Activity: asked.Add(1), Path: p, Text: uri}
	w.tell(e)
	return func() {
		e.Kind = Answered
		w.tell(e)
	}
}

// asked numbers questions; they are not builds.
var asked atomic.Uint64

// ended is called with core.mu held.
func (w *watch) ended(j *job) {
	w.progress(func(c *Counts) {
		count := c.of(j)
		if j.begun != nil {
			count.Running--
		}
		switch {
		case j.result.Status.OK():
			count.Done++
		case j.result.Status == protocol.DependencyFailed:
			count.Expected--
		default:
			count.Failed++
		}
	})
	if j.begun != nil {
		w.tell(Event{Kind: Stopped, Activity: j.begun.Activity, Drv: j.begun.Drv, Status: j.result.Status})
	}
}

// begin tells everybody that a job's builder starts, perhaps after another machine has failed it.
func (j *job) begin(machine string) {
	c := j.b.core
	c.mu.Lock()
	defer c.mu.Unlock()
	before := j.begun
	c.serial++
	j.begun = &Event{Kind: Started, Activity: c.serial, Drv: j.key.drv, Machine: machine, Mode: j.key.mode}
	for _, w := range *j.watches.Load() {
		if before != nil {
			w.tell(Event{Kind: Stopped, Activity: before.Activity, Drv: before.Drv, Status: protocol.TransientFailure})
		}
		w.tell(*j.begun)
		if before == nil {
			w.progress(func(c *Counts) { c.Running++ })
		}
	}
}

// tell sends an event of the running builder to everybody who watches.
func (j *job) tell(e Event) {
	e.Activity, e.Drv = j.begun.Activity, j.begun.Drv
	for _, w := range *j.watches.Load() {
		w.tell(e)
	}
}

// place waits for one of MaxJobs places.
func (c *core) place(ctx context.Context) (release func(), err error) { return take(ctx, c.places) }

// take waits for a token.
func take(ctx context.Context, tokens chan struct{}) (release func(), err error) {
	select {
	case tokens <- struct{}{}:
		return func() { <-tokens }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// slot takes a number that no other build has which runs or finishes: at the same time there are different host ids.
func (c *core) slot() (uint32, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := uint32(0)
	for c.slots[n] {
		n++
	}
	c.slots[n] = true
	return n, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.slots, n)
	}
}
