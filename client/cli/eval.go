package cli

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/spf13/cobra"
)

func newEvalCmd(env *Env) *cobra.Command {
	o := &fileOptions{}
	cmd := &cobra.Command{
		Use:     "eval FILE[:NAME]",
		GroupID: "machines",
		Short:   "Print a value of a file as JSON",
		Long: `Evaluate a file and print its values, or the one called NAME, as JSON. Objects are shown
by their store path; nothing is written to the store and no daemon is needed.
An error says file, line and column; evaluation is bounded in steps and memory.`,
		Example: `  cairn eval web.star
  cairn eval --arg domain=example.org web.star:web`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runEval(cmd.Context(), env, o, args[0]) },
	}
	o.flags(cmd)
	return cmd
}

func runEval(ctx context.Context, env *Env, o *fileOptions, arg string) error {
	cfg, name, err := env.load(ctx, o, arg)
	if err != nil {
		return err
	}
	defer cfg.Close()
	value, err := cfg.Value(name)
	if err != nil {
		return fileError(arg, err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, value, "", "  "); err != nil {
		return err
	}
	env.printf("%s\n", b.Bytes())
	return nil
}
