// Package derivation is the recipe of store objects: its value, its two texts (ATerm, the ".drv" file, and JSON),
// and the arithmetic that gives its outputs their paths.
//
//	Derive([outputs],[inputDrvs],[inputSrcs],"system","builder",[args],[env])
//	output   = ("name","path","methodAlgo","hash")        sorted by name
//	inputDrv = ("/store/x.drv",["out",…])                 sorted by path, outputs sorted
//	env      = ("key","value")                            sorted by key
//
// Builder, arguments and environment are escaped (\" \\ \n \r \t), everything else is written raw.
// Parse accepts exactly what ATerm writes: a text that does not come out again byte for byte is refused.
// The name stands not in the text but in the path of the ".drv" file.
//
// The last three columns of an output say its kind:
//
//	path  ""        ""      input-addressed: the path is computed from the derivation
//	path  r:sha256  hex     fixed: the hash is known before the build
//	""    r:sha256  ""      floating: addressed by content that is known after the build
//	""    ""        ""      deferred: input-addressed, but an input is floating, so that the path
//	                        is known only when the derivation has been resolved
//	""    r:sha256  impure  impure
//
// All outputs of a derivation are of one kind; a fixed one has the single output "out".
//
// Hash modulo (hashes.go) is the derivation's identity with the ways to fixed outputs taken out.
// Resolving (resolve.go) replaces inputs that are derivations by the paths of their outputs.
//
// Not here: dynamic derivations ("DrvWithVersion") are refused by name; the environment's meaning for
// builders (structured attributes, passAsFile and so on) is the builder's business.
package derivation

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"cairn/store"
	"cairn/store/base32"
)

// Errors that callers test for with errors.Is.
var (
	// ErrFormat says that a text is no canonical derivation.
	ErrFormat = errors.New("not a canonical derivation")
	// ErrUnresolved says that an input has no known path yet.
	ErrUnresolved = errors.New("input is not realised")
	// ErrOutput says that a derivation claims something about an output that does not follow from it.
	ErrOutput = errors.New("claimed output is wrong")
)

// Derivation is a recipe. The zero value of every field is "none"; a nil map is an empty one.
type Derivation struct {
	Name      string // without ".drv"
	Outputs   map[string]Output
	InputDrvs map[store.Path][]string // the outputs wanted of each
	InputSrcs []store.Path
	System    string
	Builder   string
	Args      []string
	Env       map[string]string
}

// Output is what a derivation says of one output.
type Output struct {
	Path   store.Path
	Method store.Method    // zero unless addressed by content
	Algo   store.Algorithm // likewise
	Hash   store.Hash      // of a fixed output
	Impure bool
}

// Kind is what decides an output's path.
type Kind uint8

// The kinds.
const (
	InputAddressed Kind = iota + 1
	Fixed
	Floating
	Deferred
	Impure
)

func (k Kind) String() string {
	names := [...]string{InputAddressed: "input-addressed", Fixed: "fixed", Floating: "floating", Deferred: "deferred", Impure: "impure"}
	if int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Kind returns the output's kind.
func (o Output) Kind() Kind {
	switch {
	case o.Impure:
		return Impure
	case !o.Hash.IsZero():
		return Fixed
	case o.Method != 0:
		return Floating
	case o.Path.IsZero():
		return Deferred
	}
	return InputAddressed
}

// ContentAddress returns the address of a fixed output, or the zero value.
func (o Output) ContentAddress() store.ContentAddress {
	if o.Hash.IsZero() {
		return store.ContentAddress{}
	}
	return store.ContentAddress{Method: o.Method, Hash: o.Hash}
}

// methodAlgo returns the third column: "r:sha256".
func (o Output) methodAlgo() string { return o.Method.Prefix() + o.Algo.String() }

// Kind returns the kind of all outputs, or an error when there is none or they differ.
func (d *Derivation) Kind() (Kind, error) {
	var kind Kind
	for _, name := range d.OutputNames() {
		k := d.Outputs[name].Kind()
		if kind != 0 && k != kind {
			return 0, fmt.Errorf("derivation %s: output %q is %s, others are %s: %w", d.Name, name, k, kind, ErrFormat)
		}
		kind = k
	}
	switch {
	case kind == 0:
		return 0, fmt.Errorf("derivation %s has no output: %w", d.Name, ErrFormat)
	case kind == Fixed && (len(d.Outputs) != 1 || d.Outputs["out"].Kind() != Fixed):
		return 0, fmt.Errorf("derivation %s: a fixed output must be the only one and be called \"out\": %w", d.Name, ErrFormat)
	}
	return kind, nil
}

// OutputNames returns the names of the outputs, sorted.
func (d *Derivation) OutputNames() []string { return slices.Sorted(maps.Keys(d.Outputs)) }

// References returns what the ".drv" file refers to: sources and input derivations, sorted.
func (d *Derivation) References() []store.Path {
	refs := slices.Concat(d.InputSrcs, slices.Collect(maps.Keys(d.InputDrvs)))
	return store.SortPaths(refs)
}

// Path returns the path of the ".drv" file.
func (d *Derivation) Path(dir store.Dir) (store.Path, error) {
	p, err := dir.TextPath(d.Name+".drv", store.SHA256.Sum(d.ATerm()), d.References())
	if err != nil {
		return store.Path{}, fmt.Errorf("derivation %q: %w", d.Name, err)
	}
	return p, nil
}

// OutputName returns the object name of an output.
func (d *Derivation) OutputName(output string) string { return store.OutputName(d.Name, output) }

// Clone returns a copy that shares nothing that can be changed.
func (d *Derivation) Clone() *Derivation {
	c := *d
	c.Outputs = maps.Clone(d.Outputs)
	c.InputDrvs = maps.Clone(d.InputDrvs)
	for p, outputs := range c.InputDrvs {
		c.InputDrvs[p] = slices.Clone(outputs)
	}
	c.InputSrcs = slices.Clone(d.InputSrcs)
	c.Args = slices.Clone(d.Args)
	c.Env = maps.Clone(d.Env)
	return &c
}

// Placeholder returns what stands for the path of a derivation's own output while it is not known.
func Placeholder(output string) string { return placeholder("nix-output:" + output) }

// UpstreamPlaceholder returns what stands for the path of an output of another derivation.
func UpstreamPlaceholder(drv store.Path, output string) string {
	return placeholder("nix-upstream-output:" + drv.Digest() + ":" + store.OutputName(nameOf(drv), output))
}

func placeholder(text string) string {
	return "/" + base32.Encode(store.SHA256.Sum([]byte(text)).Bytes())
}

// nameOf returns the name of the derivation at a path.
func nameOf(drv store.Path) string {
	name := drv.Name()
	if drv.IsDerivation() {
		name = name[:len(name)-len(".drv")]
	}
	return name
}

// ParseAt parses the text of the ".drv" file at path.
func ParseAt(path store.Path, data []byte) (*Derivation, error) {
	if !path.IsDerivation() {
		return nil, fmt.Errorf("path %s is no derivation", path)
	}
	return Parse(nameOf(path), path.Dir(), data)
}
