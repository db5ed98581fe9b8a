package daemon

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/gc"
)

func (x *session) addTempRoot(_ context.Context, p store.Path) (reply, error) {
	return one, x.hold(p)
}

func readLink(d *protocol.Decoder) string { return d.Text(protocol.MaxPath) }

func (x *session) addIndirectRoot(_ context.Context, link string) (reply, error) {
	return one, x.server.store.AddIndirectRoot(link)
}

// permRoot is the request of AddPermRoot.
type permRoot struct {
	path store.Path
	link string
}

func readPermRoot(d *protocol.Decoder) permRoot {
	return permRoot{d.Path(), d.Text(protocol.MaxPath)}
}

func (x *session) addPermRoot(_ context.Context, q permRoot) (reply, error) {
	return func(e *protocol.Encoder) error {
		e.Text(q.link)
		return nil
	}, x.server.store.AddPermRoot(q.path, q.link)
}

// syncWithGC has nothing to do: additions never wait for a collection.
func (x *session) syncWithGC(context.Context, struct{}) (reply, error) { return one, nil }

// censored stands for a root that is not the business of who asks.
const censored = "{censored}"

// findRoots shows links to everybody, what others run or work on only to who may inspect.
func (x *session) findRoots(ctx context.Context, _ struct{}) (reply, error) {
	found, err := gc.Roots(ctx, x.server.store)
	if err != nil {
		return nil, err
	}
	var roots []protocol.Root
	for _, r := range found {
		if !x.server.store.IsValid(r.Target) {
			continue
		}
		link := r.Link
		if !public(r.Kind) {
			if link = "{" + string(r.Kind) + ":" + r.Link + "}"; !x.may(archive.Inspect) {
				link = censored
			}
		}
		if root := (protocol.Root{Link: link, Target: r.Target}); !slices.Contains(roots[max(0, len(roots)-64):], root) {
			roots = append(roots, root)
		}
	}
	return func(e *protocol.Encoder) error {
		e.Roots(roots)
		return nil
	}, nil
}

// collectGarbage collects as Nix's clients ask for it.
func (x *session) collectGarbage(ctx context.Context, o *protocol.GCOptions) (reply, error) {
	opts := gc.Options{Action: gc.Action(o.Action), Paths: o.Paths}
	switch {
	case o.Action > protocol.GCDeleteSpecific:
		return nil, fmt.Errorf("collect garbage: unknown action %d", o.Action)
	case o.IgnoreLiveness:
		return nil, fmt.Errorf("collect garbage: ignoring liveness: %w", protocol.ErrNotAllowed)
	case o.MaxFreed == 0 && o.Action >= protocol.GCDeleteDead:
		return nothingFreed, nil
	case o.MaxFreed < math.MaxInt64:
		opts.MaxFreed = int64(o.MaxFreed)
	}
	if x.d.Has(protocol.FeatureDeleteReferrers) {
		if err := x.choose(ctx, o, &opts); err != nil {
			return nil, err
		}
	}
	if opts.Action == gc.DeleteSpecific && len(opts.Paths) == 0 {
		return nothingFreed, nil
	}
	if opts.Action >= gc.DeleteDead {
		if err := x.need(archive.GC, "collect garbage"); err != nil {
			return nil, err
		}
		x.tell("finding garbage collector roots...")
	}
	r, err := x.collectValid(ctx, opts)
	if err != nil {
		return nil, err
	}
	if opts.Action >= gc.DeleteDead && !opts.DryRun {
		for _, p := range r.Paths {
			x.tell("deleting '" + p.String() + "'")
		}
	}
	return func(e *protocol.Encoder) error {
		e.GCResult(r)
		return nil
	}, nil
}

// tell sends a line of log, unless the client wants less.
func (x *session) tell(line string) { x.say(protocol.LevelInfo, line) }

