package build

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/daemon/protocol"
	"cairn/store"
)

// repair builds what is missing of targets, then reads everything that their outputs reach, and mends what is damaged (mend.go),
// references first. Whatever reads a damaged object meanwhile sees the old files or the new ones.
// A rebuild repairs only when it gives the registered contents again.
func (b *Builder) repair(ctx context.Context, targets []protocol.Target, obs Observer) ([]*protocol.BuildResult, error) {
	results, err := b.request(leaveDamaged(ctx), b.facts(), targets, Normal, obs)
	if err != nil {
		return nil, err
	}
	lease := b.store.Lease("repair", 0)
	defer lease.Release()
	var roots []store.Path
	for _, r := range results {
		roots = append(roots, pathsOf(r)...)
	}
	if err := lease.Hold(roots...); err != nil {
		return nil, err
	}
	closure, err := b.store.Closure(roots...)
	if err != nil {
		return nil, err
	}
	bad, err := b.damaged(ctx, closure)
	if err != nil {
		return nil, err
	}
	mended := map[store.Path]error{}
	for _, p := range closure {
		if !bad[p] {
			continue
		}
		_, mended[p] = b.Mend(ctx, p, obs, drvsOf(targets)...)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return results, b.blame(results, mended)
}

// drvsOf returns the derivations among targets.
func drvsOf(targets []protocol.Target) (drvs []store.Path) {
	for _, t := range targets {
		if t.Outputs != nil {
			drvs = append(drvs, t.Path)
		}
	}
	return drvs
}

// pathsOf returns the objects that a result is about.
func pathsOf(r *protocol.BuildResult) []store.Path {
	if r.Target.Outputs == nil && r.Status.OK() {
		return []store.Path{r.Target.Path}
	}
	var paths []store.Path
	for _, o := range r.Outputs {
		paths = append(paths, o.OutPath)
	}
	return paths
}

// blame notes in each result whether its closure is whole now.
func (b *Builder) blame(results []*protocol.BuildResult, mended map[store.Path]error) error {
	for _, r := range results {
		for _, o := range pathsOf(r) {
			closure, err := b.store.Closure(o)
			if err != nil {
				return err
			}
			for _, p := range closure {
				err, was := mended[p]
				switch {
				case err != nil && r.Status.OK():
					r.Status, r.Error = statusOf(err), fmt.Sprintf("some paths in the output closure of derivation '%s' could not be repaired: %v", r.Target.Path, err)
					if r.Target.Outputs == nil {
						r.Error = fmt.Sprintf("some paths in the closure of '%s' could not be repaired: %v", r.Target.Path, err)
					}
				case was && r.Status == protocol.AlreadyValid:
					r.Status = protocol.Built
				}
			}
		}
	}
	return nil
}

func statusOf(err error) protocol.Status {
	if err == nil {
		return protocol.Built
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Status
	}
	return protocol.MiscFailure
}

// damaged reads objects and returns those that are not what is registered.
func (b *Builder) damaged(ctx context.Context, paths []store.Path) (map[store.Path]bool, error) {
	var mu sync.Mutex
	bad := map[store.Path]bool{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range paths {
		g.Go(func() error {
			whole, err := b.store.Intact(ctx, p)
			if err == nil && !whole {
				mu.Lock()
				bad[p] = true
				mu.Unlock()
			}
			return err
		})
	}
	return bad, g.Wait()
}

// replace puts outputs that were built again in the place of damaged ones.
func (a *attempt) replace(ctx context.Context) error {
	for _, o := range a.outputs {
		known, same, err := a.known(ctx, o)
		if err != nil {
			return err
		}
		if !same {
			return failure(protocol.NotDeterministic, "'%s' cannot be repaired by building '%s' again: the result is another one", known, a.key.drv)
		}
		if whole, err := a.b.store.Intact(ctx, known); whole || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := a.b.store.ReplaceTree(ctx, known, a.tempOutput(o)); err != nil {
			return fmt.Errorf("repair '%s': %w", known, err)
		}
	}
	return nil
}
