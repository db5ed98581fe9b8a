package derivation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"

	"cairn/store"
)

// jsonVersion is the form that JSON writes: that of nix 2.33 and later.
const jsonVersion = 4

// textV4 is the current JSON form: base names in the place of paths.
//
//	{"name", "version": 4, "outputs": {name: output}, "inputs": {"srcs": [base], "drvs": {base: {"outputs": [name]}}},
//	 "system", "builder", "args", "env", "structuredAttrs"}
//	output = {"path": base} | {"method", "hash": SRI} | {"method", "hashAlgo"} | {} | {"impure": true, "method", "hashAlgo"}
type textV4 struct {
	Name       string              `json:"name"`
	Version    int                 `json:"version"`
	Outputs    map[string]outputV4 `json:"outputs"`
	Inputs     inputsV4            `json:"inputs"`
	System     string              `json:"system"`
	Builder    string              `json:"builder"`
	Args       []string            `json:"args"`
	Env        map[string]string   `json:"env"`
	Structured json.RawMessage     `json:"structuredAttrs,omitempty"`
}

type inputsV4 struct {
	Srcs []string           `json:"srcs"`
	Drvs map[string]inputV4 `json:"drvs"`
}

type inputV4 struct {
	Outputs []string            `json:"outputs"`
	Dynamic map[string]struct{} `json:"dynamicOutputs"`
}

type outputV4 struct {
	Path     string `json:"path,omitempty"`
	Method   string `json:"method,omitempty"`
	HashAlgo string `json:"hashAlgo,omitempty"`
	Hash     string `json:"hash,omitempty"`
	Impure   bool   `json:"impure,omitempty"`
}

// textV1 is the form of nix 2.8: full paths, and methods as in the ATerm.
type textV1 struct {
	Outputs   map[string]outputV1     `json:"outputs"`
	InputSrcs []store.Path            `json:"inputSrcs"`
	InputDrvs map[store.Path][]string `json:"inputDrvs"`
	System    string                  `json:"system"`
	Builder   string                  `json:"builder"`
	Args      []string                `json:"args"`
	Env       map[string]string       `json:"env"`
}

type outputV1 struct {
	Path     string `json:"path,omitempty"`
	HashAlgo string `json:"hashAlgo,omitempty"`
	Hash     string `json:"hash,omitempty"`
}

// structuredName is the variable that holds structured attributes.
const structuredName = "__json"

var methodNames = map[store.Method]string{store.Flat: "flat", store.Recursive: "nar", store.Text: "text"}

// JSON returns the current JSON form. Strings that are not UTF-8 have none.
func (d *Derivation) JSON() ([]byte, error) {
	if err := d.checkUTF8(); err != nil {
		return nil, err
	}
	t := textV4{Name: d.Name, Version: jsonVersion, Outputs: map[string]outputV4{}, System: d.System, Builder: d.Builder, Args: list(d.Args)}
	for name, o := range d.Outputs {
		t.Outputs[name] = o.textV4()
	}
	t.Inputs = inputsV4{Srcs: []string{}, Drvs: map[string]inputV4{}}
	for _, p := range store.SortPaths(append([]store.Path(nil), d.InputSrcs...)) {
		t.Inputs.Srcs = append(t.Inputs.Srcs, p.Base())
	}
	for p, outputs := range d.InputDrvs {
		t.Inputs.Drvs[p.Base()] = inputV4{Outputs: sortedNames(outputs), Dynamic: map[string]struct{}{}}
	}
	t.Env, t.Structured = d.splitStructured()
	return encode(t)
}

