package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

const (
	scrubName    = "scrub.json"
	scrubSaved   = 30 * time.Second // how much of its time may be lost by a crash
	scrubRetry   = time.Hour        // after a scrub that could not go on
	maxScrubFile = 64 << 20
)

// errPaused ends a run of the scrub.
var errPaused = errors.New("the scrub is paused")

// ScrubOptions say how the store reads its objects in the background; the zero value: only when it is told to.
type ScrubOptions struct {
	Interval time.Duration // from the end of one scrub to the next; 0: none by itself
	Rate     int64         // bytes per second; 0: no limit
}

// Scrub is a verification of all objects in the background: how far it is, or the last one. It is kept in STATEDIR/scrub.json, so that it
// goes on after a restart where it was.
//
//	none ──Start, or Interval is over──▶ under way ──last object──▶ finished ──Start, or Interval is over──▶ under way
//	                                      │    ▲
//	                                    Pause  Start, Resume
//	                                      ▼    │
//	                                      paused
//
// While it is paused none begins either.
type Scrub struct {
	Began    time.Time `json:"began"`
	Finished time.Time `json:"finished,omitzero"` // zero while it is under way
	ByHand   bool      `json:"byHand,omitempty"`  // begun, or taken up, by StartScrub: goes on where none begins by itself
	Paused   bool      `json:"paused,omitempty"`
	Position string    `json:"position"` // digest of the last object; they are read in this order
	Paths    int       `json:"paths"`    // read
	Bytes    int64     `json:"bytes"`
	Findings []Finding `json:"findings"` // of this scrub and whatever else has read objects (finding.go); by path
}

// ScrubStatus is a scrub as it is now.
type ScrubStatus struct {
	Scrub
	ScrubOptions
	Running   bool    // objects are being read
	LeftPaths int     // to be read, while it is under way
	LeftBytes int64   // of them
	Speed     float64 // bytes per second, since it runs; 0: not known
}

// scrubber is the state of scrubbing.
type scrubber struct {
	open atomic.Int64  // findings, with one that is being noted: usually none, and then nobody needs the lock
	news chan struct{} // says that there may be something else to do

	mu       sync.Mutex // guards the rest and the file; before graph.mu
	state    Scrub      // without findings
	findings map[store.Path]Finding
	unsaved  bool
	saved    time.Time
	stop     context.CancelCauseFunc // ends the run; nil: none
	ended    chan struct{}           // closed at the end of the scrub that is under way, or is paused
	since    time.Time               // the run began
	before   int64                   // bytes that had been read then
}

// changed notes that the state is another one. The caller has mu.
func (c *scrubber) changed() {
	c.unsaved = true
	c.count()
}

// count counts the findings. The caller has mu.
func (c *scrubber) count() { c.open.Store(int64(len(c.findings))) }

// save saves the state. What could not be saved is saved later. The caller has mu.
func (c *scrubber) save(s *Store) {
	if err := s.saveScrub(); err != nil {
		s.log.Warn("the state of the scrub could not be saved", "error", err)
	}
}

// keepFindings saves what is not saved yet.
func (s *Store) keepFindings() {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	if s.scrub.unsaved {
		s.scrub.save(s)
	}
}

// wake has the goroutine look again what is to be done.
func (c *scrubber) wake() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// isUnderWay reports whether there is a scrub that has not ended.
func (t *Scrub) isUnderWay() bool { return t.Finished.IsZero() }

// Scrub returns how far the scrub is.
func (s *Store) Scrub() ScrubStatus {
	s.scrub.mu.Lock()
	st := ScrubStatus{Scrub: s.scrub.state, ScrubOptions: s.opts.Scrub, Running: s.scrub.stop != nil}
	st.Findings = s.scrub.list(s.isOver)
	if taken := time.Since(s.scrub.since).Seconds(); st.Running && taken > 0 {
		st.Speed = float64(st.Bytes-s.scrub.before) / taken
	}
	s.scrub.mu.Unlock()
	if st.isUnderWay() {
		for _, n := range s.Snapshot().nodes {
			if n != nil && !st.isPast(n.digest) {
				st.LeftPaths++
				st.LeftBytes += n.narSize
			}
		}
	}
	return st
}

