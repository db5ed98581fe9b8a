// Package ship brings closures from one store to another.
//
//	closure of the roots ──► one question: which of these are missing? ──► signed bundles of those, streamed
//
// The whole closure is asked about in one round trip; what the other side has never travels. The bundle
// (package archive) is made and signed by the source's daemon, read and verified by the sink's, and
// passes through here as a stream of which nothing is kept: memory does not grow with the objects, and the time that a
// distance costs not with their number.
//
// Most cargoes are one bundle, whose objects the sink makes visible all or none. A larger one is several, up to 20,000
// objects or about 1 GiB each, because each has a list of limited size, and so that what has arrived stays when the
// connection ends: the next attempt asks again and sends the rest. References come first, so that what is visible is
// always complete; the roots come last.
//
// What is shipped twice at the same time is imported twice; the second import changes nothing.
package ship

import (
	"cmp"
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

	sizes map[store.Path]int64
	most  int // objects of a bundle; 0: bundleObjects
}

// Limits of a bundle. The second is passed by one object at most.
const (
	bundleObjects = 20_000
	bundleBytes   = 1 << 30
)

// bundles splits what is missing.
func (c *Cargo) bundles() [][]store.Path {
	var list [][]store.Path
	most := cmp.Or(c.most, bundleObjects)
	begin, size := 0, int64(0)
	for i, p := range c.Missing {
		if i > begin && (i-begin == most || size >= bundleBytes) {
			list = append(list, c.Missing[begin:i])
			begin, size = i, 0
		}
		size += c.sizes[p]
	}
	return append(list, c.Missing[begin:])
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
	paths := store.PathsOf(infos)
	sizes := make(map[store.Path]int64, len(infos))
	for _, info := range infos {
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
	c := &Cargo{Total: len(paths), sizes: sizes}
	for _, p := range paths {
		if lacks[p] {
			c.Missing = append(c.Missing, p)
			c.NarSize += sizes[p]
		}
	}
	return c, nil
}

// Send ships what Load found missing. Progress, when not nil, is told the bytes sent so far. With an error the result
// counts what has arrived nevertheless.
func Send(ctx context.Context, from Source, to Sink, c *Cargo, progress func(int64)) (Result, error) {
	r := Result{Total: c.Total}
	if len(c.Missing) == 0 {
		return r, nil
	}
	for _, paths := range c.bundles() {
		before := r.Bytes
		n, err := send(ctx, from, to, paths, func(n int64) {
			if progress != nil {
				progress(before + n)
			}
		})
		if err != nil {
			return r, fmt.Errorf("ship %d objects: %w", len(paths), err)
		}
		r.Objects, r.Bytes = r.Objects+len(paths), r.Bytes+n
	}
	return r, nil
}

// send ships one bundle and returns its size.
func send(ctx context.Context, from Source, to Sink, paths []store.Path, progress func(int64)) (int64, error) {
	pr, pw := io.Pipe()
	exported := make(chan error, 1)
	go func() {
		err := from.ExportBundle(ctx, paths, false, pw)
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
		return 0, e
	}
	return in.n.Load(), err
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
	if n > 0 {
		c.progress(total)
	}
	return n, err
}
