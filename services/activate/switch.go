package activate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cairn/services/system"
	"cairn/store"
	"cairn/store/profile"
)

// SwitchOptions change what one switch does.
type SwitchOptions struct {
	DryRun        bool          // plan and preflight only
	ConfirmWithin time.Duration // the switch is undone unless Confirm is called in time; default: confirmed at once
	Wait          bool          // wait for the lock instead of ErrBusy
}

// Result is what became of a switch.
type Result struct {
	ID         string    `json:"id,omitempty"` // of the journal
	Outcome    string    `json:"outcome"`      // "planned", "unchanged", "switched", "awaiting", "undone", "incomplete", "refused"
	System     string    `json:"system"`
	From       string    `json:"from,omitempty"`
	Generation int       `json:"generation,omitempty"` // current when it ended
	Deadline   time.Time `json:"deadline,omitzero"`    // of "awaiting"
	Plan       *Plan     `json:"plan,omitempty"`
	Error      string    `json:"error,omitempty"`
	UndoErrors []string  `json:"undoErrors,omitempty"`
}

// Refused says that a plan has conflicts. Nothing was changed.
type Refused struct{ Conflicts []Conflict }

func (r *Refused) Error() string {
	lines := make([]string, len(r.Conflicts))
	for i, c := range r.Conflicts {
		lines[i] = c.String()
	}
	what := "conflicts"
	if len(lines) == 1 {
		what = "conflict"
	}
	return fmt.Sprintf("%d %s, nothing was changed:\n  %s", len(lines), what, strings.Join(lines, "\n  "))
}

// Hint is the next step.
func (r *Refused) Hint() string {
	for _, c := range r.Conflicts {
		if c.Kind == "file" {
			return "move the files away, or let the configuration take them over with replace = True, which gives them back later; then run the same again"
		}
	}
	return "put it right on the machine or in the configuration, and run the same again"
}

// Undone says that a switch did not succeed, and whether the host is as before.
type Undone struct {
	ID    string
	Cause error
	Left  []string // what could not be put back; empty when the old state is whole
}

func (u *Undone) Error() string {
	if len(u.Left) == 0 {
		return fmt.Sprintf("switch %s was undone, the old state is back: %v", u.ID, u.Cause)
	}
	return fmt.Sprintf("switch %s: %v; the undo is incomplete: %s", u.ID, u.Cause, strings.Join(u.Left, "; "))
}

func (u *Undone) Unwrap() error { return u.Cause }

// Hint is the next step.
func (u *Undone) Hint() string {
	unit, known := errors.AsType[*UnitError](u.Cause)
	switch {
	case len(u.Left) > 0:
		return "put back by hand what is left; 'cairn system describe' says which generation is current"
	case known:
		return "on the machine 'journalctl -u " + unit.Unit + "' has the whole log; correct the configuration and run the same again"
	}
	return "put it right on the machine or in the configuration, and run the same again"
}

// goal is what a change of the host leads to.
type goal struct {
	system     string // empty: give the host back
	generation int    // of a system that has one; 0 makes a new one
}

// Switch makes a system the current one, as a new generation.
// Its files must be in the store, and something must keep them alive until this returns.
func (e *Engine) Switch(ctx context.Context, sys store.Path, opts *SwitchOptions) (*Result, error) {
	return e.change(ctx, opts, func() (goal, error) { return goal{system: sys.String()}, nil })
}

// Plan says what Switch would do, with all conflicts that can be found without changing anything.
func (e *Engine) Plan(ctx context.Context, sys store.Path) (*Plan, error) {
	if err := e.connect(ctx); err != nil {
		return nil, err
	}
	return e.plan(ctx, sys.String())
}

func (e *Engine) change(ctx context.Context, opts *SwitchOptions, find func() (goal, error)) (*Result, error) {
	if opts == nil {
		opts = &SwitchOptions{}
	}
	release, err := e.lock(ctx, opts.Wait)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := e.connect(ctx); err != nil {
		return nil, err
	}
	if err := e.settlePending(ctx, opts.DryRun); err != nil {
		return nil, err
	}
	g, err := find()
	if err != nil {
		return nil, err
	}
	p, err := e.plan(ctx, g.system)
	if err != nil {
		return nil, err
	}
	r := &Result{Outcome: "planned", System: g.system, From: p.From, Plan: p, Generation: e.currentGeneration()}
	switch {
	case len(p.Conflicts) > 0:
		r.Outcome = "refused"
		err := &Refused{p.Conflicts}
		r.Error = err.Error()
		return r, err
	case opts.DryRun:
		return r, nil
	case p.Empty() && e.isCurrent(g):
		r.Outcome = "unchanged"
		return r, nil
	}
	err = e.carryOut(ctx, g, p, opts, r)
	r.Generation = e.currentGeneration()
	if err != nil {
		r.Error = err.Error()
	}
	return r, err
}

