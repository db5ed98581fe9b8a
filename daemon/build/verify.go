package build

import (
	"context"
	"fmt"
	"sync/atomic"

	"cairn/daemon/protocol"
	"cairn/store"
	"cairn/store/disk"
)

// Verification is what Verify tells while it works. Functions may be nil.
type Verification struct {
	Say      func(level protocol.Verbosity, line string)
	Progress func(VerifyProgress)   // perhaps by several goroutines at once
	Plan     func(protocol.Finding) // what will be done about a finding, before anything is
	Builds   Observer
}

// VerifyProgress says how far the reading of contents is.
type VerifyProgress struct {
	Done, Total, Bad int   // objects
	Read, Size       int64 // bytes of archives, until now and of all
}

// Verify checks the existence of paths, their contents, and the pool of links, which need not be read when all contents are right.
// What has no files and no referrers is forgotten when all paths are looked at. With Repair, what is wrong is planned for and mended
// (mend.go), references first; what cannot be mended keeps nothing else from it.
func (b *Builder) Verify(ctx context.Context, q *protocol.VerifyRequest, v *Verification) (*protocol.VerifyResult, error) {
	c := &checkup{b: b, q: q, v: v, result: &protocol.VerifyResult{Findings: []protocol.Finding{}}}
	steps := []func(context.Context) error{c.objects, c.links, c.plan, c.apply, c.unknown}
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
	wrong  atomic.Int64       // problems until now
	bad    map[store.Path]int // findings of paths
	steps  []store.Path       // those to be mended, in that order
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

// objects looks for the files of all paths, and reads them when their contents are asked for.
func (c *checkup) objects(ctx context.Context) error {
	c.say(protocol.LevelInfo, "reading the Nix store...")
	c.say(protocol.LevelInfo, "checking path existence...")
	o := &disk.VerifyOptions{Contents: c.q.Contents, Paths: c.q.Paths, Limit: c.q.Limit}
	if c.q.Contents {
		c.say(protocol.LevelInfo, "checking store hashes...")
		o.Progress = c.progress()
	}
	var vanished []store.Path
	var dangling []disk.Problem
	r, err := c.b.store.Verify(ctx, o, func(p disk.Problem) {
		switch p.Kind {
		case disk.Vanished:
			vanished = append(vanished, p.Path)
		case disk.Dangling:
			dangling = append(dangling, p)
		default:
			c.findAt(p.Path, damaged(p))
		}
		c.wrong.Add(1)
	})
	if err != nil {
		return err
	}
	c.result.Paths = r.Paths
	if c.q.Contents {
		c.result.Bytes = r.Bytes
	}
	if err := c.forget(ctx, vanished); err != nil {
		return err
	}
	if len(vanished) > 0 && c.all() {
		return nil // what dangles refers to what has just been found
	}
	for _, p := range dangling {
		c.findAt(p.Path, protocol.Finding{Kind: string(p.Kind), Text: fmt.Sprintf("path '%s' %v", p.Path, p.Err)})
	}
	return nil
}

// progress tells how far the reading is.
func (c *checkup) progress() func(read int64) {
	if c.v.Progress == nil {
		return nil
	}
	total, size := len(c.q.Paths), c.b.store.Size(c.q.Paths)
	if c.all() {
		total, _ = c.b.store.Count()
	}
	var done, read atomic.Int64
	return func(n int64) {
		c.v.Progress(VerifyProgress{Done: int(done.Add(1)), Total: total, Bad: int(c.wrong.Load()), Read: read.Add(n), Size: size})
	}
}

// damaged is the finding of an object whose files are not what they should be.
func damaged(p disk.Problem) protocol.Finding {
	text := fmt.Sprintf("path '%s' cannot be read: %v", p.Path, p.Err)
	if p.Kind == disk.Modified && !p.Got.IsZero() {
		text = fmt.Sprintf("path '%s' was modified! expected hash '%s', got '%s'", p.Path, p.Want, p.Got)
	}
	return protocol.Finding{Kind: string(p.Kind), Text: text}
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

// plan finds, for what was found, where new files may come from, and tells it.
func (c *checkup) plan(ctx context.Context) error {
	if !c.q.Repair {
		return nil
	}
	damaged := make([]store.Path, 0, len(c.bad))
	for p := range c.bad {
		if !c.result.Findings[c.bad[p]].Fixed {
			damaged = append(damaged, p)
		}
	}
	c.steps = repairOrder(store.SortPaths(damaged), c.references)
	if !c.q.DryRun && c.v.Plan == nil {
		return nil
	}
	for _, p := range c.steps {
		f := &c.result.Findings[c.bad[p]]
		if err := c.b.prescribe(ctx, p, f); err != nil {
			return err
		}
		if c.v.Plan != nil {
			c.v.Plan(*f)
		}
	}
	return nil
}

func (c *checkup) references(p store.Path) []store.Path {
	info, err := c.b.store.Registered(p)
	if err != nil {
		return nil
	}
	return info.References
}

// apply repairs what was found, as far as that is possible.
func (c *checkup) apply(ctx context.Context) error {
	if c.q.DryRun {
		return nil
	}
	for _, p := range c.steps {
		how, err := c.b.Mend(ctx, p, c.v.Builds)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f := &c.result.Findings[c.bad[p]]
		if err != nil {
			f.How, f.Error, f.NeededBy = "", err.Error(), c.b.store.Dependents(p)
			c.say(protocol.LevelError, "path '%s' could not be repaired: %v", p, err)
			continue
		}
		f.Fixed, f.How, f.Error = true, how, ""
		c.say(protocol.LevelInfo, "repaired path '%s' from %s", p, how)
	}
	return nil
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
