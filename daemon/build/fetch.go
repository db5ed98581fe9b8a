package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

// Modes of jobs that fetch.
const (
	fetchObject  Mode = 0xfe // an object, by path
	fetchOutputs Mode = 0xff // the outputs of a derivation, whose objects are fetched by other jobs
)

// enlistFetch returns the job that fetches an object, with one more waiter. Those of what it refers to are in made. The caller holds mu.
func (b *Builder) enlistFetch(f *storeFacts, path store.Path, made map[jobKey]*job, w *watch) *job {
	j := b.enter(b, jobKey{path, fetchObject}, func() *job {
		j := &job{facts: f}
		refs, _, _ := f.offered(path)
		for _, r := range refs {
			if d := made[jobKey{r, fetchObject}]; d != nil && r != path {
				j.after = append(j.after, d)
			}
		}
		return j
	})
	w.join(j)
	return j
}

// enlistOutputs returns the job that has the missing outputs of a derivation fetched, with one more waiter. The caller holds mu.
func (b *Builder) enlistOutputs(f *storeFacts, n *node, made map[jobKey]*job, w *watch) *job {
	j := b.enter(b, jobKey{n.path, fetchOutputs}, func() *job {
		j := &job{drv: n.drv, kind: n.kind, facts: f, outputs: n.fetch}
		for _, o := range sortedNames(n.fetch) {
			if d := made[jobKey{n.fetch[o], fetchObject}]; d != nil {
				j.deps = append(j.deps, d)
			}
		}
		return j
	})
	w.join(j)
	return j
}

