package build

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"cairn/daemon/protocol"
	"cairn/store"
)

// conditions are what a derivation demands of an output.
type conditions struct {
	allowedReferences    []string // nil: any
	disallowedReferences []string
	allowedRequisites    []string // nil: any
	disallowedRequisites []string
	maxSize              int64 // of the archive; 0: any
	maxClosureSize       int64
	ignoreSelf           bool // requisites do not count the output itself
}

// conditions reads the demands on an output: variables for all outputs, or, with structured attributes, outputChecks.NAME.
func (a *attempt) conditions(attrs attributes, output string) conditions {
	var c conditions
	read := func(get func(name string) ([]string, bool)) {
		c.allowedReferences = list(get("allowedReferences"))
		c.disallowedReferences = list(get("disallowedReferences"))
		c.allowedRequisites = list(get("allowedRequisites"))
		c.disallowedRequisites = list(get("disallowedRequisites"))
	}
	if attrs == nil {
		read(func(name string) ([]string, bool) {
			v, ok := a.drv.Env[name]
			return strings.Fields(v), ok
		})
		c.ignoreSelf = true
		return c
	}
	all, _ := attrs["outputChecks"].(map[string]any)
	mine, _ := all[output].(map[string]any)
	read(func(name string) ([]string, bool) {
		v, ok := mine[name]
		return stringsOf(v), ok
	})
	c.maxSize, c.maxClosureSize = integer(mine["maxSize"]), integer(mine["maxClosureSize"])
	c.ignoreSelf, _ = mine["ignoreSelfRefs"].(bool)
	return c
}

// list makes an absent list nil and an empty one not.
func list(words []string, ok bool) []string {
	if ok && words == nil {
		return []string{}
	}
	if !ok {
		return nil
	}
	return words
}

func integer(v any) int64 {
	n, _ := v.(json.Number)
	i, _ := n.Int64()
	return i
}

// checkOutputs checks the derivation's own conditions.
func (a *attempt) checkOutputs(ctx context.Context) error {
	attrs, err := a.structured()
	if err != nil {
		return err
	}
	for _, o := range a.outputs {
		if err := a.checkOutput(ctx, o, a.conditions(attrs, o.name)); err != nil {
			return err
		}
	}
	return nil
}

func (a *attempt) checkOutput(ctx context.Context, o *output, c conditions) error {
	if c.maxSize > 0 && o.info.NarSize > c.maxSize {
		return failure(protocol.OutputRejected, "path '%s' is too large at %d bytes; limit is %d bytes", o.final, o.info.NarSize, c.maxSize)
	}
	if c.allowedRequisites != nil || c.disallowedRequisites != nil || c.maxClosureSize > 0 {
		closure, size, err := a.closureOf(ctx, o)
		if err != nil {
			return err
		}
		if c.maxClosureSize > 0 && size > c.maxClosureSize {
			return failure(protocol.OutputRejected, "closure of path '%s' is too large at %d bytes; limit is %d bytes", o.final, size, c.maxClosureSize)
		}
		if c.ignoreSelf {
			closure = slices.DeleteFunc(closure, func(p store.Path) bool { return p == o.final })
		}
		if err := a.checkSet(o, closure, c.allowedRequisites, c.disallowedRequisites); err != nil {
			return err
		}
	}
	return a.checkSet(o, o.info.References, c.allowedReferences, c.disallowedReferences)
}

// checkSet checks paths against those that are allowed, if that is said, and those that are not.
func (a *attempt) checkSet(o *output, paths []store.Path, allowed, disallowed []string) error {
	var bad []string
	yes, err := a.named(o, allowed)
	if err != nil {
		return err
	}
	no, err := a.named(o, disallowed)
	if err != nil {
		return err
	}
	for _, p := range paths {
		if allowed != nil && !slices.Contains(yes, p) || slices.Contains(no, p) {
			bad = append(bad, p.String())
		}
	}
	if len(bad) > 0 {
		return failure(protocol.OutputRejected, "output '%s' is not allowed to refer to the following paths:\n  %s", o.final, strings.Join(bad, "\n  "))
	}
	return nil
}

// named returns the paths that a condition names: store paths, or names of outputs.
func (a *attempt) named(o *output, words []string) ([]store.Path, error) {
	var paths []store.Path
	for _, w := range words {
		if p, _, err := a.b.store.Dir().Within(w); err == nil {
			paths = append(paths, p)
			continue
		}
		i := slices.IndexFunc(a.outputs, func(x *output) bool { return x.name == w })
		if i < 0 {
			return nil, failure(protocol.OutputRejected, "derivation contains an illegal reference specifier '%s'", w)
		}
		paths = append(paths, a.outputs[i].final)
	}
	return paths, nil
}

// closureOf returns what an output reaches, itself included, and the size of that.
// Outputs are not valid yet: theirs are followed by hand.
func (a *attempt) closureOf(ctx context.Context, o *output) ([]store.Path, int64, error) {
	var fresh []*output
	var size int64
	old := map[store.Path]bool{}
	todo := []*output{o}
	for len(todo) > 0 {
		x := todo[0]
		todo = todo[1:]
		if slices.Contains(fresh, x) {
			continue
		}
		fresh = append(fresh, x)
		size += x.info.NarSize
		for _, r := range x.info.References {
			if i := slices.IndexFunc(a.outputs, func(y *output) bool { return y.final == r }); i >= 0 {
				todo = append(todo, a.outputs[i])
			} else {
				old[r] = true
			}
		}
	}
	closure, err := a.b.store.Closure(sortedKeys(old)...)
	if err != nil {
		return nil, 0, err
	}
	for _, p := range closure {
		info, err := a.b.store.Info(ctx, p)
		if err != nil {
			return nil, 0, err
		}
		size += info.NarSize
	}
	for _, x := range fresh {
		closure = append(closure, x.final)
	}
	return closure, size, nil
}
