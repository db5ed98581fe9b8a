package activate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/services/system"
	"cairn/store/profile"
)

// Generation is a system that this host can switch to.
type Generation struct {
	profile.Generation
	HostName   string            `json:"hostName,omitempty"`
	Units      []string          `json:"units,omitempty"`
	Provenance map[string]string `json:"provenance,omitempty"`
	Error      string            `json:"error,omitempty"` // why the system cannot be read
}

// Generations lists the generations by number, with what their systems say of themselves.
func (e *Engine) Generations(ctx context.Context) ([]Generation, error) {
	list, err := e.profile().List()
	if err != nil {
		return nil, err
	}
	out := make([]Generation, len(list))
	for i, g := range list {
		out[i] = e.describe(g)
	}
	return out, nil
}

// Describe returns the current generation.
func (e *Engine) Describe(ctx context.Context) (Generation, error) {
	g, err := e.profile().Current()
	if err != nil {
		return Generation{}, err
	}
	return e.describe(g), nil
}

func (e *Engine) describe(g profile.Generation) Generation {
	out := Generation{Generation: g}
	m, err := e.Manifest(g.Path)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.HostName, out.Provenance = m.HostName, m.Provenance
	for _, u := range m.Units {
		out.Units = append(out.Units, u.Name)
	}
	slices.Sort(out.Units)
	return out
}

// SwitchGeneration makes an older or newer generation current. Generation 0 is the host as it was
// before the first system: what is ours is removed, and what it replaced comes back.
func (e *Engine) SwitchGeneration(ctx context.Context, number int, opts *SwitchOptions) (*Result, error) {
	return e.change(ctx, opts, func() (goal, error) { return e.findGeneration(number) })
}

// RollBack switches to the generation before the current one.
func (e *Engine) RollBack(ctx context.Context, opts *SwitchOptions) (*Result, error) {
	return e.change(ctx, opts, func() (goal, error) {
		list, err := e.profile().List()
		if err != nil {
			return goal{}, err
		}
		i := slices.IndexFunc(list, func(g profile.Generation) bool { return g.Current })
		if i < 1 {
			return goal{}, fmt.Errorf("roll back: %w before the current one; generation 0 gives the host back", profile.ErrNoGeneration)
		}
		return goal{system: list[i-1].Path, generation: list[i-1].Number}, nil
	})
}

func (e *Engine) findGeneration(number int) (goal, error) {
	if number == 0 {
		return goal{}, nil
	}
	list, err := e.profile().List()
	if err != nil {
		return goal{}, err
	}
	for _, g := range list {
		if g.Number == number {
			return goal{system: g.Path, generation: number}, nil
		}
	}
	return goal{}, fmt.Errorf("switch to generation %d: %w", number, profile.ErrNoGeneration)
}

// DeleteGenerations removes generations; the current one, and the one that a pending switch would go
// back to, are refused.
func (e *Engine) DeleteGenerations(ctx context.Context, numbers ...int) error {
	release, err := e.lock(ctx, false)
	if err != nil {
		return err
	}
	defer release()
	j, err := pendingJournal(e.journalDir())
	if err != nil {
		return err
	}
	if j != nil && !j.Closed {
		return fmt.Errorf("delete generations: %w: %s", ErrUnconfirmed, j.ID)
	}
	return e.profile().Delete(numbers...)
}

// SelectGenerations picks generations for deletion: an empty pattern means all but the current one; else
// a comma-separated list of numbers and ranges ("3,5..7,9.."), or an age ("10d", "2w", "3m": older than that).
func SelectGenerations(list []profile.Generation, pattern string, now time.Time) ([]int, error) {
	older, isAge, err := parseAge(pattern)
	if err != nil {
		return nil, err
	}
	var picks []int
	for _, g := range list {
		pick := pattern == ""
		if isAge {
			pick = now.Sub(g.Created) > older
		} else if pattern != "" {
			if pick, err = inList(pattern, g.Number); err != nil {
				return nil, err
			}
		}
		if pick && !(g.Current && (pattern == "" || isAge)) {
			picks = append(picks, g.Number)
		}
	}
	return picks, nil
}

