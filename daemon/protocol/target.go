package protocol

import (
	"fmt"
	"slices"
	"strings"

	"cairn/store"
)

// Target is what a client wants to exist ("derived path").
//
//	<path>          that object, a .drv included    (before 1.30: a .drv means all its outputs)
//	<drv>!*         all outputs of a derivation
//	<drv>!a,b       some of them
type Target struct {
	Path    store.Path
	Outputs []string // sorted; "*" alone means all; nil means the object itself
}

// All is the Outputs of a target that wants them all.
func All() []string { return []string{"*"} }

// IsAll reports whether all outputs are wanted.
func (t Target) IsAll() bool { return len(t.Outputs) == 1 && t.Outputs[0] == "*" }

// String returns the form on the wire from 1.30 on.
func (t Target) String() string {
	if len(t.Outputs) == 0 {
		return t.Path.String()
	}
	return t.Path.String() + "!" + strings.Join(t.Outputs, ",")
}

// ParseTarget parses the form on the wire from 1.30 on.
func ParseTarget(dir store.Dir, s string) (Target, error) {
	path, outputs, built := strings.Cut(s, "!")
	p, err := dir.ParsePath(path)
	if err != nil {
		return Target{}, err
	}
	if !built {
		return Target{Path: p}, nil
	}
	if !p.IsDerivation() {
		return Target{}, fmt.Errorf("target %q: outputs are asked of what is no derivation", clip(s))
	}
	if outputs == "*" {
		return Target{Path: p, Outputs: All()}, nil
	}
	if strings.Contains(outputs, "!") {
		return Target{}, fmt.Errorf("target %q: outputs of outputs (dynamic derivations) are not supported", clip(s))
	}
	names := slices.Compact(slices.Sorted(strings.SplitSeq(outputs, ",")))
	for _, n := range names {
		if err := store.CheckName(n); err != nil {
			return Target{}, fmt.Errorf("target %q: output: %w", clip(s), err)
		}
	}
	return Target{Path: p, Outputs: names}, nil
}

// Target writes a target as the version wants it.
func (e *Encoder) Target(t Target) {
	if e.Version < Minor(30) && t.IsAll() {
		e.Path(t.Path)
		return
	}
	e.Text(t.String())
}

// Targets writes a list of targets.
func (e *Encoder) Targets(list []Target) {
	e.Uint64(uint64(len(list)))
	for _, t := range list {
		e.Target(t)
	}
}

// Target reads a target.
func (d *Decoder) Target() Target {
	s := d.Text(MaxPath)
	t := parsed(d, s, func(s string) (Target, error) { return ParseTarget(d.Dir, s) })
	if d.Version < Minor(30) && t.Outputs == nil && t.Path.IsDerivation() {
		t.Outputs = All()
	}
	return t
}

// Targets reads a list of targets.
func (d *Decoder) Targets() []Target {
	var list []Target
	for range d.Count() {
		t := d.Target()
		if d.broken != nil {
			return nil
		}
		list = append(list, t)
	}
	return list
}
