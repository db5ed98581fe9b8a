package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cairn/store"
)

// question is something that can be asked of an object; the answer is paths or, if text is set, one text.
type question struct {
	name, help string
	paths      func(context.Context, *session, store.Path) ([]store.Path, error)
	text       func(context.Context, *session, store.Path) (string, error)
}

var questions = []question{
	{name: "references", help: "what it refers to", paths: func(ctx context.Context, s *session, p store.Path) ([]store.Path, error) {
		i, err := s.Info(ctx, p)
		if err != nil {
			return nil, err
		}
		return i.References, nil
	}},
	{name: "referrers", help: "what refers to it", paths: func(ctx context.Context, s *session, p store.Path) ([]store.Path, error) {
		return s.Referrers(ctx, p)
	}},
	{name: "closure", help: "itself and what it refers to, directly and indirectly", paths: closurePaths},
	{name: "requisites", help: "Nix's word for closure", paths: closurePaths},
	{name: "referrers-closure", help: "itself and what refers to it, directly and indirectly", paths: referrersClosure},
	{name: "deriver", help: "the derivation that made it, or unknown-deriver", text: func(ctx context.Context, s *session, p store.Path) (string, error) {
		i, err := s.Info(ctx, p)
		if err != nil || i.Deriver.IsZero() {
			return "unknown-deriver", err
		}
		return i.Deriver.String(), nil
	}},
	{name: "derivers", help: "valid derivations that make it", paths: func(ctx context.Context, s *session, p store.Path) ([]store.Path, error) {
		return s.Derivers(ctx, p)
	}},
	{name: "outputs", help: "the outputs of a derivation", paths: outputsOf},
	{name: "roots", help: "roots that keep it", text: rootsOf},
	{name: "hash", help: "the hash of its archive", text: func(ctx context.Context, s *session, p store.Path) (string, error) {
		i, err := s.Info(ctx, p)
		if err != nil {
			return "", err
		}
		return i.NarHash.String(), nil
	}},
	{name: "size", help: "the size of its archive in bytes", text: func(ctx context.Context, s *session, p store.Path) (string, error) {
		i, err := s.Info(ctx, p)
		if err != nil {
			return "", err
		}
		return strconv.FormatInt(i.NarSize, 10), nil
	}},
}

func closurePaths(ctx context.Context, s *session, p store.Path) ([]store.Path, error) {
	return s.ClosurePaths(ctx, []store.Path{p})
}

func referrersClosure(ctx context.Context, s *session, p store.Path) ([]store.Path, error) {
	list := []store.Path{p}
	seen := map[store.Path]bool{p: true}
	for i := 0; i < len(list); i++ {
		more, err := s.Referrers(ctx, list[i])
		if err != nil {
			return nil, err
		}
		for _, r := range more {
			if !seen[r] {
				seen[r] = true
				list = append(list, r)
			}
		}
	}
	return list, nil
}

func outputsOf(ctx context.Context, s *session, p store.Path) ([]store.Path, error) {
	if !p.IsDerivation() {
		return nil, fmt.Errorf("%s is no derivation", p)
	}
	m, err := s.OutputMap(ctx, p)
	if err != nil {
		return nil, err
	}
	var paths []store.Path
	for _, name := range sortedKeys(m) {
		if !m[name].IsZero() {
			paths = append(paths, m[name])
		}
	}
	return paths, nil
}

