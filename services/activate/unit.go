package activate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// jobTime bounds how long a switch waits for units; one-shot services have no limit of their own.
const jobTime = 10 * time.Minute

// jobs journals and asks for a job for each unit, then awaits them all, so that systemd orders them.
func (t *transaction) jobs(ctx context.Context, units []UnitChange, verb func(UnitChange) string) error {
	type waiting struct {
		unit, verb string
		wait       func(context.Context) (string, error)
	}
	var all []waiting
	for _, u := range units {
		v := verb(u)
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := t.begin(Step{Kind: v, Unit: u.Name, Active: u.Active}); err != nil {
			return err
		}
		if v != "stop" && v != "reload" {
			if err := t.e.systemd.ResetFailed(ctx, u.Name); err != nil {
				return err
			}
		}
		wait, err := t.e.systemd.Enqueue(ctx, v, u.Name)
		if err != nil {
			return err
		}
		all = append(all, waiting{u.Name, v, wait})
	}
	ctx, cancel := context.WithTimeoutCause(ctx, jobTime, fmt.Errorf("systemd did not end the jobs within %s", jobTime))
	defer cancel()
	var errs []error
	for _, w := range all {
		result, err := w.wait(ctx)
		if err != nil {
			err = fmt.Errorf("%s unit %s: %w", w.verb, w.unit, err)
		} else if result != "done" {
			err = t.e.unitError(ctx, w.unit, fmt.Sprintf("%s: job ended with %q", w.verb, result), t.started)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// UnitError says that a unit is not as it should be.
type UnitError struct {
	Unit   string
	Reason string
	Log    string // its last lines
}

func (u *UnitError) Error() string {
	if u.Log == "" {
		return fmt.Sprintf("unit %s: %s", u.Unit, u.Reason)
	}
	return fmt.Sprintf("unit %s: %s; its log:\n    %s", u.Unit, u.Reason, strings.ReplaceAll(u.Log, "\n", "\n    "))
}

const logLines = "15"

func (e *Engine) unitError(ctx context.Context, unit, reason string, since time.Time) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	u := &UnitError{Unit: unit, Reason: reason}
	if e.opts.Root != "/" {
		return u
	}
	e.run(ctx, "journalctl", "--sync")
	log, err := e.run(ctx, "journalctl", "--quiet", "--no-pager", "--output=cat", "--lines="+logLines,
		fmt.Sprintf("--since=@%d", since.Unix()), "--unit="+unit)
	if err == nil {
		u.Log = log
	}
	return u
}

// settle watches the units that were touched until they have stayed up for a while.
func (t *transaction) settle(ctx context.Context, units []UnitChange) error {
	if len(units) == 0 {
		return nil
	}
	names := make([]string, len(units))
	for i, u := range units {
		names[i] = u.Name
	}
	before, err := t.e.systemd.Status(ctx, names...)
	if err != nil {
		return err
	}
	end := time.Now().Add(t.e.opts.Settle)
	for {
		now, err := t.e.systemd.Status(ctx, names...)
		if err != nil {
			return err
		}
		if err := t.ill(ctx, names, before, now); err != nil {
			return err
		}
		if time.Now().After(end) {
			return nil
		}
		if err := sleep(ctx, min(200*time.Millisecond, t.e.opts.Settle)); err != nil {
			return err
		}
	}
}

func (t *transaction) ill(ctx context.Context, names []string, before, now map[string]UnitStatus) error {
	var errs []error
	for _, name := range names {
		if reason := symptom(before[name], now[name]); reason != "" {
			errs = append(errs, t.e.unitError(ctx, name, reason, t.started))
		}
	}
	return errors.Join(errs...)
}

// symptom says what is wrong with a unit shortly after its start, or nothing.
func symptom(before, now UnitStatus) string {
	switch {
	case now.ActiveState == "failed":
		return fmt.Sprintf("failed shortly after its start (%s)", now.Result)
	case now.looping():
		return fmt.Sprintf("keeps failing (%s)", now.Result)
	case now.Restarts > before.Restarts:
		return "had to be restarted shortly after its start"
	}
	return ""
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// undoSteps takes begun steps back, closes the journal, and returns what could not be put back.
// While the host boots, jobs are asked for and not awaited: they would wait for this.
func (e *Engine) undoSteps(ctx context.Context, w *journalWriter, steps []Step, reason string, booting bool) []string {
	var errs []error
	if err := w.write(Record{Event: "undo", Reason: reason}); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, e.stopNew(ctx, steps, booting)...)
	for i := len(steps) - 1; i >= 0; i-- {
		if s := &steps[i]; !s.isUnit() {
			if err := e.undo(ctx, s); err != nil {
				errs = append(errs, fmt.Errorf("undo %q: %w", s.String(), err))
			}
		}
	}
	if len(steps) > 0 {
		if err := e.systemd.Reload(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, e.runOld(ctx, steps, booting)...)
	var left []string
	for _, err := range errs {
		left = append(left, err.Error())
	}
	if err := w.close(outcomeOf(left), "", left); err != nil {
		left = append(left, err.Error())
	}
	return left
}

func outcomeOf(left []string) string {
	if len(left) > 0 {
		return "incomplete"
	}
	return "undone"
}

// stopNew stops what did not run before, while its definition is still known.
func (e *Engine) stopNew(ctx context.Context, steps []Step, booting bool) []error {
	var names []string
	for i := len(steps) - 1; i >= 0; i-- {
		if s := steps[i]; s.isUnit() && !s.Active {
			names = append(names, s.Unit)
		}
	}
	errs := e.jobsNow(ctx, "stop", names, booting)
	for _, n := range names {
		e.systemd.ResetFailed(ctx, n)
	}
	return errs
}

// runOld runs again what ran before, with the definitions of before.
func (e *Engine) runOld(ctx context.Context, steps []Step, booting bool) []error {
	verbs, order := map[string]string{}, []string{}
	var first []string // were stopped before others started, perhaps because they change places on a port
	for _, s := range steps {
		if !s.isUnit() || !s.Active {
			continue
		}
		if s.Kind == "stop" {
			first = append(first, s.Unit)
		}
		if _, seen := verbs[s.Unit]; !seen {
			order = append(order, s.Unit)
		}
		if verbs[s.Unit] != "restart" {
			verbs[s.Unit] = map[string]string{"reload": "reload", "restart": "restart", "stop": "restart", "start": "restart"}[s.Kind]
		}
	}
	var restart, reload []string
	for _, u := range order {
		e.systemd.ResetFailed(ctx, u)
		if verbs[u] == "reload" {
			reload = append(reload, u)
		} else {
			restart = append(restart, u)
		}
	}
	if len(e.jobsNow(ctx, "reload", reload, booting)) > 0 {
		restart = append(restart, reload...)
	}
	// A unit that systemd takes for started once its process is there may still fail at a port that another has not left yet.
	e.jobsNow(ctx, "stop", first, booting)
	errs := e.jobsNow(ctx, "restart", restart, booting)
	if len(errs) == 0 {
		return nil
	}
	// Two others may have changed places: none may run while the others start.
	e.jobsNow(ctx, "stop", restart, booting)
	for _, u := range restart {
		e.systemd.ResetFailed(ctx, u)
	}
	return e.jobsNow(ctx, "start", restart, booting)
}

// jobsNow asks for jobs and, unless the host boots, awaits them.
func (e *Engine) jobsNow(ctx context.Context, verb string, units []string, booting bool) []error {
	var errs []error
	var waits []func() error
	began := time.Now()
	for _, u := range units {
		wait, err := e.systemd.Enqueue(ctx, verb, u)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		waits = append(waits, func() error {
			result, err := wait(ctx)
			if err == nil && result != "done" {
				return e.unitError(ctx, u, fmt.Sprintf("%s: job ended with %q", verb, result), began)
			}
			return err
		})
	}
	if booting {
		return errs
	}
	for _, wait := range waits {
		if err := wait(); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
