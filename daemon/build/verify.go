package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
	"cairn/store"
	"cairn/store/disk"
)

// Verification is what Verify tells while it works. Functions may be nil.
type Verification struct {
	Say      func(level protocol.Verbosity, line string)
	Progress func(VerifyProgress) // perhaps by several goroutines at once
	Builds   Observer
}

// VerifyProgress says how far the reading of contents is.
type VerifyProgress struct {
	Done, Total, Bad int   // objects
	Read, Size       int64 // bytes of archives, until now and of all
}

// Verify checks the existence of paths, their contents, and the pool of links, which need not be read when all contents are right.
// What has no files and no referrers is forgotten when all paths are looked at. With Repair, what is wrong is mended, references first.
func (b *Builder) Verify(ctx context.Context, q *protocol.VerifyRequest, v *Verification) (*protocol.VerifyResult, error) {
	c := &checkup{b: b, q: q, v: v, result: &protocol.VerifyResult{Findings: []protocol.Finding{}}}
	steps := []func(context.Context) error{c.existence, c.contents, c.links, c.mend, c.unknown}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	for _, f := range c.result.Findings {
		if !f.Fixed && f.Kind != unknownKind {
			c.result.Left++
		}
	}
	return c.result, nil
}

const (
	linkKind    = "link"
	unknownKind = "unknown"
)

// checkup is one call of Verify.
type checkup struct {
	b      *Builder
	q      *protocol.VerifyRequest
	v      *Verification
	result *protocol.VerifyResult
	bad    map[store.Path]int // findings of paths
}

func (c *checkup) say(level protocol.Verbosity, format string, args ...any) {
	if c.v.Say != nil {
		c.v.Say(level, fmt.Sprintf(format, args...))
	}
}

// find notes a finding, and says it when it is to be heard.
func (c *checkup) find(f protocol.Finding) {
	c.result.Findings = append(c.result.Findings, f)
	if f.Kind != unknownKind {
		c.say(protocol.LevelError, "%s", f.Text)
	}
}

func (c *checkup) findAt(p store.Path, f protocol.Finding) {
	if _, known := c.bad[p]; known {
		return
	}
	if c.bad == nil {
		c.bad = map[store.Path]int{}
	}
	c.bad[p] = len(c.result.Findings)
	f.Path = p.String()
	c.find(f)
}

func (c *checkup) all() bool { return c.q.Paths == nil }

// existence looks for files of all paths.
func (c *checkup) existence(ctx context.Context) error {
	c.say(protocol.LevelInfo, "reading the Nix store...")
	c.say(protocol.LevelInfo, "checking path existence...")
	var vanished []store.Path
	var others []disk.Problem
	r, err := c.b.store.Verify(ctx, &disk.VerifyOptions{Paths: c.q.Paths}, func(p disk.Problem) {
		if p.Kind == disk.Vanished {
			vanished = append(vanished, p.Path)
		} else {
			others = append(others, p)
		}
	})
	if err != nil {
		return err
	}
	c.result.Paths = r.Paths
	if err := c.forget(ctx, vanished); err != nil {
		return err
	}
	for _, p := range others {
		if p.Kind == disk.Dangling && len(vanished) > 0 && c.all() {
			continue // it refers to what has just been found
		}
		c.findAt(p.Path, protocol.Finding{Kind: string(p.Kind), Text: fmt.Sprintf("path '%s' %v", p.Path, p.Err)})
	}
	return nil
}

// forget drops what has no files, unless something refers to it or somebody has asked for it.
func (c *checkup) forget(ctx context.Context, vanished []store.Path) error {
	store.SortPaths(vanished)
	var gone []store.Path
	if c.all() && len(vanished) > 0 {
		var err error
		if gone, err = c.b.store.Forget(ctx, vanished); err != nil {
			return err
		}
	}
	for _, p := range gone {
		c.findAt(p, protocol.Finding{Kind: string(disk.Vanished), Fixed: true, How: "removed",
			Text: fmt.Sprintf("path '%s' disappeared, removing from database...", p)})
	}
	for _, p := range vanished {
		text := "path '%s' disappeared, but it still has valid referrers!"
		if !c.all() {
			text = "path '%s' disappeared"
		}
		c.findAt(p, protocol.Finding{Kind: string(disk.Vanished), Text: fmt.Sprintf(text, p)})
	}
	return nil
}