// JSONv1 returns the form of nix 2.8, without the path of the derivation that stands around it there.
func (d *Derivation) JSONv1() ([]byte, error) {
	if err := d.checkUTF8(); err != nil {
		return nil, err
	}
	t := textV1{Outputs: map[string]outputV1{}, InputDrvs: map[store.Path][]string{}, System: d.System, Builder: d.Builder, Args: list(d.Args), Env: d.Env}
	t.InputSrcs = list(store.SortPaths(append([]store.Path(nil), d.InputSrcs...)))
	for name, o := range d.Outputs {
		path, methodAlgo, hash := o.Columns()
		t.Outputs[name] = outputV1{Path: path, HashAlgo: methodAlgo, Hash: hash}
	}
	for p, outputs := range d.InputDrvs {
		t.InputDrvs[p] = sortedNames(outputs)
	}
	if t.Env == nil {
		t.Env = map[string]string{}
	}
	return encode(t)
}

// list keeps an empty list from becoming null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (d *Derivation) checkUTF8() error {
	bad := ""
	check := func(where, s string) {
		if bad == "" && !utf8.ValidString(s) {
			bad = where
		}
	}
	check("system", d.System)
	check("builder", d.Builder)
	for _, arg := range d.Args {
		check("an argument", arg)
	}
	for key, value := range d.Env {
		check("the name of a variable", key)
		check("variable "+key, value)
	}
	if bad != "" {
		return fmt.Errorf("derivation %s has no JSON: %s is not UTF-8", d.Name, bad)
	}
	return nil
}

func (o Output) textV4() outputV4 {
	switch o.Kind() {
	case InputAddressed:
		return outputV4{Path: o.Path.Base()}
	case Fixed:
		return outputV4{Method: methodNames[o.Method], Hash: o.Hash.SRI()}
	case Floating, Impure:
		return outputV4{Method: methodNames[o.Method], HashAlgo: o.Algo.String(), Impure: o.Impure}
	}
	return outputV4{}
}

// splitStructured returns the environment without structured attributes, and these.
// Attributes that are not a compact JSON object stay where they are, so that they come back unchanged.
func (d *Derivation) splitStructured() (map[string]string, json.RawMessage) {
	env := map[string]string{}
	for key, value := range d.Env {
		env[key] = value
	}
	text, ok := env[structuredName]
	if !ok || len(text) == 0 || text[0] != '{' {
		return env, nil
	}
	compact, err := encode(json.RawMessage(text))
	if err != nil || string(compact) != text {
		return env, nil
	}
	delete(env, structuredName)
	return env, compact
}

// ParseJSON parses either form. The name is that of the derivation; the current form has its own,
// which must be equal unless name is empty.
func ParseJSON(name string, dir store.Dir, data []byte) (*Derivation, error) {
	var head struct {
		Version *int `json:"version"`
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("parse derivation %q: JSON is not UTF-8: %w", name, ErrFormat)
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("parse derivation %q: %w", name, err)
	}
	parse := parseV1
	if head.Version != nil {
		if *head.Version != jsonVersion {
			return nil, fmt.Errorf("parse derivation %q: JSON version %d, known are none and %d: %w", name, *head.Version, jsonVersion, ErrFormat)
		}
		parse = parseV4
	}
	d, err := parse(name, dir, data)
	if err != nil {
		return nil, fmt.Errorf("parse derivation %q: %w", name, err)
	}
	// What the ATerm refuses is refused here, too.
	canonical, err := Parse(d.Name, dir, d.ATerm())
	if err != nil {
		return nil, err
	}
	return canonical, nil
}

func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

func parseV1(name string, dir store.Dir, data []byte) (*Derivation, error) {
	var t textV1
	if err := decode(data, &t); err != nil {
		return nil, err
	}
	d := &Derivation{Name: name, Outputs: map[string]Output{}, InputDrvs: t.InputDrvs, InputSrcs: t.InputSrcs, System: t.System, Builder: t.Builder, Args: t.Args, Env: t.Env}
	for name, o := range t.Outputs {
		var err error
		if d.Outputs[name], err = ParseOutput(dir, o.Path, o.HashAlgo, o.Hash); err != nil {
			return nil, fmt.Errorf("output %q: %w", name, err)
		}
	}
	return d, nil
}

