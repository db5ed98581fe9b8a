package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/services/activate"
)

func newSystemCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{Use: "system", GroupID: "machines", Short: "Build systems and switch this machine between them"}
	cmd.AddCommand(
		newSystemBuildCmd(env),
		newSystemReconfigureCmd(env),
		newSystemRollBackCmd(env),
		newSystemSwitchGenerationCmd(env),
		newSystemListGenerationsCmd(env),
		newSystemDeleteGenerationsCmd(env),
		newSystemDescribeCmd(env),
		newSystemDiffCmd(env),
		newSystemSearchCmd(env),
		newSystemShowCmd(env),
		newSystemConfirmCmd(env),
		newSystemRecoverCmd(env),
	)
	return cmd
}

// withActivation runs fn on the engine that changes this machine.
func (e *Env) withActivation(fn func(*activate.Engine) error) error {
	layout, err := e.layout()
	if err != nil {
		return err
	}
	if layout.Root != "" && layout.Root != "/" {
		return &usageError{errors.New("a switch changes this machine; --root is for stores")}
	}
	engine := activate.New(&activate.Options{
		StateDir: layout.StateDir,
		StoreDir: layout.Dir,
		Program:  recoverProgram(),
		Session:  activate.CurrentSession(e.Getenv),
		Progress: func(msg string) { e.note("%s", msg) },
	})
	return errors.Join(fn(engine), engine.Close())
}

// recoverProgram is what undoes a switch later: the installed program, which stays where it is.
func recoverProgram() []string {
	exe := installedBinary
	if _, err := os.Stat(exe); err != nil {
		if exe, err = os.Executable(); err != nil {
			return nil
		}
	}
	return []string{exe, "system", "recover"}
}

type switchOptions struct {
	dryRun, json  bool
	confirmWithin time.Duration
}

func (o *switchOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "print the plan and change nothing")
	f.DurationVar(&o.confirmWithin, "confirm-within", 0, "undo unless 'cairn system confirm' comes within `TIME`, for example 5m")
	f.BoolVar(&o.json, "json", false, "print the result, with the plan, as JSON")
}

func (o *switchOptions) engine() *activate.SwitchOptions {
	return &activate.SwitchOptions{DryRun: o.dryRun, ConfirmWithin: o.confirmWithin}
}

// switched prints what became of a switch. The error is the switch's.
func (e *Env) switched(o *switchOptions, r *activate.Result, err error) error {
	if r == nil {
		return switchHint(err)
	}
	if o.json {
		return errors.Join(e.printJSON(r), switchHint(err))
	}
	switch r.Outcome {
	case "planned", "refused":
		if r.Plan != nil {
			e.printf("%s", stripEscapes(r.Plan.String()))
		}
	case "unchanged":
		e.printf("nothing to do: generation %d is current\n", r.Generation)
	case "switched":
		e.printf("generation %d is current: %s\n", r.Generation, r.System)
	case "awaiting":
		e.printf("generation %d is current until %s: 'cairn system confirm' keeps it\n", r.Generation, r.Deadline.Format(time.TimeOnly))
	}
	return switchHint(err)
}

func switchHint(err error) error {
	switch {
	case errors.Is(err, activate.ErrUnconfirmed):
		return hinted(err, "'cairn system confirm' keeps it, 'cairn system recover --force' undoes it")
	}
	return permissionHint(err)
}

func newSystemRollBackCmd(env *Env) *cobra.Command {
	o := &switchOptions{}
	cmd := &cobra.Command{
		Use:   "roll-back",
		Short: "Switch to the generation before the current one",
		Long: `Switch to the generation before the current one: its files, accounts and units come
back, in the same journaled way as any switch. Numbers stay as they are.`,
		Example: `  cairn system roll-back --dry-run
  cairn system roll-back`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return env.withActivation(func(e *activate.Engine) error {
				if n, err := pickGeneration(cmd.Context(), e, "-1"); err == nil {
					if err := env.handOver(cmd.Context(), e, n, o); err != nil {
						return err
					}
				}
				r, err := e.RollBack(cmd.Context(), o.engine())
				return env.switched(o, r, err)
			})
		},
	}
	o.flags(cmd)
	return cmd
}

func newSystemConfirmCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm [ID]",
		Short: "Keep a switch that waits to be confirmed",
		Long: `Keep the switch that was made with --confirm-within and would otherwise be undone.
Do it over a new connection: that shows that the machine still lets you in.`,
		Example: `  cairn system confirm
  cairn system confirm 20261121-034500-1f2e
  ssh web-1 sudo cairn system confirm`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withActivation(func(e *activate.Engine) error {
				if err := e.Confirm(cmd.Context(), strings.Join(args, "")); err != nil {
					return err
				}
				env.note("confirmed")
				return nil
			})
		},
	}
}

func newSystemRecoverCmd(env *Env) *cobra.Command {
	o := &activate.RecoverOptions{}
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Undo a switch that a crash left unfinished or nobody confirmed",
		Long: `Undo what an interrupted switch, or one that was not confirmed in time, has begun.
Without one there is nothing to do. A service runs this at boot, and a timer when
the time to confirm is over.`,
		Example: `  cairn system recover
  cairn system recover --force`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return env.withActivation(func(e *activate.Engine) error { return runSystemRecover(cmd.Context(), env, e, o) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.ID, "journal", "", "wait for the switch `ID` to be confirmed or its time to be over")
	f.BoolVar(&o.Boot, "boot", false, "this is the boot: do not wait for units")
	f.BoolVar(&o.Force, "force", false, "undo a switch that waits to be confirmed though its time is not over")
	return cmd
}

func runSystemRecover(ctx context.Context, env *Env, e *activate.Engine, o *activate.RecoverOptions) error {
	r, err := e.Recover(ctx, o)
	if err != nil || r == nil {
		return permissionHint(err)
	}
	if r.Outcome == "incomplete" {
		return fmt.Errorf("undo of switch %s left: %s", r.ID, strings.Join(r.UndoErrors, "; "))
	}
	env.note("switch %s: %s", r.ID, r.Outcome)
	return nil
}

func newSystemDescribeCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "describe",
		Short: "Say which system this machine runs",
		Long: `Say which generation is current, when it was made, where it comes from and which
units it runs.`,
		Example: `  cairn system describe
  cairn system describe --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return env.withActivation(func(e *activate.Engine) error {
				g, err := e.Describe(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return env.printJSON(g)
				}
				env.printGeneration(g)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (e *Env) printGeneration(g activate.Generation) {
	mark := ""
	if g.Current {
		mark = " (current)"
	}
	e.printf("generation %d%s\n", g.Number, mark)
	e.printf("  made    %s\n", g.Created.Local().Format(time.DateTime))
	e.printf("  system  %s\n", g.Path)
	if g.HostName != "" {
		e.printf("  host    %s\n", g.HostName)
	}
	if len(g.Units) > 0 {
		e.printf("  units   %s\n", strings.Join(g.Units, " "))
	}
	for _, k := range []string{"file", "revision"} {
		if v := g.Provenance[k]; v != "" {
			e.printf("  %-7s %s\n", k, stripEscapes(v))
		}
	}
	if g.Error != "" {
		e.printf("  error   %s\n", stripEscapes(g.Error))
	}
}

// systemPath finds the system that an argument means: a generation's number, or a store path or link to one.
func systemPath(ctx context.Context, e *activate.Engine, arg string) (string, error) {
	list, err := e.Generations(ctx)
	if err != nil {
		return "", err
	}
	for _, g := range list {
		if fmt.Sprint(g.Number) == arg {
			return g.Path, nil
		}
	}
	real, err := filepath.EvalSymlinks(arg)
	if err != nil {
		return "", fmt.Errorf("%q is neither a generation nor a system: %w", arg, err)
	}
	return real, nil
}
