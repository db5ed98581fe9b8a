package build

import (
	"context"
	"sync"
)

// seat is the place of a running build. The build lends it to builds that it asks for and waits for, so that they
// cannot wait for it in their turn.
type seat struct {
	core    *core
	mu      sync.Mutex // guards the rest
	lent    int        // how many times
	release func()     // nil while lent
}

// lend gives the place away until back has been called as often.
func (s *seat) lend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lent++; s.lent == 1 && s.release != nil {
		s.release()
		s.release = nil
	}
}

// back waits for a place again.
func (s *seat) back(ctx context.Context) error {
	s.mu.Lock()
	s.lent--
	last := s.lent == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	release, err := s.core.place(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lent > 0 || s.release != nil {
		release()
		return nil
	}
	s.release = release
	return nil
}

// end gives the place back for good.
func (s *seat) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent++ // nobody takes it again
	if s.release != nil {
		s.release()
		s.release = nil
	}
}