// links reads of the pool of hard links what was not read as part of an object that is as it should be.
func (c *checkup) links(ctx context.Context) error {
	if !c.q.Contents || !c.all() {
		return nil
	}
	c.say(protocol.LevelInfo, "checking link hashes...")
	return c.b.store.VerifyLinks(ctx, disk.LinkCheck{Unshared: len(c.bad) == 0, Remove: c.q.Repair && !c.q.DryRun}, func(l disk.BadLink) {
		f := protocol.Finding{Kind: linkKind, Path: l.Path, Text: fmt.Sprintf("link '%s' was modified! expected hash '%s', got '%s'", l.Path, l.Want, l.Got)}
		if l.Removed {
			f.Fixed, f.How = true, "removed"
		}
		c.find(f)
		if l.Removed {
			c.say(protocol.LevelInfo, "removed link '%s'", l.Path)
		}
	})
}

// contents reads all objects.
func (c *checkup) contents(ctx context.Context) error {
	if !c.q.Contents {
		return nil
	}
	c.say(protocol.LevelInfo, "checking store hashes...")
	var done, bad, read atomic.Int64
	size := c.b.store.Size(c.q.Paths)
	o := &disk.VerifyOptions{Contents: true, Paths: c.q.Paths, Limit: c.q.Limit, Progress: func(n int64) {
		p := VerifyProgress{Done: int(done.Add(1)), Total: c.result.Paths, Bad: int(bad.Load()), Read: read.Add(n), Size: size}
		if c.v.Progress != nil {
			c.v.Progress(p)
		}
	}}
	r, err := c.b.store.Verify(ctx, o, func(p disk.Problem) {
		switch {
		case p.Kind == disk.Dangling, p.Kind == disk.Vanished:
			return // found before
		case p.Kind == disk.Modified && !p.Got.IsZero():
			c.findAt(p.Path, protocol.Finding{Kind: string(p.Kind), Text: fmt.Sprintf("path '%s' was modified! expected hash '%s', got '%s'", p.Path, p.Want, p.Got)})
		default:
			c.findAt(p.Path, protocol.Finding{Kind: string(p.Kind), Text: fmt.Sprintf("path '%s' cannot be read: %v", p.Path, p.Err)})
		}
		bad.Add(1)
	})
	c.result.Bytes = r.Bytes
	return err
}

// mend repairs what was found, references first.
func (c *checkup) mend(ctx context.Context) error {
	if !c.q.Repair {
		return nil
	}
	for _, p := range c.inOrder() {
		f := &c.result.Findings[c.bad[p]]
		if f.Fixed {
			continue
		}
		if c.q.DryRun {
			c.plan(ctx, p, f)
			continue
		}
		how, err := c.b.Mend(ctx, p, c.v.Builds)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			f.Error = err.Error()
			c.say(protocol.LevelError, "path '%s' could not be repaired: %v", p, err)
			continue
		}
		f.Fixed, f.How = true, how
		c.say(protocol.LevelInfo, "repaired path '%s' from %s", p, how)
	}
	return nil
}

// plan says what would be tried.
func (c *checkup) plan(ctx context.Context, p store.Path, f *protocol.Finding) {
	info, err := c.b.store.Registered(p)
	if err == nil {
		f.How, err = c.b.remedy(ctx, info)
	}
	if err != nil {
		f.Error = err.Error()
	}
}

// remedy returns where an object's files would come from.
func (b *Builder) remedy(ctx context.Context, info *store.Info) (string, error) {
	if offer, err := b.sameOffer(ctx, info, b.search(&watch{})); err == nil {
		return "'" + offer.URI() + "'", nil
	}
	if err := b.canBuildAgain(info); err != nil {
		return "", err
	}
	return "'" + info.Deriver.String() + "'", nil
}

// inOrder returns the paths with findings, those referred to first.
func (c *checkup) inOrder() []store.Path {
	var order []store.Path
	seen := map[store.Path]bool{}
	var visit func(p store.Path)
	visit = func(p store.Path) {
		if _, bad := c.bad[p]; !bad || seen[p] {
			return
		}
		seen[p] = true
		if info, err := c.b.store.Registered(p); err == nil {
			for _, r := range info.References {
				visit(r)
			}
		}
		order = append(order, p)
	}
	all := make([]store.Path, 0, len(c.bad))
	for p := range c.bad {
		all = append(all, p)
	}
	for _, p := range store.SortPaths(all) {
		visit(p)
	}
	return order
}

