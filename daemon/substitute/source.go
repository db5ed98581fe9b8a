package substitute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"cairn/archive/cache"
	"cairn/daemon/settings"
	"cairn/store"
)

// Cache is what objects are fetched from.
type Cache interface {
	// Info returns what the cache says of itself.
	Info(ctx context.Context) (*cache.Info, error)
	// NarInfo returns the description of a path, or an error that is store.ErrNotValid.
	NarInfo(ctx context.Context, p store.Path) (*cache.NarInfo, error)
	// NAR returns the unpacked archive. The end of ctx ends a Read that waits. io.EOF comes only after all hashes and sizes proved right.
	NAR(ctx context.Context, n *cache.NarInfo) (io.ReadCloser, error)
}

// sourceKey is a URI and the settings that a connection depends on: a client's patience is its own.
type sourceKey struct {
	uri              string
	connect, stalled time.Duration
	attempts, conns  int
	netrc            string
}

func (p *Pool) keyOf(uri string, set *settings.Settings) sourceKey {
	netrc := cmp.Or(set.NetrcFile, filepath.Join(p.store.Layout().ConfDir, "netrc"))
	return sourceKey{uri, set.ConnectTimeout, set.StalledTimeout, set.DownloadAttempts, set.HTTPConnections, netrc}
}

// Bounds of a breaker.
const (
	firstPause = time.Minute
	maxPause   = 16 * time.Minute
)

// Bounds of what a source remembers.
const (
	memoryTime = time.Minute
	maxMemory  = 1 << 15
)

// defaultPatience is the time of a question when connect-timeout is 0, maxPatience the longest, because anybody may choose it; defaultConnections the parallel ones when http-connections is.
const (
	defaultPatience    = 5 * time.Second
	maxPatience        = time.Minute
	defaultConnections = 100
)

// source is a cache and how it behaves.
//
//	unknown ──nix-cache-info──▶ ready ──fails, lies──▶ skipped ──time──▶ unknown
//	   └──────────fails───────────────────────────────────▲
type source struct {
	pool     *Pool
	key      sourceKey
	uri      string // without credentials
	trusted  bool
	foreign  bool          // the URI says that the cache may be of another store directory
	priority int           // that the URI says, or -1
	places   chan struct{} // one for each connection
	loads    chan struct{} // half of them, for downloads: questions must not wait for those while their time runs

	mu       sync.Mutex // guards what follows
	cache    Cache
	rank     int  // the priority that counts, once ready
	mass     bool // it bears being asked for much
	dir      store.Dir
	probing  *probe // under way
	usable   bool
	failures int
	outages  int
	until    time.Time // skipped before
	reason   error
	known    map[store.Path]memory
	packed   map[*cache.NarInfo]func(int64) // who wants to know how much of an archive has come
	used     time.Time
	closed   bool
}

// memory is a narinfo of a moment ago.
type memory struct {
	info *cache.NarInfo
	read time.Time
}

// probe is a question for nix-cache-info that several wait for.
type probe struct {
	done chan struct{}
	err  error
}

func newSource(p *Pool, key sourceKey) *source {
	s := &source{pool: p, key: key, uri: key.uri, priority: -1}
	n := key.conns
	if n <= 0 {
		n = defaultConnections
	}
	s.places, s.loads = make(chan struct{}, n), make(chan struct{}, max(1, n/2))
	base, query, _ := strings.Cut(key.uri, "?")
	if u, err := url.Parse(base); err == nil && u.User != nil {
		s.uri = u.Redacted()
	} else {
		s.uri = base
	}
	values, _ := url.ParseQuery(query)
	s.trusted = values.Get("trusted") == "true" || values.Get("trusted") == "1"
	s.foreign = values.Has("store")
	if n, err := strconv.Atoi(values.Get("priority")); err == nil && n >= 0 {
		s.priority = n
	}
	return s
}

func (s *source) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = time.Now()
}

func (s *source) lastUsed() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// close closes idle connections; what is under way goes on.
func (s *source) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	switch c := s.cache.(type) {
	case nil:
	case io.Closer:
		c.Close()
	case cache.Cache:
		cache.CloseIdle(c)
	}
}

// patience is how long a question may take.
func (s *source) patience() time.Duration {
	d := min(s.key.connect, maxPatience)
	if d <= 0 {
		d = defaultPatience
	}
	if strings.HasPrefix(s.key.uri, "ssh") {
		d *= 3 // ssh has more to say before it is there
	}
	return d
}

