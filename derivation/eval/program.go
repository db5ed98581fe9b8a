package eval

import (
	"fmt"
	"path/filepath"
	"slices"

	"cairn/store"
)

// Program returns the object of a file that the caller, not the configuration, names: an explicit input.
func (e *Evaluation) Program(name, file string) (*Object, error) {
	if o := e.objects.programs[file]; o != nil {
		return o, nil
	}
	abs, err := filepath.EvalSymlinks(file)
	if err == nil {
		abs, err = filepath.Abs(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", name, err)
	}
	h, err := narHash(abs)
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", name, err)
	}
	p, err := e.opts.Dir.SourcePath(name, h, store.References{})
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", name, err)
	}
	e.objects.added[p] = Addition{Path: p, Name: name, Method: store.Recursive, Algo: store.SHA256, File: abs}
	o := &Object{e: e, kind: "program", name: name, ref: e.objects.register(&ref{text: p.String(), source: p})}
	e.objects.programs[file] = o
	return o, nil
}

// HostPaths returns those of the host paths of this evaluation that texts mention as whole paths, sorted.
func (e *Evaluation) HostPaths(texts ...string) []string {
	found := map[string]bool{}
	for _, t := range texts {
		for _, p := range e.hostPathsIn(t) {
			found[p] = true
		}
	}
	out := make([]string, 0, len(found))
	for p := range found {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// hostPathsIn remembers its answers: many machines share most of their texts.
func (e *Evaluation) hostPathsIn(text string) []string {
	known, ok := e.objects.mentioned[text]
	if ok && known.of == len(e.objects.hosts) {
		return known.paths
	}
	var paths []string
	for p := range e.objects.hosts {
		if mentions(text, p) {
			paths = append(paths, p)
		}
	}
	e.objects.mentioned[text] = mentioned{len(e.objects.hosts), paths}
	return paths
}

// mentioned is an answer of hostPathsIn and how many host paths there were.
type mentioned struct {
	of    int
	paths []string
}

// Texts returns the contents of the text objects that texts mention, and of those that they mention in turn.
func (e *Evaluation) Texts(texts ...string) []string {
	var out []string
	seen := map[*ref]bool{}
	for len(texts) > 0 {
		found := map[*ref]bool{}
		for _, t := range texts {
			e.objects.scan(t, found)
		}
		texts = nil
		for r := range found {
			if !seen[r] {
				seen[r] = true
				texts = append(texts, e.contents(r)...)
			}
		}
		out = append(out, texts...)
	}
	return out
}

// contents returns what is known of an object's text without a build: its own, or the tree it is made of.
func (e *Evaluation) contents(r *ref) []string {
	if d := e.objects.drvs[r.drv]; d != nil {
		return []string{d.Env["tree"]}
	}
	if a, ok := e.objects.added[r.source]; ok && a.File == "" {
		return []string{a.Text}
	}
	return nil
}
