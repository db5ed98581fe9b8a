package deploy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/archive/ship"
	"cairn/deploy/ssh"
	"cairn/store"
)

// Run brings machines to their systems and says what became of each, in the order given.
func Run(ctx context.Context, machines []Machine, local Local, opts *Options, obs Observer) []Result {
	o := opts.withDefaults()
	if obs == nil {
		obs = func(Event) {}
	}
	results := make([]Result, len(machines))
	for i, m := range machines {
		results[i] = Result{Machine: m.Name, Host: m.Environment.String(), System: m.System.String(), Status: Skipped}
	}
	prog, err := openProgram(local.Binary)
	if err != nil {
		for i := range results {
			results[i].fail(Failed, err)
		}
		return results
	}
	size := len(machines)
	if o.Batch > 0 {
		size = o.Batch
	}
	for first := 0; first < len(machines); first += size {
		last := min(first+size, len(machines))
		var g errgroup.Group
		g.SetLimit(o.Parallel)
		for i := first; i < last; i++ {
			g.Go(func() error {
				d := &deployment{Machine: machines[i], local: local, opts: o, obs: obs, program: prog, result: &results[i], token: newToken()}
				d.run(ctx)
				return nil
			})
		}
		g.Wait()
		for i := first; i < last; i++ {
			if !results[i].OK() {
				return results
			}
		}
	}
	return results
}

func (r *Result) fail(status Status, err error) {
	r.Status, r.Err, r.Error = status, err, err.Error()
}

// deployment is the work on one machine.
type deployment struct {
	Machine
	local   Local
	opts    Options
	obs     Observer
	program *program
	result  *Result
	token   string
}

func (d *deployment) tell(step, format string, args ...any) {
	d.obs(Event{Machine: d.Name, Step: step, Text: fmt.Sprintf(format, args...)})
}

func (d *deployment) run(ctx context.Context) {
	start := time.Now()
	var err error
	if d.opts.DryRun {
		err = d.preview(ctx)
	} else {
		err = d.deploy(ctx)
	}
	d.result.Seconds = time.Since(start).Seconds()
	if err != nil && d.result.Err == nil {
		d.result.fail(statusOf(err), err)
	}
	d.tell("done", "%s", d.result)
}

// statusOf is for errors from before the switch.
func statusOf(err error) Status {
	if e, ok := errors.AsType[*ssh.Error](err); ok && !errors.Is(e, ssh.ErrLost) {
		return Unreachable
	}
	return Failed
}

// deploy goes through the steps. What the result says is set there; an error is from before the switch.
func (d *deployment) deploy(ctx context.Context) error {
	d.tell("connect", "connecting to %s", d.Environment)
	if err := d.Environment.Provision(ctx); err != nil {
		return err
	}
	l, err := d.connect(ctx, d.opts.SSH)
	if err != nil {
		return err
	}
	defer l.close()
	facts, err := d.hello(ctx, l)
	if err != nil {
		return err
	}
	d.result.Generation = facts.Generation
	if facts.System != d.System.String() {
		if err := d.ship(ctx, l, facts); err != nil {
			return err
		}
	}
	proceed, err := d.plan(l)
	if err != nil || !proceed {
		return errors.Join(err, d.release(l))
	}
	return d.change(ctx, l)
}

