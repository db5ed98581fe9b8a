// Package substitute finds store objects in caches and fetches them.
//
// A Pool belongs to a daemon and keeps caches by URI: their connections, what is known of them, and whether they can be used
// at the moment. Caches are those that one session's settings name. A Search is what one request asks of them.
//
//	Pool ── source by URI and settings of connections ── cache.Cache, breaker, narinfos of the last minute
//	 └─ Caches (settings, warnings of a session) ── in the order of priority
//	     └─ Search (answers of a request, refusals) ── Ask → Offer → Fetch
//
// # Asking
//
// Ask takes paths that are not valid and finds who has them and, from the answers, what they refer to and is not valid: breadth first, many
// at a time (setting http-connections). Of each path the caches are asked one after the other by priority, the lowest number first, until
// one has an acceptable offer. A search remembers its answers, also negative ones; nobody else remembers those, so that what was pushed a moment
// ago is found. Positive ones live for a minute in the source.
//
// # Bad caches
//
// Before a source is used its nix-cache-info is asked for, once for everybody who waits. That and every later question has the time of
// connect-timeout. What does not answer, answers with an error, or lies (a narinfo of another path, an archive of another hash) is a miss
// and opens the source's breaker: nobody asks it for a while, 60 seconds at first, twice as long each time, up to 16 minutes. Each session
// is told once. When the time is over the first who comes asks for nix-cache-info again.
// An archive that is not there any more, though its narinfo is, costs the offer only, not the cache.
//
// # Trust
//
// An offer is acceptable when it proves itself (content-addressed: the path follows from hash and references, and the store checks the
// hash), or carries a signature by a key of trusted-public-keys or one that the ACL lets import, or needs none: require-sigs is false, or the URI says
// trusted=true. Settings see to it that a client who is not trusted can say neither. Others are skipped with a warning, and the next cache is asked.
//
// # Other store directories
//
// A cache whose URI says store=DIR may be of another store directory. What is in it has other names and, if it refers to anything, other
// contents; what refers to nothing and is addressed by content has the same. That is found by its content address, which fixed-output derivations
// say (Expect), and must prove itself.
//
// # Fetching
//
// Fetch streams an archive into an import of the store, which checks hash and size while it is unpacked and keeps it out of sight.
// A failure that is the cache's fault is an *OfferError; the offer is refused for the rest of the search, so that Ask finds the next. It is for the
// caller to make the import valid, references first, and to see to it that nothing is fetched twice at the same time.
//
// Lock order: Pool.mu, Caches.mu, Search.mu, source.mu; none is held while a cache is asked.
package substitute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/archive"
	"cairn/daemon/settings"
	"cairn/store"
	"cairn/store/disk"
)

// Options are the choices of a pool; the zero value works.
type Options struct {
	// ACL is the file with further keys that may import; the default is "acl" in the layout's ConfDir.
	ACL string
	// SSHOptions are NIX_SSHOPTS, for stores behind ssh.
	SSHOptions string
	// Logger is told of caches that fail; the default is silence.
	Logger *slog.Logger
}

// Pool keeps the caches of a daemon. It is safe for concurrent use.
type Pool struct {
	store *disk.Store
	opts  Options
	life  context.Context
	die   context.CancelCauseFunc
	work  sync.WaitGroup // probes

	mu      sync.Mutex // guards what follows
	closed  bool
	sources map[sourceKey]*source
}

// maxSources is how many caches a pool keeps; those not used for the longest time go first.
const maxSources = 64

var errClosed = errors.New("the daemon is shutting down")

// NewPool returns a pool for a store.
func NewPool(s *disk.Store, opts *Options) *Pool {
	p := &Pool{store: s, sources: map[sourceKey]*source{}}
	if opts != nil {
		p.opts = *opts
	}
	if p.opts.ACL == "" {
		p.opts.ACL = filepath.Join(s.Layout().ConfDir, "acl")
	}
	if p.opts.Logger == nil {
		p.opts.Logger = slog.New(slog.DiscardHandler)
	}
	p.life, p.die = context.WithCancelCause(context.Background())
	return p
}

// Close ends what is asked and closes connections.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	sources := p.sources
	p.sources = nil
	p.mu.Unlock()
	p.die(errClosed)
	p.work.Wait()
	for _, s := range sources {
		s.close()
	}
	return nil
}

