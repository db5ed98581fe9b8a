package cli

import (
	"github.com/spf13/cobra"

	"cairn/deploy"
)

func newServeCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "serve",
		GroupID: "service",
		Short:   "Be the agent on a machine that is deployed to",
		Long: `Answer the questions of 'cairn deploy', which starts this on each machine over ssh,
as root, and speaks to it on standard input and output. People have no use for it;
it is worth a try only to see whether a machine's way in works.`,
		Example: `  cairn serve < /dev/null
  cairn serve --from 10.0.0.1 < /dev/null
  ssh web-1 sudo -n cairn serve < /dev/null`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, a := range args {
				if a == "-h" || a == "--help" {
					return cmd.Help()
				}
			}
			return deploy.Main(cmd.Context(), args, env.Stdin, env.Stdout, env.Getenv)
		},
	}
}
