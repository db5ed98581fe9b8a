package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"cairn/services/activate"
	"cairn/store/disk"
	"cairn/store/profile"
)

// dropped is generations of one profile that go.
type dropped struct {
	Profile     string               `json:"profile"`
	Generations []profile.Generation `json:"generations"`
}

// generationPolicy is what the options say, and whether they say anything.
func (o *gcOptions) generationPolicy() (profile.Policy, bool, error) {
	p := profile.Policy{KeepLast: o.keepLast, KeepFor: time.Duration(o.keepDays) * 24 * time.Hour}
	if o.keepLast < 0 || o.keepDays < 0 || o.keepDays > 36500 {
		return p, false, &usageError{fmt.Errorf("--keep-last and --keep-days take numbers that are not negative")}
	}
	if o.generationAge != "" {
		age, err := parseAge(o.generationAge)
		if err != nil {
			return p, false, &usageError{fmt.Errorf("--delete-generations-older-than: %w", err)}
		}
		p.KeepFor = max(age, time.Nanosecond)
	}
	return p, o.deleteGenerations || o.keepLast > 0 || o.keepDays > 0 || o.generationAge != "", nil
}

// dropGenerations deletes, unless dry, the generations that a policy drops, of all profiles that the caller may change.
// The system that runs and the one that was booted stay. A profile that cannot be read, or is about to
// change, is passed over with a warning.
func dropGenerations(ctx context.Context, env *Env, layout disk.Layout, p profile.Policy, dry bool) ([]dropped, error) {
	for _, link := range []string{"/run/current-system", "/run/booted-system"} {
		if target, err := os.Readlink(filepath.Join("/", layout.Root, link)); err == nil {
			p.Targets = append(p.Targets, target)
		}
	}
	names, err := findProfiles(env, layout)
	if err != nil {
		return nil, err
	}
	var all []dropped
	for _, name := range names {
		gone, err := policyOf(env, name, p)
		if err == nil && len(gone) > 0 && !dry {
			err = deleteDropped(ctx, env, layout, name, gone)
		}
		if err != nil {
			env.note("warning: generations of %s stay: %v", name, err)
			continue
		}
		if len(gone) > 0 {
			all = append(all, dropped{name, gone})
		}
	}
	return all, nil
}

// findProfiles returns the profiles of the store and of the user, as far as the caller may change them.
func findProfiles(env *Env, layout disk.Layout) ([]string, error) {
	dirs := []string{filepath.Join(layout.StateDir, "profiles")}
	if layout.Root == "" || layout.Root == "/" {
		state := env.Getenv("XDG_STATE_HOME")
		if home := env.Getenv("HOME"); state == "" && home != "" {
			state = filepath.Join(home, ".local/state")
		}
		if state != "" {
			dirs = append(dirs, filepath.Join(state, "nix/profiles"))
		}
	}
	var ours []string
	for _, dir := range dirs {
		names, err := profile.Find(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if unix.Access(filepath.Dir(name), unix.W_OK) == nil {
				ours = append(ours, name)
			}
		}
	}
	return ours, nil
}

// policyOf returns the generations of a profile that go. Without a current one, nothing does: who knows which is used.
func policyOf(env *Env, name string, p profile.Policy) ([]profile.Generation, error) {
	prof := profile.Open(name)
	prof.Logger = slog.New(slog.NewTextHandler(env.Stderr, nil))
	if _, err := prof.Current(); err != nil {
		return nil, err
	}
	list, err := prof.List()
	if err != nil {
		return nil, err
	}
	drop := map[int]bool{}
	for _, n := range p.Drop(list, time.Now()) {
		drop[n] = true
	}
	var gone []profile.Generation
	for _, g := range list {
		if drop[g.Number] {
			gone = append(gone, g)
		}
	}
	return gone, nil
}

// deleteDropped deletes generations. Those of the machine's system are looked after by the engine that switches it.
func deleteDropped(ctx context.Context, env *Env, layout disk.Layout, name string, gone []profile.Generation) error {
	numbers := make([]int, len(gone))
	for i, g := range gone {
		numbers[i] = g.Number
	}
	if (layout.Root == "" || layout.Root == "/") && name == filepath.Join(layout.StateDir, "profiles", "system") {
		return env.withActivation(func(e *activate.Engine) error { return e.DeleteGenerations(ctx, numbers...) })
	}
	return profile.Open(name).Delete(numbers...)
}

// links names the links of generations.
func links(all []dropped) []string {
	var list []string
	for _, d := range all {
		for _, g := range d.Generations {
			list = append(list, profile.Open(d.Profile).Link(g.Number))
		}
	}
	return list
}
