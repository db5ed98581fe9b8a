package eval

import (
	"context"
	"fmt"
	"runtime/metrics"
	"time"
)

// watch ends the evaluation when ctx ends or the heap has grown too far. The result must be called.
func (e *Evaluation) watch(ctx context.Context) (stop func()) {
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		e.watchUntil(ctx, done)
	}()
	return func() {
		close(done)
		<-stopped
	}
}

// watchUntil is the watchdog. It only cancels the interpreter's thread; the reason is recorded by cancelled.
func (e *Evaluation) watchUntil(ctx context.Context, done <-chan struct{}) {
	limit := heap() + e.opts.MaxHeap
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			e.cancel(context.Cause(ctx))
			return
		case <-tick.C:
			if heap() > limit {
				e.cancel(fmt.Errorf("more than %d MiB of memory: does a list or a text grow without end? (%w)", e.opts.MaxHeap>>20, ErrLimit))
				return
			}
		}
	}
}

// heap is the number of bytes that objects of the heap take, dead ones not yet swept included.
func heap() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
