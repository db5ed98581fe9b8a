package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/client"
	"cairn/client/config"
	"cairn/deploy"
	"cairn/deploy/ssh"
	"cairn/derivation/eval"
)

type deployOptions struct {
	buildOptions
	exec, verbose   bool
	only            []string
	parallel, batch int
	confirmWithin   time.Duration
	sshConfig       string
}

func newDeployCmd(env *Env) *cobra.Command {
	o := &deployOptions{}
	cmd := &cobra.Command{
		Use:     "deploy [--dry-run] FILE | -x FILE -- COMMAND…",
		GroupID: "machines",
		Short:   "Bring machines to the systems of a file",
		Long: `Evaluate a file, build the systems of its machines, and bring each machine to its
system over ssh, several at a time: the program first where there is none, then the
objects that are missing, signed, then a journaled switch with health checks, which
is confirmed over a new connection. A machine that fails, or that loses us, goes back
by itself. One line per machine says where it is; the exit code is 0 only if all are
where they should be.

With -x a COMMAND runs on all machines instead, as root and without a shell.`,
		Example: `  cairn deploy --dry-run machines.star
  cairn deploy machines.star
  cairn deploy -x machines.star -- systemctl --failed`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDeploy(cmd.Context(), env, o, args, cmd.ArgsLenAtDash())
		},
	}
	f := cmd.Flags()
	o.flags(cmd)
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "print each machine's plan and change nothing")
	f.BoolVarP(&o.exec, "execute", "x", false, "run a command on the machines")
	f.StringSliceVar(&o.only, "machine", nil, "only the machine called `NAME`; may be repeated")
	f.IntVarP(&o.parallel, "parallel", "j", 0, "`N` machines at a time; default: 8")
	f.IntVar(&o.batch, "batch", 0, "`N` machines must succeed before the next ones begin; default: all at once")
	f.DurationVar(&o.confirmWithin, "confirm-within", 0, "a machine goes back when it was not reached again for `TIME`; default: 60s")
	f.StringVar(&o.sshConfig, "ssh-config", "", "ssh's configuration `FILE` instead of your own")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show every step on every machine")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
	f.BoolVar(&o.json, "json", false, "print the results as JSON")
	return cmd
}

func runDeploy(ctx context.Context, env *Env, o *deployOptions, args []string, dash int) error {
	var command []string
	if dash >= 0 {
		args, command = args[:dash], args[dash:]
	}
	switch {
	case len(args) != 1:
		return &usageError{fmt.Errorf("want one FILE, got %d", len(args))}
	case o.exec && len(command) == 0:
		return &usageError{errors.New("-x wants a command: cairn deploy -x FILE -- COMMAND")}
	case !o.exec && dash >= 0:
		return &usageError{errors.New("a command needs -x")}
	}
	cfg, name, err := env.load(ctx, &o.fileOptions, args[0])
	if err != nil {
		return err
	}
	defer cfg.Close()
	machines, err := pickMachines(cfg, name, o.only)
	if err != nil {
		return fileError(args[0], err)
	}
	if o.exec {
		return deployExec(ctx, env, o, machines, command)
	}
	return env.withSession(ctx, func(s *session) error { return deployTo(ctx, env, s, cfg, o, machines) })
}

// pickMachines returns the machines of a file: all, the one that a value is, or those that are named.
func pickMachines(cfg *config.Config, name string, only []string) ([]config.Machine, error) {
	if name != "" && name != "machines" {
		only = append(only, name)
	}
	all, err := cfg.Machines()
	if err != nil {
		return nil, err
	}
	if len(only) == 0 {
		return all, nil
	}
	var names []string
	var picked []config.Machine
	for _, m := range all {
		names = append(names, m.Name)
		if slices.Contains(only, m.Name) {
			picked = append(picked, m)
		}
	}
	for _, n := range only {
		if !slices.Contains(names, n) {
			near := eval.Nearest(n, names)
			if near != "" {
				near = " (did you mean " + near + "?)"
			}
			return nil, fmt.Errorf("no machine is called %q%s; there are %s", n, near, strings.Join(names, ", "))
		}
	}
	return picked, nil
}

func deployTo(ctx context.Context, env *Env, s *session, cfg *config.Config, o *deployOptions, machines []config.Machine) error {
	env.note("deploying to %s: %s", count(len(machines), "machine"), strings.Join(machineNames(machines), ", "))
	targets := make([]config.Target, len(machines))
	for i, m := range machines {
		targets[i] = config.Target{Name: m.Name, Drv: m.System.Drv, Output: m.System.Output}
	}
	systems, err := s.buildTargets(ctx, env, cfg, targets, &o.buildOptions)
	if err != nil {
		return err
	}
	list := deployMachines(machines)
	for i := range list {
		list[i].System = systems[i]
	}
	key, err := archive.ReadPublicKey(publicKeyFile(s.layout))
	if err != nil {
		return hinted(err, "'cairn init' or 'cairn archive --generate-key' makes this machine's key")
	}
	local := deploy.Local{Dial: s.again, Key: key}
	p := newDeployProgress(env, o, machines)
	results := deploy.Run(ctx, list, local, o.engine(), p.event)
	p.close()
	return deployReport(env, o, results, (*deploy.Result).OK, env.deployLine)
}

