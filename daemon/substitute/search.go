package substitute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/archive/cache"
	"cairn/store"
)

// maxFound is how many paths one search looks for: a cache could make up references without end.
const maxFound = 200_000

// Watch is told what a search does. Nil functions are not called; the others may be called by several goroutines.
type Watch struct {
	// Warn is told, in a sentence, of caches that are not used and of offers that are not acceptable.
	Warn func(text string)
	// Asking is told that a cache is asked for a path; what it returns is called when it has answered.
	Asking func(p store.Path, uri string) (answered func())
}

// Offer is an object that a cache has.
type Offer struct {
	*cache.NarInfo
	source *source
	there  *cache.NarInfo // as the source describes it; not the same when the source is of another store directory
}

// URI says where the offer comes from, without credentials.
func (o *Offer) URI() string { return o.source.uri }

// Search is what one request asks of caches. It is safe for concurrent use.
type Search struct {
	caches *Caches
	watch  Watch

	mu       sync.Mutex // guards what follows
	found    map[store.Path]*Offer
	refused  map[refusal]bool
	outputs  map[store.DrvOutput]*Realised
	failures map[store.Path]error // why the last offer was refused
	contents map[store.Path]store.ContentAddress
}

// refusal is an offer that has failed.
type refusal struct {
	s *source
	p store.Path
}

// Search begins a search. None of its answers is older than that, except narinfos of the last minute.
func (c *Caches) Search(w Watch) *Search {
	return &Search{
		caches: c, watch: w, found: map[store.Path]*Offer{}, refused: map[refusal]bool{}, outputs: map[store.DrvOutput]*Realised{},
		failures: map[store.Path]error{}, contents: map[store.Path]store.ContentAddress{},
	}
}

// Expect says that a path without references has a content address. With that it is found in caches of other store directories, too.
func (s *Search) Expect(p store.Path, ca store.ContentAddress) {
	if s.None() || ca.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contents[p] = ca
}

// there returns what a path is called in the store directory of a source, or zero when it cannot be there.
func (s *Search) there(src *source, p store.Path) (store.Path, store.ContentAddress) {
	dir := src.storeDir()
	if dir == p.Dir() {
		return p, store.ContentAddress{}
	}
	s.mu.Lock()
	ca := s.contents[p]
	s.mu.Unlock()
	if ca.IsZero() {
		return store.Path{}, ca
	}
	other, err := dir.ContentPath(p.Name(), ca, store.References{})
	if err != nil {
		return store.Path{}, ca
	}
	return other, ca
}

// here makes an offer of what a source has. One of another store directory is taken only as its contents, which must prove themselves.
func here(src *source, p store.Path, ca store.ContentAddress, n *cache.NarInfo) *Offer {
	if n.Path == p {
		return &Offer{n, src, n}
	}
	mine := *n
	mine.Info = store.Info{Path: p, NarHash: n.NarHash, NarSize: n.NarSize, CA: ca, References: n.References}
	return &Offer{&mine, src, n}
}

// None reports whether there is no cache to ask.
func (s *Search) None() bool { return s == nil || s.caches.None() }

