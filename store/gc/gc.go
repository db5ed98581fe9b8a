// Package gc finds out which objects of a local store are needed, says why, and deletes the others
// while the store goes on working.
//
// # Roots
//
//	link      STATEDIR/gcroots, recursively: links into the store, links to links into it (gcroots/auto has one for
//	          each indirect root, named by the base-32 SHA-1 of the link's path), files named like objects
//	named     STATEDIR/gcroots/named: links with an owner, a name and perhaps an expiry, see disk.NamedRoot
//	profile   STATEDIR/profiles, in the same way
//	temporary STATEDIR/temproots/<pid> of living clients that write the store's state themselves:
//	          NUL-terminated paths
//	lease     what work in progress holds, see package disk
//	process   executables, mapped files, working directories, open files and environments of the processes that
//	          we may look at
//
// A link in gcroots/auto whose target is gone is removed. A named root that has expired is none, and a deletion removes it. A link that may be a root but cannot be read stops
// the collection: what it keeps is unknown.
//
// # Collection
//
//	begin ──▶ roots ──▶ mark (pure, on a snapshot) ──▶ seal ──▶ sweep in batches, referrers first ──▶ end
//
// From begin on, package disk keeps whatever is added or held, so that the order of events elsewhere does not
// matter, nobody waits for a collection, and a collection that is interrupted has deleted some garbage and
// nothing else. A link that another process makes by itself, without asking the daemon, must
// be held by a lease or temporary root until it is there.
//
// A live object keeps its references; with KeepDerivations (the default) the derivation that made it; with
// KeepOutputs a live derivation keeps its valid outputs.
package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/failpoint"
)

// ErrAlive says that a path cannot be deleted because a root keeps it; the text names the root.
var ErrAlive = errors.New("path is alive")

// batchSize is how many objects are deleted together at most.
const batchSize = 1000

// A batch of objects with many files is made smaller until it takes about as long as this, so that an interruption is heeded, a limit not overshot
// by much, and progress seen.
const (
	slowBatch = 400 * time.Millisecond
	fastBatch = 100 * time.Millisecond
)

// Action says what a collection does, with the numbers of the worker protocol.
type Action uint8

// The actions.
const (
	ReturnLive     Action = iota // list what is needed
	ReturnDead                   // list what is not
	DeleteDead                   // delete it
	DeleteSpecific               // delete Options.Paths, and what needs them, if none is needed
)

// Options of a collection. The zero value lists what is live.
type Options struct {
	Action Action
	// Paths is what DeleteSpecific deletes.
	Paths []store.Path
	// MaxFreed stops the deletion once so many bytes are free; 0 means no limit.
	MaxFreed int64
	// Enough is asked between batches, and stops the deletion; nil: only MaxFreed does.
	Enough func() bool
	// OlderThan spares what was registered since, and what that refers to; zero: nothing.
	OlderThan time.Time
	// DryRun deletes nothing, but the result is what would be deleted, with sizes of archives.
	DryRun bool
	// WithoutLinks are names of links that keep nothing. For dry runs: what would go if they were deleted.
	WithoutLinks []string
	// IgnoreRoots deletes Paths though roots keep them. Leases still count. Danger: links are left dangling.
	IgnoreRoots bool
	// DropDerivations lets derivations go whose outputs are live; by default a live
	// output keeps the derivation that made it.
	DropDerivations bool
	// KeepOutputs keeps the valid outputs of live derivations.
	KeepOutputs bool
	// NoProcesses leaves running processes out of the roots. Danger: programs in use may be deleted.
	NoProcesses bool
	// Progress is called at least each second, by one goroutine at a time, and must return soon; nil is allowed.
	Progress func(Event)
}

// Phase is a part of a collection.
type Phase string

// The phases, in order.
const (
	PhaseRoots Phase = "roots"
	PhaseMark  Phase = "mark"
	PhaseSweep Phase = "sweep"
)

// Event is how far a collection is.
type Event struct {
	Phase   Phase         `json:"phase"`
	Done    int           `json:"done"`  // objects
	Total   int           `json:"total"` // objects; 0: unknown
	Bytes   int64         `json:"bytes"` // freed so far
	Elapsed time.Duration `json:"elapsed"`
	Left    time.Duration `json:"left"` // estimate; 0: unknown
}

// Result is what a collection did or found.
type Result struct {
	Paths      []store.Path `json:"paths"`      // deleted, or what was asked for
	BytesFreed int64        `json:"bytesFreed"` // on disk; of archives in a dry run
	Live       int          `json:"live"`       // objects that are needed
	Roots      int          `json:"roots"`      // roots that keep something
	LinksSave  int64        `json:"linksSave"`  // bytes on disk that hard links save, after a deletion
}

// Collect does what opts says.
func Collect(ctx context.Context, s *disk.Store, opts Options) (Result, error) {
	if opts.Progress != nil {
		r := newReporter(opts.Progress)
		defer r.close()
		opts.Progress = r.tell
	}
	c := &collection{s: s, opts: opts, start: time.Now(), size: batchSize}
	if err := c.run(ctx); err != nil {
		return c.result, fmt.Errorf("collect garbage: %w", err)
	}
	return c.result, nil
}

