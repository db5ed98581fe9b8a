package cli

import (
	"bytes"
	"context"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"cairn/archive/nar"
	"cairn/store"
)

type whyOptions struct{ all, precise, json bool }

func newStoreWhyCmd(env *Env) *cobra.Command {
	o := &whyOptions{}
	cmd := &cobra.Command{
		Use:   "why-depends [--all] [--precise] [--json] OBJECT DEPENDENCY",
		Short: "Show how one object comes to refer to another",
		Long: `Show the shortest chain of references from an object to another, or all of them
with --all. With --precise also the files that have the references in them, and the
text around. Output is that of 'nix why-depends'.`,
		Example: `  cairn store why-depends ./result /cairn/store/f2ib…-glibc
  cairn store why-depends --all --precise ./result /cairn/store/f2ib…-glibc`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error { return runStoreWhy(cmd.Context(), env, s, o, args) })
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "all chains, not the shortest alone")
	f.BoolVar(&o.precise, "precise", false, "the files with the references as well")
	f.BoolVar(&o.json, "json", false, "print JSON: a list of references, each with its files if --precise")
	return cmd
}

func runStoreWhy(ctx context.Context, env *Env, s *session, o *whyOptions, args []string) error {
	ends, err := s.objects(env, args)
	if err != nil {
		return err
	}
	infos, err := s.Closure(ctx, ends[:1])
	if err != nil {
		return err
	}
	w := &why{ctx: ctx, s: s, o: o, env: env, from: ends[0], to: ends[1], refs: map[store.Path][]store.Path{}, done: map[store.Path]bool{}, edges: []whyEdge{}}
	w.measure(infos)
	if _, reached := w.dist[w.from]; !reached {
		env.note("'%s' does not depend on '%s'", w.from, w.to)
	} else {
		if !o.precise {
			w.print("", w.from.String())
		}
		_, err = w.node(w.from, "", "")
	}
	if err == nil && o.json {
		err = env.printJSON(w.edges)
	}
	return err
}

// why walks from one object to another.
type why struct {
	ctx      context.Context
	s        *session
	o        *whyOptions
	env      *Env
	from, to store.Path
	refs     map[store.Path][]store.Path
	dist     map[store.Path]int // how many references away from the end
	done     map[store.Path]bool
	edges    []whyEdge
}

// whyEdge is a reference for JSON.
type whyEdge struct {
	From  store.Path `json:"from"`
	To    store.Path `json:"to"`
	Files []hit      `json:"files,omitempty"`
}

// hit is a file with a reference in it.
type hit struct {
	File   string `json:"file"`
	Target string `json:"target,omitempty"` // of a symbolic link
	Text   string `json:"text,omitempty"`   // around the first place
}

func (h hit) line() string {
	if h.Target != "" {
		return h.File + " -> " + h.Target
	}
	return h.File + ": …" + h.Text + "…"
}

func (w *why) print(pad, text string) {
	if !w.o.json {
		w.env.printf("%s%s\n", pad, stripEscapes(text))
	}
}

// measure finds how far everything is from the end.
func (w *why) measure(infos []*store.Info) {
	referrers := map[store.Path][]store.Path{}
	known := false
	for _, i := range infos {
		w.refs[i.Path] = i.References
		known = known || i.Path == w.to
		for _, r := range i.References {
			referrers[r] = append(referrers[r], i.Path)
		}
	}
	w.dist = map[store.Path]int{}
	if !known {
		return
	}
	w.dist[w.to] = 0
	for queue := []store.Path{w.to}; len(queue) > 0; queue = queue[1:] {
		for _, r := range referrers[queue[0]] {
			if _, ok := w.dist[r]; !ok {
				w.dist[r] = w.dist[queue[0]] + 1
				queue = append(queue, r)
			}
		}
	}
}