// ready returns the source's priority when it can be used, after asking what it is if that is not known.
func (s *source) ready(ctx context.Context) (int, error) {
	s.mu.Lock()
	switch {
	case s.usable:
		defer s.mu.Unlock()
		return s.rank, nil
	case time.Now().Before(s.until):
		defer s.mu.Unlock()
		return 0, s.reason
	case s.probing == nil:
		s.probing = &probe{done: make(chan struct{})}
		s.pool.work.Go(s.probe)
	}
	p := s.probing
	s.mu.Unlock()
	select {
	case <-p.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rank, p.err
}

// probe asks what the source is.
func (s *source) probe() {
	ctx, cancel := context.WithTimeoutCause(s.pool.life, s.patience(), s.timeout())
	defer cancel()
	c, info, err := s.open(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.probing
	s.probing = nil
	if c != nil {
		s.cache = c
	}
	if p.err = err; err != nil {
		s.pause(err)
	} else {
		s.rank, s.mass, s.dir, s.usable = info.Priority, info.WantMassQuery, info.StoreDir, true
	}
	close(p.done)
}

func (s *source) timeout() error { return fmt.Errorf("it does not answer within %v", s.patience()) }

// open opens the cache and asks what it is.
func (s *source) open(ctx context.Context) (Cache, *cache.Info, error) {
	s.mu.Lock()
	c := s.cache
	s.mu.Unlock()
	if c == nil {
		var err error
		if c, err = s.openURI(); err != nil {
			return nil, nil, err
		}
	}
	info, err := c.Info(ctx)
	if err != nil {
		return c, nil, explain(ctx, err)
	}
	if dir := s.pool.store.Dir(); info.StoreDir != dir && !s.foreign {
		return c, nil, fmt.Errorf("it is for the store directory '%s', this one is '%s'", info.StoreDir, dir)
	}
	if s.priority >= 0 { // of a peer; package cache sees to the others
		info.Priority = s.priority
	}
	return c, info, nil
}

// explain says that time was over rather than what that broke.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// pause opens the breaker. The caller holds mu.
func (s *source) pause(err error) {
	d := min(firstPause<<min(s.failures, 10), maxPause)
	s.failures++
	s.outages++
	s.usable = false
	s.reason, s.until = err, time.Now().Add(d)
	s.known = nil
	s.pool.opts.Logger.Warn("cache is not used", "uri", s.uri, "for", d, "error", err)
}

// fail gives the source up for a while, unless somebody has since.
func (s *source) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usable {
		s.pause(err)
	}
}

// works remembers that the source did what it should.
func (s *source) works() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usable {
		s.failures = 0
	}
}

// storeDir returns the store directory of a source that is ready.
func (s *source) storeDir() store.Dir {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dir
}

// bearsMuch reports whether the source wants to be asked for what it may not have.
func (s *source) bearsMuch() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mass
}

// outage names the outage and says how long it lasts.
func (s *source) outage() (string, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf(" %d", s.outages), max(0, time.Until(s.until))
}

// opened returns the cache, which ready has opened.
func (s *source) opened() Cache {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cache
}

// place takes one of the source's connections.
func (s *source) place(ctx context.Context) (release func(), err error) {
	select {
	case s.places <- struct{}{}:
		return func() { <-s.places }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// loadPlace takes one of the source's connections for a download.
func (s *source) loadPlace(ctx context.Context) (release func(), err error) {
	select {
	case s.loads <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	leave, err := s.place(ctx)
	if err != nil {
		<-s.loads
		return nil, err
	}
	return func() {
		leave()
		<-s.loads
	}, nil
}

// ask puts one question to the cache. An answer of no is store.ErrNotValid; any other error but the end of ctx
// opens the breaker.
func (s *source) ask(ctx context.Context, question func(context.Context, Cache) error) error {
	if _, err := s.ready(ctx); err != nil {
		return err
	}
	release, err := s.place(ctx)
	if err != nil {
		return err
	}
	defer release()
	if _, err := s.ready(ctx); err != nil { // it may have failed while others waited for it
		return err
	}
	short, cancel := context.WithTimeoutCause(ctx, s.patience(), s.timeout())
	defer cancel()
	err = question(short, s.opened())
	switch {
	case err == nil, errors.Is(err, store.ErrNotValid):
		s.works()
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		err = explain(short, err)
		s.fail(err)
	}
	return err
}

// narInfo returns the description of a path.
func (s *source) narInfo(ctx context.Context, p store.Path) (*cache.NarInfo, error) {
	if n := s.recall(p); n != nil {
		return n, nil
	}
	var n *cache.NarInfo
	err := s.ask(ctx, func(ctx context.Context, c Cache) (err error) {
		if n, err = c.NarInfo(ctx, p); err != nil {
			return err
		}
		if n.Path != p {
			return fmt.Errorf("it describes %s when asked for %s", n.Path, p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (s *source) recall(p store.Path) *cache.NarInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.known[p]; ok && s.usable && time.Since(m.read) < memoryTime {
		return m.info
	}
	return nil
}

// remember keeps a narinfo for a moment.
func (s *source) remember(n *cache.NarInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[n.Path]; ok {
		return
	}
	if s.known == nil || len(s.known) >= maxMemory {
		s.known = map[store.Path]memory{}
	}
	s.known[n.Path] = memory{n, time.Now()}
}

func (s *source) forget(p store.Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, p)
}

// arrived is told by the cache how much of a packed archive has come.
func (s *source) arrived(n *cache.NarInfo, done, _ int64) {
	s.mu.Lock()
	tell := s.packed[n]
	s.mu.Unlock()
	if tell != nil {
		tell(done)
	}
}

// follow has tell called with how much of a packed archive has come.
func (s *source) follow(n *cache.NarInfo, tell func(int64)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.packed == nil {
		s.packed = map[*cache.NarInfo]func(int64){}
	}
	s.packed[n] = tell
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.packed, n)
	}
}