type collection struct {
	s      *disk.Store
	opts   Options
	start  time.Time
	size   int // of the next batch
	result Result

	disk  *disk.Collection
	edges edges
	live  disk.Set
}

func (c *collection) run(ctx context.Context) error {
	d, err := c.s.Collect(ctx, !c.opts.DropDerivations)
	if err != nil {
		return err
	}
	defer d.End()
	c.disk, c.live = d, disk.NewSet(d.Len())
	c.edges = edges{snap: d.Snapshot, derivers: !c.opts.DropDerivations, outputs: c.opts.KeepOutputs}
	if err := c.mark(ctx); err != nil {
		return err
	}
	switch c.opts.Action {
	case ReturnLive:
		c.list(c.live.Has)
		return nil
	case ReturnDead:
		c.list(func(id uint32) bool { return !c.live.Has(id) })
		return nil
	case DeleteDead:
		return errors.Join(c.sweep(ctx, c.dead()), c.sweepStrays(ctx), c.sweepLinks(ctx))
	case DeleteSpecific:
		ids, err := c.specific(ctx)
		if err != nil {
			return err
		}
		return errors.Join(c.sweep(ctx, ids), c.sweepLinks(ctx))
	}
	return fmt.Errorf("unknown action %d", c.opts.Action)
}

// mark fills the set of live objects.
func (c *collection) mark(ctx context.Context) error {
	var from []uint32
	if c.opts.Action != DeleteSpecific || !c.opts.IgnoreRoots {
		c.progress(PhaseRoots, 0, 0)
		if c.opts.Action == DeleteDead && !c.opts.DryRun {
			c.s.DropExpiredRoots()
		}
		roots, err := findRoots(ctx, c.s, !c.opts.NoProcesses)
		if err != nil {
			return err
		}
		for _, r := range roots {
			if slices.Contains(c.opts.WithoutLinks, r.Link) {
				continue
			}
			if id, ok := c.disk.Find(r.Target); ok {
				from = append(from, id)
				c.result.Roots++
			}
		}
	}
	failpoint.Hit("gc/mark/roots")
	c.progress(PhaseMark, 0, c.disk.Len())
	if err := c.extend(c.live, from); err != nil {
		return err
	}
	if err := c.spareYoung(); err != nil {
		return err
	}
	if err := c.disk.Seal(c.live, c.extend); err != nil {
		return err
	}
	failpoint.Hit("gc/mark/sealed")
	for id := range uint32(c.disk.Len()) {
		if c.disk.Has(id) && c.live.Has(id) {
			c.result.Live++
		}
	}
	return context.Cause(ctx)
}

// spareYoung keeps what Options.OlderThan says, with what it needs. Only what would go is looked up.
func (c *collection) spareYoung() error {
	if c.opts.OlderThan.IsZero() {
		return nil
	}
	var young []uint32
	for id := range uint32(c.disk.Len()) {
		if !c.disk.Has(id) || c.live.Has(id) {
			continue
		}
		info, err := c.s.Registered(c.disk.Path(id))
		if errors.Is(err, store.ErrNotValid) {
			continue
		}
		if err != nil {
			return err
		}
		if info.RegisteredAt >= c.opts.OlderThan.Unix() {
			young = append(young, id)
		}
	}
	return c.extend(c.live, young)
}

// extend adds objects and what they keep to the live ones.
func (c *collection) extend(live disk.Set, from []uint32) error {
	return mark(live, slices.Clone(from), c.edges.keptBy)
}

// markAtOnce is for how many objects mark asks together what they keep.
const markAtOnce = 64

// mark adds to live everything that is reachable. Numbers that live has no room for are newer
// than it, and not its business.
func mark(live disk.Set, from []uint32, kept func(ids, found []uint32) ([]uint32, error)) error {
	var grey []uint32
	found := from
	var batch [markAtOnce]uint32
	for {
		for _, id := range found {
			if int(id/64) < len(live) && live.Add(id) {
				grey = append(grey, id)
			}
		}
		if len(grey) == 0 {
			return nil
		}
		left := max(0, len(grey)-markAtOnce)
		n := copy(batch[:], grey[left:])
		grey = grey[:left]
		var err error
		if found, err = kept(batch[:n], found[:0]); err != nil {
			return err
		}
	}
}

func (c *collection) list(want func(uint32) bool) {
	for id := range uint32(c.disk.Len()) {
		if c.disk.Has(id) && want(id) {
			c.result.Paths = append(c.result.Paths, c.disk.Path(id))
		}
	}
	store.SortPaths(c.result.Paths)
}

// dead returns what is not live, referrers first.
func (c *collection) dead() []uint32 {
	var ids []uint32
	for id := range uint32(c.disk.Len()) {
		if c.disk.Has(id) && !c.live.Has(id) {
			ids = append(ids, id)
		}
	}
	return referrersFirst(ids, c.disk.Len(), func(id uint32) []uint32 {
		if c.live.Has(id) {
			return nil
		}
		return c.disk.References(id)
	})
}

