package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store"
)

type gcOptions struct {
	dryRun, roots, json, quiet     bool
	maxFreed, why, free, olderThan string
	deleteGenerations              bool
	generationAge                  string
	keepLast, keepDays             int
}

func newGCCmd(env *Env) *cobra.Command {
	o := &gcOptions{}
	cmd := &cobra.Command{
		Use:     "gc [--dry-run] [-d | --keep-last N | --keep-days N] [--free SIZE] | --why PATH | --roots",
		GroupID: "store",
		Short:   "Delete what nothing keeps alive, or say what keeps it",
		Long: `Delete every object that no root reaches. Roots are generations of profiles, links
below gcroots, work that is running, what running processes use, and what 'cairn gc
root add' keeps until it expires. Building and adding go on meanwhile, and what they
need stays.

Old generations of a profile are roots. With -d all but the current one are deleted
first, of every profile that you may change: all of them for root. With --keep-last,
--keep-days or --delete-generations-older-than, those that none of these options
keeps. The current generation always stays, as do the systems that run and were booted,
and, of the generations older than an age, the one that was current then.

--older-than is about objects: what was added since stays, with what it refers to.

The daemon collects by itself when its setting min-free says so ('cairn daemon status').`,
		Example: `  cairn gc --dry-run
  cairn gc -d
  cairn gc --keep-last 5 --keep-days 30
  cairn gc --free 20% --older-than 7d
  cairn gc --max-freed 2G
  cairn gc --why /cairn/store/f2ib…-hello`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runGC(cmd.Context(), env, o) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only list what would be deleted")
	f.StringVar(&o.maxFreed, "max-freed", "", "stop after `SIZE`, for example 2G")
	f.StringVar(&o.why, "why", "", "print the chains from roots to `PATH`")
	f.BoolVar(&o.roots, "roots", false, "list the roots, with who is behind each, since and until when")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print neither progress nor what is deleted")
	f.StringVar(&o.free, "free", "", "stop when `SIZE`, or a part such as 20%, is free where the store is")
	f.StringVar(&o.olderThan, "older-than", "", "only objects added longer ago than `AGE`, for example 7d")
	f.BoolVarP(&o.deleteGenerations, "delete-generations", "d", false, "first delete all generations but the current ones")
	f.StringVar(&o.generationAge, "delete-generations-older-than", "", "first delete those that were not current since `AGE` ago")
	f.IntVar(&o.keepLast, "keep-last", 0, "first delete generations, but keep the last `N` of each profile")
	f.IntVar(&o.keepDays, "keep-days", 0, "first delete generations, but keep those of the last `N` days")
	cmd.MarkFlagsMutuallyExclusive("keep-days", "delete-generations-older-than")
	cmd.MarkFlagsMutuallyExclusive("why", "roots", "dry-run")
	cmd.MarkFlagsMutuallyExclusive("why", "roots", "max-freed")
	cmd.AddCommand(newGCRootCmd(env))
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
	if o.free != "" {
		if _, err := settings.ParseAmount(o.free); err != nil {
			return hinted(&usageError{fmt.Errorf("--free: %w", err)}, "write 20G, or 15%% of the disk and of its inodes")
		}
		req.Free = o.free
	}
	if o.olderThan != "" {
		age, err := parseAge(o.olderThan)
		if err != nil {
			return &usageError{fmt.Errorf("--older-than: %w", err)}
		}
		req.OlderThan = time.Now().Add(-age).Unix()
	}
	policy, drops, err := o.generationPolicy()
	if err != nil {
		return err
	}
	if drops && (o.why != "" || o.roots) {
		return &usageError{errors.New("--why and --roots delete no generations")}
	}
	return env.withSession(ctx, func(s *session) error {
		switch {
		case o.why != "":
			return gcWhy(ctx, env, s, o)
		case o.roots:
			return gcRoots(ctx, env, s, o)
		}
		var gone []dropped
		if drops {
			if gone, err = dropGenerations(ctx, env, s.layout, policy, o.dryRun); err != nil {
				return err
			}
		}
		return gcCollect(ctx, env, s, o, req, gone)
	})
}

// collected is what --json prints.
type collected struct {
	*protocol.GCResult
	Profiles []dropped `json:"profiles"`
}

func gcCollect(ctx context.Context, env *Env, s *session, o *gcOptions, req *protocol.GCRequest, gone []dropped) error {
	if o.dryRun {
		req.WithoutLinks = links(gone)
	}
	p := env.newProgress(o.quiet)
	r, err := s.Collect(ctx, req, gcProgress(p, o.quiet))
	p.close()
	if err != nil {
		return err
	}
	if o.json {
		if r.Paths == nil {
			r.Paths = []store.Path{}
		}
		if gone == nil {
			gone = []dropped{}
		}
		return env.printJSON(collected{r, gone})
	}
	verb := "deleted"
	if o.dryRun {
		verb = "would delete"
	}
	for _, d := range gone {
		for _, g := range d.Generations {
			env.note("%s generation %d of %s, of %s", verb, g.Number, d.Profile, g.Created.Format(time.DateOnly))
		}
	}
	if !o.quiet {
		for _, p := range r.Paths {
			env.printf("%s\n", p)
		}
	}
	env.note("%s %s, %s", verb, count(len(r.Paths), "object"), formatSize(r.BytesFreed))
	return nil
}

// plainEvery is how often a collection says how far it is where there is no terminal.
const plainEvery = 10 * time.Second

// gcProgress draws phase, counts, bytes and the time to go; without a terminal, in a line now and then.
func gcProgress(p *progress, quiet bool) client.Observer {
	phase, said := "", time.Now()
	width, _ := p.term.size()
	return client.ObserverFunc(func(m *protocol.Message) {
		switch {
		case m.Kind == protocol.KindNext && !quiet:
			p.line("%s", strings.TrimRight(m.Text, "\n"))
		case m.Kind == protocol.KindResult && m.Result == protocol.ResSetPhase && len(m.Fields) > 0:
			phase = stripEscapes(m.Fields[0].Text)
		case m.Kind == protocol.KindResult && m.Result == protocol.ResProgress && len(m.Fields) == 6:
			text := gcLine(phase, m.Fields)
			p.total("%s", text)
			if width == 0 && time.Since(said) >= plainEvery {
				said = time.Now()
				p.line("%s", text)
			}
		}
	})
}

// gcLine writes how far a collection is. The fields are objects done and in all, two zeros, bytes freed, seconds to go.
func gcLine(phase string, f []protocol.Field) string {
	text := phase
	if f[1].Number > 0 {
		text += fmt.Sprintf(": %d of %s", f[0].Number, count(int(f[1].Number), "object"))
	}
	if f[4].Number > 0 {
		text += ", " + formatSize(int64(f[4].Number)) + " freed"
	}
	if f[5].Number > 0 {
		text += fmt.Sprintf(", about %v to go", time.Duration(f[5].Number)*time.Second)
	}
	return text
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
		env.printf("%s: %s%s\n", c.Kind, stripEscapes(c.Link), who(c.Who))
		for depth, q := range c.Paths {
			env.printf("%*s→ %s\n", 2*depth+2, "", q)
		}
	}
	return nil
}

// who writes who is behind a root.
func who(w *protocol.Who) string {
	if w == nil {
		return ""
	}
	var parts []string
	if w.PID != 0 {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("process %d %s", w.PID, stripEscapes(w.Command))))
	}
	if w.UID >= 0 {
		parts = append(parts, "of "+userName(w.UID))
	}
	if !w.Since.IsZero() {
		parts = append(parts, "since "+w.Since.Format(time.DateTime))
	}
	if !w.Until.IsZero() {
		parts = append(parts, "until "+w.Until.Format(time.DateTime))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