// plan gathers facts, compares, and runs the preflight.
func (e *Engine) plan(ctx context.Context, sys string) (*Plan, error) {
	state, err := readState(e.host(e.statePath()))
	if err != nil {
		return nil, err
	}
	wanted, err := e.Manifest(sys)
	if err != nil {
		return nil, err
	}
	current, lost := e.Manifest(state.System)
	if lost != nil {
		current = remembered(state)
	}
	f, err := e.facts(ctx, current, wanted, state)
	if err != nil {
		return nil, err
	}
	cs, err := claims(wanted, e.profileLink(), f, func(ps []string) (string, int64, error) { return sumFiles(e.realAll(ps)) })
	if err != nil {
		return nil, err
	}
	if err := e.fileFacts(f, cs, state); err != nil {
		return nil, err
	}
	p := NewPlan(Input{System: sys, Current: current, Wanted: wanted, State: state, Claims: cs, Facts: f})
	if lost != nil {
		p.Notes = append(p.Notes, fmt.Sprintf("the current system cannot be read, so that all its units restart: %v", lost))
	}
	e.preflight(ctx, p, current, wanted, f)
	return p, nil
}

// remembered is what the state knows of a system whose object is damaged or gone: its units, but not their definitions.
func remembered(state *State) *system.Manifest {
	m := &system.Manifest{Version: system.ManifestVersion}
	for _, name := range sortedKeys(state.Files) {
		if dir, unit := filepath.Split(name); dir == unitDir+"/" {
			m.Units = append(m.Units, system.Unit{Name: unit})
		}
	}
	return m
}

// isCurrent reports whether the profile points to the goal already.
func (e *Engine) isCurrent(g goal) bool {
	current, err := e.profile().Current()
	if err != nil {
		return g.system == "" && errors.Is(err, profile.ErrNoGeneration)
	}
	return current.Path == g.system && (g.generation == 0 || g.generation == current.Number)
}

func (e *Engine) currentGeneration() int {
	g, err := e.profile().Current()
	if err != nil {
		return 0
	}
	return g.Number
}

// transaction is one switch under way.
type transaction struct {
	e       *Engine
	w       *journalWriter
	p       *Plan
	g       goal
	wanted  *system.Manifest
	begun   []Step
	started time.Time
}

func (e *Engine) carryOut(ctx context.Context, g goal, p *Plan, opts *SwitchOptions, r *Result) error {
	wanted, err := e.Manifest(g.system)
	if err != nil {
		return err
	}
	if err := e.installRecovery(ctx); err != nil {
		return err
	}
	boot, err := e.bootID()
	if err != nil {
		return err
	}
	t := &transaction{e: e, p: p, g: g, wanted: wanted, started: time.Now()}
	r.ID = newID(t.started)
	t.w, err = createJournal(e.journalDir(), Record{ID: r.ID, From: p.From, System: g.system, BootID: boot}, e.opts.Journaled)
	if err != nil {
		return err
	}
	if opts.ConfirmWithin > 0 {
		err = e.armWatchdog(ctx, r.ID, opts.ConfirmWithin)
	}
	if err == nil {
		err = t.apply(ctx)
	}
	if err == nil && opts.ConfirmWithin > 0 {
		return t.await(boot, opts.ConfirmWithin, r)
	}
	if err == nil {
		err = t.w.write(Record{Event: "confirm"})
	}
	if err != nil {
		return t.undo(ctx, err, r)
	}
	r.Outcome = "switched"
	return e.finish(t.w)
}

// finish closes a confirmed journal and throws away what only its undo needed.
func (e *Engine) finish(w *journalWriter) error {
	if err := w.close("switched", "", nil); err != nil {
		return err
	}
	e.prune()
	return nil
}

