package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"cairn/store"
)

// Limits of a pipeline: what it may keep in memory is their product.
const (
	smallArchive = 256 << 10
	maxWaiting   = 16
)

// pipeline adds several small objects of one upload at the same time, so that they share the store's commits.
// Only the session's goroutine calls its methods.
type pipeline struct {
	ctx   context.Context // ends at the first error
	group *errgroup.Group
	added map[store.Path]chan struct{}
}

func newPipeline(ctx context.Context) *pipeline {
	p := &pipeline{added: map[store.Path]chan struct{}{}}
	p.group, p.ctx = errgroup.WithContext(ctx)
	p.group.SetLimit(maxWaiting)
	return p
}

// start runs add in the background, after waiting for one of maxWaiting places.
func (p *pipeline) start(path store.Path, add func() error) {
	done := make(chan struct{})
	p.added[path] = done
	p.group.Go(func() error {
		defer close(done)
		return add()
	})
}

// await waits for paths that are being added.
func (p *pipeline) await(paths []store.Path) error {
	for _, path := range paths {
		if done, ok := p.added[path]; ok {
			<-done
			delete(p.added, path)
		}
	}
	return context.Cause(p.ctx)
}

// end waits for all. It returns the first error of those in the background, unless err is another one.
func (p *pipeline) end(err error) error {
	first := p.group.Wait()
	if err == nil || first != nil && errors.Is(err, first) {
		return first
	}
	return err
}

// bounded refuses what is longer than was announced.
type bounded struct {
	w    io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, fmt.Errorf("nar has more bytes than announced: %w", store.ErrHashMismatch)
	}
	return b.w.Write(p)
}
