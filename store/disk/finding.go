package disk

import (
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/failpoint"
)

const (
	maxFindings   = 100_000     // that are kept; of a store with more, each is damaged anyway
	findingsSaved = time.Second // how much of its time may be lost by a crash
)

// Finding is a damaged object.
type Finding struct {
	Path  store.Path  `json:"path"`
	Kind  ProblemKind `json:"kind"`
	Text  string      `json:"text"`
	Found time.Time   `json:"found"`
}

// DamagedError says that an object is not given to others and not used, and why.
type DamagedError struct{ Finding }

func (e *DamagedError) Error() string {
	return fmt.Sprintf("path '%s' is damaged, as is known since %s: %s; to mend it: cairn store repair %s", e.Path, e.Found.Format(time.DateTime), e.Text, e.Path)
}

// Damage returns a *DamagedError for an object that is known to be damaged.
func (s *Store) Damage(p store.Path) error {
	if s.scrub.open.Load() == 0 {
		return nil
	}
	s.scrub.mu.Lock()
	f, known := s.scrub.findings[p]
	s.scrub.mu.Unlock()
	if !known || !f.hurts() || s.isOver(f) {
		return nil
	}
	return &DamagedError{f}
}

// hurts reports whether the object itself is damaged, and not only what it refers to.
func (f Finding) hurts() bool { return f.Kind != Dangling }

// DamagedIn returns what is known to be damaged of the closures of valid objects, those without files included, references first.
func (s *Store) DamagedIn(roots ...store.Path) ([]store.Path, error) {
	if s.scrub.open.Load() == 0 {
		return nil, nil
	}
	bad := map[store.Path]bool{}
	for _, f := range s.Findings() {
		bad[f.Path] = f.hurts()
	}
	if len(bad) == 0 {
		return nil, nil
	}
	closure, err := s.Closure(roots...)
	return slices.DeleteFunc(closure, func(p store.Path) bool { return !bad[p] }), err
}

// Findings returns what is known to be wrong, by path.
func (s *Store) Findings() []Finding {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	return s.scrub.list(s.isOver)
}

// list returns the findings by path, and drops those that are over. The caller has mu.
func (c *scrubber) list(isOver func(Finding) bool) []Finding {
	list := make([]Finding, 0, len(c.findings))
	for p, f := range c.findings {
		if isOver(f) {
			delete(c.findings, p)
			continue
		}
		list = append(list, f)
	}
	c.count()
	slices.SortFunc(list, func(a, b Finding) int { return a.Path.Compare(b.Path) })
	return list
}

// isOver reports whether an object has been deleted, or what it lacked is there.
func (s *Store) isOver(f Finding) bool {
	s.graph.mu.RLock()
	defer s.graph.mu.RUnlock()
	n := s.graph.rowOf(f.Path)
	switch {
	case n == nil:
		return true
	case f.Kind == Vanished:
		return !n.missing
	case f.Kind == Dangling:
		return !slices.ContainsFunc(n.refs, func(r uint32) bool { return s.graph.nodes[r] == nil || s.graph.nodes[r].missing })
	}
	return false
}

// standing is a handle of what stands at an object's name. While it is open no replacement gets the same inode.
type standing int

const nothing standing = -1

func (s *Store) standing(p store.Path) (standing, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(int(s.dir.Fd()), p.Base(), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nothing, &os.PathError{Op: "open", Path: s.RealPath(p), Err: err}
	}
	return standing(fd), nil
}

func (t standing) close() {
	if t != nothing {
		unix.Close(int(t))
	}
}

// stands reports whether it is still that which stands at the object's name.
func (s *Store) stands(p store.Path, t standing) bool {
	var now, then unix.Stat_t
	err := unix.Fstatat(int(s.dir.Fd()), p.Base(), &now, unix.AT_SYMLINK_NOFOLLOW)
	if t == nothing || err != nil {
		return t == nothing && err == unix.ENOENT
	}
	return unix.Fstat(int(t), &then) == nil && now.Dev == then.Dev && now.Ino == then.Ino
}

// note keeps what reading an object has found, or drops what was known if that is nothing. What was read of files that have been replaced
// since then, before whom read stood there, is no news. A replacement may come at any moment, and ends with mended: either what it put there
// is seen here, or it sees that there may be a finding, and waits to drop it.
func (s *Store) note(p store.Path, problem *Problem, read standing) {
	failpoint.Hit("disk/scrub/read")
	if problem == nil && s.scrub.open.Load() == 0 {
		return
	}
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	s.scrub.open.Add(1)
	defer s.scrub.count()
	if !s.stands(p, read) {
		return
	}
	f, known := s.scrub.findings[p]
	switch {
	case problem == nil && known && f.hurts():
		delete(s.scrub.findings, p)
	case problem == nil, known, len(s.scrub.findings) >= maxFindings:
		return
	default:
		s.scrub.findings[p] = Finding{p, problem.Kind, problem.Err.Error(), time.Now()}
		failpoint.Hit("disk/scrub/found")
		if problem.Kind != Vanished {
			s.log.Error("an object is damaged; 'cairn store repair' mends it", "path", p.String(), "kind", string(problem.Kind), "error", problem.Err)
		}
	}
	s.scrub.changed()
	if time.Since(s.scrub.saved) >= findingsSaved {
		s.scrub.save(s)
	}
}

// mended drops the finding of an object that has new files.
func (s *Store) mended(p store.Path) {
	if s.scrub.open.Load() == 0 {
		return
	}
	failpoint.Hit("disk/scrub/mended")
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	if _, known := s.scrub.findings[p]; known {
		delete(s.scrub.findings, p)
		s.scrub.changed()
		s.scrub.save(s)
	}
}

// renew puts a tree in the place of an object that is known to be damaged, if it is what is registered. The caller has the keyed lock and
// has checked the tree against info.
func (s *Store) renew(info *store.Info, temp string) error {
	known, err := s.Registered(info.Path)
	if err != nil || known.NarHash != info.NarHash {
		return err
	}
	if err := s.swap(temp, s.RealPath(info.Path)); err != nil {
		return noSpace(err)
	}
	s.mended(info.Path)
	s.log.Info("a damaged object has been added again, which mends it", "path", info.Path.String())
	return nil
}
