package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
)

// Machines are other computers that build for this one.
type Machines interface {
	// Offer takes a place for a request at the machine that suits it best. It does not wait.
	Offer(r *Request) Offer
}

// Request is a derivation that looks for a machine.
type Request struct {
	Drv      store.Path
	System   string
	Native   string             // this machine's, which machines build for that say nothing
	Features []string           // that it requires
	Settings *settings.Settings // say which machines there are; they never change
	Here     bool               // it can also be built on this machine
	Failed   map[string]error   // machines that failed it, by name; they are not offered again
}

// Offer is the answer to a Request: a machine, or when to ask again, or neither.
type Offer struct {
	Machine Machine
	Again   <-chan struct{} // closed when a place may be free
	Why     []string        // what speaks against each machine
}

// Machine is a place at another computer.
type Machine interface {
	Name() string
	// Build builds there and makes the outputs valid here. An error says that the machine failed, not the
	// build, which may then succeed elsewhere. When ctx ends, so does the build there.
	Build(ctx context.Context, t *Task) (*protocol.BuildResult, error)
	// Release gives the place back.
	Release()
}

// Task is what a machine is to build. Its inputs are held by a lease meanwhile.
type Task struct {
	Drv      store.Path
	Plain    *derivation.Derivation // with the inputs' paths in the place of their derivations
	Inputs   []store.Path           // their closure, references first
	Settings *settings.Settings
	Log      io.Writer
}

// here says why a derivation cannot be built on this machine.
func (b *Builder) here(path store.Path, d *derivation.Derivation) error {
	builtin := strings.HasPrefix(d.Builder, "builtin:")
	if b.settings.MaxJobs == 0 && !builtin {
		return errors.New("nothing is built here, because max-jobs is 0")
	}
	features, mine := requiredFeatures(d), b.features()
	lacks := func(f string) bool { return !slices.Contains(mine, f) }
	if (builtin || d.System == "builtin" || slices.Contains(b.systems(), d.System)) && !slices.ContainsFunc(features, lacks) {
		return nil
	}
	return fmt.Errorf("a '%s' with features {%s} is required to build '%s', but I am a '%s' with features {%s}",
		d.System, strings.Join(features, ", "), path, b.systems()[0], strings.Join(mine, ", "))
}

// systems are what can be built here, this machine's own first.
func (b *Builder) systems() []string {
	list := b.opts.Systems
	if b.settings.System != "" {
		list = []string{b.settings.System}
	}
	return append(slices.Clip(list), b.settings.ExtraPlatforms...)
}

// requiredFeatures are what a derivation demands of a machine, sorted.
func requiredFeatures(d *derivation.Derivation) []string {
	attrs, err := (&attempt{job: &job{}, drv: d}).structured()
	if err != nil {
		attrs = nil
	}
	return slices.Compact(slices.Sorted(slices.Values(attrs.words(d.Env, "requiredSystemFeatures"))))
}

// prefersHere reports whether a derivation costs less to build than to send.
func prefersHere(d *derivation.Derivation) bool {
	if attrs, err := (&attempt{job: &job{}, drv: d}).structured(); err == nil && attrs != nil {
		prefers, _ := attrs["preferLocalBuild"].(bool)
		return prefers
	}
	return d.Env["preferLocalBuild"] == "1"
}

// perform builds on the best machine, which may be this one, and on the next best when a machine fails.
func (j *job) perform(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	failed := map[string]error{}
	for {
		m, release, err := j.where(ctx, failed)
		if err != nil {
			return nil, err
		}
		if m == nil {
			place := &seat{core: j.b.core, release: release}
			defer place.end()
			j.begin("")
			return (&attempt{job: j, drv: j.drv, seat: place}).run(ctx, r)
		}
		j.begin(m.Name())
		paths, err := (&attempt{job: j, drv: j.drv, machine: m}).runAway(ctx, r)
		release()
		broken, ok := errors.AsType[*machineError](err)
		if !ok {
			return paths, err
		}
		failed[m.Name()] = broken.err
		j.b.opts.Logger.Warn("machine failed a build", "machine", m.Name(), "drv", j.key.drv.String(), "error", broken.err)
	}
}

