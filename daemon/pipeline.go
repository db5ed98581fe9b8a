package daemon

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"cairn/store"
	"cairn/store/disk"
)

// Limits of a pipeline. It keeps two batches in memory.
const (
	smallArchive = 256 << 10
	batchBytes   = 2 << 20
	batchObjects = 1024
	leastBatch   = 64 // objects, for which a commit by itself is worth while when nothing else is done
)

// pipeline adds small objects of one upload in batches: while one is added, the next is read.
// Only the session's goroutine calls its methods.
type pipeline struct {
	ctx   context.Context
	store *disk.Store
	list  []disk.Archive // that is being filled
	size  int            // of its archives
	buf   []byte         // where its newest archives are
	other []byte         // the buffer of the batch that is being added
	busy  chan error     // gives that batch's error; nil when there is none
	err   error          // the first; nothing is added after it
}

func newPipeline(ctx context.Context, s *disk.Store) *pipeline { return &pipeline{ctx: ctx, store: s} }

// add reads a small archive of the size that info says.
func (p *pipeline) add(info *store.Info, r io.Reader) error {
	size := int(info.NarSize)
	if len(p.list) == batchObjects || p.size+size > batchBytes {
		if err := p.hand(); err != nil {
			return err
		}
	}
	at := len(p.buf)
	if cap(p.buf) < at+size { // those before stay where they are
		p.buf, at = make([]byte, 0, min(batchBytes, max(2*cap(p.buf), smallArchive))), 0
	}
	p.size += size
	p.buf = p.buf[:at+size]
	nar := p.buf[at:]
	if _, err := io.ReadFull(r, nar); err != nil {
		return fmt.Errorf("add %s: %w", info.Path, err)
	}
	p.list = append(p.list, disk.Archive{Info: info, NAR: nar})
	if len(p.list) >= leastBatch && (p.busy == nil || len(p.busy) > 0) { // nothing is being added
		return p.hand()
	}
	return nil
}

// hand has the batch added in the background, after the one before.
func (p *pipeline) hand() error {
	if err := p.await(); err != nil {
		return err
	}
	list, busy := p.list, make(chan error, 1)
	p.list, p.size, p.busy = nil, 0, busy
	p.buf, p.other = p.other[:0], p.buf
	go func() { busy <- p.store.AddAll(p.ctx, list) }()
	return nil
}

// await waits for the batch in the background.
func (p *pipeline) await() error {
	if p.busy != nil {
		p.err = cmp.Or(p.err, <-p.busy)
		p.busy = nil
	}
	return p.err
}

// flush waits until everything is added.
func (p *pipeline) flush() error {
	if err := p.hand(); err != nil {
		return err
	}
	return p.await()
}
