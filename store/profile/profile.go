// Package profile keeps named chains of generations: numbered links of which one is current.
//
//	DIR/<name>           -> <name>-<n>-link      the current generation
//	DIR/<name>-<n>-link  -> target               a generation; its time is the link's mtime
//	DIR/.<name>.last                             the highest number ever given, in decimal
//	DIR/.<name>.lock                             locked (flock) while something changes
//
// The links are as Nix makes them, so that its tools, and the garbage collector, can read them.
//
// Invariants: a number is never used twice, not even after its generation was deleted; the file that
// remembers this is durable before the link with the number appears. The current link changes
// by one rename, durable before Switch returns. The current generation cannot be deleted.
// Reading takes no lock. A link whose name or target is foreign is skipped, and reported as a warning.
//
// It does not know what a target is and does not keep it alive: the links do, being roots.
package profile

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store/failpoint"
)

// Errors that callers test for with errors.Is.
var (
	// ErrNoGeneration says that there is no such generation.
	ErrNoGeneration = errors.New("no such generation")
	// ErrCurrent says that a generation is the current one.
	ErrCurrent = errors.New("generation is current")
)

// Generation is one link of a profile.
type Generation struct {
	Number  int       `json:"number"`
	Path    string    `json:"path"` // what the link points to
	Created time.Time `json:"created"`
	Current bool      `json:"current"`
}

// Profile is the path of the current link. Nothing is kept open.
type Profile struct {
	dir, name string
	// Logger gets a warning for each link that is skipped; nil discards.
	Logger *slog.Logger
}

// Open returns the profile at path; it need not exist.
func Open(path string) *Profile {
	return &Profile{dir: filepath.Dir(path), name: filepath.Base(path)}
}

// String returns the path of the current link.
func (p *Profile) String() string { return filepath.Join(p.dir, p.name) }

// Link returns the path of a generation's link.
func (p *Profile) Link(number int) string { return filepath.Join(p.dir, p.linkName(number)) }

func (p *Profile) linkName(number int) string { return fmt.Sprintf("%s-%d-link", p.name, number) }

// number parses the name of a generation's link; canonical decimals only.
func (p *Profile) number(link string) (int, bool) {
	s, ok := strings.CutPrefix(link, p.name+"-")
	if !ok {
		return 0, false
	}
	if s, ok = strings.CutSuffix(s, "-link"); !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n > 0 && strconv.Itoa(n) == s
}

func (p *Profile) warn(msg string, args ...any) {
	if p.Logger != nil {
		p.Logger.Warn(msg, args...)
	}
}

// Current returns the current generation, or ErrNoGeneration when the profile is empty.
func (p *Profile) Current() (Generation, error) {
	n, err := p.current()
	if err != nil {
		return Generation{}, err
	}
	g, err := p.generation(n)
	if err != nil {
		return Generation{}, err
	}
	g.Current = true
	return g, nil
}

// current returns the number that the current link names.
func (p *Profile) current() (int, error) {
	target, err := os.Readlink(p.String())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("profile %s: %w", p, ErrNoGeneration)
	}
	if err != nil {
		return 0, fmt.Errorf("profile %s: %w", p, err)
	}
	if d := filepath.Dir(target); d != "." && d != p.dir {
		return 0, fmt.Errorf("profile %s points to %s, which is no generation of it", p, target)
	}
	n, ok := p.number(filepath.Base(target))
	if !ok {
		return 0, fmt.Errorf("profile %s points to %s, which is no generation of it", p, target)
	}
	return n, nil
}

func (p *Profile) generation(n int) (Generation, error) {
	link := p.Link(n)
	target, err := os.Readlink(link)
	if errors.Is(err, fs.ErrNotExist) {
		return Generation{}, fmt.Errorf("profile %s: generation %d: %w", p, n, ErrNoGeneration)
	}
	if err != nil {
		return Generation{}, fmt.Errorf("profile %s: generation %d: %w", p, n, err)
	}
	fi, err := os.Lstat(link)
	if err != nil {
		return Generation{}, fmt.Errorf("profile %s: generation %d: %w", p, n, err)
	}
	return Generation{Number: n, Path: target, Created: fi.ModTime()}, nil
}

// List returns the generations by number.
func (p *Profile) List() ([]Generation, error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list generations of %s: %w", p, err)
	}
	current, err := p.current()
	if err != nil && !errors.Is(err, ErrNoGeneration) {
		p.warn("profile has no current generation", "profile", p.String(), "error", err)
	}
	var list []Generation
	for _, e := range entries {
		n, ok := p.number(e.Name())
		if !ok {
			if strings.HasPrefix(e.Name(), p.name+"-") && strings.HasSuffix(e.Name(), "-link") {
				p.warn("skipping a link that is no generation", "link", filepath.Join(p.dir, e.Name()))
			}
			continue
		}
		g, err := p.generation(n)
		if err != nil {
			p.warn("skipping a generation that cannot be read", "error", err)
			continue
		}
		g.Current = n == current
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b Generation) int { return a.Number - b.Number })
	return list, nil
}

