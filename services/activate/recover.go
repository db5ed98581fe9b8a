package activate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// recoverUnit undoes, early at boot, what was under way or unconfirmed when the host went down.
const recoverUnit = "cairn-recover.service"

func recoverText(program []string, stateDir string) string {
	return `[Unit]
Description=Undo a cairn switch that did not end or was not confirmed
DefaultDependencies=no
RequiresMountsFor=` + stateDir + `
After=local-fs.target systemd-remount-fs.service systemd-tmpfiles-setup.service
Before=basic.target network-pre.target systemd-networkd.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=` + commandLine(append(program, "--boot")) + `
`
}

// commandLine quotes for ExecStart=.
func commandLine(argv []string) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$")
	out := make([]string, len(argv))
	for i, a := range argv {
		out[i] = `"` + quote.Replace(a) + `"`
	}
	return strings.Join(out, " ")
}

// installRecovery makes sure that a crash from now on is found at the next boot.
func (e *Engine) installRecovery(ctx context.Context) error {
	want := textNode(recoverText(e.opts.Program, e.opts.StateDir), 0o644)
	link := linkNode("../" + recoverUnit)
	changed := false
	for _, f := range []struct {
		path string
		node Node
	}{{unitDir + "/" + recoverUnit, want}, {unitDir + "/basic.target.wants/" + recoverUnit, link}} {
		have, err := observe(e.host(f.path))
		if err != nil {
			return err
		}
		if have.Same(f.node) {
			continue
		}
		if err := os.MkdirAll(e.host(unitDir+"/basic.target.wants"), 0o755); err != nil {
			return fmt.Errorf("install %s: %w", recoverUnit, err)
		}
		if err := put(e.host(f.path), f.node); err != nil {
			return fmt.Errorf("install %s: %w", recoverUnit, err)
		}
		changed = true
	}
	if changed {
		return e.systemd.Reload(ctx)
	}
	return nil
}

// RecoverOptions change what Recover does.
type RecoverOptions struct {
	ID    string // of the journal that is meant: wait for its end, or for its time to be over; default: whatever is pending, at once
	Boot  bool   // the host boots: do not wait for units, and set /run/current-system
	Force bool   // undo a switch that awaits confirmation though its time is not over
}

