package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cairn/deploy/ssh"
)

// grace is how long after the time to confirm a machine may take to undo a switch.
const grace = 45 * time.Second

// confirm makes the switch final over a new connection. Where none comes about in time the machine undoes the switch;
// then, or when the switch itself was lost sight of, it waits to learn how that ended.
func (d *deployment) confirm(ctx context.Context, why error) {
	d.tell("confirm", "confirming over a new connection")
	until := time.Now().Add(d.opts.ConfirmWithin + grace)
	opts := d.opts.SSH
	opts.Connect = max(2*time.Second, min(5*time.Second, d.opts.ConfirmWithin/4))
	for {
		done, err := d.tryConfirm(ctx, opts, why)
		if done {
			return
		}
		if err != nil {
			if why == nil {
				d.tell("confirm", "%v; the machine goes back by itself unless a connection comes about", err)
			}
			why = err
		}
		if ctx.Err() != nil || time.Now().After(until) {
			d.result.fail(Unknown, fmt.Errorf("the switch was not seen to its end: %w; unless it was confirmed, the machine went back by itself", errors.Join(context.Cause(ctx), why)))
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// tryConfirm makes one attempt; it is done when the journal says how the switch ended.
func (d *deployment) tryConfirm(ctx context.Context, opts ssh.Options, why error) (done bool, err error) {
	l, err := d.connect(ctx, opts)
	if err != nil {
		return false, err
	}
	defer l.close()
	hello, err := l.ask(&Request{Op: "hello", Token: d.token, Owner: d.opts.Owner, Purpose: "deploy of " + d.Name})
	if err != nil {
		return false, err
	}
	ask := func(op string) (*SwitchReply, error) {
		r, err := l.ask(&Request{Op: op, System: d.System.String(), ID: d.result.Journal})
		if err != nil {
			return nil, err
		}
		return r.Switch, nil
	}
	s, err := ask("status")
	if err == nil && s.Outcome == "awaiting" {
		d.result.Journal = s.ID
		s, err = ask("confirm")
	}
	if err != nil {
		return false, err
	}
	if s.Outcome == "running" || s.Outcome == "awaiting" {
		return false, nil
	}
	if s.Outcome == "none" { // nothing is pending, and the journal's name got lost with the connection
		s.Outcome = "undone"
		if hello.Facts.System == d.System.String() {
			s.Outcome = "switched"
		}
	}
	d.conclude(s, why)
	return true, d.release(l)
}

// conclude writes what the journal says into the result.
func (d *deployment) conclude(s *SwitchReply, why error) {
	r := d.result
	r.Generation = s.Generation
	if s.ID != "" {
		r.Journal = s.ID
	}
	reason := s.Reason
	if why != nil && s.Outcome != "switched" {
		reason = strings.TrimPrefix(reason+": "+why.Error(), ": ")
	}
	switch s.Outcome {
	case "switched":
		r.Status = Deployed
	case "unchanged":
		r.Status = Unchanged
	case "undone":
		err := hinted(errors.New(reason), "%s", cmp.Or(s.Hint, "look at its journal there, correct the configuration, and deploy again"))
		if strings.Contains(s.Reason, "not confirmed") {
			err = hinted(errors.New(reason), "the new system did not let us in again; look at its network, firewall and sshd")
		}
		r.fail(RolledBack, err)
	case "refused":
		r.fail(Refused, hinted(errors.New(reason), "%s", s.Hint))
	default:
		err := fmt.Errorf("%s; the undo is incomplete: %s", reason, strings.Join(s.Left, "; "))
		r.fail(Failed, hinted(err, "look at the machine: cairn system recover, and /cairn/var/journal/switch-%s.jsonl", r.Journal))
	}
}
