package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"

	"cairn/store"
)

// jsonRealisation is a realisation as versions before FeatureRealisations exchange it.
// Field order is the order of the keys, which signatures depend on.
type jsonRealisation struct {
	Dependents map[string]string `json:"dependentRealisations"`
	ID         string            `json:"id"`
	OutPath    string            `json:"outPath"`
	Signatures []string          `json:"signatures"`
}

// RealisationJSON returns
//
//	{"dependentRealisations":{id:base},"id":"sha256:<hex>!<output>","outPath":base,"signatures":[…]}
func RealisationJSON(r store.Realisation) []byte {
	j := jsonRealisation{Dependents: map[string]string{}, ID: r.ID.String(), OutPath: r.OutPath.Base(), Signatures: []string{}}
	if r.ID.Drv.IsZero() {
		j.ID = anonymous(r.ID.Output)
	}
	for id, p := range r.Dependents {
		j.Dependents[id.String()] = p.Base()
	}
	j.Signatures = append(j.Signatures, r.Signatures...)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(j); err != nil {
		panic("BUG: encode realisation: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// anonymous is the id of an output whose derivation's hash is not known.
func anonymous(output string) string {
	return store.DrvOutput{Drv: store.NewHash(store.SHA256, make([]byte, 32)), Output: output}.String()
}

// ParseRealisationJSON parses what RealisationJSON writes.
// Signatures may also be objects {keyName, sig}.
func ParseRealisationJSON(dir store.Dir, b []byte) (store.Realisation, error) {
	var j struct {
		Dependents map[string]string `json:"dependentRealisations"`
		ID         string            `json:"id"`
		OutPath    string            `json:"outPath"`
		Signatures []json.RawMessage `json:"signatures"`
	}
	if err := json.Unmarshal(b, &j); err != nil {
		return store.Realisation{}, fmt.Errorf("realisation: %w", err)
	}
	id, err := store.ParseDrvOutput(j.ID)
	if err != nil {
		return store.Realisation{}, fmt.Errorf("realisation: %w", err)
	}
	r := store.Realisation{ID: id}
	if r.OutPath, err = dir.Path(j.OutPath); err != nil {
		return store.Realisation{}, fmt.Errorf("realisation %s: %w", id, err)
	}
	for _, raw := range j.Signatures {
		sig, err := parseSignature(raw)
		if err != nil {
			return store.Realisation{}, fmt.Errorf("realisation %s: %w", id, err)
		}
		r.Signatures = append(r.Signatures, sig)
	}
	for k, v := range j.Dependents {
		id, err := store.ParseDrvOutput(k)
		if err != nil {
			return store.Realisation{}, fmt.Errorf("realisation %s: dependent: %w", r.ID, err)
		}
		p, err := dir.Path(v)
		if err != nil {
			return store.Realisation{}, fmt.Errorf("realisation %s: dependent: %w", r.ID, err)
		}
		if r.Dependents == nil {
			r.Dependents = map[store.DrvOutput]store.Path{}
		}
		r.Dependents[id] = p
	}
	return r, nil
}

func parseSignature(raw json.RawMessage) (string, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var object struct{ KeyName, Sig string }
	if err := json.Unmarshal(raw, &object); err != nil {
		return "", fmt.Errorf("signature: %w", err)
	}
	return object.KeyName + ":" + object.Sig, nil
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

// Realisation writes a realisation as JSON.
func (e *Encoder) Realisation(r store.Realisation) { e.Text(string(RealisationJSON(r))) }

// Realisation reads a realisation as JSON.
func (d *Decoder) Realisation() store.Realisation {
	return parsed(d, d.Text(MaxText), func(s string) (store.Realisation, error) {
		return ParseRealisationJSON(d.Dir, []byte(s))
	})
}

// DrvOutput writes an output's id by hash.
func (e *Encoder) DrvOutput(o store.DrvOutput) { e.Text(o.String()) }

// DrvOutput reads an output's id by hash.
func (d *Decoder) DrvOutput() store.DrvOutput {
	return parsed(d, d.Text(MaxPath), store.ParseDrvOutput)
}
