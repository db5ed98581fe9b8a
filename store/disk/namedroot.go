package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/store"
	"cairn/store/failpoint"
)

// NamedRoot is a root that the daemon keeps for a user. It is one link, which says all of it, so that it is made and removed by one
// rename or unlink, outlives the database, and keeps its object also for programs that know nothing of owners:
//
//	STATEDIR/gcroots/named/<uid>/<name>             -> object    for ever
//	STATEDIR/gcroots/named/<uid>/<name>@<seconds>   -> object    until so many seconds after 1970
//
// The link's modification time is when the root was made. A crash between the making of a root and the removal of the one that it
// replaces leaves both; the one that lives longer counts, and both go together.
type NamedRoot struct {
	UID     int // the owner
	Name    string
	Path    store.Path
	Created time.Time
	Expires time.Time // in whole seconds; zero: never
	Link    string
}

// Limits of named roots.
const (
	maxRootName   = 244    // with the expiry a file's name
	maxNamedRoots = 10_000 // of a user
)

// ErrNoRoot says that a user has no root of a name.
var ErrNoRoot = errors.New("there is no such root")

// Expired reports whether a root keeps nothing any more.
func (r NamedRoot) Expired(now time.Time) bool { return !r.Expires.IsZero() && !now.Before(r.Expires) }

func (l Layout) namedRoots() string { return filepath.Join(l.StateDir, "gcroots", "named") }

// CheckRootName returns nil for what may be the name of a root: up to 244 of the characters that objects' names have, the first not a dot.
func CheckRootName(name string) error {
	bad := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("+-._?=", c))
	}
	if name == "" || len(name) > maxRootName || name[0] == '.' || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("name %q of a root is not made of up to %d letters, digits and +-._?=, the first not a dot", name, maxRootName)
	}
	return nil
}

// ParseNamedRoot reads the name of the link of a named root: owner, name and expiry. Other links below gcroots are none.
func (l Layout) ParseNamedRoot(link string) (NamedRoot, bool) {
	rest, ok := strings.CutPrefix(link, l.namedRoots()+"/")
	if !ok {
		return NamedRoot{}, false
	}
	owner, entry, _ := strings.Cut(rest, "/")
	uid, ok := parseNumber(owner, 32)
	if !ok {
		return NamedRoot{}, false
	}
	r := NamedRoot{UID: int(uid), Name: entry, Link: link}
	if name, seconds, timed := strings.Cut(entry, "@"); timed {
		at, ok := parseNumber(seconds, 34) // 500 years
		if !ok || at == 0 {
			return NamedRoot{}, false
		}
		r.Name, r.Expires = name, time.Unix(int64(at), 0)
	}
	return r, CheckRootName(r.Name) == nil
}

// parseNumber parses a number in its only spelling.
func parseNumber(s string, bits int) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, bits)
	return n, err == nil && strconv.FormatUint(n, 10) == s
}

// link is where a root is.
func (r NamedRoot) link(l Layout) string {
	name := r.Name
	if !r.Expires.IsZero() {
		name += "@" + strconv.FormatInt(r.Expires.Unix(), 10)
	}
	return filepath.Join(l.namedRoots(), strconv.Itoa(r.UID), name)
}