func machineNames(machines []config.Machine) []string {
	names := make([]string, len(machines))
	for i, m := range machines {
		names[i] = m.Name
	}
	return names
}

func deployMachines(machines []config.Machine) []deploy.Machine {
	list := make([]deploy.Machine, len(machines))
	for i, m := range machines {
		e := m.Environment
		target := ssh.Target{Host: e.Host, Port: e.Port, User: e.User, Identity: e.Identity, HostKey: e.HostKey}
		list[i] = deploy.Machine{Name: m.Name, Environment: &configuredHost{deploy.ManagedHost(target), e.SSHConfig}}
	}
	return list
}

// configuredHost is a host that may have an ssh configuration of its own.
type configuredHost struct {
	deploy.ManagedHost
	config string
}

// Dial connects.
func (h *configuredHost) Dial(ctx context.Context, opts *ssh.Options) (*ssh.Conn, error) {
	own := *opts
	if h.config != "" && own.Config == "" {
		own.Config = h.config
	}
	return h.ManagedHost.Dial(ctx, &own)
}

func (o *deployOptions) engine() *deploy.Options {
	opts := &deploy.Options{Parallel: o.parallel, Batch: o.batch, ConfirmWithin: o.confirmWithin, DryRun: o.dryRun}
	opts.SSH.Config = o.sshConfig
	return opts
}

// deployProgress shows what happens on machines: on a terminal one running line for each.
type deployProgress struct {
	*progress
	verbose bool
	ids     map[string]uint64
}

func newDeployProgress(env *Env, o *deployOptions, machines []config.Machine) *deployProgress {
	p := &deployProgress{progress: newProgress(env.newTerminal(), o.quiet), verbose: o.verbose, ids: map[string]uint64{}}
	for i, m := range machines {
		p.ids[m.Name] = uint64(i)
	}
	return p
}

// event may be called by several machines at the same time.
func (p *deployProgress) event(e deploy.Event) {
	id := p.ids[e.Machine]
	switch {
	case e.Step == "done":
		p.finish(id)
	case e.Step == "connect":
		p.start(id, e.Machine)
		fallthrough
	case e.Text != "":
		p.latest(id, e.Text)
		if !p.quiet && (p.verbose || !isFileStep(e)) {
			p.line("%s: %s", e.Machine, e.Text)
		}
	}
}

// isFileStep reports whether an event is about one of many files.
func isFileStep(e deploy.Event) bool {
	return e.Step == "switch" && (strings.HasPrefix(e.Text, "write ") || strings.HasPrefix(e.Text, "remove "))
}

// deployReport prints what became of each machine; the error says that not all is well.
func deployReport[R any](env *Env, o *deployOptions, results []R, ok func(*R) bool, line func(*R)) error {
	bad := 0
	for i := range results {
		if !ok(&results[i]) {
			bad++
		}
	}
	if o.json {
		if err := env.printJSON(results); err != nil {
			return err
		}
	} else {
		for i := range results {
			line(&results[i])
		}
	}
	if bad > 0 {
		return &machinesError{bad, len(results)}
	}
	return nil
}

func (e *Env) deployLine(r *deploy.Result) {
	if r.Status == deploy.Planned {
		if r.Preview != nil {
			e.printf("%s", stripEscapes(r.Preview.String()))
		}
		if r.Plan != nil {
			e.printf("%s", stripEscapes(r.Plan.String()))
		}
	}
	e.printf("%s\n", stripEscapes(r.String()))
	for _, h := range hints(r.Err) {
		e.note("hint: %s: %s", r.Machine, h)
	}
}

// machinesError says how many machines are not where they should be.
type machinesError struct{ bad, all int }

func (e *machinesError) Error() string {
	return fmt.Sprintf("%d of %s not where they should be", e.bad, count(e.all, "machine"))
}

func deployExec(ctx context.Context, env *Env, o *deployOptions, machines []config.Machine, command []string) error {
	results := deploy.Exec(ctx, deployMachines(machines), command, o.engine(), nil)
	return deployReport(env, o, results, (*deploy.ExecResult).OK, env.execResult)
}

func (e *Env) execResult(r *deploy.ExecResult) {
	status := "succeeded"
	switch {
	case r.Err != nil:
		status = r.Error
	case r.Signal != "":
		status = "killed by signal " + r.Signal
	case r.Status != 0:
		status = fmt.Sprintf("exit status %d", r.Status)
	}
	e.printf("%s: %s\n", r.Machine, stripEscapes(status))
	if r.Output != "" {
		e.printf("%s", stripEscapes(r.Output))
		if !strings.HasSuffix(r.Output, "\n") {
			e.printf("\n")
		}
	}
	for _, h := range hints(r.Err) {
		e.note("hint: %s: %s", r.Machine, h)
	}
}

// again opens another connection to the session's daemon.
func (s *session) again(ctx context.Context) (*client.Conn, error) { return s.dial(ctx) }