// Offer returns what is known of a path: an offer, or nil when nobody has it. asked is false when that is not known yet.
func (s *Search) Offer(p store.Path) (o *Offer, asked bool) {
	if s.None() {
		return nil, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, asked = s.found[p]
	return o, asked
}

// Refuse drops an offer for the rest of the search: the path must be asked for again.
func (s *Search) Refuse(o *Offer, why error) {
	o.source.forget(o.there.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[refusal{o.source, o.Path}] = true
	s.failures[o.Path] = why
	if s.found[o.Path] == o {
		delete(s.found, o.Path)
	}
}

// Failure returns why the last offer of a path was refused, or nil.
func (s *Search) Failure(p store.Path) error {
	if s.None() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures[p]
}

// Ask finds who has paths and what they refer to, so that Offer knows all of them. The error is that of ctx, or of a closure that is too
// large: caches that fail are misses.
func (s *Search) Ask(ctx context.Context, paths []store.Path) error { return s.ask(ctx, paths, true) }

// AskAlone is Ask without what the paths refer to.
func (s *Search) AskAlone(ctx context.Context, paths []store.Path) error {
	return s.ask(ctx, paths, false)
}

// AskMany is AskAlone of those caches only that bear being asked for much.
func (s *Search) AskMany(ctx context.Context, paths []store.Path) error {
	if s.None() {
		return nil
	}
	sources := slices.DeleteFunc(s.caches.ordered(ctx, s.watch.Warn), func(src *source) bool { return !src.bearsMuch() })
	return s.askSources(ctx, sources, paths, false)
}

func (s *Search) ask(ctx context.Context, paths []store.Path, closure bool) error {
	if s.None() || len(paths) == 0 {
		return nil
	}
	return s.askSources(ctx, s.caches.ordered(ctx, s.watch.Warn), paths, closure)
}

func (s *Search) askSources(ctx context.Context, sources []*source, paths []store.Path, closure bool) error {
	q := &queue{seen: map[store.Path]bool{}}
	q.more.L = &q.mu
	for _, p := range paths {
		q.put(p)
	}
	n := s.caches.settings.HTTPConnections
	if n <= 0 {
		n = defaultConnections
	}
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, q.end)
	defer stop()
	for range min(n, defaultConnections) {
		g.Go(func() error {
			for {
				p, ok := q.take()
				if !ok {
					return context.Cause(ctx)
				}
				refs, err := s.find(ctx, sources, p)
				if !closure {
					refs = nil
				}
				if q.done(refs) > maxFound {
					err = fmt.Errorf("ask caches: more than %d paths are referred to", maxFound)
				}
				if err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// find makes the answer for one path and returns the references that are not valid.
func (s *Search) find(ctx context.Context, sources []*source, p store.Path) ([]store.Path, error) {
	o, asked := s.Offer(p)
	if !asked {
		var err error
		if o, err = s.offerOf(ctx, sources, p); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.found[p] = o
		s.mu.Unlock()
	}
	if o == nil {
		return nil, nil
	}
	var refs []store.Path
	for _, r := range o.References {
		if r != p && !s.caches.pool.store.IsValid(r) {
			refs = append(refs, r)
		}
	}
	return refs, nil
}

// offerOf asks one source after the other.
func (s *Search) offerOf(ctx context.Context, sources []*source, p store.Path) (*Offer, error) {
	for _, src := range sources {
		s.mu.Lock()
		refused := s.refused[refusal{src, p}]
		s.mu.Unlock()
		if refused {
			continue
		}
		other, ca := s.there(src, p)
		if other.IsZero() {
			continue
		}
		n, err := s.question(ctx, src, other)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, store.ErrNotValid):
		case err != nil:
			s.caches.report(ctx, src, err, s.watch.Warn)
		default:
			o := here(src, p, ca, n)
			if err := s.caches.accept(src, &o.Info); err != nil {
				s.reject(src, p, err)
				continue
			}
			src.remember(n)
			return o, nil
		}
	}
	return nil, nil
}

func (s *Search) question(ctx context.Context, src *source, p store.Path) (*cache.NarInfo, error) {
	if n := src.recall(p); n != nil {
		return n, nil
	}
	if s.watch.Asking != nil {
		defer s.watch.Asking(p, src.uri)()
	}
	return src.narInfo(ctx, p)
}

// reject tells why an offer is not taken.
func (s *Search) reject(src *source, p store.Path, err error) {
	text := fmt.Sprintf("ignoring substitute for '%s' from '%s': %v", p, src.uri, err)
	if errors.Is(err, store.ErrUntrusted) {
		text = fmt.Sprintf("ignoring substitute for '%s' from '%s', as it's not signed by any of the keys in 'trusted-public-keys' or the access list", p, src.uri)
	}
	s.mu.Lock()
	s.failures[p] = errors.New(text)
	s.mu.Unlock()
	s.caches.complain(text, s.watch.Warn)
}

// complain tells a session of an offer, unless it has heard of that or of many.
func (c *Caches) complain(text string, warn func(string)) {
	if warn == nil || !c.once(text) {
		return
	}
	c.mu.Lock()
	c.quiet++
	n := c.quiet
	c.mu.Unlock()
	switch {
	case n < maxQuiet:
		warn(text)
	case n == maxQuiet:
		warn(text + "; more of that kind is not told")
	}
}

// queue is what is still to be asked, first come first served.
type queue struct {
	mu    sync.Mutex
	more  sync.Cond
	seen  map[store.Path]bool
	list  []store.Path
	busy  int
	ended bool
}

// put adds a path that was not there before. The caller holds mu, or nobody else knows q.
func (q *queue) put(p store.Path) {
	if !q.seen[p] {
		q.seen[p] = true
		q.list = append(q.list, p)
	}
}

// take waits for something to ask. At the end there is nothing any more.
func (q *queue) take() (store.Path, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.list) == 0 && q.busy > 0 && !q.ended {
		q.more.Wait()
	}
	if len(q.list) == 0 || q.ended {
		return store.Path{}, false
	}
	p := q.list[0]
	q.list = q.list[1:]
	q.busy++
	return p, true
}

// done adds what an answer gave and returns how many paths were seen.
func (q *queue) done(more []store.Path) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range more {
		q.put(p)
	}
	q.busy--
	q.more.Broadcast()
	return len(q.seen)
}

func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.more.Broadcast()
}