// say sends a line of log of a level.
func (x *session) say(level protocol.Verbosity, line string) {
	if level > x.set.level {
		return
	}
	x.tunnel.send(&protocol.Message{Kind: protocol.KindNext, Text: line + "\n"})
}

// nothingFreed is the reply to a request to free no byte.
func nothingFreed(e *protocol.Encoder) error {
	e.GCResult(&protocol.GCResult{})
	return nil
}

// choose applies what FeatureDeleteReferrers adds: any action may be about some paths only, and what
// refers to them, if it is dead, goes with them only on demand.
func (x *session) choose(ctx context.Context, o *protocol.GCOptions, opts *gc.Options) error {
	switch {
	case o.Whole:
		opts.Paths = nil
		if opts.Action == gc.DeleteSpecific {
			opts.Action = gc.DeleteDead
		}
		return nil
	case o.Action == protocol.GCDeleteSpecific:
		if o.DeleteReferrers {
			return nil
		}
		return x.noOtherReferrers(o.Paths)
	}
	if o.Action == protocol.GCReturnLive {
		return nil
	}
	dead, err := x.deadOf(ctx, o.Paths, o.DeleteReferrers)
	opts.DryRun = o.Action == protocol.GCReturnDead
	opts.Action, opts.Paths = gc.DeleteSpecific, dead
	return err
}

// deadOf returns which of the paths can be deleted: those that are dead and, unless what refers to them may
// go with them, are referred to only by each other.
func (x *session) deadOf(ctx context.Context, paths []store.Path, referrers bool) ([]store.Path, error) {
	r, err := gc.Collect(ctx, x.server.store, gc.Options{Action: gc.ReturnDead, DropDerivations: !x.set.KeepDerivations, KeepOutputs: x.set.KeepOutputs})
	if err != nil {
		return nil, err
	}
	dead := map[store.Path]bool{}
	for _, p := range r.Paths {
		dead[p] = true
	}
	chosen := map[store.Path]bool{}
	for _, p := range paths {
		chosen[p] = dead[p]
	}
	var list []store.Path
	for _, p := range paths {
		if !dead[p] {
			continue
		}
		closure, err := x.server.store.ReferrersClosure(p)
		if err != nil {
			return nil, err
		}
		if referrers || !slices.ContainsFunc(closure, func(q store.Path) bool { return !chosen[q] }) {
			list = append(list, p)
		}
	}
	return list, nil
}

// noOtherReferrers checks that only the paths themselves refer to the paths.
func (x *session) noOtherReferrers(paths []store.Path) error {
	closure, err := x.server.store.ReferrersClosure(paths...)
	if err != nil {
		return err
	}
	for _, p := range closure {
		if !slices.Contains(paths, p) {
			return fmt.Errorf("delete: %w: %s refers to what is to be deleted", disk.ErrAlive, p)
		}
	}
	return nil
}

// collectValid is collectWith where, as in Nix, what is to be deleted and not valid counts as deleted.
func (x *session) collectValid(ctx context.Context, opts gc.Options) (*protocol.GCResult, error) {
	if opts.Action != gc.DeleteSpecific {
		return x.collectWith(ctx, opts)
	}
	var gone []store.Path
	var valid []store.Path
	for _, p := range opts.Paths {
		if x.server.store.IsValid(p) {
			valid = append(valid, p)
		} else {
			gone = append(gone, p)
		}
	}
	r := &protocol.GCResult{}
	if opts.Paths = valid; len(valid) > 0 {
		var err error
		if r, err = x.collectWith(ctx, opts); err != nil {
			return nil, err
		}
	}
	r.Paths = append(r.Paths, gone...)
	return r, nil
}

