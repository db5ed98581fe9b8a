package crash

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/disk"
	"cairn/store/gc"
	"cairn/store/meta"
	"cairn/store/profile"
)

// tester is what checks need of testing.T; a host that loses power has another (power_test.go).
type tester interface {
	Helper()
	Context() context.Context
	TempDir() string
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// state is what the journal says may be relied on.
type state struct {
	rooted       map[string]store.Path // link → path
	linked       map[string]store.Path // links that the daemon has made
	damaged      map[store.Path]bool
	found        map[store.Path]bool // damaged, as the daemon knows
	leased       []store.Path
	backup       string // the last one
	gens         map[int]store.Path
	doubtful     map[int]bool // generations being deleted
	current      []int        // the generation that is current, or that and the one that is to be
	highest      int
	twice        bool // a generation's number was given twice
	acknowledged int
}

func newState() *state {
	return &state{rooted: map[string]store.Path{}, linked: map[string]store.Path{}, damaged: map[store.Path]bool{}, found: map[store.Path]bool{}, gens: map[int]store.Path{}, doubtful: map[int]bool{}}
}

// replay reads the journal.
func (r *rig) replay(t tester) *state {
	t.Helper()
	s := newState()
	r.verbs = map[string]int{}
	f, err := os.Open(r.journal)
	if os.IsNotExist(err) {
		return s
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("journal: %v", err)
		}
		r.verbs[e.Verb]++
		s.apply(e)
	}
	return s
}

func (s *state) apply(e event) {
	s.acknowledged++
	switch e.Verb {
	case "root":
		s.rooted[e.Link] = e.Path
	case "linked":
		s.rooted[e.Link], s.linked[e.Link] = e.Path, e.Path
	case "unroot":
		delete(s.rooted, e.Link)
		delete(s.linked, e.Link)
	case "damage":
		s.damaged[e.Path] = true
	case "found":
		s.found[e.Path] = true
	case "mending":
		delete(s.found, e.Path)
	case "mended":
		delete(s.damaged, e.Path)
	case "leased":
		s.leased = append(s.leased, e.Path)
	case "released":
		s.leased = nil
	case "backup":
		s.backup = e.Link
	case "generation":
		s.gens[e.N] = e.Path
		s.twice = s.twice || e.N <= s.highest
		s.highest = max(s.highest, e.N)
	case "switching":
		s.current = append(s.current, e.N)
	case "switched":
		s.current = []int{e.N}
	case "deleting":
		s.doubtful[e.N] = true
	case "deleted":
		delete(s.gens, e.N)
		delete(s.doubtful, e.N)
	}
}

// check opens the store as the next daemon would.
func (r *rig) check(t tester) {
	t.Helper()
	s, err := disk.Open(t.Context(), r.layout, nil)
	if err != nil {
		t.Fatalf("open after kill: %v", err)
	}
	defer release(t, s)
	r.checkOpen(t, s, r.replay(t))
}

// release closes a store and waits until no child that another test has begun to start has its lock as well.
func release(t tester, s *disk.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	syscall.ForkLock.RLock()
	syscall.ForkLock.RUnlock()
}

// checkOpen checks an open store.
func (r *rig) checkOpen(t tester, s *disk.Store, want *state) {
	t.Helper()
	r.present(t, s, want, true)
	r.canonical(t, s, want)
	r.roots(t, want)
	r.leases(t, s, want)
	r.generations(t, s, want)
	r.backups(t, want)
	r.findings(t, s, want)
	r.forget(t, want)
	r.emptied(t)
	if _, err := gc.Collect(t.Context(), s, gc.Options{Action: gc.DeleteDead, NoProcesses: true}); err != nil {
		t.Errorf("collect: %v", err)
	}
	r.present(t, s, want, false)
	r.generations(t, s, want)
	r.expired(t, s)
	r.pool(t)
}

// present checks what is valid, and what is in the store directory.
func (r *rig) present(t tester, s *disk.Store, want *state, contents bool) {
	t.Helper()
	_, err := s.Verify(t.Context(), &disk.VerifyOptions{Contents: contents}, func(p disk.Problem) {
		if p.Kind != disk.Modified && p.Kind != disk.Vanished || !want.damaged[p.Path] {
			t.Errorf("%s: %v", p.Path, p.Err)
		}
	})
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	valid := map[string]bool{}
	for p := range s.All() {
		valid[p.Base()] = true
		r.verified++
	}
	for link, p := range want.rooted {
		r.rooted++
		if !valid[p.Base()] && !want.damaged[p] {
			t.Errorf("%s was acknowledged and rooted by %s, and is lost", p, link)
		}
	}
	entries, err := os.ReadDir(r.layout.RealDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !valid[e.Name()] && !slices.Contains([]string{".links", ".trash", ".lost"}, e.Name()) {
			t.Errorf("%s is in the store directory and not valid", e.Name())
		}
	}
}