func parseAge(pattern string) (time.Duration, bool, error) {
	var n int
	var unit string
	if c, _ := fmt.Sscanf(pattern, "%d%s", &n, &unit); c != 2 || strings.ContainsAny(pattern, ",.") {
		return 0, false, nil
	}
	days := map[string]int{"d": 1, "w": 7, "m": 30}[unit]
	if days == 0 || n < 0 || n > 10000 {
		return 0, false, fmt.Errorf("age %q: want a number and d, w or m", pattern)
	}
	return time.Duration(n*days) * 24 * time.Hour, true, nil
}

func inList(pattern string, number int) (bool, error) {
	found := false
	for _, part := range strings.Split(pattern, ",") {
		from, to, isRange := strings.Cut(part, "..")
		low, high := 0, 1<<31
		var err error
		if from != "" {
			low, err = parseNumber(from)
		}
		if !isRange {
			high = low
		} else if to != "" && err == nil {
			high, err = parseNumber(to)
		}
		if err != nil || part == "" || part == ".." {
			return false, errors.Join(fmt.Errorf("generations %q: want numbers and ranges such as 3,5..7", pattern), err)
		}
		found = found || number >= low && number <= high
	}
	return found, nil
}

func parseNumber(s string) (int, error) {
	n := 0
	for _, r := range s {
		if r < '0' || r > '9' || n > 1<<27 {
			return 0, fmt.Errorf("%q is not a number", s)
		}
		n = n*10 + int(r-'0')
	}
	return n, nil
}

// Difference is what two systems differ in.
type Difference struct {
	Units    Change `json:"units,omitzero"`
	Files    Change `json:"files,omitzero"`
	Users    Change `json:"users,omitzero"`
	Packages Change `json:"packages,omitzero"`
	Other    Change `json:"other,omitzero"` // host name, time zone
}

// Change lists names.
type Change struct {
	Added   []string `json:"added,omitempty"`
	Removed []string `json:"removed,omitempty"`
	Changed []string `json:"changed,omitempty"`
}

// Diff compares two systems by their manifests.
func Diff(a, b *system.Manifest) Difference {
	return Difference{
		Units: changes(a.Units, b.Units, func(u system.Unit) (string, string) { return u.Name, u.Definition() + u.Reloads() }),
		Files: changes(a.Etc, b.Etc, func(f system.EtcFile) (string, string) {
			return "/etc/" + f.Path, f.Source + "\x00" + f.Mode + "\x00" + f.User + ":" + f.Group
		}),
		Users: changes(a.Users, b.Users, func(u system.User) (string, string) {
			return u.Name, fmt.Sprint(u.Comment, u.Home, u.Shell, u.Group, u.Groups, u.AuthorizedKeys)
		}),
		Packages: changes(a.Packages, b.Packages, func(p string) (string, string) { return p, "" }),
		Other:    changes(hostFields(a), hostFields(b), func(f [2]string) (string, string) { return f[0], f[1] }),
	}
}

func hostFields(m *system.Manifest) [][2]string {
	return [][2]string{{"host name", m.HostName}, {"time zone", m.Timezone}}
}

func changes[T any](a, b []T, key func(T) (name, value string)) Change {
	was, is := map[string]string{}, map[string]string{}
	for _, x := range a {
		k, v := key(x)
		was[k] = v
	}
	for _, x := range b {
		k, v := key(x)
		is[k] = v
	}
	var c Change
	for _, k := range sortedKeys(is) {
		if old, ok := was[k]; !ok {
			c.Added = append(c.Added, k)
		} else if old != is[k] {
			c.Changed = append(c.Changed, k)
		}
	}
	for _, k := range sortedKeys(was) {
		if _, ok := is[k]; !ok {
			c.Removed = append(c.Removed, k)
		}
	}
	return c
}

// String prints the difference, one name per line.
func (d Difference) String() string {
	var b strings.Builder
	for _, part := range []struct {
		what string
		c    Change
	}{{"unit", d.Units}, {"file", d.Files}, {"user", d.Users}, {"package", d.Packages}, {"", d.Other}} {
		for _, list := range []struct {
			sign  string
			names []string
		}{{"+", part.c.Added}, {"-", part.c.Removed}, {"~", part.c.Changed}} {
			for _, n := range list.names {
				fmt.Fprintln(&b, strings.Join(strings.Fields(list.sign+" "+part.what+" "+n), " "))
			}
		}
	}
	return b.String()
}
