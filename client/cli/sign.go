package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/store"
)

type storeSignOptions struct {
	key               string
	recursive, dryRun bool
	json              bool
}

func newStoreSignCmd(env *Env) *cobra.Command {
	o := &storeSignOptions{}
	cmd := &cobra.Command{
		Use:   "sign [--key FILE] [-r] [--dry-run] PATH…",
		Short: "Sign objects with a secret key",
		Long: `Add signatures to objects, with -r to all that they refer to as well. The key is
this machine's, or that of FILE, which may be one of Nix. A signature says that the
path has this hash and these references; it travels with the object, and a store
whose access list names the key takes the object from anybody. Printed are the
objects that had no signature by the key.

What is built here is signed without being asked to, with the keys of the setting
secret-key-files.`,
		Example: `  cairn store sign ./result
  cairn store sign -r --key ~/cache.sec ./result
  cairn store sign -r --dry-run /run/current-system`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runStoreSign(cmd.Context(), env, o, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "sign with the secret key in `FILE`; default: signing-key.sec of the store")
	f.BoolVarP(&o.recursive, "recursive", "r", false, "sign the closure")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only print what would be signed")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runStoreSign(ctx context.Context, env *Env, o *storeSignOptions, args []string) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	file := secretKeyFile(layout)
	if o.key != "" {
		file = env.path(o.key)
	}
	key, err := archive.ReadSecretKey(file)
	if err != nil {
		return hinted(err, "'cairn archive --generate-key' makes the machine's, which root can read; --key FILE takes another")
	}
	return env.withSession(ctx, func(s *session) error {
		infos, err := infosOf(ctx, s, env, o.recursive, args)
		if err != nil {
			return err
		}
		signed := []store.Path{}
		for _, i := range infos {
			sig := key.SignInfo(i)
			if slices.Contains(i.Signatures, sig) {
				continue
			}
			if !o.dryRun {
				if err := s.AddSignatures(ctx, i.Path, []string{sig}); err != nil {
					return err
				}
			}
			signed = append(signed, i.Path)
		}
		return env.printPaths(o.json, signed)
	})
}
