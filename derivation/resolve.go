package derivation

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/store"
)

// Resolve returns the derivation that is built when the inputs of d are realised as said: their paths are sources,
// their placeholders are replaced by them in builder, arguments and environment, and deferred
// outputs have their final paths. An input without a path gives an error that is ErrUnresolved.
func (d *Derivation) Resolve(dir store.Dir, realised func(drv store.Path, output string) (store.Path, bool)) (*Derivation, error) {
	r := d.Clone()
	r.InputDrvs = map[store.Path][]string{}
	var pairs []string
	for _, drv := range slices.SortedFunc(maps.Keys(d.InputDrvs), store.Path.Compare) {
		for _, output := range d.InputDrvs[drv] {
			path, ok := realised(drv, output)
			if !ok {
				return nil, fmt.Errorf("resolve derivation %s: output %q of %s: %w", d.Name, output, drv, ErrUnresolved)
			}
			pairs = append(pairs, UpstreamPlaceholder(drv, output), path.String())
			r.InputSrcs = append(r.InputSrcs, path)
		}
	}
	r.InputSrcs = store.SortPaths(r.InputSrcs)
	r.rewrite(strings.NewReplacer(pairs...))
	kind, err := r.Kind()
	if err != nil {
		return nil, err
	}
	if kind == Deferred {
		if err := NewHashes(nil).FillOutputs(r, dir); err != nil {
			return nil, fmt.Errorf("resolve derivation %s: %w", d.Name, err)
		}
	}
	return r, nil
}

// Rewrite replaces texts in builder, arguments and environment: placeholders of own outputs, for a build.
func (d *Derivation) Rewrite(texts map[string]string) {
	var pairs []string
	for _, from := range slices.Sorted(maps.Keys(texts)) {
		pairs = append(pairs, from, texts[from])
	}
	d.rewrite(strings.NewReplacer(pairs...))
}

func (d *Derivation) rewrite(r *strings.Replacer) {
	d.Builder = r.Replace(d.Builder)
	for i, arg := range d.Args {
		d.Args[i] = r.Replace(arg)
	}
	env := make(map[string]string, len(d.Env))
	for key, value := range d.Env {
		env[r.Replace(key)] = r.Replace(value)
	}
	d.Env = env
}