// connect reaches the machine and starts the agent, which it brings if need be.
func (d *deployment) connect(ctx context.Context, opts ssh.Options) (*link, error) {
	conn, err := d.Environment.Dial(ctx, &opts)
	if err != nil {
		return nil, err
	}
	l, err := d.agent(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return l, nil
}

func (d *deployment) agent(ctx context.Context, conn *ssh.Conn) (*link, error) {
	l, err := startAgent(ctx, conn, d.program.there(), d.progress)
	absent, ok := errors.AsType[*absentError](err)
	if !ok {
		return l, err
	}
	d.tell("agent", "bringing cairn")
	if err := d.program.bring(ctx, conn, absent.machine); err != nil {
		return nil, err
	}
	return startAgent(ctx, conn, d.program.there(), d.progress)
}

// progress passes on what the agent says, and remembers the journal.
func (d *deployment) progress(p *Reply) {
	if p.ID != "" {
		d.result.Journal = p.ID
	}
	d.tell("switch", "%s", p.Event)
}

// hello takes the lease, exchanges keys and learns the facts. A daemon that does not answer is set up.
func (d *deployment) hello(ctx context.Context, l *link) (*Facts, error) {
	q := &Request{Op: "hello", Token: d.token, Owner: d.opts.Owner, Purpose: "deploy of " + d.Name, Key: d.local.Key.String()}
	r, err := l.ask(q)
	if err != nil {
		return nil, err
	}
	if r.Facts.DaemonError != "" {
		d.tell("agent", "setting up the daemon")
		if err := d.program.initDaemon(ctx, l.ssh); err != nil {
			return nil, err
		}
		if r, err = l.ask(q); err != nil {
			return nil, err
		}
	}
	switch f := r.Facts; {
	case f.DaemonError != "":
		return nil, hinted(fmt.Errorf("%w: %s", ErrNoDaemon, f.DaemonError), "look at it there: journalctl -u cairn-daemon")
	case f.StoreDir != d.System.Dir().String():
		return nil, fmt.Errorf("the machine's store is %s, the system is for %s", f.StoreDir, d.System.Dir())
	}
	if r.Did {
		d.tell("authorize", "the machine accepts archives signed by %s from now on", d.local.Key.Name())
	}
	return r.Facts, nil
}

// ship sends what the machine lacks.
func (d *deployment) ship(ctx context.Context, l *link, facts *Facts) error {
	conn, err := d.local.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	to := sink{l, d.System}
	cargo, err := ship.Load(ctx, conn, to, []store.Path{d.System})
	if err != nil {
		return err
	}
	if len(cargo.Missing) == 0 {
		return nil
	}
	if need := cargo.NarSize + cargo.NarSize/8; facts.FreeBytes > 0 && facts.FreeBytes < need {
		return hinted(fmt.Errorf("ship %d objects: the machine has %d MB free, they need %d MB", len(cargo.Missing), facts.FreeBytes>>20, need>>20),
			"free some there: cairn gc")
	}
	d.tell("ship", "sending %d of %d objects", len(cargo.Missing), cargo.Total)
	sent, err := ship.Send(ctx, conn, to, cargo, func(n int64) {
		d.obs(Event{Machine: d.Name, Step: "ship", Bytes: n})
	})
	d.result.Objects, d.result.Bytes = sent.Objects, sent.Bytes
	return err
}

// plan has the machine look for conflicts, and says whether there is anything to do.
func (d *deployment) plan(l *link) (bool, error) {
	r, err := l.ask(&Request{Op: "plan", System: d.System.String()})
	if err != nil {
		return false, err
	}
	d.result.Plan = r.Switch.Plan
	switch r.Switch.Outcome {
	case "refused":
		d.result.fail(Refused, hinted(errors.New(r.Switch.Reason), "%s", r.Switch.Hint))
		return false, nil
	case "unchanged":
		d.result.Status = Unchanged
		return false, nil
	}
	return true, nil
}

func (d *deployment) release(l *link) error {
	_, err := l.ask(&Request{Op: "release"})
	return err
}

// change switches and sees it through to its end. From here on, the machine's journal says what happened.
func (d *deployment) change(ctx context.Context, l *link) error {
	d.tell("switch", "switching to %s", d.System)
	within := int((d.opts.ConfirmWithin + time.Second - 1) / time.Second)
	r, err := l.ask(&Request{Op: "switch", System: d.System.String(), Within: within})
	if _, said := errors.AsType[*remoteError](err); said && d.result.Journal == "" {
		return errors.Join(err, d.release(l)) // it never began
	}
	if err == nil && r.Switch.Outcome != "awaiting" {
		d.conclude(r.Switch, nil)
		return d.release(l)
	}
	if err != nil {
		d.tell("confirm", "%v; connecting again", err)
	}
	d.confirm(ctx, err)
	return nil
}
