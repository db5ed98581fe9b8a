package disk

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// parallel calls fn for items in their order, by so many goroutines, until one call fails.
func parallel[T any](ctx context.Context, workers int, items []T, fn func(context.Context, T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(workers, len(items)) {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(items); i = int(next.Add(1)) - 1 {
				if err := fn(ctx, items[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
