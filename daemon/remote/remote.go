// Package remote builds on other machines: those that the setting "builders" names.
//
// # Who builds
//
// Offer gives a request the best machine that has its system and features and a place free, by Nix's rules: the least load
// relative to its speed; of equals the fastest; of equals the one with the least load; of equals the first. It never
// waits; package build asks again when a place was given back, and meanwhile takes one of its own machine.
//
// # What happens there
//
//  1. Connect (package peer), and keep the inputs alive at the machine.
//  2. Ask which inputs it has. With builders-use-substitutes it fetches from its caches first.
//  3. Send what is missing, all in one stream. One build at a time sends to a machine, so that two do not send the same.
//  4. Build: the derivation alone (BuildDerivation) with its inputs as sources, or, where the machine does not take our word for
//     which outputs an input-addressed derivation has, its .drv with its closure. The log comes as it is written.
//  5. Fetch the outputs. The archive's hash is checked; a content-addressed output must prove itself;
//     an input-addressed one of a configured machine is believed. All become valid together.
//
// A build that is cancelled closes the connection, which ends the build there.
//
// # A machine that fails
//
// Whatever goes wrong but the builder itself (no connection, no sign of life, a refusal, a result that says nothing of the builder) is the
// machine's failure: the build goes elsewhere, and the machine is left alone for a while that doubles each
// time (Options.Pause). A request that nobody else can serve tries it all the same.
//
// Lock order: Pool.mu alone.
package remote

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"cairn/client/peer"
	"cairn/daemon/build"
	"cairn/store/disk"
)

// DefaultPause is how long a machine is left alone after its first failure.
const DefaultPause = 30 * time.Second

// maxPause bounds the doubling.
const maxPause = 15 * time.Minute

// Options of a Pool; the zero value works.
type Options struct {
	Peer     peer.Options                 // how machines are reached; its store directory is the store's
	Pause    time.Duration                // default: DefaultPause
	ReadFile func(string) ([]byte, error) // of "@FILE"; default: os.ReadFile
	Logger   *slog.Logger                 // default: discard
}

// Pool is the machines of a store. It is a build.Machines.
type Pool struct {
	store *disk.Store
	opts  Options

	mu      sync.Mutex // guards what follows, and every host's fields
	hosts   map[string]*host
	changed chan struct{} // closed and replaced when a request may find what it did not
	closed  bool
	timers  map[*time.Timer]bool
	work    sync.WaitGroup // builds under way
}

// host is what is known of a machine.
type host struct {
	running  int
	failures int
	down     time.Time // until then it is left alone
	why      error
	sending  chan struct{} // a token for the one build that sends
}

// New returns a pool for a store, which outlives it.
func New(s *disk.Store, opts *Options) *Pool {
	p := &Pool{store: s, hosts: map[string]*host{}, changed: make(chan struct{}), timers: map[*time.Timer]bool{}}
	if opts != nil {
		p.opts = *opts
	}
	if p.opts.Pause <= 0 {
		p.opts.Pause = DefaultPause
	}
	if p.opts.ReadFile == nil {
		p.opts.ReadFile = os.ReadFile
	}
	if p.opts.Logger == nil {
		p.opts.Logger = slog.New(slog.DiscardHandler)
	}
	p.opts.Peer.Dir = s.Dir()
	return p
}

// Close waits for the builds under way, whose contexts their owner ends.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	for t := range p.timers {
		t.Stop()
	}
	p.mu.Unlock()
	p.work.Wait()
	return nil
}

// Offer takes a place for a request at the machine that suits it best.
func (p *Pool) Offer(r *build.Request) build.Offer {
	if r.Settings.Builders == "" {
		return build.Offer{}
	}
	machines, err := ParseMachines(r.Settings.Builders, r.Native, p.opts.ReadFile)
	if err != nil {
		return build.Offer{Why: []string{err.Error()}}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return build.Offer{}
	}
	c := &choice{request: r, now: time.Now()}
	for i := range machines {
		c.consider(&machines[i], p.host(&machines[i]))
	}
	if c.best == nil && !c.full && !r.Here {
		c.best, c.host = c.fallen, c.fallenHost // nobody else can do it
	}
	if c.best == nil {
		o := build.Offer{Why: c.why}
		if c.full || c.fallen != nil {
			o.Again = p.changed
		}
		return o
	}
	c.host.running++
	return build.Offer{Machine: &place{pool: p, machine: *c.best, host: c.host}}
}

// host returns what is known of a machine. The caller holds mu.
func (p *Pool) host(m *Machine) *host {
	key := fmt.Sprintf("%s %s %s", m.Name, m.Address.Key, m.Address.HostKey)
	h := p.hosts[key]
	if h == nil {
		h = &host{sending: make(chan struct{}, 1)}
		p.hosts[key] = h
	}
	return h
}

// choice is the search for the best machine.
type choice struct {
	request    *build.Request
	now        time.Time
	best       *Machine
	host       *host
	full       bool     // a machine suits and has no place free
	fallen     *Machine // the first that suits and is left alone
	fallenHost *host
	why        []string
}

func (c *choice) consider(m *Machine, h *host) {
	refuse := func(format string, args ...any) {
		c.why = append(c.why, fmt.Sprintf("'%s': ", m.Name)+fmt.Sprintf(format, args...))
	}
	unfit := m.unfit(c.request.System, c.request.Features)
	failed := c.request.Failed[m.Name]
	switch {
	case unfit != "":
		refuse("%s", unfit)
	case failed != nil:
		refuse("it failed: %v", failed)
	case h.running >= m.MaxJobs:
		c.full = true
		refuse("all of its %d places are taken", m.MaxJobs)
	case c.now.Before(h.down):
		if c.fallen == nil {
			c.fallen, c.fallenHost = m, h
		}
		refuse("it is left alone for %v, because it failed: %v", h.down.Sub(c.now).Round(time.Second), h.why)
	case c.best == nil || better(m, h, c.best, c.host):
		c.best, c.host = m, h
	}
}

// better reports whether a machine suits better than one that was named before it.
func better(m *Machine, h *host, than *Machine, thanHost *host) bool {
	mine, its := float64(h.running)/m.Speed, float64(thanHost.running)/than.Speed
	switch {
	case mine != its:
		return mine < its
	case m.Speed != than.Speed:
		return m.Speed > than.Speed
	}
	return h.running < thanHost.running
}

// release gives a place back.
func (p *Pool) release(h *host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h.running--
	p.change()
}

// change wakes requests that wait. The caller holds mu.
func (p *Pool) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// worked notes that a machine is well.
func (p *Pool) worked(h *host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h.failures, h.down, h.why = 0, time.Time{}, nil
}

// failed leaves a machine alone for a while.
func (p *Pool) failed(h *host, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pause := min(p.opts.Pause<<min(h.failures, 10), maxPause)
	h.failures++
	h.down, h.why = time.Now().Add(pause), err
	if p.closed {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(pause, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.timers, t)
		if !p.closed {
			p.change()
		}
	})
	p.timers[t] = true
}

// place is a machine's place that a build has taken.
type place struct {
	pool     *Pool
	machine  Machine
	host     *host
	released sync.Once
}

// Name returns the machine's URI.
func (m *place) Name() string { return m.machine.Name }

// Release gives the place back. It may be called more than once.
func (m *place) Release() { m.released.Do(func() { m.pool.release(m.host) }) }

// errUnwell is for results that say nothing of the builder.
var errUnwell = errors.New("the machine did not get to the builder's end")