func parseV4(name string, dir store.Dir, data []byte) (*Derivation, error) {
	var t textV4
	if err := decode(data, &t); err != nil {
		return nil, err
	}
	if name != "" && t.Name != name {
		return nil, fmt.Errorf("text is of derivation %q: %w", t.Name, ErrFormat)
	}
	d := &Derivation{Name: t.Name, Outputs: map[string]Output{}, InputDrvs: map[store.Path][]string{}, System: t.System, Builder: t.Builder, Args: t.Args, Env: t.Env}
	for name, o := range t.Outputs {
		var err error
		if d.Outputs[name], err = o.output(t.Name, dir); err != nil {
			return nil, fmt.Errorf("output %q: %w", name, err)
		}
	}
	if err := t.Inputs.parse(d, dir); err != nil {
		return nil, err
	}
	return d, t.joinStructured(d)
}

func (in inputsV4) parse(d *Derivation, dir store.Dir) error {
	for _, base := range in.Srcs {
		p, err := dir.Path(base)
		if err != nil {
			return err
		}
		d.InputSrcs = append(d.InputSrcs, p)
	}
	for base, i := range in.Drvs {
		p, err := dir.Path(base)
		if err != nil {
			return err
		}
		if len(i.Dynamic) > 0 {
			return fmt.Errorf("input %s: dynamic derivations are not supported: %w", base, ErrFormat)
		}
		d.InputDrvs[p] = i.Outputs
	}
	return nil
}

func (t *textV4) joinStructured(d *Derivation) error {
	if len(t.Structured) == 0 || string(t.Structured) == "null" {
		return nil
	}
	if _, double := d.Env[structuredName]; double {
		return fmt.Errorf("both structuredAttrs and variable %s: %w", structuredName, ErrFormat)
	}
	if t.Structured[0] != '{' {
		return fmt.Errorf("structuredAttrs is not an object: %w", ErrFormat)
	}
	compact, err := encode(t.Structured)
	if err != nil {
		return err
	}
	if d.Env == nil {
		d.Env = map[string]string{}
	}
	d.Env[structuredName] = string(compact)
	return nil
}

// output returns the output of derivation name. The path of a fixed one is computed.
func (o outputV4) output(name string, dir store.Dir) (Output, error) {
	if o.Method == "" {
		if o.HashAlgo != "" || o.Hash != "" || o.Impure {
			return Output{}, fmt.Errorf("hash without a method: %w", ErrFormat)
		}
		if o.Path == "" {
			return Output{}, nil
		}
		p, err := dir.Path(o.Path)
		return Output{Path: p}, err
	}
	out := Output{Impure: o.Impure}
	for m, text := range methodNames {
		if text == o.Method {
			out.Method = m
		}
	}
	if out.Method == 0 {
		return Output{}, fmt.Errorf("unknown method %q; known are flat, nar, text: %w", o.Method, ErrFormat)
	}
	err := out.fix(o, name, dir)
	return out, err
}

// fix sets algorithm, hash and path from the text.
func (o *Output) fix(t outputV4, name string, dir store.Dir) (err error) {
	if t.Hash == "" {
		if t.Path != "" {
			return fmt.Errorf("path %q without a hash: %w", t.Path, ErrFormat)
		}
		o.Algo, err = store.ParseAlgorithm(t.HashAlgo)
		return err
	}
	if o.Impure {
		return fmt.Errorf("impure and hash: %w", ErrFormat)
	}
	if o.Hash, err = store.ParseHash(t.Hash, 0); err != nil {
		return err
	}
	if o.Algo = o.Hash.Algorithm(); t.HashAlgo != "" && t.HashAlgo != o.Algo.String() {
		return fmt.Errorf("hash %s is not %s: %w", t.Hash, t.HashAlgo, ErrFormat)
	}
	o.Path, err = dir.ContentPath(name, o.ContentAddress(), store.References{})
	return err
}

func sortedNames(outputs []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(outputs)))
}
