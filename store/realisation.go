package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// DrvOutput identifies an output by the hash modulo of its derivation.
//
//	sha256:<hex>!<output>
type DrvOutput struct {
	Drv    Hash
	Output string
}

// ParseDrvOutput parses the text form.
func ParseDrvOutput(s string) (DrvOutput, error) {
	hash, output, ok := strings.Cut(s, "!")
	if !ok {
		return DrvOutput{}, fmt.Errorf("derivation output %q has no '!'", clip(s))
	}
	h, err := ParseHash(hash, SHA256)
	if err != nil {
		return DrvOutput{}, fmt.Errorf("derivation output %q: %w", clip(s), err)
	}
	if err := CheckName(output); err != nil {
		return DrvOutput{}, fmt.Errorf("derivation output %q: %w", clip(s), err)
	}
	return DrvOutput{Drv: h, Output: output}, nil
}

func (o DrvOutput) String() string {
	return o.Drv.Algorithm().String() + ":" + o.Drv.Hex() + "!" + o.Output
}

// MarshalText gives the text form.
func (o DrvOutput) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText parses the text form.
func (o *DrvOutput) UnmarshalText(b []byte) error {
	p, err := ParseDrvOutput(string(b))
	if err == nil {
		*o = p
	}
	return err
}

// Realisation says that an output of a derivation is a store path.
type Realisation struct {
	ID         DrvOutput
	OutPath    Path
	Signatures []string
	Dependents map[DrvOutput]Path // Nix's dependentRealisations
}

// realisationText is Nix's JSON of a realisation: keys sorted, paths as base names, no spaces.
// It is the ".doi" file of a binary cache and what the worker protocol carries.
type realisationText struct {
	Dependents map[string]string `json:"dependentRealisations"`
	ID         string            `json:"id"`
	OutPath    string            `json:"outPath"`
	Signatures *[]string         `json:"signatures,omitempty"`
}

func (r *Realisation) text() realisationText {
	t := realisationText{Dependents: map[string]string{}, ID: r.ID.String(), OutPath: r.OutPath.Base()}
	for id, path := range r.Dependents {
		t.Dependents[id.String()] = path.Base()
	}
	return t
}

// Fingerprint returns the text that a signature of the realisation signs: its JSON without signatures.
func (r *Realisation) Fingerprint() string { return encode(r.text()) }

// JSON returns Nix's text of the realisation.
func (r *Realisation) JSON() string {
	t := r.text()
	signatures := slices.Sorted(slices.Values(r.Signatures))
	if signatures == nil {
		signatures = []string{}
	}
	t.Signatures = &signatures
	return encode(t)
}

func encode(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("BUG: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// MarshalJSON gives Nix's text.
func (r *Realisation) MarshalJSON() ([]byte, error) { return []byte(r.JSON()), nil }

// ParseRealisation parses Nix's text of a realisation in the store d. Keys it does not know are ignored.
func (d Dir) ParseRealisation(data []byte) (*Realisation, error) {
	var t realisationText
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, fmt.Errorf("parse realisation: %w", err)
	}
	id, err := ParseDrvOutput(t.ID)
	if err != nil {
		return nil, fmt.Errorf("parse realisation: %w", err)
	}
	r := &Realisation{ID: id}
	if r.OutPath, err = d.Path(t.OutPath); err != nil {
		return nil, fmt.Errorf("parse realisation %s: %w", id, err)
	}
	if r.Dependents, err = d.parseDependents(t.Dependents); err != nil {
		return nil, fmt.Errorf("parse realisation %s: %w", id, err)
	}
	if t.Signatures != nil && len(*t.Signatures) > 0 {
		r.Signatures = *t.Signatures
	}
	return r, nil
}

func (d Dir) parseDependents(texts map[string]string) (map[DrvOutput]Path, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	dependents := make(map[DrvOutput]Path, len(texts))
	for _, text := range slices.Sorted(maps.Keys(texts)) {
		id, err := ParseDrvOutput(text)
		if err != nil {
			return nil, err
		}
		if dependents[id], err = d.Path(texts[text]); err != nil {
			return nil, err
		}
	}
	return dependents, nil
}
