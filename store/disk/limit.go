package disk

import (
	"context"
	"io"
	"sync"
	"time"
)

// pace limits what many readers read together, in bytes per second. A nil one has no limit.
type pace struct {
	rate int64

	mu   sync.Mutex
	next time.Time // when all that was read before is paid for
}

func newPace(rate int64) *pace {
	if rate <= 0 {
		return nil
	}
	return &pace{rate: rate}
}

// pay waits until n more bytes may have been read.
func (p *pace) pay(ctx context.Context, n int) error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	wait := p.next.Sub(now)
	p.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pacedWriter is a writer for what is read at a pace.
type pacedWriter struct {
	ctx  context.Context
	pace *pace
	w    io.Writer
}

func (p pacedWriter) Write(b []byte) (int, error) {
	if err := p.pace.pay(p.ctx, len(b)); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}