// fetch is the work of a job that fetches an object: from the cache that was planned or, when that fails, from another with the same object.
// It downloads at once, and waits for what the object refers to before the object becomes valid.
func (j *job) fetch(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	path := j.key.drv
	if err := j.lease.Hold(path); err != nil {
		return nil, err
	}
	if j.facts.valid(path) {
		r.Status = protocol.AlreadyValid
		return nil, nil
	}
	in, err := j.download(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	for _, d := range j.after {
		select {
		case <-d.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !d.result.Status.OK() {
			j.fail(d)
			return nil, failure(protocol.DependencyFailed, "some references of path '%s' could not be realised: %s", path, d.result.Error)
		}
	}
	if err := in.Commit(ctx); err != nil {
		return nil, fmt.Errorf("fetch '%s': %w", path, err)
	}
	r.Status = protocol.Substituted
	return nil, nil
}

// fail remembers a job that this one has failed for.
func (j *job) fail(first *job) {
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	j.broken = first
}

// download brings the object into an import, in one of the places for downloads.
func (j *job) download(ctx context.Context) (*disk.Import, error) {
	select {
	case j.b.downloads <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-j.b.downloads }()
	var bad *substitute.OfferError
	for {
		o, err := j.offer(ctx)
		if err != nil {
			return nil, err
		}
		if o == nil {
			j.bad = bad
			if bad == nil {
				bad = &substitute.OfferError{Path: j.key.drv, Err: errors.New("no cache has it any more")}
				j.bad = bad
			}
			return nil, failure(protocol.TransientFailure, "path '%s' is required, but it cannot be fetched: %v", j.key.drv, bad)
		}
		j.beginFetch(o)
		in, err := j.facts.search.Fetch(ctx, o, j.progress())
		j.endFetch(err)
		if err == nil || !errors.As(err, &bad) {
			return in, err
		}
	}
}

// offer returns what can be fetched: an offer whose references are valid, or fetched by jobs that this one waits for.
func (j *job) offer(ctx context.Context) (*substitute.Offer, error) {
	if err := j.facts.search.AskAlone(ctx, []store.Path{j.key.drv}); err != nil {
		return nil, err
	}
	o, _ := j.facts.search.Offer(j.key.drv)
	if o == nil {
		return nil, nil
	}
	if err := j.lease.Hold(o.References...); err != nil {
		return nil, err
	}
	for _, r := range o.References {
		covered := r == o.Path || j.facts.valid(r) || slices.ContainsFunc(j.after, func(d *job) bool { return d.key.drv == r })
		if !covered {
			return nil, nil // another plan may do it
		}
	}
	return o, nil
}

// haveFetched is the work of a job whose inputs have fetched the outputs of a derivation.
func (j *job) haveFetched(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	if err := j.lease.Hold(slices.Collect(maps.Values(j.outputs))...); err != nil {
		return nil, err
	}
	for o, p := range j.outputs {
		if !j.facts.valid(p) {
			return nil, fmt.Errorf("output %q of '%s', '%s', has been deleted meanwhile: %w", o, j.key.drv, p, store.ErrNotValid)
		}
	}
	r.Status = protocol.Substituted
	return j.outputs, j.recordFetched(ctx, j.outputs)
}

// recordFetched makes known where outputs are whose derivation does not say so.
func (j *job) recordFetched(ctx context.Context, paths map[string]store.Path) error {
	if j.kind != derivation.Floating && j.kind != derivation.Deferred {
		return nil
	}
	for _, o := range sortedNames(paths) {
		id, err := j.facts.identity(j.drv, o)
		if err != nil {
			return err
		}
		r, _ := j.facts.search.Realised(id)
		if r == nil || r.OutPath != paths[o] {
			r = &substitute.Realised{Realisation: store.Realisation{ID: id, OutPath: paths[o]}}
		}
		if err := j.addRealisation(ctx, &r.Realisation, map[store.DrvOutput]bool{}); err != nil {
			return err
		}
		if !j.b.store.IsValid(j.key.drv) {
			continue
		}
		if err := j.b.store.LinkOutput(ctx, j.key.drv, o, paths[o], r.Traced...); err != nil {
			return err
		}
	}
	return nil
}

// addRealisation records a realisation and, as far as caches know them, those that it depends on.
func (j *job) addRealisation(ctx context.Context, r *store.Realisation, seen map[store.DrvOutput]bool) error {
	seen[r.ID] = true
	if known, err := j.b.store.Realisation(r.ID); err != nil || known.OutPath == r.OutPath {
		if err := j.b.store.AddRealisation(ctx, r); err != nil {
			return err
		}
	}
	for id, p := range r.Dependents {
		if _, err := j.b.store.Realisation(id); err == nil || seen[id] || !j.facts.valid(p) {
			continue
		}
		if err := j.facts.search.AskOutputs(ctx, []substitute.Output{{ID: id}}); err != nil {
			return err
		}
		if dep, _ := j.facts.search.Realised(id); dep != nil && dep.OutPath == p {
			if err := j.addRealisation(ctx, &dep.Realisation, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

// fetchResolved fetches the outputs of a derivation that was resolved, when caches know all of them. Otherwise it returns nil.
func (j *job) fetchResolved(ctx context.Context) (map[string]store.Path, error) {
	if !j.derived || j.key.mode != Normal || j.kind != derivation.Floating || j.facts.search.None() || !boolAttribute(j.drv, "allowSubstitutes", true) {
		return nil, nil
	}
	var asks []substitute.Output
	for _, o := range j.drv.OutputNames() {
		id, err := j.facts.identity(j.drv, o)
		if err != nil {
			return nil, err
		}
		asks = append(asks, substitute.Output{ID: id, Drv: j.key.drv})
	}
	if err := j.facts.search.AskOutputs(ctx, asks); err != nil {
		return nil, err
	}
	paths := map[string]store.Path{}
	q := &request{b: j.b, f: j.facts, lease: j.lease, watch: &watch{observer: ObserverFunc(j.forward)}}
	for _, a := range asks {
		r, _ := j.facts.search.Realised(a.ID)
		if r == nil {
			return nil, nil
		}
		paths[a.ID.Output] = r.OutPath
		q.targets = append(q.targets, protocol.Target{Path: r.OutPath})
	}
	defer q.part()
	switch _, err := q.run(disk.WithLease(ctx, j.lease)); {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, nil // then it is built
	}
	if err := j.lease.Hold(slices.Collect(maps.Values(paths))...); err != nil {
		return nil, err
	}
	for _, p := range paths {
		if !j.facts.valid(p) {
			return nil, nil
		}
	}
	return paths, j.recordFetched(ctx, paths)
}

// forward tells those who watch the job what happens to objects that are fetched for it.
func (j *job) forward(e Event) {
	if e.Kind == Progress {
		return
	}
	for _, w := range *j.watches.Load() {
		w.tell(e)
	}
}

// beginFetch tells everybody that a download starts.
func (j *job) beginFetch(o *substitute.Offer) {
	c := j.b.core
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	j.begun = &Event{Kind: Fetching, Activity: c.serial, Path: o.Path, Text: o.URI(), Fetch: Fetch{URL: o.URL, Size: o.NarSize, Packed: o.FileSize}}
	for _, w := range *j.watches.Load() {
		w.tell(*j.begun)
		w.progress(func(c *Counts) { c.Fetch.Running++ })
	}
}

// endFetch tells everybody that it ended.
func (j *job) endFetch(err error) {
	c := j.b.core
	c.mu.Lock()
	defer c.mu.Unlock()
	e := *j.begun
	e.Kind = Fetched
	if err != nil {
		e.Status = protocol.TransientFailure
	}
	j.begun = nil
	for _, w := range *j.watches.Load() {
		w.tell(e)
		w.progress(func(c *Counts) { c.Fetch.Running-- })
	}
}

// tick is how often a download tells how far it is.
const tick = 100 * time.Millisecond

// progress tells everybody how far the download is. The end is told always.
func (j *job) progress() substitute.Progress {
	var mu sync.Mutex
	var last time.Time
	begun := *j.begun
	tell := func(change func(*Fetch) bool) {
		mu.Lock()
		defer mu.Unlock()
		if whole := change(&begun.Fetch); !whole && time.Since(last) < tick {
			return
		}
		last = time.Now()
		e := begun
		e.Kind = FetchProgress
		for _, w := range *j.watches.Load() {
			w.tell(e)
		}
	}
	return substitute.Progress{
		Unpacked: func(n int64) { tell(func(f *Fetch) bool { f.Done = n; return n == f.Size }) },
		Packed:   func(n int64) { tell(func(f *Fetch) bool { f.PackedDone = n; return n == f.Packed }) },
	}
}
