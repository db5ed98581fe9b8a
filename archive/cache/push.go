package cache

import (
	"context"
	"io"

	"golang.org/x/sync/errgroup"

	"cairn/store"
)

// PushOptions are the choices of a push. The zero value is right for most.
type PushOptions struct {
	Jobs int // objects that are packed and sent at a time; 0: 8
	// Report is told of each object before it is packed, and when it is there. It is called from several goroutines.
	Report func(PushReport)
}

// PushReport tells how far a push is.
type PushReport struct {
	Info *store.Info
	Done *NarInfo // nil: it begins
}

func (o *PushOptions) jobs() int {
	if o == nil || o.Jobs <= 0 {
		return 8
	}
	return o.Jobs
}

func (o *PushOptions) report(r PushReport) {
	if o != nil && o.Report != nil {
		o.Report(r)
	}
}

// questions is how many objects are asked for at a time.
const questions = 25

// Missing returns those objects that a cache lacks, in their order.
func Missing(ctx context.Context, w Writer, infos []*store.Info) ([]*store.Info, error) {
	there := make([]bool, len(infos))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(questions)
	for i, info := range infos {
		group.Go(func() (err error) {
			there[i], err = w.Has(ctx, info.Path)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var missing []*store.Info
	for i, info := range infos {
		if !there[i] {
			missing = append(missing, info)
		}
	}
	return missing, nil
}

// Push writes objects, in which references come first, with archives from a store. Several are packed and
// sent at a time, but each becomes visible after those that it refers to: whoever finds an object in the cache
// finds its closure. References that are not among the objects must be there.
func Push(ctx context.Context, w Writer, infos []*store.Info, from store.Reader, opts *PushOptions) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(opts.jobs())
	pushes := map[store.Path]*pushing{}
	for _, info := range infos {
		p := &pushing{info: info, ended: make(chan struct{})}
		for _, ref := range info.References {
			if before := pushes[ref]; before != nil {
				p.before = append(p.before, before)
			}
		}
		pushes[info.Path] = p
		group.Go(func() error {
			defer close(p.ended)
			return p.run(ctx, w, from, opts)
		})
	}
	return group.Wait()
}

// pushing is an object on its way. Whoever it waits for was started before.
type pushing struct {
	info   *store.Info
	before []*pushing
	ended  chan struct{}
	there  bool // once ended is closed: it is in the cache
}

func (p *pushing) run(ctx context.Context, w Writer, from store.Reader, opts *PushOptions) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	opts.report(PushReport{Info: p.info})
	n, err := w.Upload(ctx, p.info, func(to io.Writer) error { return from.NAR(ctx, p.info.Path, to) })
	if err != nil {
		return err
	}
	for _, b := range p.before {
		if <-b.ended; !b.there {
			return context.Canceled // that one's error is the reason
		}
	}
	if err := w.Publish(ctx, n); err != nil {
		return err
	}
	p.there = true
	opts.report(PushReport{Info: p.info, Done: n})
	return nil
}
