package substitute

import (
	"context"
	"fmt"
	"io"

	"cairn/archive/cache"
	"cairn/store"
)

// Log returns the build log of a derivation from the first cache that has it, or an error that is store.ErrNotValid.
func (s *Search) Log(ctx context.Context, drv store.Path) (io.ReadCloser, error) {
	if s.None() {
		return nil, fmt.Errorf("log of %s: %w", drv, store.ErrNotValid)
	}
	for _, src := range s.caches.ordered(ctx, s.watch.Warn) {
		c, ok := src.opened().(cache.Logs)
		if !ok {
			continue
		}
		if r, err := c.Log(ctx, drv); err == nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("log of %s: %w", drv, store.ErrNotValid)
}
