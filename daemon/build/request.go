package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
	"cairn/store"
	"cairn/store/disk"
)

// request is one call of Build.
type request struct {
	b       *Builder
	f       *storeFacts
	lease   *disk.Lease
	watch   *watch
	targets []protocol.Target
	mode    Mode
}

// maxPlans is how often a request is planned because fetching failed. Each time one offer of one cache is refused.
const maxPlans = 1000

// request makes targets exist. f may know derivations that are not in the store.
func (b *Builder) request(ctx context.Context, f *storeFacts, targets []protocol.Target, mode Mode, obs Observer) ([]*protocol.BuildResult, error) {
	q := &request{b: b, f: f, lease: b.store.Lease("build request", 0), watch: &watch{observer: obs}, targets: targets, mode: mode}
	defer q.lease.Release()
	defer q.part()
	f.search = b.search(q.watch)
	return q.run(ctx)
}

// search begins to ask caches for a request.
func (b *Builder) search(w *watch) *substitute.Search {
	return b.caches.Search(substitute.Watch{Warn: w.warn, Asking: w.asking})
}

// run plans, and builds and fetches what is planned. When an object could not be fetched after all it plans again for the targets that
// need it: another cache may have it, or it can be built. What runs already goes on meanwhile.
func (q *request) run(ctx context.Context) ([]*protocol.BuildResult, error) {
	var held map[jobKey]*job
	all, over := q.targets, outcome{jobs: map[jobKey]*job{}, nodes: map[store.Path]*node{}}
	defer func() {
		q.b.release(held)
		q.b.release(over.jobs)
	}()
	for range maxPlans {
		p, err := q.soundPlan(ctx)
		if err != nil {
			return nil, err
		}
		if len(p.unknown) > 0 {
			return nil, q.unknown(p)
		}
		jobs, made, err := q.b.enlist(q.f, p, q.targets, q.mode, q.watch)
		if err != nil {
			return nil, err
		}
		q.b.release(held)
		held = made
		if err := q.b.awaitInside(ctx, jobs); err != nil {
			return nil, err
		}
		if !q.refuse(jobs) {
			maps.Copy(jobs, over.jobs)
			maps.Copy(p.known, over.nodes)
			return q.b.results(ctx, q.f, p, all, jobs)
		}
		q.settle(p, jobs, &over)
	}
	return nil, errors.New("build: caches offer again and again what they do not have")
}

// outcome is what has come of targets that need no other plan. It counts as a waiter of the jobs, so that what they made is kept.
type outcome struct {
	jobs  map[jobKey]*job
	nodes map[store.Path]*node
}

// settle takes targets whose jobs have ended, well or for a reason of their own, out of the request.
func (q *request) settle(p *plan, jobs map[jobKey]*job, over *outcome) {
	q.b.mu.Lock()
	defer q.b.mu.Unlock()
	var rest []protocol.Target
	for _, t := range q.targets {
		key := keyOf(t)
		j := jobs[key]
		if j == nil || !j.ended || j.badOfferLocked() != nil {
			rest = append(rest, t)
			continue
		}
		if over.jobs[key] == nil {
			j.waiters++
			over.jobs[key] = j
		}
		if n := p.known[t.Path]; n != nil {
			over.nodes[t.Path] = n
		}
	}
	q.targets = rest
}

// lookAhead is how many rounds of planning ask one step after the other. After that each asks for twice as much as the one before: a deep
// graph of which caches have nothing takes few rounds, at the price of questions that need not have been asked.
const lookAhead = 4

// plan plans until nothing more has to be asked, and holds everything that it relies on.
func (q *request) plan(ctx context.Context) (*plan, error) {
	ahead := 0
	for round := 0; ; round++ {
		p, err := steadyPlan(q.f, q.targets, q.mode, ahead, q.lease)
		if err != nil {
			return nil, err
		}
		if p.complete() && q.mode == Check {
			err = p.checkable(q.targets)
		}
		if err != nil || p.complete() {
			return p, err
		}
		if err := q.learn(ctx, p); err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
		if round >= lookAhead {
			ahead = 2*ahead + 1
		}
	}
}

