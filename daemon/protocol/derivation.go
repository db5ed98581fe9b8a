package protocol

import (
	"fmt"

	"cairn/derivation"
)

// BasicDerivation writes a derivation whose inputs are all resolved:
//
//	n × (output, path, method and algorithm, hash base 16), set inputs, system, builder, list args, map env
//
// with the four columns of the ATerm form.
func (e *Encoder) BasicDerivation(drv *derivation.Derivation) {
	names := drv.OutputNames()
	e.Uint64(uint64(len(names)))
	for _, n := range names {
		path, method, hash := drv.Outputs[n].Columns()
		e.Text(n)
		e.Text(path)
		e.Text(method)
		e.Text(hash)
	}
	e.Paths(drv.InputSrcs)
	e.Text(drv.System)
	e.Text(drv.Builder)
	e.Texts(drv.Args)
	e.Map(drv.Env)
}

// BasicDerivation reads what BasicDerivation writes; the name comes from the derivation's path.
func (d *Decoder) BasicDerivation(name string) *derivation.Derivation {
	drv := &derivation.Derivation{Name: name, Outputs: map[string]derivation.Output{}}
	for range d.Count() {
		n := d.outputName()
		path, method, hash := d.Text(MaxPath), d.Text(MaxPath), d.Text(MaxPath)
		if d.broken != nil {
			return drv
		}
		o, err := derivation.ParseOutput(d.Dir, path, method, hash)
		if err != nil {
			d.reject(fmt.Errorf("output %s: %w", clip(n), err))
		}
		drv.Outputs[n] = o
	}
	drv.InputSrcs = d.Paths()
	drv.System = d.Text(MaxPath)
	drv.Builder = d.Text(MaxText)
	drv.Args = d.Texts(MaxValue)
	drv.Env = d.Map(MaxText, MaxValue)
	return drv
}
