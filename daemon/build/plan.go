package build

import (
	"fmt"
	"slices"
	"strings"

	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// facts is what planning may ask. Nothing it answers is changed by asking.
type facts interface {
	valid(p store.Path) bool
	derivation(p store.Path) (*derivation.Derivation, error)
	realised(id store.DrvOutput) (store.Path, bool)
	identity(d *derivation.Derivation, output string) (store.DrvOutput, error)
}

// plan is what must happen for targets to exist: derivations, inputs first.
type plan struct {
	nodes   []*node              // that must be built, every one behind its inputs
	known   map[store.Path]*node // all that were looked at
	unknown []store.Path         // objects that are not valid and that no derivation here makes
	relied  []store.Path         // objects that are valid, and must stay so
}

// node is a derivation of a plan.
type node struct {
	path   store.Path
	drv    *derivation.Derivation
	kind   derivation.Kind
	wanted map[string]bool
	inputs []*node // those of drv.InputDrvs that must be built
	all    map[store.Path]*node
	needed bool // a wanted output is missing
	state  uint8
}

const (
	unseen uint8 = iota
	entered
	left
)

type planner struct {
	facts
	plan
	way []store.Path // from a target to the derivation that is looked at
}

// makePlan is a pure function of what the store has and what is wanted. Its work is linear in the number of derivations
// and inputs that it has to look at; what is there is not looked into.
//
// In another mode than Normal what is needed to build targets again is wanted, too, when they are there.
func makePlan(f facts, targets []protocol.Target, mode Mode) (*plan, error) {
	p := &planner{facts: f, plan: plan{known: map[store.Path]*node{}}}
	for _, t := range targets {
		if err := p.target(t); err != nil {
			return nil, err
		}
		if mode != Normal && t.Outputs != nil {
			if err := p.again(p.known[t.Path]); err != nil {
				return nil, err
			}
		}
	}
	p.unknown = store.SortPaths(p.unknown)
	return &p.plan, nil
}

func (p *planner) target(t protocol.Target) error {
	if t.Outputs == nil {
		p.object(t.Path)
		return nil
	}
	_, err := p.want(t.Path, t.Outputs)
	return err
}

func (p *planner) object(path store.Path) {
	if p.valid(path) {
		p.relied = append(p.relied, path)
	} else {
		p.unknown = append(p.unknown, path)
	}
}

// want adds outputs of a derivation to what is wanted.
func (p *planner) want(path store.Path, outputs []string) (*node, error) {
	n, err := p.node(path)
	if err != nil {
		return nil, err
	}
	if n.state == entered {
		return nil, p.cycle(path)
	}
	if len(outputs) == 1 && outputs[0] == "*" {
		outputs = n.drv.OutputNames()
	}
	fresh := false
	for _, o := range outputs {
		if _, ok := n.drv.Outputs[o]; !ok {
			return nil, fmt.Errorf("derivation %s has no output %q; it has %s", path, o, strings.Join(n.drv.OutputNames(), ", "))
		}
		if !n.wanted[o] {
			n.wanted[o], fresh = true, true
		}
	}
	if !fresh || n.needed {
		return n, nil
	}
	return n, p.expand(n)
}

func (p *planner) node(path store.Path) (*node, error) {
	if n := p.known[path]; n != nil {
		return n, nil
	}
	d, err := p.derivation(path)
	if err != nil {
		return nil, err
	}
	kind, err := d.Kind()
	if err != nil {
		return nil, fmt.Errorf("derivation %s: %w", path, err)
	}
	n := &node{path: path, drv: d, kind: kind, wanted: map[string]bool{}, all: map[store.Path]*node{}}
	p.known[path] = n
	return n, nil
}

// expand looks whether what is wanted of a derivation is there and, if not, wants its inputs.
func (p *planner) expand(n *node) error {
	n.state = entered
	p.way = append(p.way, n.path)
	defer func() { n.state, p.way = left, p.way[:len(p.way)-1] }()
	if n.kind == derivation.Floating || n.kind == derivation.Deferred {
		if err := p.enterInputs(n); err != nil {
			return err
		}
	}
	for o := range n.wanted {
		out, err := p.output(n, o)
		if err != nil {
			return err
		}
		if out.IsZero() || !p.valid(out) {
			n.needed = true
		} else {
			p.relied = append(p.relied, out)
		}
	}
	if !n.needed {
		return nil
	}
	if err := p.wantInputs(n); err != nil {
		return err
	}
	p.nodes = append(p.nodes, n)
	return nil
}

// again wants the inputs of a target that is there.
func (p *planner) again(n *node) error {
	if n.needed || len(n.all) > 0 {
		return nil
	}
	n.state = entered
	p.way = append(p.way, n.path)
	defer func() { n.state, p.way = left, p.way[:len(p.way)-1] }()
	return p.wantInputs(n)
}

// checkable says whether there is something that a second build can be compared with.
func (p *plan) checkable(targets []protocol.Target) error {
	for _, t := range targets {
		if n := p.known[t.Path]; t.Outputs != nil && n.needed {
			return fmt.Errorf("some outputs of '%s' are not valid, so checking is not possible", t.Path)
		}
	}
	return nil
}

// wantInputs wants all inputs of a derivation that is to be built.
func (p *planner) wantInputs(n *node) error {
	for _, src := range n.drv.InputSrcs {
		p.object(src)
	}
	for _, path := range sortedKeys(n.drv.InputDrvs) {
		in, err := p.want(path, n.drv.InputDrvs[path])
		if err != nil {
			return err
		}
		n.all[path] = in
		if in.needed {
			n.inputs = append(n.inputs, in)
		}
	}
	return nil
}

// enterInputs finds a cycle before the identity of n, which depends on all that is below it, is asked for.
func (p *planner) enterInputs(n *node) error {
	for _, path := range sortedKeys(n.drv.InputDrvs) {
		in, err := p.node(path)
		if err != nil {
			return err
		}
		if in.state == entered {
			return p.cycle(path)
		}
	}
	return nil
}

// output returns the path of an output, or zero when it is not known yet.
func (p *planner) output(n *node, o string) (store.Path, error) {
	return outputPath(p.facts, n.drv, o)
}

func outputPath(f facts, d *derivation.Derivation, o string) (store.Path, error) {
	switch out := d.Outputs[o]; out.Kind() {
	case derivation.InputAddressed, derivation.Fixed:
		return out.Path, nil
	case derivation.Impure:
		return store.Path{}, fmt.Errorf("derivation %s is impure, which this daemon does not build", d.Name)
	}
	id, err := f.identity(d, o)
	if err != nil {
		return store.Path{}, err
	}
	out, _ := f.realised(id)
	return out, nil
}

func (p *planner) cycle(path store.Path) error {
	var names []string
	for _, q := range p.way[slices.Index(p.way, path):] {
		names = append(names, q.String())
	}
	return fmt.Errorf("derivation %s depends on itself: %s", path, strings.Join(append(names, path.String()), " → "))
}

func sortedKeys[V any](m map[store.Path]V) []store.Path {
	keys := make([]store.Path, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, store.Path.Compare)
	return keys
}

// resolves reports whether the derivation that is built is another one, which has the paths of its inputs in place
// of their derivations. plain says of an input whether its outputs' paths are in the derivation already.
func resolves(d *derivation.Derivation, kind derivation.Kind, plain func(store.Path) bool) bool {
	switch kind {
	case derivation.Floating, derivation.Deferred:
		return len(d.InputDrvs) > 0
	}
	for path := range d.InputDrvs {
		if !plain(path) {
			return true
		}
	}
	return false
}
