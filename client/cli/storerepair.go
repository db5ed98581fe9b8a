package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"cairn/daemon/protocol"
)

func newStoreRepairCmd(env *Env) *cobra.Command {
	o := &storeVerifyOptions{repair: true}
	cmd := &cobra.Command{
		Use:   "repair [-r] [--dry-run] [--json] --all | PATH…",
		Short: "Give damaged or missing objects the files that they should have",
		Long: `Read objects, and replace the files of those that are damaged or gone, by what comes
first of: an equal object of the store, a cache that has the same, building or
fetching again what made them. Whoever reads an object meanwhile sees the old files or
the new ones. References come first; what cannot be mended does not keep the rest
from it.

First the plan is shown: what is wrong with which object, where new files may come from,
and of what nothing can mend, the command that deletes it. Then each outcome; the exit
code is 1 if anything is left. With --dry-run nothing is done after the plan.`,
		Example: `  cairn store repair --dry-run --all
  cairn store repair /cairn/store/f2ib…-hello
  cairn store repair -r ./result`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.all == (len(args) > 0) {
				return &usageError{errors.New("give paths, or --all")}
			}
			return runStoreVerify(cmd.Context(), env, o, args)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.all, "all", false, "all objects")
	f.BoolVarP(&o.closure, "closure", "r", false, "everything that the objects refer to as well")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "only show the plan")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// planned prints what will be done about a finding, when it comes.
func (o *storeVerifyOptions) planned(env *Env, p *progress) func(protocol.Finding) {
	if o.json || !o.repair {
		return nil
	}
	return func(f protocol.Finding) {
		p.aside(func() {
			env.printf("%s\n", stripEscapes(f.Text))
			env.printRemedies(&f)
		})
	}
}

// printRemedies says where new files may come from: the first that can be had will be tried first.
func (e *Env) printRemedies(f *protocol.Finding) {
	word := "would be repaired from"
	if f.Planned {
		word = "will be repaired from"
	}
	for _, r := range f.Remedies {
		if r.Unable != "" {
			e.printf("  not from %s: %s\n", remedyText(r), stripEscapes(r.Unable))
			continue
		}
		e.printf("  %s %s (%s)\n", word, remedyText(r), formatSize(f.Size))
		word = "or from"
	}
	if f.How == "" && f.Error != "" {
		e.printf("  cannot be repaired: %s\n", stripEscapes(f.Error))
		e.printDeletion(f)
	}
}

func remedyText(r protocol.Remedy) string {
	from := stripEscapes(r.From)
	switch r.Kind {
	case protocol.CopyRemedy:
		return from + ", which is equal"
	case protocol.BuildRemedy:
		return from + ", by building it again"
	case protocol.FetchRemedy:
		if r.URL == "" {
			return from + ", by fetching it again"
		}
		return from + ", by fetching " + stripEscapes(r.URL) + " again"
	}
	return from
}

// printDeletion shows the last resort, which is nobody's but the user's.
func (e *Env) printDeletion(f *protocol.Finding) {
	const most = 20 // that are named
	if f.Size == 0 {
		return // it is not even registered any more
	}
	if len(f.NeededBy) > most {
		e.printf("  %d others need it; to name them: cairn store query referrers-closure %s\n", len(f.NeededBy), f.Path)
		return
	}
	names := make([]string, len(f.NeededBy))
	for i, p := range f.NeededBy {
		names[i] = p.String()
		e.printf("  needed by %s\n", p)
	}
	e.printf("  to give it up: cairn store delete %s\n", strings.Join(append(names, f.Path), " "))
}
