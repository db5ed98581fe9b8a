package cli

import (
	"github.com/spf13/cobra"

	"cairn/archive"
)

func newCacheCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cache COMMAND",
		GroupID: "store",
		Short:   "Push to binary caches, and be one",
		Long: `Push store objects to binary caches, and serve the store as one.

A binary cache is a folder of packed objects, on disk, behind HTTP or in S3, from
which Nix's tools and cairn's daemon fetch instead of building.`,
		Example: `  cairn cache push file:///srv/cache ./result
  cairn cache serve --listen 0.0.0.0:8080 --key /etc/cairn/signing-key.sec`,
	}
	cmd.AddCommand(newCachePushCmd(env), newCacheServeCmd(env))
	return cmd
}

// readKeys reads secret keys from their files.
func (e *Env) readKeys(files []string) ([]archive.SecretKey, error) {
	var keys []archive.SecretKey
	for _, f := range files {
		key, err := archive.ReadSecretKey(e.path(f))
		if err != nil {
			return nil, hinted(err, "'cairn archive --generate-key' makes one; nix's key files work, too")
		}
		keys = append(keys, key)
	}
	return keys, nil
}
