package daemon

import (
	"context"
	"sync"
	"time"

	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store/disk"
	"cairn/store/failpoint"
	"cairn/store/gc"
)

// lowSpace collects garbage when less than min-free is left where the store is, until max-free is. It looks now and then, and after
// requests. Builds and additions go on meanwhile.
//
// A collection after which there is still too little is not repeated at once: only when something has been added or
// deleted or a session has ended since, at most once in shortPause, or after a pause that doubles each time.
type lowSpace struct {
	server   *Server
	min, max settings.Amount
	nudges   chan struct{}
	wg       sync.WaitGroup

	mu     sync.Mutex // guards what follows
	looked time.Time
	pause  pause
	state  protocol.AutoCollection
}

// nudgeEvery is how often requests make lowSpace look at most.
const nudgeEvery = 100 * time.Millisecond

// newLowSpace returns nil when nothing is to be collected by itself.
func newLowSpace(s *Server) *lowSpace {
	if s.settings.MinFree == (settings.Amount{}) {
		return nil
	}
	l := &lowSpace{server: s, min: s.settings.MinFree, max: s.settings.MaxFree, nudges: make(chan struct{}, 1)}
	l.state = protocol.AutoCollection{MinFree: l.min.String(), MaxFree: l.max.String()}
	every := max(s.settings.MinFreeInterval, time.Second)
	l.wg.Go(func() { l.run(s.ctx, every) })
	return l
}

// wait waits for the end, which that of the server's work brings.
func (l *lowSpace) wait() {
	if l != nil {
		l.wg.Wait()
	}
}

// nudge says that space may have been used.
func (l *lowSpace) nudge() {
	if l == nil {
		return
	}
	l.mu.Lock()
	recent := time.Since(l.looked) < nudgeEvery
	l.mu.Unlock()
	if recent {
		return
	}
	select {
	case l.nudges <- struct{}{}:
	default:
	}
}

func (l *lowSpace) run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		l.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-l.nudges:
		}
	}
}

// look collects if it has to.
func (l *lowSpace) look(ctx context.Context) {
	l.mu.Lock()
	l.looked = time.Now()
	l.mu.Unlock()
	free, err := l.server.store.Space()
	if err != nil || ctx.Err() != nil {
		return
	}
	if !below(free, l.min) {
		l.mu.Lock()
		l.pause, l.state.Next = pause{}, nil
		l.mu.Unlock()
		return
	}
	if l.begin() {
		l.collect(ctx, free)
	}
}

// begin reports whether a collection is due, and notes that it runs.
func (l *lowSpace) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pause.over(time.Now(), l.server.changes()) {
		return false
	}
	l.state.Running = true
	return true
}

func (l *lowSpace) collect(ctx context.Context, before disk.Space) {
	s := l.server
	failpoint.Hit("daemon/lowspace/begun")
	s.log.Info("space is low: collecting garbage", "free", before.Bytes, "freeInodes", before.Inodes, "min-free", l.state.MinFree, "max-free", l.state.MaxFree)
	opts := gc.Options{Action: gc.DeleteDead, DropDerivations: !s.settings.KeepDerivations, KeepOutputs: s.settings.KeepOutputs}
	if l.max != (settings.Amount{}) {
		opts.Enough = func() bool { return l.enough() }
	}
	r, err := gc.Collect(ctx, s.store, opts)
	after, spaceErr := s.store.Space()
	if err == nil {
		err = spaceErr
	}
	failpoint.Hit("daemon/lowspace/ended")
	l.end(r, err, below(after, l.min))
}

// end notes what a collection did.
func (l *lowSpace) end(r gc.Result, err error, stillLow bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Running, l.state.Runs, l.state.Last = false, l.state.Runs+1, &now
	l.state.BytesFreed, l.state.Objects, l.state.Error, l.state.Next = r.BytesFreed, len(r.Paths), "", nil
	log := l.server.log.With("objects", len(r.Paths), "bytes", r.BytesFreed)
	l.pause = l.pause.after(now, l.server.changes(), err == nil && !stillLow)
	switch {
	case err != nil:
		l.state.Error = err.Error()
		log.Warn("automatic collection", "error", err)
	case stillLow:
		log.Warn("automatic collection: space is still low; delete generations or roots, or make room", "next", l.pause.until)
	default:
		log.Info("automatic collection has made room")
	}
	if !l.pause.until.IsZero() {
		until := l.pause.until
		l.state.Next = &until
	}
}

// enough reports whether there is as much free as a collection should reach: never less than where it began.
func (l *lowSpace) enough() bool {
	free, err := l.server.store.Space()
	return err == nil && !below(free, l.min) && !below(free, l.max)
}

func below(free disk.Space, a settings.Amount) bool {
	bytes, inodes := a.Of(free.TotalBytes, free.TotalInodes)
	return free.Bytes < bytes || free.Inodes < inodes
}

// status is what DaemonStatus shows.
func (l *lowSpace) status() *protocol.AutoCollection {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.state
	return &st
}

// changes is a number that changes whenever there may be new garbage that the daemon knows of.
func (s *Server) changes() uint64 {
	paths, _ := s.store.Count()
	return s.departed.Load()<<32 + uint64(paths)
}

// Pauses after a collection that did not help.
const (
	shortPause = time.Minute
	longPause  = time.Hour
)

// pause is the time in which no collection is tried. The zero value is none.
type pause struct {
	since, until time.Time
	length       time.Duration
	seen         uint64 // Server.changes then
}

func (p pause) over(now time.Time, changes uint64) bool {
	return !now.Before(p.until) || changes != p.seen && now.Sub(p.since) >= shortPause
}

// after returns the pause after a collection.
func (p pause) after(now time.Time, changes uint64, helped bool) pause {
	if helped {
		return pause{}
	}
	length := min(max(2*p.length, shortPause), longPause)
	return pause{since: now, until: now.Add(length), length: length, seen: changes}
}
