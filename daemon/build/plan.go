package build

import (
	"encoding/json"
	"fmt"
	"maps"
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
	// offered says what an object that is not valid refers to, when a cache has it. asked is false when that is not known.
	offered(p store.Path) (refs []store.Path, has, asked bool)
	// traced says where an output is that nothing is known of here, when a cache knows it.
	traced(id store.DrvOutput) (p store.Path, has, asked bool)
}

// plan is what must happen for targets to exist: derivations to build, inputs first, and objects to fetch, references first.
//
// Planning does not wait for caches. What it must know of them it lists in asks and traces, and then it is no plan yet: whoever
// finds that out plans again. Derivations that are not here are fetched the same way (drvs).
type plan struct {
	nodes   []*node              // that must be built, every one behind its inputs
	fetches []store.Path         // that caches have, every one behind its references
	fetched []*node              // whose missing outputs are among them
	known   map[store.Path]*node // all that were looked at
	unknown []store.Path         // objects that are not valid and that no derivation here makes
	relied  []store.Path         // objects that are valid, and must stay so

	asks   []store.Path                        // objects of which caches must be asked
	fixed  map[store.Path]store.ContentAddress // of those that are fixed outputs
	traces []trace                             // outputs of which caches must be asked
	drvs   []store.Path                        // derivations that must be fetched before planning can go on
}

// complete reports whether nothing more has to be found out.
func (p *plan) complete() bool { return len(p.asks) == 0 && len(p.traces) == 0 && len(p.drvs) == 0 }

// trace is an output whose path is asked for.
type trace struct {
	id  store.DrvOutput
	drv store.Path
}

// node is a derivation of a plan.
type node struct {
	path     store.Path
	drv      *derivation.Derivation
	kind     derivation.Kind
	wanted   map[string]bool
	inputs   []*node // those of all that must be built or fetched
	all      map[store.Path]*node
	sources  []store.Path          // sources that must be fetched
	fetch    map[string]store.Path // the missing outputs, when all of them are fetched
	needed   bool                  // a wanted output is missing, and must be built
	repeated bool                  // it is built again though nothing is missing
	state    uint8
	listed   bool
}

const (
	unseen uint8 = iota
	entered
	left
)

type planner struct {
	facts
	plan
	way    []store.Path // from a target to the derivation that is looked at
	unsure int          // how many on the way are missing or not, nobody knows
	ahead  int          // how many may be; what is below is asked for together with them
	offers map[store.Path]answer
	listed map[store.Path]bool // fetches
	roots  []*node
	loose  []store.Path // objects that are wanted by themselves, and not valid
}

// answer says whether an object and what it refers to can be fetched.
type answer uint8

const (
	unanswered answer = iota
	underway
	no
	perhaps // caches must be asked
	yes
)

// makePlan is a pure function of what the store and caches have and what is wanted. Its work is linear in the number of derivations,
// inputs and offers that it has to look at; what is there is not looked into. It looks at most ahead derivations below one of which it does
// not know whether it must be built.
//
// In another mode than Normal what is needed to build targets again is wanted, too, when they are there.
func makePlan(f facts, targets []protocol.Target, mode Mode, ahead int) (*plan, error) {
	p := &planner{
		facts: f, plan: plan{known: map[store.Path]*node{}, fixed: map[store.Path]store.ContentAddress{}}, ahead: ahead,
		offers: map[store.Path]answer{}, listed: map[store.Path]bool{},
	}
	for _, t := range targets {
		if err := p.target(t); err != nil {
			return nil, err
		}
		if mode != Normal && t.Outputs != nil && p.known[t.Path] != nil {
			if err := p.again(p.known[t.Path]); err != nil {
				return nil, err
			}
		}
	}
	p.list()
	p.unknown = store.SortPaths(p.unknown)
	return &p.plan, nil
}

func (p *planner) target(t protocol.Target) error {
	if t.Outputs == nil {
		if p.object(t.Path) {
			p.loose = append(p.loose, t.Path)
		}
		return nil
	}
	if !p.present(t.Path) {
		return nil
	}
	n, err := p.want(t.Path, t.Outputs)
	if n != nil {
		p.roots = append(p.roots, n)
	}
	return err
}

// present reports whether a derivation can be read. One that caches have is fetched first; of one that nobody has, reading will say so.
func (p *planner) present(drv store.Path) bool {
	if p.known[drv] != nil || p.valid(drv) {
		return true
	}
	if _, err := p.derivation(drv); err == nil {
		return true
	}
	switch p.fetchable(drv) {
	case yes:
		p.drvs = append(p.drvs, drv)
	case perhaps:
	default:
		return true
	}
	return false
}

// object looks at an object that is wanted as it is, and reports whether it is to be fetched.
func (p *planner) object(path store.Path) bool {
	if p.valid(path) {
		p.relied = append(p.relied, path)
		return false
	}
	switch p.fetchable(path) {
	case yes:
		return true
	case perhaps:
	default:
		p.unknown = append(p.unknown, path)
	}
	return false
}

// fetchable says whether an object that is not valid can be fetched with all that it refers to.
func (p *planner) fetchable(path store.Path) answer {
	switch a := p.offers[path]; a {
	case unanswered:
	case underway:
		return no // it would refer to itself
	default:
		return a
	}
	p.offers[path] = underway
	a := p.lookUp(path)
	p.offers[path] = a
	return a
}

func (p *planner) lookUp(path store.Path) answer {
	refs, has, asked := p.offered(path)
	if !asked {
		p.asks = append(p.asks, path)
		return perhaps
	}
	if !has {
		return no
	}
	a := yes
	for _, r := range refs {
		if r != path && !p.valid(r) {
			a = min(a, p.fetchable(r))
		}
	}
	return a
}