// referrersFirst orders the objects reachable from ids so that none comes before one that refers to it:
// the reverse of a depth-first post-order.
func referrersFirst(ids []uint32, n int, refs func(uint32) []uint32) []uint32 {
	seen := disk.NewSet(n)
	wanted := disk.NewSet(n)
	for _, id := range ids {
		wanted.Add(id)
	}
	order := disk.PostOrder(ids, func(id uint32) bool { return wanted.Has(id) && seen.Add(id) }, refs)
	slices.Reverse(order)
	return order
}

// specific returns Options.Paths and the dead objects that refer to them, referrers first.
func (c *collection) specific(ctx context.Context) ([]uint32, error) {
	closure, err := c.s.ReferrersClosure(c.opts.Paths...)
	if err != nil {
		return nil, err
	}
	given := map[store.Path]bool{}
	for _, p := range c.opts.Paths {
		given[p] = true
		if id, ok := c.disk.Find(p); ok && c.live.Has(id) {
			return nil, c.alive(ctx, p)
		}
	}
	var ids []uint32
	for _, p := range closure {
		id, ok := c.disk.Find(p)
		if c.opts.IgnoreRoots && !given[p] {
			return nil, fmt.Errorf("delete %s: %w: %s refers to it", c.opts.Paths[0], ErrAlive, p)
		}
		if ok {
			ids = append(ids, id)
		}
	}
	return referrersFirst(ids, c.disk.Len(), c.disk.References), nil
}

// alive makes the error that names a root of a path.
func (c *collection) alive(ctx context.Context, p store.Path) error {
	chains, err := Why(ctx, c.s, p)
	if err == nil && len(chains) > 0 {
		return fmt.Errorf("delete %s: %w: %s", p, ErrAlive, chains[0])
	}
	return fmt.Errorf("delete %s: %w: work in progress holds it", p, ErrAlive)
}

// sweep deletes objects in batches.
func (c *collection) sweep(ctx context.Context, ids []uint32) error {
	c.result.Paths = make([]store.Path, 0, len(ids))
	begin := time.Now()
	for done := 0; done < len(ids); {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if c.enough() {
			break
		}
		batch, began := ids[done:min(done+c.batch(), len(ids))], time.Now()
		if err := c.delete(batch); err != nil {
			return err
		}
		c.size = pace(c.size, time.Since(began))
		failpoint.Hit("gc/sweep/batch")
		done += len(batch)
		c.swept(done, len(ids), begin)
	}
	failpoint.Hit("gc/sweep/objects")
	return nil
}

// enough reports whether what was to be freed is.
func (c *collection) enough() bool {
	return c.opts.MaxFreed > 0 && c.result.BytesFreed >= c.opts.MaxFreed || c.opts.Enough != nil && c.opts.Enough()
}

// sweepStrays removes what is no object, unless the collection was to free only so much and has.
func (c *collection) sweepStrays(ctx context.Context) error {
	if c.opts.DryRun || c.enough() {
		return nil
	}
	freed, err := c.s.SweepStrays(ctx)
	c.result.BytesFreed += freed
	return err
}

// sweepLinks removes what is only in the pool of links any more. What that frees was counted with the last object that had it.
func (c *collection) sweepLinks(ctx context.Context) error {
	if c.opts.DryRun {
		return nil
	}
	_, saved, err := c.s.SweepLinks(ctx)
	c.result.LinksSave = saved
	return err
}

// batch returns the size of the next batch: small when there is a limit, so as not to overshoot it.
func (c *collection) batch() int {
	if c.opts.MaxFreed > 0 || c.opts.Enough != nil {
		return min(32, c.size)
	}
	return c.size
}

// pace returns the size of the batch after one of a size that took so long.
func pace(size int, took time.Duration) int {
	switch {
	case took > slowBatch:
		return max(1, size/2)
	case took < fastBatch:
		return min(batchSize, size*2)
	}
	return size
}

func (c *collection) delete(batch []uint32) error {
	if c.opts.DryRun {
		for _, id := range batch {
			c.result.Paths = append(c.result.Paths, c.disk.Path(id))
			c.result.BytesFreed += c.disk.Size(id)
		}
		return nil
	}
	deleted, err := c.disk.Delete(batch)
	for _, d := range deleted {
		c.result.Paths = append(c.result.Paths, d.Path)
		c.result.BytesFreed += d.Freed
	}
	return err
}

func (c *collection) swept(done, total int, begin time.Time) {
	if c.opts.Progress == nil {
		return
	}
	elapsed := time.Since(begin)
	left := time.Duration(float64(elapsed) / float64(done) * float64(total-done))
	c.opts.Progress(Event{Phase: PhaseSweep, Done: done, Total: total, Bytes: c.result.BytesFreed, Elapsed: time.Since(c.start), Left: left})
}

func (c *collection) progress(phase Phase, done, total int) {
	if c.opts.Progress != nil {
		c.opts.Progress(Event{Phase: phase, Done: done, Total: total, Elapsed: time.Since(c.start)})
	}
}