// Recover undoes what a crash or a missing confirmation left, or does nothing.
// The result is nil when nothing was pending.
//
// With an ID it is the watchdog: it returns when that switch is confirmed or undone, by whomever.
func (e *Engine) Recover(ctx context.Context, opts *RecoverOptions) (*Result, error) {
	if opts == nil {
		opts = &RecoverOptions{}
	}
	for {
		r, wait, err := e.tryRecover(ctx, opts)
		if err != nil || wait == 0 {
			return r, err
		}
		if opts.ID == "" {
			return nil, nil
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// tryRecover does it under the lock, or says how long to wait.
func (e *Engine) tryRecover(ctx context.Context, opts *RecoverOptions) (r *Result, wait time.Duration, err error) {
	release, err := e.lock(ctx, true)
	if err != nil {
		return nil, 0, err
	}
	defer release()
	if opts.Boot {
		defer e.linkRunning()
	}
	j, err := pendingJournal(e.journalDir())
	if err != nil || j == nil {
		return nil, 0, err
	}
	if opts.ID != "" && j.ID != opts.ID {
		return nil, 0, nil
	}
	if wait, err = e.patience(j); err != nil || wait > 0 && !opts.Force {
		return nil, wait, err
	}
	if err := e.connect(ctx); err != nil {
		return nil, 0, err
	}
	r, err = e.conclude(ctx, j, opts.Boot)
	return r, 0, err
}

// patience is how long a switch that awaits confirmation may still wait.
func (e *Engine) patience(j *Journal) (time.Duration, error) {
	if !j.Awaiting || j.Closed || j.Confirmed || j.Undoing != "" {
		return 0, nil
	}
	boot, err := e.bootID()
	if err != nil {
		return 0, err
	}
	now, err := sinceBoot()
	if err != nil {
		return 0, err
	}
	if boot != j.AwaitBoot || now >= j.Deadline {
		return 0, nil
	}
	return time.Duration(j.Deadline-now) * time.Second, nil
}

// conclude ends a journal that nobody works on: forward if it was confirmed, else back.
func (e *Engine) conclude(ctx context.Context, j *Journal, booting bool) (*Result, error) {
	if j.Closed {
		return &Result{ID: j.ID, Outcome: j.Outcome, System: j.System, From: j.From, Generation: e.currentGeneration()}, clearPending(e.journalDir())
	}
	w, err := reopenJournal(e.journalDir(), j, e.opts.Journaled)
	if err != nil {
		return nil, err
	}
	r := &Result{ID: j.ID, System: j.System, From: j.From}
	if j.Confirmed {
		r.Outcome = "switched"
		err = e.finish(w)
	} else {
		reason := "the switch did not end"
		if j.Awaiting {
			reason = "the switch was not confirmed in time"
		}
		e.opts.Progress("undo switch " + j.ID + ": " + reason)
		r.UndoErrors = e.undoSteps(ctx, w, j.Steps, reason, booting)
		r.Outcome, r.Error = outcomeOf(r.UndoErrors), reason
		e.disarmWatchdog(ctx, j.ID)
	}
	r.Generation = e.currentGeneration()
	return r, err
}

// settlePending is what every switch does first. A dry run changes nothing, so it does not undo.
func (e *Engine) settlePending(ctx context.Context, dry bool) error {
	j, err := pendingJournal(e.journalDir())
	if err != nil || j == nil {
		return err
	}
	wait, err := e.patience(j)
	if err != nil {
		return err
	}
	if wait > 0 {
		return fmt.Errorf("%w: %s, until %s; confirm it or undo it first", ErrUnconfirmed, j.ID, time.Now().Add(wait).UTC().Format(time.TimeOnly))
	}
	if dry {
		return fmt.Errorf("switch %s did not end; run 'cairn system recover' first", j.ID)
	}
	_, err = e.conclude(ctx, j, false)
	return err
}

// Confirm makes the switch called id final. The empty id means whichever waits.
func (e *Engine) Confirm(ctx context.Context, id string) error {
	release, err := e.lock(ctx, true)
	if err != nil {
		return err
	}
	defer release()
	j, err := pendingJournal(e.journalDir())
	if err != nil {
		return err
	}
	if j == nil || id != "" && j.ID != id {
		return fmt.Errorf("confirm %s: %w", id, e.whatBecame(id))
	}
	if wait, err := e.patience(j); err != nil || wait == 0 {
		return errors.Join(fmt.Errorf("confirm %s: its time is over: %w", j.ID, ErrNothingPending), err)
	}
	w, err := reopenJournal(e.journalDir(), j, e.opts.Journaled)
	if err != nil {
		return err
	}
	if err := w.write(Record{Event: "confirm"}); err != nil {
		return err
	}
	e.disarmWatchdog(ctx, j.ID)
	return e.finish(w)
}

// whatBecame explains why id cannot be confirmed.
func (e *Engine) whatBecame(id string) error {
	if j, err := readJournal(e.journalDir(), id); err == nil && j.Closed {
		return fmt.Errorf("%w: it has ended as %q (%s)", ErrNothingPending, j.Outcome, j.Reason)
	}
	return ErrNothingPending
}

// Journal reads the journal of a switch; the empty id means the pending one, which may be nil.
func (e *Engine) Journal(id string) (*Journal, error) {
	if id == "" {
		return pendingJournal(e.journalDir())
	}
	return readJournal(e.journalDir(), id)
}

func watchdogName(id string) string { return "cairn-watchdog-" + id }

// armWatchdog makes systemd undo the switch if nobody confirms it, even when this process,
// its connection and its user are gone.
func (e *Engine) armWatchdog(ctx context.Context, id string, within time.Duration) error {
	argv := []string{"systemd-run", "--quiet", "--collect", "--unit=" + watchdogName(id),
		fmt.Sprintf("--on-active=%dms", within.Milliseconds()), "--timer-property=AccuracySec=200ms"}
	if err := e.command(ctx, append(append(append(argv, "--"), e.opts.Program...), "--journal", id)...); err != nil {
		return fmt.Errorf("arm watchdog: %w", err)
	}
	return nil
}

// disarmWatchdog stops the timer. The service is left alone: it may be what runs this, and ends by itself.
func (e *Engine) disarmWatchdog(ctx context.Context, id string) {
	if err := e.connect(ctx); err != nil {
		return
	}
	wait, err := e.systemd.Enqueue(context.WithoutCancel(ctx), "stop", watchdogName(id)+".timer")
	if err != nil {
		e.opts.Logger.Warn("watchdog cannot be stopped; it will find nothing to do", "journal", id, "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	wait(ctx)
}

// linkRunning sets the links that say which system runs, and which one booted.
func (e *Engine) linkRunning() {
	g, err := e.profile().Current()
	if err != nil {
		return
	}
	for _, link := range []string{"/run/current-system", "/run/booted-system"} {
		if err := put(e.host(link), linkNode(g.Path)); err != nil {
			e.opts.Logger.Warn("link of the running system", "link", link, "error", err)
		}
	}
}
