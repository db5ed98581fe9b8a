package derivation

import (
	"fmt"
	"slices"
	"sync"

	"cairn/store"
)

// Modulo is the hash modulo of a derivation.
type Modulo struct {
	Hash     map[string]store.Hash // by output; equal for all unless the output is fixed
	Deferred bool                  // paths that follow from it are not final
}

// Hashes computes hashes modulo and remembers those of inputs. It is safe for concurrent use.
//
//	M(d, mask) =
//	  fixed:   sha256("fixed:out:" methodAlgo ":" hex ":" path)
//	  impure:  sha256("impure"), deferred
//	  others:  sha256(ATerm of d, in which every wanted output o of every input i is replaced by M(i, false)[o];
//	           equal hashes merge; with mask the output paths and their variables are blank)
//	           deferred when d is floating or an input is deferred
type Hashes struct {
	load func(store.Path) (*Derivation, error)
	mu   sync.Mutex
	memo map[store.Path]*Modulo // M(…, false), guarded by mu
}

// NewHashes returns a computer of hashes that gets the inputs' derivations from load,
// which may be nil when no derivation with inputs is asked for.
func NewHashes(load func(store.Path) (*Derivation, error)) *Hashes {
	return &Hashes{load: load, memo: map[store.Path]*Modulo{}}
}

// Modulo returns M(d, mask).
func (h *Hashes) Modulo(d *Derivation, mask bool) (*Modulo, error) {
	return h.modulo(d, mask, nil)
}

// Input returns M(d, false) of the derivation at path, and remembers it.
func (h *Hashes) Input(path store.Path) (*Modulo, error) { return h.input(path, nil) }

// chain is the way from the derivation that was asked for to the current one.
type chain struct {
	path store.Path
	up   *chain
}

func (c *chain) contains(p store.Path) bool {
	for ; c != nil; c = c.up {
		if c.path == p {
			return true
		}
	}
	return false
}

func (h *Hashes) input(path store.Path, way *chain) (*Modulo, error) {
	h.mu.Lock()
	m := h.memo[path]
	h.mu.Unlock()
	if m != nil {
		return m, nil
	}
	if way.contains(path) {
		return nil, fmt.Errorf("derivation %s depends on itself", path)
	}
	if h.load == nil {
		return nil, fmt.Errorf("derivation %s: %w", path, store.ErrNotValid)
	}
	d, err := h.load(path)
	if err != nil {
		return nil, fmt.Errorf("load derivation %s: %w", path, err)
	}
	if m, err = h.modulo(d, false, &chain{path: path, up: way}); err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.memo[path] = m
	h.mu.Unlock()
	return m, nil
}

func (h *Hashes) modulo(d *Derivation, mask bool, way *chain) (*Modulo, error) {
	kind, err := d.Kind()
	if err != nil {
		return nil, err
	}
	switch kind {
	case Fixed:
		o := d.Outputs["out"]
		text := "fixed:out:" + o.methodAlgo() + ":" + o.Hash.Hex() + ":" + o.Path.String()
		return d.same(store.SHA256.Sum([]byte(text)), false), nil
	case Impure:
		return d.same(store.SHA256.Sum([]byte("impure")), true), nil
	}
	inputs, deferred, err := h.inputs(d, way)
	if err != nil {
		return nil, err
	}
	return d.same(store.SHA256.Sum(d.unparse(inputs, mask)), deferred || kind == Floating), nil
}

// same gives all outputs one hash.
func (d *Derivation) same(hash store.Hash, deferred bool) *Modulo {
	m := &Modulo{Hash: make(map[string]store.Hash, len(d.Outputs)), Deferred: deferred}
	for name := range d.Outputs {
		m.Hash[name] = hash
	}
	return m
}

// inputs returns the hashes that stand for the inputs of d.
func (h *Hashes) inputs(d *Derivation, way *chain) (inputs []input, deferred bool, err error) {
	byHash := make(map[string][]string, len(d.InputDrvs))
	for path, outputs := range d.InputDrvs {
		m, err := h.input(path, way)
		if err != nil {
			return nil, false, err
		}
		deferred = deferred || m.Deferred
		for _, o := range outputs {
			hash, ok := m.Hash[o]
			if !ok {
				return nil, false, fmt.Errorf("derivation %s: input %s has no output %q", d.Name, path, o)
			}
			byHash[hash.Hex()] = append(byHash[hash.Hex()], o)
		}
	}
	for hex, outputs := range byHash {
		slices.Sort(outputs)
		inputs = append(inputs, input{path: hex, outputs: slices.Compact(outputs)})
	}
	return inputs, deferred, nil
}