func (t *transaction) await(boot string, within time.Duration, r *Result) error {
	now, err := sinceBoot()
	if err != nil {
		return t.undo(context.Background(), err, r)
	}
	seconds := int64((within + time.Second - 1) / time.Second)
	if err := t.w.write(Record{Event: "await", BootID: boot, Deadline: now + seconds}); err != nil {
		return t.undo(context.Background(), err, r)
	}
	t.w.f.Close()
	r.Outcome, r.Deadline = "awaiting", time.Now().Add(within)
	return nil
}

// undoTime bounds an undo; the caller's context may be over already.
const undoTime = 10 * time.Minute

func (t *transaction) undo(ctx context.Context, cause error, r *Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	head, _, _ := strings.Cut(cause.Error(), "\n")
	t.e.opts.Progress("undo: " + head)
	left := t.e.undoSteps(ctx, t.w, t.begun, cause.Error(), false)
	t.e.disarmWatchdog(ctx, t.w.id)
	r.Outcome, r.UndoErrors = outcomeOf(left), left
	return &Undone{ID: t.w.id, Cause: cause, Left: left}
}

// begin journals a step. Only then may its effect happen.
func (t *transaction) begin(s Step) error {
	t.e.opts.Progress(s.String())
	if err := t.w.begin(s); err != nil {
		return err
	}
	t.begun = append(t.begun, s)
	return nil
}

func (t *transaction) step(ctx context.Context, s Step) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := t.begin(s); err != nil {
		return err
	}
	if err := t.e.do(ctx, &s); err != nil {
		return fmt.Errorf("%s: %w", s.String(), err)
	}
	return nil
}