// AddNamedRoot keeps r.Path for the user r.UID until r.Expires, which is rounded up to a second. It replaces what the user has under that name.
// Without a name it gets that of the object. It is durable when AddNamedRoot returns without error.
func (s *Store) AddNamedRoot(r NamedRoot) (NamedRoot, error) {
	if r.Name == "" {
		r.Name = r.Path.Base()
	}
	if err := s.checkNamedRoot(&r); err != nil {
		return NamedRoot{}, err
	}
	defer s.holdFor(context.Background(), r.Path)() // until the link is there
	if !s.IsValid(r.Path) {
		return NamedRoot{}, fmt.Errorf("add root %s: %w", r.Name, notValid(r.Path))
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	have, err := s.namedRootsOf(strconv.Itoa(r.UID))
	if err != nil {
		return NamedRoot{}, fmt.Errorf("add root %s: %w", r.Name, err)
	}
	if len(have) >= maxNamedRoots {
		return NamedRoot{}, fmt.Errorf("add root %s: user %d has %d roots already; delete some first", r.Name, r.UID, len(have))
	}
	if err := s.replaceLink(r.Path.String(), r.Link); err != nil {
		return NamedRoot{}, fmt.Errorf("add root %s: %w", r.Name, err)
	}
	if err := removeRoots(have, func(old NamedRoot) bool { return old.Name == r.Name && old.Link != r.Link }); err != nil {
		return NamedRoot{}, fmt.Errorf("add root %s: it is added, but what it replaces stays: %w", r.Name, err)
	}
	r.Created = time.Now()
	return r, nil
}

// checkNamedRoot checks a root that is to be added, and says where it will be.
func (s *Store) checkNamedRoot(r *NamedRoot) error {
	if err := CheckRootName(r.Name); err != nil {
		return fmt.Errorf("add root: %w", err)
	}
	if r.Path.Dir() != s.layout.Dir {
		return fmt.Errorf("add root %s: %q is of another store", r.Name, r.Path)
	}
	if r.Expires.Nanosecond() > 0 {
		r.Expires = r.Expires.Add(time.Second)
	}
	r.Expires = r.Expires.Truncate(time.Second)
	r.Link = r.link(s.layout)
	if _, ok := s.layout.ParseNamedRoot(r.Link); !ok || r.Expired(time.Now()) {
		return fmt.Errorf("add root %s: it would expire at %s, which is over or too far away", r.Name, r.Expires.Format(time.DateTime))
	}
	return nil
}

// NamedRoots returns all named roots by owner and name, those that have expired and wait for a collection included.
func (s *Store) NamedRoots() ([]NamedRoot, error) {
	all, err := s.eachNamedRoot()
	if err != nil {
		return nil, fmt.Errorf("list roots: %w", err)
	}
	slices.SortFunc(all, func(a, b NamedRoot) int {
		return cmp.Or(a.UID-b.UID, strings.Compare(a.Name, b.Name), -a.life().Compare(b.life()))
	})
	return slices.CompactFunc(all, func(a, b NamedRoot) bool { return a.UID == b.UID && a.Name == b.Name }), nil
}

// life orders expiries: never comes last.
func (r NamedRoot) life() time.Time {
	if r.Expires.IsZero() {
		return time.Unix(1<<40, 0)
	}
	return r.Expires
}

// eachNamedRoot returns every link of a named root.
func (s *Store) eachNamedRoot() ([]NamedRoot, error) {
	owners, err := os.ReadDir(s.layout.namedRoots())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []NamedRoot
	for _, o := range owners {
		list, err := s.namedRootsOf(o.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// namedRootsOf returns the links of an owner, which is a name below the directory of the named roots.
func (s *Store) namedRootsOf(owner string) ([]NamedRoot, error) {
	dir := filepath.Join(s.layout.namedRoots(), owner)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []NamedRoot
	for _, e := range entries {
		r, ok := s.layout.ParseNamedRoot(filepath.Join(dir, e.Name()))
		if !ok || e.Type() != fs.ModeSymlink {
			continue
		}
		target, err := os.Readlink(r.Link)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.Path, _, err = s.layout.Dir.Within(target); err != nil {
			continue // not one that we have made
		}
		if fi, err := e.Info(); err == nil {
			r.Created = fi.ModTime()
		}
		list = append(list, r)
	}
	return list, nil
}

// DeleteNamedRoots deletes roots of a user and returns them; none if one of them is missing (ErrNoRoot).
func (s *Store) DeleteNamedRoots(uid int, names []string) ([]NamedRoot, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	have, err := s.namedRootsOf(strconv.Itoa(uid))
	if err != nil {
		return nil, fmt.Errorf("delete roots: %w", err)
	}
	chosen := func(r NamedRoot) bool { return slices.Contains(names, r.Name) }
	for _, name := range names {
		if !slices.ContainsFunc(have, func(r NamedRoot) bool { return r.Name == name }) {
			return nil, fmt.Errorf("delete root %q of user %d: %w", name, uid, ErrNoRoot)
		}
	}
	if err := removeRoots(have, chosen); err != nil {
		return nil, fmt.Errorf("delete roots: %w", err)
	}
	return slices.DeleteFunc(have, func(r NamedRoot) bool { return !chosen(r) }), nil
}

// DropExpiredRoots deletes the named roots that have expired. They keep nothing, so that one that cannot be deleted is only told to the log.
func (s *Store) DropExpiredRoots() {
	s.naming.Lock() // so that none of them is made anew meanwhile
	defer s.naming.Unlock()
	all, err := s.eachNamedRoot()
	now := time.Now()
	if err == nil {
		err = removeRoots(all, func(r NamedRoot) bool { return r.Expired(now) })
	}
	if err != nil {
		s.log.Warn("expired roots stay", "error", err)
	}
}

// removeRoots removes the links that which chooses, durably.
func removeRoots(list []NamedRoot, which func(NamedRoot) bool) error {
	dirs := map[string]struct{}{}
	for _, r := range list {
		if !which(r) {
			continue
		}
		if err := os.Remove(r.Link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		failpoint.Hit("disk/root/removed")
		dirs[filepath.Dir(r.Link)] = struct{}{}
	}
	for dir := range dirs {
		if err := syncFile(dir); err != nil {
			return err
		}
	}
	return nil
}