// next returns the references of p that lead to the end, the nearest first.
func (w *why) next(p store.Path) []store.Path {
	var list []store.Path
	for _, r := range w.refs[p] {
		if _, ok := w.dist[r]; ok && (r != p || w.from == w.to) {
			list = append(list, r)
		}
	}
	slices.SortStableFunc(list, func(a, b store.Path) int { return w.dist[a] - w.dist[b] })
	return list
}

// node prints what leads on from p. It reports true when nothing more is wanted.
func (w *why) node(p store.Path, first, rest string) (bool, error) {
	if w.o.precise {
		arrow := ""
		if first != "" {
			arrow = "→ "
		}
		w.print(first, arrow+p.String())
	}
	if p == w.to && !w.o.all && w.from != w.to {
		return true, nil
	}
	if w.done[p] {
		return false, nil
	}
	w.done[p] = true
	list := w.next(p)
	found, err := w.hits(p, list)
	if err != nil {
		return false, err
	}
	for i, r := range list {
		branch, below := treeConn, treeLine
		if !w.o.all || i == len(list)-1 {
			branch, below = treeLast, treeNull
		}
		w.edge(p, r, found[r], rest, branch, below)
		if stop, err := w.node(r, rest+below, rest+below); stop || err != nil {
			return stop, err
		}
	}
	return false, nil
}

// edge prints one reference.
func (w *why) edge(p, r store.Path, found []hit, rest, branch, below string) {
	if !w.o.all && len(found) > 1 {
		found = found[:1]
	}
	w.edges = append(w.edges, whyEdge{p, r, found})
	if !w.o.precise {
		w.print(rest+branch, r.String())
		return
	}
	for n, h := range found {
		if n > 0 {
			branch = below
		}
		w.print(rest+branch, h.line())
	}
}

// hits reads an object for the digests of references.
func (w *why) hits(p store.Path, refs []store.Path) (map[store.Path][]hit, error) {
	found := map[store.Path][]hit{}
	if !w.o.precise || len(refs) == 0 {
		return found, nil
	}
	err := w.s.readNAR(w.ctx, w.env, p.String(), func(r io.Reader, _ string) error {
		return eachFile(r, func(h *nar.Header, data io.Reader) error {
			name := h.Path
			if name == "" {
				name = "/"
			}
			switch h.Type {
			case nar.Symlink:
				for _, ref := range refs {
					if bytes.Contains([]byte(h.Target), []byte(ref.Digest())) {
						found[ref] = append(found[ref], hit{File: name, Target: h.Target})
					}
				}
			case nar.Regular:
				texts, err := firstPlaces(data, refs)
				for _, ref := range refs {
					if texts[ref] != "" {
						found[ref] = append(found[ref], hit{File: name, Text: texts[ref]})
					}
				}
				return err
			}
			return nil
		})
	})
	return found, err
}

const (
	hitMargin = 32 // bytes of text around a place
	hitDigest = 32
)

// firstPlaces finds the first place of each digest in a file, with the text around it.
func firstPlaces(r io.Reader, refs []store.Path) (map[store.Path]string, error) {
	texts := map[store.Path]string{}
	buf := make([]byte, 0, 256<<10)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return nil, err
		}
		for _, ref := range refs {
			at := bytes.Index(buf, []byte(ref.Digest()))
			if texts[ref] != "" || at < 0 || !last && at+hitDigest+hitMargin > len(buf) {
				continue
			}
			texts[ref] = printable(buf[max(0, at-hitMargin):min(len(buf), at+hitDigest+hitMargin)])
		}
		if last {
			return texts, nil
		}
		buf = buf[:copy(buf, buf[len(buf)-2*hitMargin-hitDigest:])]
	}
}

// printable shows everything else as a dot.
func printable(b []byte) string {
	out := make([]byte, len(b))
	for i, c := range b {
		if out[i] = '.'; c >= ' ' && c <= '~' {
			out[i] = c
		}
	}
	return string(out)
}