// learn finds out what a plan lacks.
func (q *request) learn(ctx context.Context, p *plan) error {
	if err := learn(ctx, q.f.search, p); err != nil {
		return err
	}
	if len(p.drvs) == 0 {
		return nil
	}
	sub := *q
	sub.targets, sub.mode = nil, Normal
	for _, d := range p.drvs {
		sub.targets = append(sub.targets, protocol.Target{Path: d})
	}
	_, err := sub.run(ctx)
	if errors.Is(err, store.ErrNotValid) {
		return nil // planning will say so
	}
	return err
}

// learn asks caches what a plan wants to know.
func learn(ctx context.Context, s *substitute.Search, p *plan) error {
	outputs := make([]substitute.Output, len(p.traces))
	for i, t := range p.traces {
		outputs[i] = substitute.Output{ID: t.id, Drv: t.drv}
	}
	if err := s.AskOutputs(ctx, outputs); err != nil {
		return err
	}
	for path, ca := range p.fixed {
		s.Expect(path, ca)
	}
	return s.Ask(ctx, p.asks)
}

// unknown is the error of a plan that lacks something for good.
func (q *request) unknown(p *plan) error {
	path := p.unknown[0]
	why := "there is no substituter that can build it"
	if err := q.f.search.Failure(path); err != nil {
		why = "it cannot be fetched: " + err.Error()
	}
	return &lackError{fmt.Sprintf("path '%s'%s is required, but %s", path, more(len(p.unknown)-1), why)}
}

// lackError is store.ErrNotValid in a sentence that needs no more words.
type lackError struct{ text string }

func (e *lackError) Error() string        { return e.text }
func (e *lackError) Is(target error) bool { return target == store.ErrNotValid }

// refuse drops the offers that jobs have failed for, and reports whether another plan may do better: not when a build has failed and
// nobody wants to keep going.
func (q *request) refuse(jobs map[jobKey]*job) bool {
	again := false
	for _, j := range jobs {
		bad, failed := j.verdict()
		if failed && bad == nil && !q.b.settings.KeepGoing {
			return false
		}
		if bad == nil {
			continue
		}
		again = true
		// The job may be another request's, which has an offer of its own.
		if o, _ := q.f.search.Offer(bad.Path); o != nil {
			q.f.search.Refuse(o, bad)
		}
	}
	return again
}

// verdict says whether a job has failed, and for which failure of a cache, if it was one.
func (j *job) verdict() (bad *substitute.OfferError, failed bool) {
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	if !j.ended || j.result.Status.OK() {
		return nil, false
	}
	return j.badOfferLocked(), true
}

// badOfferLocked returns the failure of a cache that a job has failed for, or nil. The caller holds core.mu.
func (j *job) badOfferLocked() *substitute.OfferError {
	for j.broken != nil {
		j = j.broken
	}
	return j.bad
}

// part makes the request hear no more.
func (q *request) part() {
	q.b.mu.Lock()
	defer q.b.mu.Unlock()
	q.watch.part()
}

// release lets go of the jobs of a plan.
func (b *Builder) release(jobs map[jobKey]*job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, j := range jobs {
		b.leave(j)
	}
}

// keyOf returns the key of the job that makes a target.
func keyOf(t protocol.Target) jobKey {
	if t.Outputs == nil {
		return jobKey{t.Path, fetchObject}
	}
	return jobKey{t.Path, Normal}
}

// steadyPlan makes a plan and holds everything that it relies on: what a collection takes away between the two
// makes another plan.
func steadyPlan(f *storeFacts, targets []protocol.Target, mode Mode, ahead int, lease *disk.Lease) (*plan, error) {
	p, err := makePlan(f, targets, mode, ahead)
	for err == nil {
		if err := lease.Hold(p.relied...); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(p.relied, func(r store.Path) bool { return !f.valid(r) }) {
			break
		}
		p, err = makePlan(f, targets, mode, ahead)
	}
	return p, err
}
