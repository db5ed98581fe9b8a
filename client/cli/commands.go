package cli

import "github.com/spf13/cobra"

// commands is the table of the first level.
func commands(env *Env) []*cobra.Command {
	return []*cobra.Command{
		newSystemCmd(env),
		newDeployCmd(env),
		newEvalCmd(env),
		newBuildCmd(env),
		newStoreCmd(env),
		newArchiveCmd(env),
		newCacheCmd(env),
		newGCCmd(env),
		newLogCmd(env),
		newACLCmd(env),
		newConfigCmd(env),
		newInitCmd(env),
		newDaemonCmd(env),
		newServeCmd(env),
	}
}
