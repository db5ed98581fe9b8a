package protocol

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/derivation"
	"cairn/store"
)

// impureColumn stands in the hash column of an impure output.
const impureColumn = "impure"

// BasicDerivation writes a derivation whose inputs are all resolved:
//
//	n × (output, path, method and algorithm, hash base 16), set inputs, system, builder, list args, map env
func (e *Encoder) BasicDerivation(drv *derivation.Derivation) {
	names := slices.Sorted(maps.Keys(drv.Outputs))
	e.Uint64(uint64(len(names)))
	for _, n := range names {
		o := drv.Outputs[n]
		e.Text(n)
		e.Path(o.Path)
		method, hash := "", ""
		if o.Method != 0 {
			method = strings.TrimPrefix(MethodText(o.Method, o.Algo), "fixed:")
		}
		switch {
		case o.Impure:
			hash = impureColumn
		case !o.Hash.IsZero():
			hash = o.Hash.Hex()
		}
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
		o := d.output()
		if d.broken != nil {
			return drv
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

func (d *Decoder) output() derivation.Output {
	o := derivation.Output{Path: d.OptionalPath()}
	method, hash := d.Text(MaxPath), d.Text(MaxPath)
	if d.broken != nil || method == "" && hash == "" {
		return o
	}
	if !strings.HasPrefix(method, "text:") {
		method = "fixed:" + method
	}
	var err error
	if o.Method, o.Algo, err = store.ParseContentAddressMethod(method); err != nil {
		d.reject(fmt.Errorf("output: %w", err))
		return o
	}
	switch hash {
	case "":
	case impureColumn:
		o.Impure = true
	default:
		b, err := hex.DecodeString(hash)
		if err != nil || len(b) != o.Algo.Size() {
			d.reject(fmt.Errorf("output: hash %q is no %s in base 16", clip(hash), o.Algo))
			return o
		}
		o.Hash = store.NewHash(o.Algo, b)
	}
	return o
}
