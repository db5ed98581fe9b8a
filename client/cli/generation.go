package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/services/activate"
	"cairn/store/profile"
)

func newSystemSwitchGenerationCmd(env *Env) *cobra.Command {
	o := &switchOptions{}
	cmd := &cobra.Command{
		Use:   "switch-generation NUMBER|+N|-N",
		Short: "Switch to another generation",
		Long: `Switch to the generation with a number, or to the one N after (+N) or before (-N) the
current one in the list. Generation 0 is the machine as it was before the first
system: what is ours goes, and what it replaced comes back.`,
		Example: `  cairn system switch-generation 12
  cairn system switch-generation -- -2`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withActivation(func(e *activate.Engine) error {
				n, err := pickGeneration(cmd.Context(), e, args[0])
				if err != nil {
					return err
				}
				if err := env.handOver(cmd.Context(), e, n, o); err != nil {
					return err
				}
				r, err := e.SwitchGeneration(cmd.Context(), n, o.engine())
				return env.switched(o, r, err)
			})
		},
	}
	o.flags(cmd)
	return cmd
}

// pickGeneration resolves a number, or a signed distance in the list of generations.
func pickGeneration(ctx context.Context, e *activate.Engine, arg string) (int, error) {
	n, err := strconv.Atoi(arg)
	if err != nil {
		return 0, &usageError{fmt.Errorf("generation %q is not a number", arg)}
	}
	if !strings.ContainsAny(arg[:1], "+-") {
		return n, nil
	}
	list, err := e.Generations(ctx)
	if err != nil {
		return 0, err
	}
	for i, g := range list {
		if g.Current && i+n >= 0 && i+n < len(list) {
			return list[i+n].Number, nil
		}
	}
	return 0, hinted(fmt.Errorf("switch by %s: %w", arg, profile.ErrNoGeneration), "'cairn system list-generations' lists them")
}

func newSystemListGenerationsCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "list-generations [PATTERN]",
		Short: "List the systems that this machine can switch to",
		Long: `List the generations, oldest first, each with its time and its system. PATTERN picks
some of them: numbers and ranges ("3,5..7,9.."), or an age ("30d": older than that).`,
		Example: `  cairn system list-generations
  cairn system list-generations --json 30d`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withActivation(func(e *activate.Engine) error {
				list, err := generations(cmd.Context(), e, args)
				if err != nil {
					return err
				}
				if asJSON {
					return env.printJSON(list)
				}
				for _, g := range list {
					env.printGeneration(g)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// generations lists those that a pattern picks, or all.
func generations(ctx context.Context, e *activate.Engine, pattern []string) ([]activate.Generation, error) {
	all, err := e.Generations(ctx)
	if err != nil || len(pattern) == 0 {
		return all, err
	}
	picks, err := activate.SelectGenerations(plain(all), pattern[0], time.Now())
	if err != nil {
		return nil, &usageError{err}
	}
	picked := map[int]bool{}
	for _, n := range picks {
		picked[n] = true
	}
	list := []activate.Generation{}
	for _, g := range all {
		if picked[g.Number] {
			list = append(list, g)
		}
	}
	return list, nil
}

func plain(list []activate.Generation) []profile.Generation {
	out := make([]profile.Generation, len(list))
	for i, g := range list {
		out[i] = g.Generation
	}
	return out
}

func newSystemDeleteGenerationsCmd(env *Env) *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use:   "delete-generations [--dry-run] [PATTERN]",
		Short: "Forget generations, so that their systems can be collected",
		Long: `Delete generations: all but the current one, or those that PATTERN picks: numbers and
ranges ("3,5..7,9.."), or an age ("30d": older than that). The current one is never
deleted. What only they kept goes with the next 'cairn gc'.`,
		Example: `  cairn system delete-generations 30d
  cairn system delete-generations 1..4 && cairn gc`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withActivation(func(e *activate.Engine) error {
				return deleteGenerations(cmd.Context(), env, e, dryRun, strings.Join(args, ""))
			})
		},
	}
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "only list them")
	return cmd
}

func deleteGenerations(ctx context.Context, env *Env, e *activate.Engine, dryRun bool, pattern string) error {
	all, err := e.Generations(ctx)
	if err != nil {
		return err
	}
	picks, err := activate.SelectGenerations(plain(all), pattern, time.Now())
	if err != nil {
		return &usageError{err}
	}
	verb := "would delete"
	if !dryRun {
		if err := e.DeleteGenerations(ctx, picks...); err != nil {
			return permissionHint(err)
		}
		verb = "deleted"
	}
	for _, n := range picks {
		env.printf("%s generation %d\n", verb, n)
	}
	return nil
}
