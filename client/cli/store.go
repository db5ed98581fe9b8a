package cli

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
)

func newStoreCmd(env *Env) *cobra.Command {
	cmd := &cobra.Command{Use: "store", GroupID: "store", Short: "Add, query and check store objects"}
	cmd.AddCommand(
		newStoreAddCmd(env),
		newStoreCopyCmd(env),
		newStorePathInfoCmd(env),
		newStoreClosureCmd(env),
		newStoreReferrersCmd(env),
		newStoreListCmd(env),
		newStoreUsageCmd(env),
		newStoreCatCmd(env),
		newStoreDumpCmd(env),
		newStoreDeleteCmd(env),
		newStoreVerifyCmd(env),
		newStoreRepairCmd(env),
		newStoreScrubCmd(env),
		newStoreRebuildCmd(env),
		newStoreOptimiseCmd(env),
		newStoreQueryCmd(env),
		newStoreTreeCmd(env),
		newStoreWhyCmd(env),
		newStoreDiffCmd(env),
		newStoreReaddressCmd(env),
		newStoreDumpDBCmd(env),
		newStoreSignCmd(env),
	)
	return cmd
}

type storeInfoOptions struct{ json, closure bool }

func newStorePathInfoCmd(env *Env) *cobra.Command {
	o := &storeInfoOptions{}
	cmd := &cobra.Command{
		Use:   "path-info [-r] [--json] PATH…",
		Short: "Show hash, size, references and signatures of objects",
		Long: `Show what the store knows of objects: size and hash of their archive, references,
the derivation that made them, content address and signatures.
With -r also of everything that they refer to, references first.`,
		Example: `  cairn store path-info /cairn/store/f2ib…-hello
  cairn store path-info -r --json ./result`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runStorePathInfo(cmd.Context(), env, o, args) },
	}
	cmd.Flags().BoolVarP(&o.closure, "recursive", "r", false, "the closure as well")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func runStorePathInfo(ctx context.Context, env *Env, o *storeInfoOptions, args []string) error {
	return env.withSession(ctx, func(s *session) error {
		infos, err := infosOf(ctx, s, env, o.closure, args)
		if err != nil {
			return err
		}
		if o.json {
			return env.printJSON(infos)
		}
		rows := [][]string{{"PATH", "SIZE", "REFERENCES", "HASH", "CONTENT ADDRESS"}}
		for _, i := range infos {
			rows = append(rows, []string{i.Path.String(), formatSize(i.NarSize), strconv.Itoa(len(i.References)), i.NarHash.SRI(), i.CA.String()})
		}
		return env.printTable(rows)
	})
}

func infosOf(ctx context.Context, s *session, env *Env, closure bool, args []string) ([]*store.Info, error) {
	paths, err := s.objects(env, args)
	if err != nil {
		return nil, err
	}
	if closure {
		return s.Closure(ctx, paths)
	}
	var infos []*store.Info
	for _, p := range paths {
		i, err := s.Info(ctx, p)
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
	}
	return infos, nil
}

func newStoreClosureCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "closure [--json] PATH…",
		Short: "List what objects refer to, directly and indirectly",
		Long: `List the closure of objects: themselves and everything that they refer to,
references before what refers to them. This is what travels with an object.`,
		Example: `  cairn store closure ./result
  cairn store closure $(cairn build hello.star:hello)`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				infos, err := infosOf(cmd.Context(), s, env, true, args)
				if err != nil {
					return err
				}
				var paths []store.Path
				for _, i := range infos {
					paths = append(paths, i.Path)
				}
				return env.printPaths(asJSON, paths)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newStoreReferrersCmd(env *Env) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "referrers [--json] PATH",
		Short: "List the objects that refer to an object",
		Long: `List the valid objects that refer directly to an object. What keeps it alive is
another question, which 'cairn gc --why' answers.`,
		Example: `  cairn store referrers /cairn/store/f2ib…-hello
  cairn store referrers --json ./result`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				p, err := s.object(env, args[0])
				if err != nil {
					return err
				}
				if _, err := s.Info(cmd.Context(), p); err != nil {
					return err
				}
				list, err := s.Referrers(cmd.Context(), p)
				if err != nil {
					return err
				}
				return env.printPaths(asJSON, list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printPaths writes one path per line, many lines at once, or a JSON list.
func (e *Env) printPaths(asJSON bool, list []store.Path) error {
	if asJSON {
		if list == nil {
			list = []store.Path{}
		}
		return e.printJSON(list)
	}
	w := bufio.NewWriterSize(e.Stdout, 64<<10)
	for _, p := range list {
		fmt.Fprintln(w, p)
	}
	return w.Flush()
}

func newStoreDumpCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "dump PATH",
		Short: "Write an object's archive (NAR) to standard output",
		Long: `Write the archive of an object to standard output: its files in the one form that
its hash is made of. 'cairn archive --list' and '--extract' read it.`,
		Example: `  cairn store dump ./result | sha256sum
  cairn store dump ./result > result.nar`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				p, err := s.object(env, args[0])
				if err != nil {
					return err
				}
				return s.NAR(cmd.Context(), p, env.Stdout)
			})
		},
	}
}

func newStoreDeleteCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "delete PATH…",
		Short: "Delete objects that nothing keeps alive",
		Long: `Delete objects now instead of at the next collection. An object that is alive is
refused, and nothing is deleted then; 'cairn gc --why' says what keeps it.`,
		Example: `  cairn store delete /cairn/store/f2ib…-hello
  cairn store delete --root ~/try /cairn/store/f2ib…-hello`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				paths, err := s.objects(env, args)
				if err != nil {
					return err
				}
				r, err := s.Collect(cmd.Context(), &protocol.GCRequest{Paths: paths}, nil)
				if err != nil {
					return hinted(err, "'cairn gc --why PATH' says what keeps an object")
				}
				env.note("deleted %s, %s freed", count(len(r.Paths), "object"), formatSize(r.BytesFreed))
				return nil
			})
		},
	}
}

// logLines prints the daemon's log lines to standard error.
func (e *Env) logLines() client.Observer {
	return client.ObserverFunc(func(m *protocol.Message) {
		if m.Kind == protocol.KindNext {
			fmt.Fprint(e.Stderr, stripEscapes(strings.TrimRight(m.Text, "\n"))+"\n")
		}
	})
}

// count writes "1 object", "2 objects".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
