package cli

import (
	"context"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/client"
	"cairn/store"
	"cairn/store/readdress"
	"cairn/store/refscan"
)

type readdressOptions struct{ offsets, json bool }

func newStoreReaddressCmd(env *Env) *cobra.Command {
	o := &readdressOptions{}
	cmd := &cobra.Command{
		Use:     "make-content-addressed [--json] PATH…",
		Aliases: []string{"make-content-addressable"},
		Short:   "Copy objects to paths that follow from their contents",
		Long: `Copy objects and everything that they refer to to paths that follow from their
contents, so that they need no signature to be believed. References and the
objects' own paths are replaced inside the copies. The originals stay.

The new paths are those of 'nix store make-content-addressed'. Nix before 2.17
addresses objects that contain their own path differently: --offsets.`,
		Example: `  cairn store make-content-addressed ./result
  cairn store make-content-addressed --json /cairn/store/f2ib…-hello`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error { return runReaddress(cmd.Context(), env, s, o, args) })
		},
	}
	cmd.Flags().BoolVar(&o.offsets, "offsets", false, "give paths of objects that contain their own as Nix before 2.17 does")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runReaddress(ctx context.Context, env *Env, s *session, o *readdressOptions, args []string) error {
	infos, err := infosOf(ctx, s, env, true, args)
	if err != nil {
		return err
	}
	reader, err := s.dial(ctx) // one reads while the other adds
	if err != nil {
		return err
	}
	defer reader.Close()
	c := &readdress.Copier{From: reader, To: s.Conn}
	if o.offsets {
		c.SelfHash = refscan.WithOffsets
	}
	rewrites := map[string]store.Path{}
	err = c.Copy(ctx, infos, func(old, new store.Path) {
		rewrites[old.String()] = new
		if !o.json {
			env.printf("rewrote '%s' to '%s'\n", old, new)
		}
	})
	if err == nil && o.json {
		err = env.printJSON(map[string]any{"rewrites": rewrites})
	}
	return err
}

var (
	_ store.Reader = (*client.Conn)(nil)
	_ store.Writer = (*client.Conn)(nil)
)

func newStoreDumpDBCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "dump-db [PATH…]",
		Short: "Write what is registered of objects, in Nix's form",
		Long: `Write what the store knows of objects, or of all of them, in the form of
'nix-store --dump-db', which 'nix-store --load-db' and '--register-validity' read.
Signatures and content addresses are not part of that form.`,
		Example: `  cairn store dump-db > registration
  cairn store dump-db /cairn/store/f2ib…-hello`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				infos, err := dumped(cmd.Context(), env, s, args)
				if err != nil {
					return err
				}
				return archive.WriteRegistration(env.Stdout, infos)
			})
		},
	}
}

func dumped(ctx context.Context, env *Env, s *session, args []string) ([]*store.Info, error) {
	if len(args) > 0 {
		return infosOf(ctx, s, env, false, args)
	}
	paths, err := s.AllPaths(ctx)
	if err != nil {
		return nil, err
	}
	return s.Closure(ctx, paths)
}