// collectWith collects as the session's settings say, with progress on an activity of its own.
func (x *session) collectWith(ctx context.Context, opts gc.Options) (*protocol.GCResult, error) {
	id := x.server.ids.Add(1)
	x.tunnel.send(&protocol.Message{Kind: protocol.KindStart, ID: id, Level: protocol.LevelTalkative, Text: "collecting garbage"})
	defer x.tunnel.send(&protocol.Message{Kind: protocol.KindStop, ID: id})
	opts.DropDerivations, opts.KeepOutputs = !x.set.KeepDerivations, x.set.KeepOutputs
	opts.Progress = func(e gc.Event) {
		x.tunnel.send(&protocol.Message{Kind: protocol.KindResult, ID: id, Result: protocol.ResSetPhase, Fields: []protocol.Field{protocol.Text(string(e.Phase))}})
		x.tunnel.send(&protocol.Message{Kind: protocol.KindResult, ID: id, Result: protocol.ResProgress, Fields: numbers(e.Done, e.Total, 0, 0, int(e.Bytes), int(e.Left/time.Second))})
	}
	r, err := gc.Collect(ctx, x.server.store, opts)
	if err != nil {
		return nil, err
	}
	if opts.Action >= gc.DeleteDead && !opts.DryRun {
		x.tell(fmt.Sprintf("note: currently hard linking saves %.2f MiB", float64(r.LinksSave)/(1<<20)))
	}
	freed := r.BytesFreed
	if opts.Action < gc.DeleteDead {
		freed = 0
	}
	return &protocol.GCResult{Paths: r.Paths, BytesFreed: freed}, nil
}

// collect collects as our own client asks for it.
func (x *session) collect(ctx context.Context, q *protocol.GCRequest) (reply, error) {
	if q.MaxFreed < 0 {
		return nil, fmt.Errorf("collect garbage: max-freed is negative")
	}
	if !q.DryRun {
		if err := x.need(archive.GC, "collect garbage"); err != nil {
			return nil, err
		}
	}
	opts := gc.Options{Action: gc.DeleteDead, MaxFreed: q.MaxFreed, DryRun: q.DryRun}
	if len(q.Paths) > 0 {
		opts.Action, opts.Paths = gc.DeleteSpecific, q.Paths
	}
	if q.OlderThan != 0 {
		opts.OlderThan = time.Unix(q.OlderThan, 0)
	}
	if q.DryRun {
		opts.WithoutLinks = q.WithoutLinks
	}
	if err := x.untilFree(&opts, q.Free); err != nil {
		return nil, fmt.Errorf("collect garbage: %w", err)
	}
	r, err := x.collectWith(ctx, opts)
	if err != nil {
		return nil, err
	}
	return replyJSON(r)
}

// untilFree stops a collection when so much is free. A dry run frees nothing, so that what is missing now is its limit.
func (x *session) untilFree(opts *gc.Options, want string) error {
	if want == "" {
		return nil
	}
	amount, err := settings.ParseAmount(want)
	if err != nil {
		return err
	}
	free, err := x.server.store.Space()
	if err != nil {
		return err
	}
	enough := func() bool {
		now, err := x.server.store.Space()
		return err == nil && !below(now, amount)
	}
	opts.Enough = enough
	if missing, _ := amount.Of(free.TotalBytes, 0); opts.DryRun && below(free, amount) {
		opts.Enough = nil
		if missing -= free.Bytes; missing > 0 && (opts.MaxFreed == 0 || missing < opts.MaxFreed) {
			opts.MaxFreed = missing
		}
	}
	return nil
}

// gcWhy answers with chains; whose process or lease it is, only who may inspect learns.
func (x *session) gcWhy(ctx context.Context, p store.Path) (reply, error) {
	found, err := gc.Why(ctx, x.server.store, p)
	if err != nil {
		return nil, err
	}
	chains := make([]protocol.Chain, 0, len(found))
	for _, c := range found {
		chain := protocol.Chain{Kind: string(c.Root.Kind), Link: censored, Paths: c.Paths}
		if x.may(archive.Inspect) || public(c.Root.Kind) {
			who := protocol.Who(c.Root.Who())
			chain.Link, chain.Who = c.Root.Link, &who
		}
		chains = append(chains, chain)
	}
	return replyJSON(chains)
}