// list puts what is to be done in order.
func (p *planner) list() {
	for _, n := range p.roots {
		p.listNode(n)
	}
	for _, o := range p.loose {
		p.listFetch(o)
	}
}

func (p *planner) listNode(n *node) {
	if n.listed {
		return
	}
	n.listed = true
	for _, o := range sortedNames(n.fetch) {
		p.listFetch(n.fetch[o])
	}
	if n.fetch != nil {
		p.fetched = append(p.fetched, n)
	}
	if !n.needed && !n.repeated {
		return
	}
	for _, s := range n.sources {
		p.listFetch(s)
	}
	for _, path := range sortedKeys(n.all) {
		in := n.all[path]
		p.listNode(in)
		if in.needed || in.fetch != nil {
			n.inputs = append(n.inputs, in)
		}
	}
	if n.needed {
		p.nodes = append(p.nodes, n)
	}
}

func (p *planner) listFetch(path store.Path) {
	if p.listed[path] {
		return
	}
	p.listed[path] = true
	if p.valid(path) {
		p.relied = append(p.relied, path)
		return
	}
	refs, _, _ := p.offered(path)
	for _, r := range refs {
		if r != path {
			p.listFetch(r)
		}
	}
	p.fetches = append(p.fetches, path)
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
	missing, a, err := p.missing(n)
	if err != nil {
		return err
	}
	n.fetch = nil
	switch {
	case a == yes:
		if len(missing) > 0 {
			n.fetch = missing
		}
		return nil
	case a == perhaps:
		if p.unsure >= p.ahead {
			return nil
		}
		p.unsure++
		defer func() { p.unsure-- }()
	}
	n.needed = true
	return p.wantInputs(n)
}

// again wants the inputs of a target that is there.
func (p *planner) again(n *node) error {
	if n.needed || len(n.all) > 0 {
		return nil
	}
	n.repeated = true
	n.state = entered
	p.way = append(p.way, n.path)
	defer func() { n.state, p.way = left, p.way[:len(p.way)-1] }()
	return p.wantInputs(n)
}

// checkable says whether there is something that a second build can be compared with.
func (p *plan) checkable(targets []protocol.Target) error {
	for _, t := range targets {
		if n := p.known[t.Path]; t.Outputs != nil && (n.needed || n.fetch != nil) {
			return fmt.Errorf("some outputs of '%s' are not valid, so checking is not possible", t.Path)
		}
	}
	return nil
}

// wantInputs wants all inputs of a derivation that is to be built.
func (p *planner) wantInputs(n *node) error {
	for _, src := range n.drv.InputSrcs {
		if p.object(src) {
			n.sources = append(n.sources, src)
		}
	}
	for _, path := range sortedKeys(n.drv.InputDrvs) {
		in, err := p.want(path, n.drv.InputDrvs[path])
		if err != nil {
			return err
		}
		if in.kind == derivation.Impure && n.kind != derivation.Impure && n.kind != derivation.Fixed {
			return fmt.Errorf("pure derivation '%s' depends on impure derivation '%s'", n.path, in.path)
		}
		n.all[path] = in
	}
	return nil
}

// missing returns those of the wanted outputs that are not valid, and whether all of them can be fetched. When there are none, they can.
func (p *planner) missing(n *node) (map[string]store.Path, answer, error) {
	missing, a := map[string]store.Path{}, yes
	for _, o := range sortedNames(n.wanted) {
		out, err := p.output(n, o)
		if err != nil {
			return nil, no, err
		}
		if !out.IsZero() && p.valid(out) {
			p.relied = append(p.relied, out)
			continue
		}
		if n.noFetch() || n.kind == derivation.Impure {
			a = no
			continue
		}
		if out.IsZero() {
			path, has, err := p.ask(n, o)
			if err != nil {
				return nil, no, err
			}
			a = min(a, has)
			out = path
		}
		if !out.IsZero() && !p.valid(out) {
			a = min(a, p.fetchable(out))
			if d := n.drv.Outputs[o]; n.kind == derivation.Fixed {
				p.fixed[out] = store.ContentAddress{Method: d.Method, Hash: d.Hash}
			}
		}
		missing[o] = out
	}
	return missing, a, nil
}

// ask asks caches where an output is.
func (p *planner) ask(n *node, o string) (store.Path, answer, error) {
	id, err := p.identity(n.drv, o)
	if err != nil {
		return store.Path{}, no, err
	}
	out, has, asked := p.traced(id)
	switch {
	case !asked:
		p.traces = append(p.traces, trace{id, n.path})
		return store.Path{}, perhaps, nil
	case !has:
		return store.Path{}, no, nil
	}
	return out, yes, nil
}

// noFetch reports whether a derivation wants to be built here, always.
func (n *node) noFetch() bool { return !boolAttribute(n.drv, "allowSubstitutes", true) }

// boolAttribute returns a variable or structured attribute of a derivation that is true or false.
func boolAttribute(d *derivation.Derivation, name string, otherwise bool) bool {
	if text, ok := d.Env["__json"]; ok {
		if !strings.Contains(text, name) {
			return otherwise
		}
		attrs := map[string]any{}
		if err := json.Unmarshal([]byte(text), &attrs); err != nil {
			return otherwise
		}
		if b, ok := attrs[name].(bool); ok {
			return b
		}
		return otherwise
	}
	if text, ok := d.Env[name]; ok {
		return text == "1"
	}
	return otherwise
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

// outputPath returns the path of an output, or zero when it is not known.
func outputPath(f facts, d *derivation.Derivation, o string) (store.Path, error) {
	switch out := d.Outputs[o]; out.Kind() {
	case derivation.InputAddressed, derivation.Fixed:
		return out.Path, nil
	case derivation.Impure:
		return store.Path{}, nil // each build has its own
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

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

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