// isPast reports whether an object is before the position.
func (t *Scrub) isPast(d meta.Digest) bool {
	at, ok := meta.ParseDigest(t.Position)
	return ok && bytes.Compare(d[:], at[:]) <= 0
}

// StartScrub begins a scrub now, or goes on with the one that is under way, paused or not.
func (s *Store) StartScrub() error {
	return s.changeScrub(func(t *Scrub) {
		if !t.isUnderWay() {
			s.scrub.begin()
		}
		t.ByHand, t.Paused = true, false
	})
}

// PauseScrub stops reading until ResumeScrub or StartScrub. An object that is being read is read again then.
func (s *Store) PauseScrub() error {
	return s.changeScrub(func(t *Scrub) {
		t.Paused = true
		if s.scrub.stop != nil {
			s.scrub.stop(errPaused)
		}
	})
}

// ResumeScrub ends a pause.
func (s *Store) ResumeScrub() error {
	return s.changeScrub(func(t *Scrub) { t.Paused = false })
}

func (s *Store) changeScrub(change func(*Scrub)) error {
	if s.isClosed() {
		return ErrClosed
	}
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	change(&s.scrub.state)
	s.scrub.wake()
	return s.saveScrub()
}

// WaitScrub waits until no scrub is under way.
func (s *Store) WaitScrub(ctx context.Context) error {
	s.scrub.mu.Lock()
	ended := s.scrub.ended
	s.scrub.mu.Unlock()
	if ended == nil {
		return nil
	}
	return s.wait(ctx, ended)
}

// wait waits until done is closed, unless the store is closed before.
func (s *Store) wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-s.stop:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin makes the state that of a new scrub. The caller has mu.
func (c *scrubber) begin() {
	c.state = Scrub{Began: time.Now()}
	c.ended = make(chan struct{})
}

// finish notes that all objects are read. The caller has mu.
func (c *scrubber) finish() {
	c.state.Finished, c.state.ByHand = time.Now(), false
	close(c.ended)
	c.ended = nil
}

// loadScrub reads the state. A store that has none is new, and its first scrub is due after one interval; so is one whose state is damaged.
func (s *Store) loadScrub() {
	s.scrub.news, s.scrub.findings = make(chan struct{}, 1), map[store.Path]Finding{}
	var state Scrub
	data, err := readLimited(filepath.Join(s.layout.StateDir, scrubName), maxScrubFile)
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err == nil {
		for _, f := range state.Findings {
			s.scrub.findings[f.Path] = f
		}
		state.Findings = nil
		s.scrub.state = state
		s.scrub.count()
		if state.isUnderWay() {
			s.scrub.ended = make(chan struct{})
		}
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("the state of the scrub cannot be read; it begins anew", "error", err)
	}
	now := time.Now()
	s.scrub.state = Scrub{Began: now, Finished: now}
	if s.opts.Scrub.Interval > 0 {
		s.scrub.save(s) // on a full disk, later
	}
}

func readLimited(name string, limit int64) ([]byte, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, which is too much", name, fi.Size())
	}
	return os.ReadFile(name)
}