// apply is the switch itself; each phase stops at its first error. The kernel's host name comes before the files: when the machine loses
// power, it starts with that of /etc/hostname, and only a step that has begun is undone.
func (t *transaction) apply(ctx context.Context) error {
	for _, phase := range []func(context.Context) error{
		t.stopFirst, t.addAccounts, t.hostName, t.files, t.generation, t.tmpfiles, t.reloadUnits,
		t.runUnits, t.health, t.removeAccounts, t.state,
	} {
		if err := phase(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (t *transaction) stopFirst(ctx context.Context) error {
	var names []UnitChange
	for _, u := range t.p.Units {
		if u.StopFirst && u.Active {
			names = append(names, u)
		}
	}
	return t.jobs(ctx, names, func(UnitChange) string { return "stop" })
}

// addAccounts runs systemd-sysusers for system accounts and useradd and its like for the rest.
func (t *transaction) addAccounts(ctx context.Context) error {
	sys := Step{Kind: "sysusers", Path: t.g.system + "/sysusers"}
	for _, a := range t.p.Accounts {
		switch {
		case a.bySystem && a.Action == "add":
			sys.Users = append(sys.Users, a.Name)
			if t.wanted.User(a.Name).Group == "" {
				sys.Groups = append(sys.Groups, a.Name)
			}
		case a.bySystem && a.Action == "add group":
			sys.Groups = append(sys.Groups, a.Name)
		}
	}
	slices.Sort(sys.Groups)
	sys.Groups = slices.Compact(sys.Groups)
	if len(sys.Users)+len(sys.Groups) > 0 {
		if err := t.step(ctx, sys); err != nil {
			return err
		}
	}
	return t.accounts(ctx, func(a AccountChange) bool { return !a.bySystem && a.Action != "disable" && a.Action != "leave" })
}

// removeAccounts is last, when nothing runs any more as who goes.
func (t *transaction) removeAccounts(ctx context.Context) error {
	return t.accounts(ctx, func(a AccountChange) bool { return a.Action == "disable" || a.Action == "leave" })
}

func (t *transaction) accounts(ctx context.Context, which func(AccountChange) bool) error {
	for _, a := range t.p.Accounts {
		if !which(a) {
			continue
		}
		if err := t.step(ctx, Step{Kind: "account", Account: &a, Argv: a.argv, Login: a.login}); err != nil {
			return err
		}
	}
	return nil
}

func (t *transaction) files(ctx context.Context) error {
	for n, f := range t.p.Files {
		if !f.effective() {
			continue
		}
		s, err := t.e.fileStep(t.w.id, n, f)
		if err != nil {
			return err
		}
		if o, ok := t.p.next.Files[f.Path]; ok && o.Before.Kind == "file" && len(o.Before.Sources) == 0 {
			o.Before = *s.Was
			t.p.next.Files[f.Path] = o
		}
		if err := t.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// generation makes one when the system has none yet, and makes it current.
func (t *transaction) generation(ctx context.Context) error {
	p := t.e.profile()
	from, to := t.e.currentGeneration(), t.g.generation
	if t.g.system != "" && to == 0 {
		list, err := p.List()
		if err != nil {
			return err
		}
		if to, err = t.newGeneration(ctx, list); err != nil {
			return err
		}
	}
	if from != to {
		if err := t.step(ctx, Step{Kind: "switch", From: from, To: to}); err != nil {
			return err
		}
	}
	return t.write(ctx, "/run/current-system", linkOrAbsent(t.g.system))
}

// newGeneration makes one, unless the current one is of this system already.
func (t *transaction) newGeneration(ctx context.Context, list []profile.Generation) (int, error) {
	highest := 0
	for _, g := range list {
		highest = max(highest, g.Number)
		if g.Current && g.Path == t.g.system {
			return g.Number, nil
		}
	}
	if err := t.step(ctx, Step{Kind: "generation", Target: t.g.system, From: highest}); err != nil {
		return 0, err
	}
	list, err := t.e.profile().List()
	if err != nil {
		return 0, err
	}
	return list[len(list)-1].Number, nil
}

func linkOrAbsent(target string) Node {
	if target == "" {
		return absent
	}
	return linkNode(target)
}

// write is a step that puts a file of ours which no claim names.
func (t *transaction) write(ctx context.Context, path string, n Node) error {
	was, err := observe(t.e.host(path))
	if err != nil {
		return err
	}
	if was.Same(n) {
		return nil
	}
	if was.Kind == "file" {
		data, err := os.ReadFile(t.e.host(path))
		if err != nil {
			return err
		}
		was = textNode(string(data), was.Mode)
	}
	return t.step(ctx, Step{Kind: "file", Path: path, Was: &was, Is: &n})
}

func (t *transaction) hostName(ctx context.Context) error {
	if h := t.p.HostName; h != nil {
		return t.step(ctx, Step{Kind: "hostname", FromName: h.From, ToName: h.To})
	}
	return nil
}

func (t *transaction) tmpfiles(ctx context.Context) error {
	if len(t.wanted.Tmpfiles) == 0 {
		return nil
	}
	return t.step(ctx, Step{Kind: "tmpfiles", Path: t.g.system + "/tmpfiles"})
}

// reloadUnits makes systemd read the unit files again when one of them is another now.
func (t *transaction) reloadUnits(ctx context.Context) error {
	if !slices.ContainsFunc(t.p.Files, func(f FileChange) bool { return f.Action != "keep" && strings.HasPrefix(f.Path, unitDir+"/") }) {
		return nil
	}
	return t.step(ctx, Step{Kind: "daemon-reload"})
}

func (t *transaction) runUnits(ctx context.Context) error {
	var names []UnitChange
	for _, u := range t.p.Units {
		if u.Action == "stop" && !u.Active { // or a failure would be listed for a unit that is no more
			if err := t.e.systemd.ResetFailed(ctx, u.Name); err != nil {
				return err
			}
		}
		if u.Action == "start" || u.Action == "restart" || u.Action == "reload" {
			names = append(names, u)
		}
	}
	err := t.jobs(ctx, names, func(u UnitChange) string {
		if u.StopFirst && u.Action == "restart" {
			return "start"
		}
		return u.Action
	})
	if err != nil {
		return err
	}
	return t.settle(ctx, names)
}

// state says what is ours from now on.
func (t *transaction) state(ctx context.Context) error {
	return t.write(ctx, t.e.statePath(), textNode(string(t.p.next.encode()), 0o600))
}

// prune removes old journals, and backups that nothing can bring back any more.
func (e *Engine) prune() {
	pruneJournals(e.journalDir())
	state, err := readState(e.host(e.statePath()))
	if err != nil {
		return
	}
	used := map[string]bool{}
	for _, o := range state.Files {
		for _, s := range o.Before.Sources {
			used[filepath.Base(s)] = true
		}
	}
	entries, _ := os.ReadDir(filepath.Join(e.journalDir(), "backup"))
	for _, d := range entries {
		if !used[d.Name()] {
			os.Remove(filepath.Join(e.journalDir(), "backup", d.Name()))
		}
	}
}

// Conflicts returns the conflicts of a refused switch, or nil.
func Conflicts(err error) []Conflict {
	var r *Refused
	if errors.As(err, &r) {
		return r.Conflicts
	}
	return nil
}