// where takes a place for the job. Without a machine it is one here.
func (j *job) where(ctx context.Context, failed map[string]error) (Machine, func(), error) {
	here := j.b.here(j.key.drv, j.drv)
	away := j.b.opts.Machines != nil && j.kind != derivation.Impure && j.key.mode == Normal
	switch {
	case here == nil && (!away || prefersHere(j.drv)):
		release, err := j.b.place(ctx)
		return nil, release, err
	case !away:
		return nil, nil, failure(protocol.InputRejected, "%s", nowhere(j, here, nil))
	}
	req := &Request{
		Drv: j.key.drv, System: j.drv.System, Native: j.b.systems()[0], Features: requiredFeatures(j.drv), Settings: j.b.settings, Here: here == nil, Failed: failed,
	}
	if len(failed) == 0 {
		leave, err := j.b.queue(ctx, req)
		if err != nil {
			return nil, nil, err
		}
		defer leave()
	}
	return j.search(ctx, req, here)
}

// search waits for a place on whatever machine has one first.
func (j *job) search(ctx context.Context, req *Request, here error) (Machine, func(), error) {
	places := j.b.places
	if here != nil {
		places = nil
	}
	for {
		offer := j.b.opts.Machines.Offer(req)
		if offer.Machine != nil {
			return offer.Machine, offer.Machine.Release, nil
		}
		if here != nil && offer.Again == nil {
			return nil, nil, failure(protocol.InputRejected, "%s", nowhere(j, here, offer.Why))
		}
		select {
		case places <- struct{}{}:
			return nil, func() { <-places }, nil
		case <-offer.Again:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// queue is where requests of one kind wait for the first of them to find a place: of a thousand, one asks.
type queue struct {
	head  chan struct{} // a token for the first
	users int           // guarded by core.mu
}

// queue waits until a request is the first of its kind, which ends when leave is called.
func (c *core) queue(ctx context.Context, r *Request) (leave func(), err error) {
	key := strings.Join([]string{r.System, r.Native, strings.Join(r.Features, ","), fmt.Sprint(r.Here), r.Settings.Builders}, "\x00")
	c.mu.Lock()
	q := c.queues[key]
	if q == nil {
		q = &queue{head: make(chan struct{}, 1)}
		c.queues[key] = q
	}
	q.users++
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if q.users--; q.users == 0 {
			delete(c.queues, key)
		}
	}
	select {
	case q.head <- struct{}{}:
		return func() { <-q.head; forget() }, nil
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
}

// nowhere says why nobody can build a job.
func nowhere(j *job, here error, why []string) string {
	if j.b.settings.MaxJobs == 0 {
		here = fmt.Errorf("unable to start the build of '%s'; either increase '--max-jobs' or enable remote builds", j.key.drv)
	}
	if len(why) == 0 {
		return here.Error()
	}
	return here.Error() + "; no other machine can build it:\n  " + strings.Join(why, "\n  ")
}

// machineError is that of a machine, not of the build.
type machineError struct{ err error }

func (e *machineError) Error() string { return e.err.Error() }
func (e *machineError) Unwrap() error { return e.err }

// runAway is run for an attempt on another machine.
func (a *attempt) runAway(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	if err := a.collectInputs(); err != nil {
		return nil, err
	}
	if err := a.execute(ctx, r); err != nil {
		return nil, err
	}
	paths := map[string]store.Path{}
	for name := range a.drv.Outputs {
		p, err := a.fetched(name, r)
		if err != nil {
			return nil, &machineError{err}
		}
		paths[name] = p
	}
	if err := a.record(ctx, paths, nil); err != nil {
		return nil, err
	}
	return paths, a.postBuildHook(ctx, paths)
}

// fetched checks an output that another machine is said to have built.
func (a *attempt) fetched(name string, r *protocol.BuildResult) (store.Path, error) {
	want, err := outputPath(a.facts, a.drv, name)
	if err != nil {
		return store.Path{}, err
	}
	if want.IsZero() {
		want = r.Outputs[name].OutPath
	}
	if want.IsZero() || !a.facts.valid(want) {
		return store.Path{}, fmt.Errorf("machine '%s' did not deliver output '%s' of '%s'", a.machine.Name(), name, a.key.drv)
	}
	return want, nil
}

// away runs the builder on another machine.
func (a *attempt) away(ctx context.Context, r *protocol.BuildResult) error {
	plain := a.drv.Clone()
	plain.InputDrvs, plain.InputSrcs = nil, a.direct
	got, err := a.machine.Build(ctx, &Task{Drv: a.key.drv, Plain: plain, Inputs: a.inputs, Settings: a.b.settings, Log: a.log})
	a.log.Close()
	if err != nil {
		a.log.note(fmt.Sprintf("machine '%s' failed: %v", a.machine.Name(), err))
		return &machineError{err}
	}
	start := r.Start
	*r = *got
	r.Start, r.Error = start, ""
	if !got.Status.OK() {
		return failure(got.Status, "build of '%s' on '%s' failed: %s", a.key.drv, a.machine.Name(), got.Error)
	}
	r.Status = protocol.Built
	return nil
}