// saveScrub writes the state. The caller has scrub.mu, or is Open.
func (s *Store) saveScrub() error {
	state := s.scrub.state
	state.Findings = s.scrub.list(s.isOver)
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	name := filepath.Join(s.layout.StateDir, scrubName)
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && !s.opts.NoSync {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	failpoint.Hit("disk/scrub/written")
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	failpoint.Hit("disk/scrub/saved")
	s.scrub.unsaved, s.scrub.saved = false, time.Now()
	return nil
}

// scrubLoop is the goroutine that scrubs, one object at a time.
func (s *Store) scrubLoop() {
	var retry time.Time
	for s.waitForScrub(retry) {
		retry = time.Time{}
		if err := s.scrubAll(); err != nil && !errors.Is(err, errPaused) && !errors.Is(err, ErrClosed) {
			s.log.Error("scrub ended; it goes on in an hour", "error", err)
			retry = time.Now().Add(scrubRetry)
		}
	}
}

// waitForScrub waits until the next scrub is due, or one is unfinished, and reports false at the end of the store. Not before a time,
// unless somebody changes something.
func (s *Store) waitForScrub(earliest time.Time) bool {
	for {
		s.scrub.mu.Lock()
		due, ok := s.scrubDue()
		s.scrub.mu.Unlock()
		if earliest.After(due) {
			due = earliest
		}
		wait := time.Until(due)
		if ok && wait <= 0 {
			return !s.isStopped()
		}
		var over <-chan time.Time
		if ok {
			over = time.After(wait)
		}
		select {
		case <-over:
		case <-s.scrub.news:
			earliest = time.Time{}
		case <-s.stop:
			return false
		}
	}
}

// scrubDue says when there is something to read, if ever. The caller has scrub.mu.
func (s *Store) scrubDue() (time.Time, bool) {
	t, interval := &s.scrub.state, s.opts.Scrub.Interval
	switch {
	case t.Paused:
		return time.Time{}, false
	case t.isUnderWay():
		return time.Time{}, interval > 0 || t.ByHand
	}
	return t.Finished.Add(interval), interval > 0
}

// scrubAll begins a scrub, or goes on with one, and ends it.
func (s *Store) scrubAll() error {
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	if due, err := s.enterScrub(stop); !due || err != nil {
		return err
	}
	err := s.scrubRest(ctx)
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	s.scrub.stop = nil
	if err == nil {
		s.scrub.finish()
		s.log.Info("scrub has ended", "objects", s.scrub.state.Paths, "bytes", s.scrub.state.Bytes, "damaged", len(s.scrub.findings))
	}
	return errors.Join(err, s.saveScrub())
}

// enterScrub notes that objects are being read, which stop ends; not if somebody has paused that.
func (s *Store) enterScrub(stop context.CancelCauseFunc) (bool, error) {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	if due, ok := s.scrubDue(); !ok || time.Until(due) > 0 || s.isStopped() {
		return false, nil
	}
	if !s.scrub.state.isUnderWay() {
		s.scrub.begin()
	}
	if s.scrub.state.Position == "" {
		s.log.Info("scrub begins")
	}
	if err := s.saveScrub(); err != nil {
		return false, err
	}
	s.scrub.stop, s.scrub.since, s.scrub.before = stop, time.Now(), s.scrub.state.Bytes
	return true, nil
}

// isStopped reports whether the store's goroutines are to end.
func (s *Store) isStopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// stopScrub ends the run that there is, if any. None begins after stop is closed.
func (s *Store) stopScrub() {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	if s.scrub.stop != nil {
		s.scrub.stop(ErrClosed)
	}
}

// scrubRest reads what is behind the position.
func (s *Store) scrubRest(ctx context.Context) error {
	nodes, err := s.verifyNodes(nil)
	if err != nil {
		return err
	}
	s.scrub.mu.Lock()
	nodes = slices.DeleteFunc(nodes, func(n *node) bool { return s.scrub.state.isPast(n.digest) })
	s.scrub.mu.Unlock()
	slices.SortFunc(nodes, func(a, b *node) int { return bytes.Compare(a.digest[:], b.digest[:]) })
	at := newPace(s.opts.Scrub.Rate)
	defer s.seals.save()
	for _, n := range nodes {
		if err := s.scrubOne(ctx, n, at); err != nil {
			return err
		}
	}
	return nil
}

// scrubOne verifies an object.
func (s *Store) scrubOne(ctx context.Context, n *node, at *pace) error {
	v := verification{s: s, contents: true, pace: at, progress: func(int64) {}}
	if err := v.check(ctx, n); err != nil {
		return err
	}
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	state := &s.scrub.state
	state.Position = n.digest.String()
	state.Paths += v.result.Paths
	state.Bytes += v.result.Bytes
	if !s.scrub.unsaved && time.Since(s.scrub.saved) < scrubSaved {
		return nil
	}
	return s.saveScrub()
}
