package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/store"
)

// Trace says which path an output of a derivation has, by the derivation's path, as Nix does since 2.35.
//
//	{"outPath": base name, "signatures": [{"keyName": …, "sig": base 64}]}
type Trace struct {
	Drv        store.Path
	Output     string
	OutPath    store.Path
	Signatures []string // "name:base64"
}

type traceText struct {
	OutPath    string           `json:"outPath"`
	Signatures []traceSignature `json:"signatures"`
}

// traceSignature is a signature; older writers have it as one text.
type traceSignature struct {
	KeyName string `json:"keyName"`
	Sig     string `json:"sig"`
}

// UnmarshalJSON takes both forms.
func (s *traceSignature) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		var ok bool
		if s.KeyName, s.Sig, ok = strings.Cut(text, ":"); !ok {
			return errors.New("signature has no ':'")
		}
		return nil
	}
	type plain traceSignature
	return json.Unmarshal(b, (*plain)(s))
}

// TraceName returns the name of the file in a cache that says where an output is.
func TraceName(drv store.Path, output string) string {
	return "build-trace-v2/" + drv.Base() + "/" + output + ".doi"
}

// RealisationName is the name of a realisation's file in a cache.
func RealisationName(id store.DrvOutput) string { return "realisations/" + id.String() + ".doi" }

// Fingerprint returns the text that a signature of the trace signs.
func (t *Trace) Fingerprint() string {
	type key struct {
		Drv    string `json:"drvPath"`
		Output string `json:"outputName"`
	}
	type value struct {
		OutPath string `json:"outPath"`
	}
	return mustJSON(struct {
		Key   key   `json:"key"`
		Value value `json:"value"`
	}{key{t.Drv.Base(), t.Output}, value{t.OutPath.Base()}})
}

// JSON returns the file's text.
func (t *Trace) JSON() string {
	text := traceText{OutPath: t.OutPath.Base(), Signatures: []traceSignature{}}
	for _, s := range slices.Sorted(slices.Values(t.Signatures)) {
		name, sig, _ := strings.Cut(s, ":")
		text.Signatures = append(text.Signatures, traceSignature{name, sig})
	}
	return mustJSON(text)
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return string(b)
}

// ParseTrace parses the file that says where an output of drv is.
func ParseTrace(drv store.Path, output string, data []byte) (*Trace, error) {
	var text traceText
	if err := json.Unmarshal(data, &text); err != nil {
		return nil, fmt.Errorf("parse trace of %s: %w: %w", drv, err, ErrFormat)
	}
	t := &Trace{Drv: drv, Output: output}
	var err error
	if t.OutPath, err = drv.Dir().Path(text.OutPath); err != nil {
		return nil, fmt.Errorf("parse trace of %s: %w: %w", drv, err, ErrFormat)
	}
	for _, s := range text.Signatures {
		if s.KeyName == "" || strings.Contains(s.KeyName, ":") {
			return nil, fmt.Errorf("parse trace of %s: signature by %q: %w", drv, clip(s.KeyName), ErrFormat)
		}
		t.Signatures = append(t.Signatures, s.KeyName+":"+s.Sig)
	}
	return t, nil
}
