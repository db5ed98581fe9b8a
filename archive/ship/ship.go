// Package ship brings closures from one store to another.
//
//	closure of the roots ──► one question: which of these are missing? ──► one signed bundle of those, streamed
//
// The whole closure is asked about in one round trip; what the other side has never travels. The bundle
// (package archive) is made and signed by the source's daemon, read and verified by the sink's, and
// passes through here as a stream of which nothing is kept: memory does not grow with the closure.
// The sink makes all objects visible or none.
//
// What is shipped twice at the same time is imported twice; the second import changes nothing.
// A bundle that was cut off starts again: there is no resume yet.
package ship

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"cairn/store"
)

// Source is where objects come from; a client.Conn is one. It signs what it exports.
type Source interface {
	Closure(ctx context.Context, paths []store.Path) ([]*store.Info, error)
	ExportBundle(ctx context.Context, paths []store.Path, closure bool, w io.Writer) error
}

// Sink is where objects go.
type Sink interface {
	// Missing returns those of the paths that are not valid there.
	Missing(ctx context.Context, paths []store.Path) ([]store.Path, error)
	// ImportBundle makes the objects of a bundle valid, all or none.
	ImportBundle(ctx context.Context, r io.Reader) ([]store.Path, error)
}

// Cargo is what a closure comes to, and what of it travels.
type Cargo struct {
	Total   int          // objects of the closure
	Missing []store.Path // references first
	NarSize int64        // of the missing ones, unpacked
}

// Result counts what travelled.
type Result struct {
	Total   int   `json:"total"`   // objects of the closure
	Objects int   `json:"objects"` // that were sent
	Bytes   int64 `json:"bytes"`   // of the bundle, as sent
}

// Load finds out what the sink lacks.
func Load(ctx context.Context, from Source, to Sink, roots []store.Path) (*Cargo, error) {
	infos, err := from.Closure(ctx, roots)
	if err != nil {
		return nil, fmt.Errorf("find closure: %w", err)
	}
	sizes := make(map[store.Path]int64, len(infos))
	paths := make([]store.Path, len(infos))
	for i, info := range infos {
		paths[i] = info.Path
		sizes[info.Path] = info.NarSize
	}
	missing, err := to.Missing(ctx, paths)
	if err != nil {
		return nil, err
	}
	lacks := make(map[store.Path]bool, len(missing))
	for _, p := range missing {
		if _, asked := sizes[p]; !asked {
			return nil, fmt.Errorf("ask for missing objects: answer names %s, which was not asked about", p)
		}
		lacks[p] = true
	}
	c := &Cargo{Total: len(paths)}
	for _, p := range paths {
		if lacks[p] {
			c.Missing = append(c.Missing, p)
			c.NarSize += sizes[p]
		}
	}
	return c, nil
}

// Send ships what Load found missing. Progress, when not nil, is told the bytes sent so far.
func Send(ctx context.Context, from Source, to Sink, c *Cargo, progress func(int64)) (Result, error) {
	r := Result{Total: c.Total}
	if len(c.Missing) == 0 {
		return r, nil
	}
	pr, pw := io.Pipe()
	exported := make(chan error, 1)
	go func() {
		err := from.ExportBundle(ctx, c.Missing, false, pw)
		pw.CloseWithError(err)
		exported <- err
	}()
	in := &counter{r: pr, progress: progress}
	_, err := to.ImportBundle(ctx, in)
	stopped := errStopped
	if err != nil {
		stopped = fmt.Errorf("%w: %w", errStopped, err)
	}
	pr.CloseWithError(stopped)
	if e := <-exported; e != nil && !errors.Is(e, errStopped) {
		return r, fmt.Errorf("ship %d objects: %w", len(c.Missing), e)
	}
	if err != nil {
		return r, fmt.Errorf("ship %d objects: %w", len(c.Missing), err)
	}
	r.Objects, r.Bytes = len(c.Missing), in.n.Load()
	return r, nil
}

// errStopped is what the exporting side sees when the importing side wants no more.
var errStopped = errors.New("import ended")

// Ship is Load and Send.
func Ship(ctx context.Context, from Source, to Sink, roots []store.Path) (Result, error) {
	c, err := Load(ctx, from, to, roots)
	if err != nil {
		return Result{}, err
	}
	return Send(ctx, from, to, c, nil)
}

// counter counts what is read through it.
type counter struct {
	r        io.Reader
	n        atomic.Int64
	progress func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	total := c.n.Add(int64(n))
	if c.progress != nil && n > 0 {
		c.progress(total)
	}
	return n, err
}
