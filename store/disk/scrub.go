package disk

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

const (
	scrubName      = "scrub.json"
	scrubSaved     = 30 * time.Second // how much of its time may be lost by a crash
	maxScrubFile   = 64 << 20
	maxScrubListed = 1000 // findings that are kept; of a store with more, each is damaged anyway
)

// ScrubOptions say how the store reads its objects in the background; the zero value: not at all.
type ScrubOptions struct {
	Interval time.Duration // from the end of one scrub to the next; 0: never
	Rate     int64         // bytes per second; 0: no limit
}

// Scrub is a verification of all objects in the background: how far it is, or the last one. It is kept in STATEDIR/scrub.json, so that it
// goes on after a restart where it was.
type Scrub struct {
	Began    time.Time      `json:"began"`
	Finished time.Time      `json:"finished,omitzero"` // zero while it is under way
	Position string         `json:"position"`          // digest of the last object; they are read in this order
	Paths    int            `json:"paths"`             // read
	Bytes    int64          `json:"bytes"`
	Findings []ScrubFinding `json:"findings"` // of this scrub and earlier ones, until repaired; by path
}

// ScrubFinding is a damaged object.
type ScrubFinding struct {
	Path  store.Path  `json:"path"`
	Kind  ProblemKind `json:"kind"`
	Text  string      `json:"text"`
	Found time.Time   `json:"found"`
}

// scrubber is the state of scrubbing.
type scrubber struct {
	mu    sync.Mutex // guards state and the file
	state Scrub
}

// Scrub returns how far the scrub is; false if the store does not do that.
func (s *Store) Scrub() (Scrub, bool) {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	state := s.scrub.state
	state.Findings = slices.DeleteFunc(slices.Clone(state.Findings), func(f ScrubFinding) bool { return s.isForgotten(f.Path) })
	return state, s.opts.Scrub.Interval > 0
}

// isForgotten reports whether an object has been deleted.
func (s *Store) isForgotten(p store.Path) bool {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	return s.graph.rowOf(p) == nil
}

// loadScrub reads the state. A store that has none is new, and its first scrub is due after one interval; so is one whose state is damaged.
func (s *Store) loadScrub() {
	var state Scrub
	data, err := readLimited(filepath.Join(s.layout.StateDir, scrubName), maxScrubFile)
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err == nil {
		s.scrub.state = state
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("the state of the scrub cannot be read; it begins anew", "error", err)
	}
	now := time.Now()
	s.scrub.state = Scrub{Began: now, Finished: now}
	if err := s.saveScrub(); err != nil { // on a full disk, say; then it is saved later
		s.log.Warn("the state of the scrub could not be saved", "error", err)
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
	data, err := json.Marshal(s.scrub.state)
	if err != nil {
		return err
	}
	name := filepath.Join(s.layout.StateDir, scrubName)
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
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
	return nil
}

// scrubLoop is the goroutine that scrubs, one object at a time.
func (s *Store) scrubLoop() {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s.wg.Go(func() {
		<-s.stop
		cancel(ErrClosed)
	})
	for {
		if !s.waitForScrub(ctx) {
			return
		}
		if err := s.scrubAll(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("scrub ended; it goes on in an hour", "error", err)
			select {
			case <-time.After(time.Hour):
			case <-ctx.Done():
			}
		}
	}
}

// waitForScrub waits until the next scrub is due, or one is unfinished, and reports false at the end of the store.
func (s *Store) waitForScrub(ctx context.Context) bool {
	s.scrub.mu.Lock()
	var wait time.Duration
	if !s.scrub.state.Finished.IsZero() {
		wait = time.Until(s.scrub.state.Finished.Add(s.opts.Scrub.Interval))
	}
	s.scrub.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// scrubAll begins a scrub, or goes on with one, and ends it.
func (s *Store) scrubAll(ctx context.Context) error {
	s.scrub.mu.Lock()
	if state := &s.scrub.state; !state.Finished.IsZero() {
		*state = Scrub{Began: time.Now(), Findings: state.Findings}
		s.log.Info("scrub begins")
	}
	position, _ := meta.ParseDigest(s.scrub.state.Position)
	begun := s.scrub.state.Position != ""
	err := s.saveScrub()
	s.scrub.mu.Unlock()
	if err != nil {
		return err
	}
	nodes, err := s.verifyNodes(nil)
	if err != nil {
		return err
	}
	nodes = slices.DeleteFunc(nodes, func(n *node) bool { return begun && bytes.Compare(n.digest[:], position[:]) <= 0 })
	slices.SortFunc(nodes, func(a, b *node) int { return bytes.Compare(a.digest[:], b.digest[:]) })
	saved := time.Now()
	at := newPace(s.opts.Scrub.Rate)
	for _, n := range nodes {
		news, err := s.scrubOne(ctx, n, at)
		if err != nil {
			s.scrub.mu.Lock()
			defer s.scrub.mu.Unlock()
			return errors.Join(err, s.saveScrub())
		}
		if news || time.Since(saved) > scrubSaved {
			s.seals.save()
			s.scrub.mu.Lock()
			err := s.saveScrub()
			s.scrub.mu.Unlock()
			if err != nil {
				return err
			}
			saved = time.Now()
		}
	}
	s.seals.save()
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	state := &s.scrub.state
	state.Finished = time.Now()
	s.log.Info("scrub has ended", "objects", state.Paths, "bytes", state.Bytes, "damaged", len(state.Findings))
	return s.saveScrub()
}

// scrubOne verifies an object and reports whether the findings have changed.
func (s *Store) scrubOne(ctx context.Context, n *node, at *pace) (news bool, err error) {
	var problem *Problem
	v := verification{s: s, contents: true, pace: at, progress: func(int64) {}, report: func(p Problem) { problem = &p }}
	if err := v.check(ctx, n); err != nil {
		return false, err
	}
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	state := &s.scrub.state
	state.Position = n.digest.String()
	state.Paths += v.result.Paths
	state.Bytes += v.result.Bytes
	p := s.path(n)
	i, known := state.find(p)
	switch {
	case problem == nil && known:
		state.Findings = slices.Delete(state.Findings, i, i+1)
		return true, nil
	case problem == nil || known || len(state.Findings) >= maxScrubListed:
		return false, nil
	}
	s.log.Error("an object is damaged; 'cairn store repair' mends it", "path", p.String(), "kind", string(problem.Kind), "error", problem.Err)
	state.Findings = slices.Insert(state.Findings, i, ScrubFinding{p, problem.Kind, problem.Err.Error(), time.Now()})
	failpoint.Hit("disk/scrub/found")
	return true, nil
}

// find returns where a path's finding is, or would be.
func (t *Scrub) find(p store.Path) (int, bool) {
	return slices.BinarySearchFunc(t.Findings, p, func(f ScrubFinding, p store.Path) int { return cmp.Compare(f.Path.String(), p.String()) })
}

// mended drops the finding of an object that has new files.
func (s *Store) mended(p store.Path) {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	i, known := s.scrub.state.find(p)
	if !known {
		return
	}
	s.scrub.state.Findings = slices.Delete(s.scrub.state.Findings, i, i+1)
	if err := s.saveScrub(); err != nil {
		s.log.Warn("the state of the scrub could not be saved", "error", err)
	}
}
