package protocol

import (
	"fmt"
	"maps"
	"slices"

	"cairn/store"
)

// known returns r with an id that has a text: that of an output whose derivation's hash is not
// known, because the realisation came by path, has a hash of zeros.
func known(r store.Realisation, output string) store.Realisation {
	if r.ID.Drv.IsZero() {
		r.ID = store.DrvOutput{Drv: store.NewHash(store.SHA256, make([]byte, 32)), Output: output}
	}
	return r
}

// Realisation writes a realisation as JSON, with its id.
func (e *Encoder) Realisation(r store.Realisation) {
	r = known(r, r.ID.Output)
	e.Text(r.JSON())
}

// Realisation reads what Realisation writes.
func (d *Decoder) Realisation() store.Realisation {
	return parsed(d, d.Text(MaxText), func(s string) (store.Realisation, error) {
		r, err := d.Dir.ParseRealisation([]byte(s))
		if err != nil {
			return store.Realisation{}, err
		}
		return *r, nil
	})
}

// DrvOutput writes an output's id by hash.
func (e *Encoder) DrvOutput(o store.DrvOutput) { e.Text(o.String()) }

// DrvOutput reads an output's id by hash.
func (d *Decoder) DrvOutput() store.DrvOutput {
	return parsed(d, d.Text(MaxPath), store.ParseDrvOutput)
}

// PathOutput identifies an output by its derivation's path, as FeatureRealisations does.
type PathOutput struct {
	Drv    store.Path
	Output string
}

// PathOutput writes a path and an output.
func (e *Encoder) PathOutput(o PathOutput) {
	e.Path(o.Drv)
	e.Text(o.Output)
}

// PathOutput reads what PathOutput writes.
func (d *Decoder) PathOutput() PathOutput {
	o := PathOutput{Drv: d.Path(), Output: d.outputName()}
	if d.Err() == nil && !o.Drv.IsDerivation() {
		d.reject(fmt.Errorf("path %s is no derivation", o.Drv))
	}
	return o
}

func (d *Decoder) outputName() string {
	return parsed(d, d.Text(MaxPath), func(s string) (string, error) {
		if err := store.CheckName(s); err != nil {
			return "", fmt.Errorf("output: %w", err)
		}
		return s, nil
	})
}

// Unkeyed writes a realisation without what it is of, as FeatureRealisations does.
func (e *Encoder) Unkeyed(r store.Realisation) {
	e.Path(r.OutPath)
	e.TextSet(r.Signatures)
}

// Unkeyed reads what Unkeyed writes.
func (d *Decoder) Unkeyed() store.Realisation {
	return store.Realisation{OutPath: d.Path(), Signatures: d.Texts(MaxPath)}
}

// outputsByName writes the outputs of a build as clients since 2.35 know them: name → unkeyed realisation.
func (e *Encoder) outputsByName(outputs map[string]store.Realisation) {
	e.Uint64(uint64(len(outputs)))
	for _, n := range slices.Sorted(maps.Keys(outputs)) {
		e.Text(n)
		e.Unkeyed(outputs[n])
	}
}

// outputsByID writes them as clients before that do: id → JSON.
func (e *Encoder) outputsByID(outputs map[string]store.Realisation) {
	m := map[string]string{}
	for _, n := range slices.Sorted(maps.Keys(outputs)) {
		o := known(outputs[n], n)
		m[o.ID.String()] = o.JSON()
	}
	e.Map(m)
}

// outputs reads what outputsByName or outputsByID writes, by name.
func (d *Decoder) outputs(byName bool) map[string]store.Realisation {
	outputs := map[string]store.Realisation{}
	for range d.Count() {
		var o store.Realisation
		if byName {
			name := d.outputName()
			o = d.Unkeyed()
			o.ID.Output = name
		} else {
			id := d.DrvOutput()
			if o = d.Realisation(); d.Err() == nil && o.ID != id {
				d.reject(fmt.Errorf("realisation of %s stands under %s", o.ID, id))
			}
		}
		if d.broken != nil {
			break
		}
		outputs[o.ID.Output] = o
	}
	return outputs
}
