package cli

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cairn/daemon/legacy"
	"cairn/deploy"
)

func newServeCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "serve [--legacy [--write] [--store URI]]",
		GroupID: "service",
		Short:   "Be the agent on a machine that is deployed to, or what ssh:// stores of Nix speak to",
		Long: `Answer the questions of 'cairn deploy', which starts this on each machine over ssh,
as root, and speaks to it on standard input and output. People have no use for it;
it is worth a try only to see whether a machine's way in works.

With --legacy it answers as 'nix-store --serve' does: to Nix's ssh:// stores, to
nix-copy-closure and to build farms. Without --write the client may only read. A
link named nix-store to cairn does the same, so that clients need no setting.`,
		Example: `  cairn serve --from 10.0.0.1 < /dev/null
  ssh web-1 sudo -n cairn serve < /dev/null
  cairn serve --legacy --write --root ~/try < session
  nix copy --to 'ssh://web-1?remote-program=cairn%20serve%20--legacy' ./result`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, a := range args {
				if a == "-h" || a == "--help" {
					return cmd.Help()
				}
			}
			if slices.Contains(args, "--legacy") {
				return runServeLegacy(cmd.Context(), env, args)
			}
			return deploy.Main(cmd.Context(), args, env.Stdin, env.Stdout, env.Getenv)
		},
	}
}

type legacyOptions struct {
	engineOptions
	write bool
}

func runServeLegacy(ctx context.Context, env *Env, args []string) error {
	o := &legacyOptions{}
	var uri string
	f := pflag.NewFlagSet("serve --legacy", pflag.ContinueOnError)
	f.Bool("legacy", true, "")
	f.Bool("serve", true, "") // what a client adds that believes this to be nix-store
	f.BoolVar(&o.write, "write", false, "")
	f.StringVar(&uri, "store", "", "")
	f.StringVar(&env.Root, "root", env.Root, "")
	if err := f.Parse(args); err != nil {
		return &usageError{err}
	}
	if f.NArg() > 0 {
		return &usageError{errors.New("serve --legacy takes no arguments")}
	}
	if err := env.chooseStore(uri); err != nil {
		return &usageError{err}
	}
	return serveLegacy(ctx, env, o)
}

// serveLegacy serves one client on standard input and output: through the running daemon if there is one, else
// by itself.
func serveLegacy(ctx context.Context, env *Env, o *legacyOptions) error {
	s, err := env.connectAny(ctx, &o.engineOptions)
	if err != nil {
		return err
	}
	err = legacy.Serve(ctx, &stdio{Reader: env.Stdin, Writer: env.Stdout}, s.Conn, &legacy.Options{Write: o.write, Log: env.Stderr})
	return errors.Join(err, s.Close())
}
