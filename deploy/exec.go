package deploy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/deploy/ssh"
)

// ExecResult is what a command did on one machine.
type ExecResult struct {
	Machine string `json:"machine"`
	Host    string `json:"host"`
	Output  string `json:"output"`           // both streams, as they came, the last MaxOutput bytes
	Status  int    `json:"status"`           // exit status, when there is no error
	Signal  string `json:"signal,omitempty"` // that killed it
	Error   string `json:"error,omitempty"`  // why it did not run, or was lost sight of

	Err error `json:"-"`
}

// OK reports whether the command ran and ended well.
func (r *ExecResult) OK() bool { return r.Err == nil && r.Status == 0 && r.Signal == "" }

// MaxOutput is how much of a command's output is kept for each machine.
const MaxOutput = 4 << 20

// Exec runs a command on machines, in parallel, as root, without a shell. Nothing is installed for it.
func Exec(ctx context.Context, machines []Machine, argv []string, opts *Options, obs Observer) []ExecResult {
	o := opts.withDefaults()
	if obs == nil {
		obs = func(Event) {}
	}
	results := make([]ExecResult, len(machines))
	var g errgroup.Group
	g.SetLimit(o.Parallel)
	for i, m := range machines {
		g.Go(func() error {
			r := &results[i]
			r.Machine, r.Host = m.Name, m.Environment.String()
			obs(Event{Machine: m.Name, Step: "connect", Text: "connecting to " + r.Host})
			out := new(output)
			err := execOn(ctx, m, argv, o.SSH, out)
			r.Output = out.String()
			if exit, ok := errors.AsType[*ssh.ExitError](err); ok {
				r.Status, r.Signal, err = exit.Status, exit.Signal, nil
			}
			if err != nil {
				r.Err, r.Error = err, err.Error()
			}
			obs(Event{Machine: m.Name, Step: "done"})
			return nil
		})
	}
	g.Wait()
	return results
}

func execOn(ctx context.Context, m Machine, argv []string, opts ssh.Options, out *output) error {
	conn, err := m.Environment.Dial(ctx, &opts)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = conn.Run(ctx, ssh.Command{Argv: append([]string{"sh", "-c", asRoot, "sh"}, argv...), Stdout: out, Stderr: out})
	if exit, ok := errors.AsType[*ssh.ExitError](err); ok {
		refused := &ssh.ExitError{Command: exit.Command, Status: exit.Status, Stderr: out.String()}
		if e := sudoError(conn.Target().User, refused); e != error(refused) && exit.Status == 1 && out.small() {
			return e
		}
	}
	return err
}

// output keeps the end of what is written to it.
type output struct {
	mu  sync.Mutex // guards b and cut
	b   bytes.Buffer
	cut bool
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Write(p)
	if over := o.b.Len() - MaxOutput; over > 0 {
		o.b.Next(over)
		o.cut = true
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cut {
		return "…" + o.b.String()
	}
	return o.b.String()
}

// small tells sudo's own few words from the output of a command that mentions them.
func (o *output) small() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Len() < 400
}