// canonical checks times and modes of everything in objects.
func (r *rig) canonical(t tester, s *disk.Store, want *state) {
	t.Helper()
	for p := range s.All() {
		if want.damaged[p] {
			continue
		}
		err := filepath.WalkDir(s.RealPath(p), func(path string, e fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			if err == nil && (st.Mtim.Sec != 1 || st.Mtim.Nsec != 0 || e.Type() != fs.ModeSymlink && st.Mode&0o222 != 0) {
				t.Errorf("%s has time %d.%d, mode %o", path, st.Mtim.Sec, st.Mtim.Nsec, st.Mode)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// roots checks the links that the daemon has made, and that there are no others.
func (r *rig) roots(t tester, want *state) {
	t.Helper()
	for link, p := range want.linked {
		if target, err := os.Readlink(link); err != nil || target != p.String() {
			t.Errorf("root %s -> %s was acknowledged, and is %q, %v", link, p, target, err)
		}
	}
	err := filepath.WalkDir(filepath.Join(r.layout.StateDir, "gcroots"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && (strings.Contains(e.Name(), "new") || e.Type().IsRegular()) {
			t.Errorf("%s was left", path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// leases checks that acknowledged leases hold what they hold, and ends them.
func (r *rig) leases(t tester, s *disk.Store, want *state) {
	t.Helper()
	var held []store.Path
	for _, l := range s.Leases() {
		held = append(held, l.Paths...)
	}
	for _, p := range want.leased {
		if !slices.Contains(held, p) {
			t.Errorf("a lease of %s was acknowledged, and is lost", p)
		}
	}
	for _, l := range s.Leases() {
		s.Lease(l.Owner, 1).Release()
	}
	if len(held) > 0 {
		r.write(t, event{Verb: "released"})
		want.leased = nil
	}
}

// emptied waits until the trash is empty, which has links to entries of the pool.
func (r *rig) emptied(t tester) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if names, err := os.ReadDir(filepath.Join(r.layout.RealDir, ".trash")); len(names) == 0 && (err == nil || os.IsNotExist(err)) {
			return
		}
	}
	t.Error("the trash is not emptied")
}

// write adds to the journal while no driver runs.
func (r *rig) write(t tester, e event) {
	t.Helper()
	f, err := os.OpenFile(r.journal, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (&journal{f: f}).write(e); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) generations(t tester, s *disk.Store, want *state) {
	t.Helper()
	p := profile.Open(filepath.Join(r.layout.StateDir, "profiles", "crash"))
	list, err := p.List()
	if err != nil {
		t.Fatal(err)
	}
	there := map[int]string{}
	for _, g := range list {
		there[g.Number] = g.Path
		if path, err := store.ParsePath(g.Path); err != nil || !s.IsValid(path) {
			t.Errorf("generation %d is %s, which is not valid", g.Number, g.Path)
		}
	}
	for n, path := range want.gens {
		if there[n] != path.String() && !(want.doubtful[n] && there[n] == "") {
			t.Errorf("generation %d is %q, acknowledged was %s", n, there[n], path)
		}
	}
	if want.twice {
		t.Errorf("a generation's number was given twice")
	}
	current, err := p.Current()
	if err == nil && !slices.Contains(want.current, current.Number) || err != nil && len(want.current) > 1 {
		t.Errorf("current is %d, %v; it should be one of %v", current.Number, err, want.current)
	}
}

// backups reads the backups, of which the one that was acknowledged last is one, or there is a later one.
func (r *rig) backups(t tester, want *state) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.layout.StateDir, "backups", "*.backup"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := meta.ReadBackup(f, &meta.Rows{}); err != nil {
			t.Errorf("backup %s: %v", name, err)
		}
		f.Close()
	}
	if len(files) > 0 && files[len(files)-1] < want.backup || len(files) == 0 && want.backup != "" {
		t.Errorf("backup %s was acknowledged; there are %v", want.backup, files)
	}
}

// findings checks that what a scrub has found is still known, or will be found again.
func (r *rig) findings(t tester, s *disk.Store, want *state) {
	t.Helper()
	state := s.Scrub()
	for p := range want.found {
		if _, err := s.Registered(p); err != nil {
			continue // collected
		}
		known := slices.ContainsFunc(state.Findings, func(f disk.Finding) bool { return f.Path == p })
		if !known && !(state.Finished.IsZero() && state.Position < meta.DigestOf(p).String()) {
			t.Errorf("%s was found to be damaged, and that is forgotten", p)
		}
	}
}

// expired checks that a collection leaves no root that has expired.
func (r *rig) expired(t tester, s *disk.Store) {
	t.Helper()
	roots, err := s.NamedRoots()
	if err != nil {
		t.Error(err)
	}
	for _, root := range roots {
		if root.Expired(time.Now()) {
			t.Errorf("root %s has expired and stays", root.Link)
		}
	}
}

// forget takes away the roots of what the driver has damaged and nobody has mended, and does not rely on those that it made itself
// and that a power cut has taken.
func (r *rig) forget(t tester, want *state) {
	t.Helper()
	for link, p := range want.rooted {
		_, err := os.Lstat(link)
		if os.IsNotExist(err) && r.powerCut {
			delete(want.rooted, link)
			continue
		}
		if want.damaged[p] {
			r.write(t, event{Verb: "unroot", Link: link})
			delete(want.rooted, link)
			if err := os.Remove(link); err != nil {
				t.Error(err)
			}
		}
	}
}

// pool checks that every entry of the pool is that of an object.
func (r *rig) pool(t tester) {
	t.Helper()
	entries, err := filepath.Glob(filepath.Join(r.layout.RealDir, ".links", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(e, &st); err != nil || st.Nlink < 2 {
			t.Errorf("%s has %d links after a collection, %v", e, st.Nlink, err)
		}
	}
}