// New makes a generation that points to target. It is not current until Switch.
func (p *Profile) New(target string) (Generation, error) {
	if target == "" || strings.ContainsRune(target, 0) {
		return Generation{}, fmt.Errorf("new generation of %s: target %q is no path", p, target)
	}
	var g Generation
	err := p.change(func() error {
		n, err := p.allocate()
		if err != nil {
			return err
		}
		failpoint.Hit("profile/new/numbered")
		if err := os.Symlink(target, p.Link(n)); err != nil {
			return err
		}
		failpoint.Hit("profile/new/linked")
		if err := syncDir(p.dir); err != nil {
			return err
		}
		failpoint.Hit("profile/new/named")
		g, err = p.generation(n)
		return err
	})
	if err != nil {
		return Generation{}, fmt.Errorf("new generation of %s: %w", p, err)
	}
	return g, nil
}

// allocate returns a number above all that were ever given, and remembers it durably.
func (p *Profile) allocate() (int, error) {
	last, err := p.last()
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if n, ok := p.number(e.Name()); ok {
			last = max(last, n)
		}
	}
	if n, err := p.current(); err == nil {
		last = max(last, n)
	}
	return last + 1, p.remember(last + 1)
}

func (p *Profile) lastFile() string { return filepath.Join(p.dir, "."+p.name+".last") }

// last returns the number remembered. A damaged file counts as none: the links speak for themselves.
func (p *Profile) last() (int, error) {
	b, err := os.ReadFile(p.lastFile())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < 0 {
		p.warn("profile's memory of its highest number is damaged", "file", p.lastFile())
		return 0, nil
	}
	return n, nil
}

func (p *Profile) remember(n int) error {
	temp := p.lastFile() + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d\n", n)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		failpoint.Hit("profile/number/written")
		err = os.Rename(temp, p.lastFile())
	}
	if err == nil {
		err = syncDir(p.dir)
	}
	return err
}

// Switch makes a generation the current one, by one rename.
func (p *Profile) Switch(number int) error {
	err := p.change(func() error {
		if _, err := p.generation(number); err != nil {
			return err
		}
		return p.point(number)
	})
	if err != nil {
		return fmt.Errorf("switch to generation %d of %s: %w", number, p, err)
	}
	return nil
}

func (p *Profile) point(number int) error {
	temp := filepath.Join(p.dir, "."+p.name+".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(p.linkName(number), temp); err != nil {
		return err
	}
	if fi, err := os.Lstat(p.String()); err == nil && fi.Mode().Type() != fs.ModeSymlink {
		os.Remove(temp)
		return fmt.Errorf("%s exists and is no link; move it away", p)
	}
	failpoint.Hit("profile/switch/made")
	if err := os.Rename(temp, p.String()); err != nil {
		return err
	}
	failpoint.Hit("profile/switch/renamed")
	if err := syncDir(p.dir); err != nil {
		return err
	}
	failpoint.Hit("profile/switch/named")
	return nil
}

// RollBack switches to the generation before the current one and returns it.
func (p *Profile) RollBack() (Generation, error) {
	var to Generation
	err := p.change(func() error {
		current, err := p.current()
		if err != nil {
			return err
		}
		if to, err = p.before(current); err != nil {
			return err
		}
		return p.point(to.Number)
	})
	if err != nil {
		return Generation{}, fmt.Errorf("roll back %s: %w", p, err)
	}
	to.Current = true
	return to, nil
}

func (p *Profile) before(number int) (Generation, error) {
	list, err := p.List()
	if err != nil {
		return Generation{}, err
	}
	list = slices.DeleteFunc(list, func(g Generation) bool { return g.Number >= number })
	if len(list) == 0 {
		return Generation{}, fmt.Errorf("no generation before %d: %w", number, ErrNoGeneration)
	}
	return list[len(list)-1], nil
}

// Delete removes generations. Nothing is removed when one of them is current or does not exist.
func (p *Profile) Delete(numbers ...int) error {
	err := p.change(func() error {
		current, err := p.current()
		if err != nil && !errors.Is(err, ErrNoGeneration) {
			return err
		}
		for _, n := range numbers {
			if _, err := p.generation(n); err != nil {
				return err
			}
			if n == current {
				return fmt.Errorf("generation %d: %w", n, ErrCurrent)
			}
		}
		return p.remove(numbers)
	})
	if err != nil {
		return fmt.Errorf("delete generations of %s: %w", p, err)
	}
	return nil
}

// remove unlinks generations, remembering their numbers first.
func (p *Profile) remove(numbers []int) error {
	last, err := p.last()
	if err != nil {
		return err
	}
	if len(numbers) == 0 {
		return nil
	}
	if highest := slices.Max(numbers); highest > last {
		if err := p.remember(highest); err != nil {
			return err
		}
	}
	for _, n := range numbers {
		if err := os.Remove(p.Link(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		failpoint.Hit("profile/delete/removed")
	}
	return syncDir(p.dir)
}

// change runs fn while no other process or goroutine changes the profile.
func (p *Profile) change(fn func() error) error {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(p.dir, "."+p.name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return fn()
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