// source returns the source of a URI, making it when there is none.
func (p *Pool) source(key sourceKey) *source {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sources[key]
	if s == nil {
		s = newSource(p, key)
		if !p.closed {
			p.evict()
			p.sources[key] = s
		}
	}
	s.touch()
	return s
}

// evict makes room for one more source. The caller holds mu.
func (p *Pool) evict() {
	for len(p.sources) >= maxSources {
		var oldest *source
		for _, s := range p.sources {
			if oldest == nil || s.lastUsed().Before(oldest.lastUsed()) {
				oldest = s
			}
		}
		delete(p.sources, oldest.key)
		oldest.close()
	}
}

// Caches are what a session fetches from. They are safe for concurrent use.
type Caches struct {
	pool     *Pool
	settings *settings.Settings
	keys     []archive.PublicKey // of trusted-public-keys
	sources  []*source

	mu     sync.Mutex // guards what follows
	warned map[string]bool
	quiet  int // warnings about offers so far
	acl    []archive.PublicKey
	read   time.Time // when acl was
}

// Caches returns the caches that settings name, none when they say substitute = false.
// The settings must not change any more.
func (p *Pool) Caches(set *settings.Settings) *Caches {
	c := &Caches{pool: p, settings: set, warned: map[string]bool{}}
	if !set.Substitute {
		return c
	}
	for _, text := range set.TrustedPublicKeys {
		if k, err := archive.ParsePublicKey(text); err == nil {
			c.keys = append(c.keys, k)
		}
	}
	for _, uri := range set.Substituters {
		key := p.keyOf(uri, set)
		if !slices.ContainsFunc(c.sources, func(s *source) bool { return s.key == key }) {
			c.sources = append(c.sources, p.source(key))
		}
	}
	return c
}

// None reports whether there is no cache to ask.
func (c *Caches) None() bool { return c == nil || len(c.sources) == 0 }

// aclTime is for how long the access list is not read again.
const aclTime = 2 * time.Second

// trusted returns the keys whose signatures count.
func (c *Caches) trusted() []archive.PublicKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.read) > aclTime {
		acl, err := archive.LoadACL(c.pool.opts.ACL)
		if err != nil {
			c.pool.opts.Logger.Warn("read access list", "error", err)
		}
		c.acl, c.read = acl.Keys(archive.Import), time.Now()
	}
	return append(slices.Clip(c.keys), c.acl...)
}

// accept says whether an offer of a source may become valid here, if its contents are what it says.
func (c *Caches) accept(s *source, info *store.Info) error {
	if !info.CA.IsZero() {
		return info.CheckContentAddress()
	}
	if c.free(s) {
		return nil
	}
	if _, ok := archive.VerifyInfo(info, c.trusted()); ok {
		return nil
	}
	return fmt.Errorf("%s %w", info.Path, store.ErrUntrusted)
}

// maxQuiet is after how many warnings about offers a session hears no more of them.
const maxQuiet = 10

// once reports whether a warning is new to the session.
func (c *Caches) once(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.warned[text] || len(c.warned) > 1000 {
		return false
	}
	c.warned[text] = true
	return true
}

// ordered returns the sources that can be used, by priority, and tells what is wrong with the others.
func (c *Caches) ordered(ctx context.Context, warn func(string)) []*source {
	type ranked struct {
		s        *source
		priority int
	}
	list := make([]ranked, len(c.sources))
	var wait sync.WaitGroup
	for i, s := range c.sources {
		wait.Go(func() {
			n, err := s.ready(ctx)
			if err != nil {
				c.report(ctx, s, err, warn)
				return
			}
			list[i] = ranked{s, n}
		})
	}
	wait.Wait()
	list = slices.DeleteFunc(list, func(r ranked) bool { return r.s == nil })
	slices.SortStableFunc(list, func(a, b ranked) int { return a.priority - b.priority })
	sources := make([]*source, len(list))
	for i, r := range list {
		sources[i] = r.s
	}
	return sources
}

// report tells a session, once for each time that a source is given up, why.
func (c *Caches) report(ctx context.Context, s *source, err error, warn func(string)) {
	if ctx.Err() != nil || warn == nil {
		return
	}
	key, left := s.outage()
	if !c.once("down " + s.uri + key) {
		return
	}
	text := err.Error()
	if !strings.Contains(text, s.uri) {
		text = s.uri + ": " + text
	}
	warn(fmt.Sprintf("cache '%s' is not used for %d seconds: %s", s.uri, int(left.Seconds()+0.5), text))
}