// unknown lists what is in the store directory and nobody knows.
func (c *checkup) unknown(context.Context) error {
	if !c.all() {
		return nil
	}
	names, err := c.b.store.Unknown()
	for _, name := range names {
		c.find(protocol.Finding{Kind: unknownKind, Path: name, Text: fmt.Sprintf("'%s' is in the store directory and no store object", name)})
	}
	return err
}

// Mend gives a registered object the files that it should have: from a cache of the settings, else by building it
// again. It returns where they come from.
func (b *Builder) Mend(ctx context.Context, p store.Path, obs Observer) (string, error) {
	info, err := b.store.Registered(p)
	if err != nil {
		return "", err
	}
	lease := b.store.Lease("repair", 0)
	defer lease.Release()
	if err := lease.Hold(append(slices.Clone(info.References), p)...); err != nil {
		return "", err
	}
	if whole, err := b.store.Intact(ctx, p); err == nil && whole {
		return "what was built with it", nil
	}
	uri, err := b.fetchAgain(ctx, info, obs)
	if err == nil || ctx.Err() != nil {
		return uri, err
	}
	drv, buildErr := b.buildAgain(ctx, info, obs)
	if buildErr != nil {
		return "", fmt.Errorf("%w, and %w", err, buildErr)
	}
	return drv, nil
}

// errNoOffer says that no cache has an object.
var errNoOffer = errors.New("no cache has it")

// fetchAgain replaces an object's files by those of a cache that has the same.
func (b *Builder) fetchAgain(ctx context.Context, info *store.Info, obs Observer) (string, error) {
	search := b.search(&watch{observer: obs})
	for {
		offer, err := b.sameOffer(ctx, info, search)
		if err != nil {
			return "", err
		}
		err = b.fetchOver(ctx, search, offer)
		if err == nil {
			return "'" + offer.URI() + "'", nil
		}
		if _, bad := errors.AsType[*substitute.OfferError](err); !bad || ctx.Err() != nil {
			return "", err
		}
	}
}

// sameOffer finds a cache that has the registered contents of an object.
func (b *Builder) sameOffer(ctx context.Context, info *store.Info, search *substitute.Search) (*substitute.Offer, error) {
	for {
		if err := search.AskAlone(ctx, []store.Path{info.Path}); err != nil {
			return nil, err
		}
		offer, _ := search.Offer(info.Path)
		switch {
		case offer != nil && offer.NarHash == info.NarHash:
			return offer, nil
		case offer != nil:
			search.Refuse(offer, fmt.Errorf("'%s' has other contents", offer.URI()))
			continue
		}
		if why := search.Failure(info.Path); why != nil {
			return nil, why
		}
		return nil, errNoOffer
	}
}

func (b *Builder) fetchOver(ctx context.Context, search *substitute.Search, offer *substitute.Offer) error {
	in, err := search.FetchAgain(ctx, offer, substitute.Progress{})
	if err != nil {
		return err
	}
	defer in.Close()
	return in.Commit(ctx)
}

// buildAgain builds the derivation that made an object.
func (b *Builder) buildAgain(ctx context.Context, info *store.Info, obs Observer) (string, error) {
	if err := b.canBuildAgain(info); err != nil {
		return "", err
	}
	mode := Repair
	if !b.store.IsValid(info.Path) {
		mode = Normal
	}
	list, err := b.request(ctx, b.facts(), []protocol.Target{{Path: info.Deriver, Outputs: protocol.All()}}, mode, obs)
	if err != nil {
		return "", err
	}
	if r := list[0]; !r.Status.OK() {
		return "", &Failure{Status: r.Status, Text: r.Error}
	}
	if whole, err := b.store.Intact(ctx, info.Path); err != nil || !whole {
		return "", fmt.Errorf("building '%s' again gave something else: %w", info.Deriver, errors.Join(err, store.ErrHashMismatch))
	}
	return "'" + info.Deriver.String() + "'", nil
}

func (b *Builder) canBuildAgain(info *store.Info) error {
	if info.Deriver.IsZero() {
		return errors.New("no derivation is known that builds it")
	}
	if !b.store.IsValid(info.Deriver) {
		return fmt.Errorf("derivation '%s' that built it is not valid", info.Deriver)
	}
	return nil
}
