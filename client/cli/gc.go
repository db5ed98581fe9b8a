package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/daemon/protocol"
	"cairn/store"
)

type gcOptions struct {
	dryRun, roots, json bool
	maxFreed, why       string
}

func newGCCmd(env *Env) *cobra.Command {
	o := &gcOptions{}
	cmd := &cobra.Command{
		Use:     "gc [--dry-run] [--max-freed SIZE] | --why PATH | --roots",
		GroupID: "store",
		Short:   "Delete what nothing keeps alive, or say what keeps it",
		Long: `Delete every object that no root reaches. Roots are generations of profiles, links
below gcroots, work that is running, and what running processes use. Building and
adding go on meanwhile, and what they need stays.

Old generations of a system are roots: 'cairn system delete-generations' first.`,
		Example: `  cairn gc --dry-run
  cairn gc --max-freed 2G
  cairn gc --why /cairn/store/f2ib…-hello`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runGC(cmd.Context(), env, o) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only list what would be deleted")
	f.StringVar(&o.maxFreed, "max-freed", "", "stop after `SIZE`, for example 2G")
	f.StringVar(&o.why, "why", "", "print the chains from roots to `PATH`")
	f.BoolVar(&o.roots, "roots", false, "list the roots")
	f.BoolVar(&o.json, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("why", "roots", "dry-run")
	cmd.MarkFlagsMutuallyExclusive("why", "roots", "max-freed")
	return cmd
}

func runGC(ctx context.Context, env *Env, o *gcOptions) error {
	req := &protocol.GCRequest{DryRun: o.dryRun}
	if o.maxFreed != "" {
		n, err := parseSize(o.maxFreed)
		if err != nil {
			return &usageError{fmt.Errorf("--max-freed: %w", err)}
		}
		if n == 0 {
			return nil
		}
		req.MaxFreed = n
	}
	return env.withSession(ctx, func(s *session) error {
		switch {
		case o.why != "":
			return gcWhy(ctx, env, s, o)
		case o.roots:
			return gcRoots(ctx, env, s, o)
		}
		return gcCollect(ctx, env, s, o, req)
	})
}

func gcCollect(ctx context.Context, env *Env, s *session, o *gcOptions, req *protocol.GCRequest) error {
	r, err := s.Collect(ctx, req, env.logLines())
	if err != nil {
		return err
	}
	if o.json {
		if r.Paths == nil {
			r.Paths = []store.Path{}
		}
		return env.printJSON(r)
	}
	for _, p := range r.Paths {
		env.printf("%s\n", p)
	}
	verb := "deleted"
	if o.dryRun {
		verb = "would delete"
	}
	env.note("%s %s, %s", verb, count(len(r.Paths), "object"), formatSize(r.BytesFreed))
	return nil
}

func gcWhy(ctx context.Context, env *Env, s *session, o *gcOptions) error {
	p, err := s.object(env, o.why)
	if err != nil {
		return err
	}
	chains, err := s.Why(ctx, p)
	if err != nil {
		return err
	}
	if o.json {
		if chains == nil {
			chains = []protocol.Chain{}
		}
		return env.printJSON(chains)
	}
	if len(chains) == 0 {
		env.note("nothing keeps %s", p)
	}
	for _, c := range chains {
		env.printf("%s: %s\n", c.Kind, stripEscapes(c.Link))
		for depth, q := range c.Paths {
			env.printf("%*s→ %s\n", 2*depth+2, "", q)
		}
	}
	return nil
}

func gcRoots(ctx context.Context, env *Env, s *session, o *gcOptions) error {
	roots, err := s.FindRoots(ctx)
	if err != nil {
		return err
	}
	if o.json {
		type root struct {
			Link   string     `json:"link"`
			Target store.Path `json:"target"`
		}
		list := make([]root, len(roots))
		for i, r := range roots {
			list[i] = root(r)
		}
		return env.printJSON(list)
	}
	for _, r := range roots {
		env.printf("%s → %s\n", stripEscapes(r.Link), r.Target)
	}
	return nil
}