func rootsOf(ctx context.Context, s *session, p store.Path) (string, error) {
	above, err := referrersClosure(ctx, s, p)
	if err != nil {
		return "", err
	}
	roots, err := s.FindRoots(ctx)
	var lines []string
	for _, r := range roots {
		if slices.Contains(above, r.Target) {
			lines = append(lines, r.Link+" -> "+r.Target.String())
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), err
}

func questionNames() []string {
	var names []string
	for _, q := range questions {
		names = append(names, q.name)
	}
	return names
}

func newStoreQueryCmd(env *Env) *cobra.Command {
	asJSON := false
	var help strings.Builder
	for _, q := range questions {
		fmt.Fprintf(&help, "\n  %-18s %s", q.name, q.help)
	}
	cmd := &cobra.Command{
		Use:   "query [--json] QUESTION PATH…",
		Short: "Ask what the store knows of objects",
		Long:  "Ask one question about objects, as 'nix-store --query' does:\n" + help.String(),
		Example: `  cairn store query references ./result
  cairn store query referrers-closure --json /cairn/store/f2ib…-hello`,
		Args:      cobra.MinimumNArgs(2),
		ValidArgs: questionNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			i := slices.IndexFunc(questions, func(q question) bool { return q.name == args[0] })
			if i < 0 {
				return &usageError{fmt.Errorf("unknown question %q; there are %s", args[0], strings.Join(questionNames(), ", "))}
			}
			return env.withSession(cmd.Context(), func(s *session) error {
				return runStoreQuery(cmd.Context(), env, s, &questions[i], asJSON, args[1:])
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runStoreQuery(ctx context.Context, env *Env, s *session, q *question, asJSON bool, args []string) error {
	paths, err := s.objects(env, args)
	if err != nil {
		return err
	}
	answers := map[string]any{}
	seen := map[store.Path]bool{}
	for _, p := range paths {
		if q.text != nil {
			text, err := q.text(ctx, s, p)
			if err != nil {
				return err
			}
			if answers[p.String()] = text; !asJSON && text != "" {
				env.printf("%s\n", stripEscapes(text))
			}
			continue
		}
		if _, err := s.Info(ctx, p); err != nil {
			return err
		}
		list, err := q.paths(ctx, s, p)
		if err != nil {
			return err
		}
		answers[p.String()] = append([]store.Path{}, list...)
		if asJSON {
			continue
		}
		list = slices.DeleteFunc(slices.Clone(list), func(p store.Path) bool { return seen[p] })
		if len(paths) > 1 {
			for _, p := range list {
				seen[p] = true
			}
		}
		if err := env.printPaths(false, list); err != nil {
			return err
		}
	}
	if asJSON {
		return env.printJSON(answers)
	}
	return nil
}

// The parts of a drawn tree.
const (
	treeConn = "├───"
	treeLast = "└───"
	treeLine = "│   "
	treeNull = "    "
)

func newStoreTreeCmd(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "tree PATH…",
		Short: "Draw what objects refer to as a tree",
		Long: `Draw what objects refer to, directly and indirectly, as a tree. What was drawn above
is followed by [...] instead of its own branches.`,
		Example: `  cairn store tree ./result
  cairn store tree /cairn/store/f2ib…-hello`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				paths, err := s.objects(env, args)
				if err != nil {
					return err
				}
				infos, err := s.Closure(cmd.Context(), paths)
				if err != nil {
					return err
				}
				t := newTree(env, infos)
				for _, p := range paths {
					t.draw(p, "", "")
				}
				return nil
			})
		},
	}
}

// tree draws closures.
type tree struct {
	env   *Env
	refs  map[store.Path][]store.Path // references first
	drawn map[store.Path]bool
}

func newTree(env *Env, infos []*store.Info) *tree {
	t := &tree{env: env, refs: map[store.Path][]store.Path{}, drawn: map[store.Path]bool{}}
	rank := map[store.Path]int{}
	for n, i := range infos {
		rank[i.Path] = n
		t.refs[i.Path] = slices.SortedFunc(slices.Values(i.References), func(a, b store.Path) int { return rank[a] - rank[b] })
	}
	return t
}

func (t *tree) draw(p store.Path, first, rest string) {
	if t.drawn[p] {
		t.env.printf("%s%s [...]\n", first, p)
		return
	}
	t.drawn[p] = true
	t.env.printf("%s%s\n", first, p)
	for i, r := range t.refs[p] {
		branch, below := treeConn, treeLine
		if i == len(t.refs[p])-1 {
			branch, below = treeLast, treeNull
		}
		t.draw(r, rest+branch, rest+below)
	}
}