// DrvOutput returns the identity of an output in realisations.
func (h *Hashes) DrvOutput(d *Derivation, output string) (store.DrvOutput, error) {
	m, err := h.Modulo(d, true)
	if err != nil {
		return store.DrvOutput{}, err
	}
	hash, ok := m.Hash[output]
	if !ok {
		return store.DrvOutput{}, fmt.Errorf("derivation %s has no output %q", d.Name, output)
	}
	return store.DrvOutput{Drv: hash, Output: output}, nil
}

// FillOutputs sets what follows from the rest of d: the paths of fixed outputs and of input-addressed or
// deferred ones, as far as they are known, and the variables named like outputs, which floating
// outputs get as placeholders.
func (h *Hashes) FillOutputs(d *Derivation, dir store.Dir) error {
	kind, err := d.Kind()
	if err != nil {
		return err
	}
	if d.Env == nil {
		d.Env = map[string]string{}
	}
	switch kind {
	case Fixed:
		return d.fillFixed(dir)
	case Floating, Impure:
		for name := range d.Outputs {
			d.Env[name] = Placeholder(name)
		}
		return nil
	}
	for name := range d.Outputs {
		d.set(name, store.Path{})
	}
	m, err := h.Modulo(d, true)
	if err != nil || m.Deferred {
		return err
	}
	return d.fillAddressed(dir, m)
}

func (d *Derivation) fillFixed(dir store.Dir) error {
	o := d.Outputs["out"]
	path, err := dir.ContentPath(d.Name, o.ContentAddress(), store.References{})
	if err != nil {
		return fmt.Errorf("derivation %s: %w", d.Name, err)
	}
	d.set("out", path)
	return nil
}

// fillAddressed sets the paths of input-addressed outputs.
func (d *Derivation) fillAddressed(dir store.Dir, m *Modulo) error {
	for name := range d.Outputs {
		path, err := dir.OutputPath(d.Name, name, m.Hash[name])
		if err != nil {
			return fmt.Errorf("derivation %s: output %q: %w", d.Name, name, err)
		}
		d.set(name, path)
	}
	return nil
}

// set gives an output a path, and the variable of its name the same.
func (d *Derivation) set(output string, path store.Path) {
	o := d.Outputs[output]
	o.Path = path
	d.Outputs[output] = o
	d.Env[output] = path.String()
}

// checkFixed checks that the path of a fixed output follows from its hash.
func (d *Derivation) checkFixed(dir store.Dir) error {
	o, ok := d.Outputs["out"]
	if !ok || o.Kind() != Fixed {
		return nil
	}
	want, err := dir.ContentPath(d.Name, o.ContentAddress(), store.References{})
	if err != nil {
		return err
	}
	if o.Path != want {
		return fmt.Errorf("output \"out\" is %s, its hash makes %s: %w", o.Path, want, ErrOutput)
	}
	return nil
}

// CheckOutputs checks that the paths that d claims for its outputs, and the variables named like them,
// are those that follow from d. A derivation of a client must pass before it is believed.
func (h *Hashes) CheckOutputs(d *Derivation, dir store.Dir) error {
	want := d.Clone()
	if err := h.FillOutputs(want, dir); err != nil {
		return err
	}
	for _, name := range d.OutputNames() {
		has, should := d.Outputs[name], want.Outputs[name]
		if has.Kind() == Deferred {
			continue // claims nothing
		}
		if has != should {
			return fmt.Errorf("derivation %s: output %q is %q, should be %q: %w", d.Name, name, has.Path, should.Path, ErrOutput)
		}
		if value, ok := d.Env[name]; ok && !has.Path.IsZero() && value != want.Env[name] {
			return fmt.Errorf("derivation %s: variable %q is %q, should be %q: %w", d.Name, name, value, want.Env[name], ErrOutput)
		}
	}
	return nil
}
