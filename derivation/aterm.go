package derivation

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/store"
)

// input is an input derivation, or in a hash modulo its hash, and the outputs wanted of it.
type input struct {
	path    string
	outputs []string
}

// ATerm returns the text of the ".drv" file.
func (d *Derivation) ATerm() []byte {
	inputs := make([]input, 0, len(d.InputDrvs))
	for p, outputs := range d.InputDrvs {
		inputs = append(inputs, input{path: p.String(), outputs: outputs})
	}
	return d.unparse(inputs, false)
}

// unparse writes the text with inputs in the place of the input derivations.
// With mask it blanks the paths of outputs, and the variables named like outputs.
func (d *Derivation) unparse(inputs []input, mask bool) []byte {
	b := append(make([]byte, 0, d.sizeHint()), "Derive(["...)
	for i, name := range d.OutputNames() {
		b = d.Outputs[name].append(comma(b, i), name, mask)
	}
	b = append(b, "],["...)
	slices.SortFunc(inputs, func(a, b input) int { return strings.Compare(a.path, b.path) })
	for i, in := range inputs {
		b = in.append(comma(b, i))
	}
	b = append(b, "],["...)
	for i, p := range store.SortPaths(slices.Clone(d.InputSrcs)) {
		b = quote(comma(b, i), p.String())
	}
	b = quote(append(b, "],"...), d.System)
	b = escape(append(b, ','), d.Builder)
	b = append(b, ",["...)
	for i, arg := range d.Args {
		b = escape(comma(b, i), arg)
	}
	b = append(b, "],["...)
	for i, key := range slices.Sorted(maps.Keys(d.Env)) {
		value := d.Env[key]
		if _, isOutput := d.Outputs[key]; isOutput && mask {
			value = ""
		}
		b = escape(append(comma(b, i), '('), key)
		b = escape(append(b, ','), value)
		b = append(b, ')')
	}
	return append(b, "])"...)
}

// sizeHint is about the length of the text.
func (d *Derivation) sizeHint() int {
	n := 256 + 120*(len(d.InputDrvs)+len(d.InputSrcs)+len(d.Outputs)) + len(d.Builder)
	for _, arg := range d.Args {
		n += len(arg) + 16
	}
	for key, value := range d.Env {
		n += len(key) + len(value) + len(value)/16 + 16
	}
	return n
}

func (o Output) append(b []byte, name string, mask bool) []byte {
	path, hash := o.Path.String(), ""
	if mask {
		path = ""
	}
	switch o.Kind() {
	case Fixed:
		hash = o.Hash.Hex()
	case Impure:
		hash = "impure"
	}
	b = quote(append(b, '('), name)
	b = quote(append(b, ','), path)
	b = quote(append(b, ','), o.methodAlgo())
	b = quote(append(b, ','), hash)
	return append(b, ')')
}

func (in input) append(b []byte) []byte {
	b = quote(append(b, '('), in.path)
	b = append(b, ",["...)
	outputs := slices.Sorted(slices.Values(in.outputs))
	for i, o := range slices.Compact(outputs) {
		b = quote(comma(b, i), o)
	}
	return append(b, "])"...)
}

func comma(b []byte, i int) []byte {
	if i == 0 {
		return b
	}
	return append(b, ',')
}

func quote(b []byte, s string) []byte {
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func escape(b []byte, s string) []byte {
	b = append(b, '"')
	for {
		i := strings.IndexAny(s, "\"\\\n\r\t")
		if i < 0 {
			break
		}
		b = append(b, s[:i]...)
		b = append(b, '\\')
		switch s[i] {
		case '\n':
			b = append(b, 'n')
		case '\r':
			b = append(b, 'r')
		case '\t':
			b = append(b, 't')
		default:
			b = append(b, s[i])
		}
		s = s[i+1:]
	}
	b = append(b, s...)
	return append(b, '"')
}

// Parse parses the text of a ".drv" file of a derivation called name. It accepts canonical texts only.
func Parse(name string, dir store.Dir, data []byte) (*Derivation, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(data, []byte("DrvWithVersion(")) {
		return nil, fmt.Errorf("parse derivation %s: dynamic derivations are not supported: %w", name, ErrFormat)
	}
	p := &parser{text: string(data), dir: dir}
	d := p.derivation()
	if p.err != nil {
		return nil, fmt.Errorf("parse derivation %s: byte %d: %w", name, p.at, p.err)
	}
	d.Name = name
	if _, err := d.Kind(); err != nil {
		return nil, fmt.Errorf("parse derivation: %w", err)
	}
	if err := d.checkFixed(dir); err != nil {
		return nil, fmt.Errorf("parse derivation %s: %w", name, err)
	}
	if at := difference(d.ATerm(), data); at >= 0 {
		return nil, fmt.Errorf("parse derivation %s: byte %d is not how it is written: %w", name, at, ErrFormat)
	}
	return d, nil
}

// checkName checks the name of a derivation, which has no file of an empty name.
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("parse derivation: name is empty: %w", ErrFormat)
	}
	if err := store.CheckName(name + ".drv"); err != nil {
		return fmt.Errorf("parse derivation %q: %w", name, err)
	}
	return nil
}

// difference returns the first place where two texts differ, or -1.
func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// parser reads an ATerm. After the first error it reads nothing more.
type parser struct {
	text string
	at   int
	dir  store.Dir
	err  error
}

func (p *parser) derivation() *Derivation {
	d := &Derivation{Outputs: map[string]Output{}, InputDrvs: map[store.Path][]string{}, Env: map[string]string{}}
	p.token("Derive(")
	p.list(func() { p.output(d.Outputs) })
	p.token(",")
	p.list(func() { p.input(d.InputDrvs) })
	p.token(",")
	p.list(func() { d.InputSrcs = append(d.InputSrcs, p.path()) })
	p.token(",")
	d.System = p.string()
	p.token(",")
	d.Builder = p.string()
	p.token(",")
	p.list(func() { d.Args = append(d.Args, p.string()) })
	p.token(",")
	p.list(func() {
		p.token("(")
		key := p.string()
		p.token(",")
		d.Env[key] = p.string()
		p.token(")")
	})
	p.token(")")
	if p.at < len(p.text) {
		p.fail("text goes on after its end: %w", ErrFormat)
	}
	return d
}

func (p *parser) output(outputs map[string]Output) {
	p.token("(")
	name := p.string()
	p.token(",")
	path := p.string()
	p.token(",")
	methodAlgo := p.string()
	p.token(",")
	hash := p.string()
	p.token(")")
	if p.err != nil {
		return
	}
	if err := store.CheckName(name); err != nil {
		p.fail("output: %w", err)
		return
	}
	o, err := ParseOutput(p.dir, path, methodAlgo, hash)
	if err != nil {
		p.fail("output %q: %w", name, err)
		return
	}
	outputs[name] = o
}

// ParseOutput parses the last three columns of an output, as the worker protocol has them, too.
func ParseOutput(dir store.Dir, path, methodAlgo, hash string) (Output, error) {
	var o Output
	var err error
	if path != "" {
		if o.Path, err = dir.ParsePath(path); err != nil {
			return Output{}, err
		}
	}
	if methodAlgo == "" {
		if hash != "" {
			return Output{}, fmt.Errorf("hash %q without an algorithm: %w", hash, ErrFormat)
		}
		return o, nil
	}
	if o.Method, o.Algo, err = parseMethodAlgo(methodAlgo); err != nil {
		return Output{}, err
	}
	switch {
	case hash == "impure":
		o.Impure = true
	case hash != "":
		if o.Hash, err = store.ParseHash(hash, o.Algo); err != nil {
			return Output{}, err
		}
	}
	if (path == "") != o.Hash.IsZero() {
		return Output{}, fmt.Errorf("path %q and hash %q do not go together: %w", path, hash, ErrFormat)
	}
	return o, nil
}

// Columns returns the last three columns of the output: path, method with algorithm, hash.
func (o Output) Columns() (path, methodAlgo, hash string) {
	switch o.Kind() {
	case Fixed:
		hash = o.Hash.Hex()
	case Impure:
		hash = "impure"
	}
	return o.Path.String(), o.methodAlgo(), hash
}

func parseMethodAlgo(s string) (store.Method, store.Algorithm, error) {
	if strings.HasPrefix(s, "git:") {
		return 0, 0, store.ErrGit
	}
	method := store.Flat
	for _, m := range []store.Method{store.Text, store.Recursive} {
		if rest, ok := strings.CutPrefix(s, m.Prefix()); ok {
			method, s = m, rest
			break
		}
	}
	algo, err := store.ParseAlgorithm(s)
	if err == nil && method == store.Text && algo != store.SHA256 {
		err = fmt.Errorf("text is always sha256: %w", ErrFormat)
	}
	return method, algo, err
}

func (p *parser) input(inputs map[store.Path][]string) {
	p.token("(")
	path := p.path()
	p.token(",")
	var outputs []string
	p.list(func() { outputs = append(outputs, p.string()) })
	p.token(")")
	if p.err == nil && !path.IsDerivation() {
		p.fail("input %s is no derivation: %w", path, ErrFormat)
	}
	if p.err == nil && len(outputs) == 0 {
		p.fail("no output of input %s is wanted: %w", path, ErrFormat)
	}
	for _, o := range outputs {
		if err := store.CheckName(o); err != nil {
			p.fail("input %s: output: %w", path, err)
		}
	}
	inputs[path] = outputs
}

func (p *parser) path() store.Path {
	s := p.string()
	if p.err != nil {
		return store.Path{}
	}
	path, err := p.dir.ParsePath(s)
	if err != nil {
		p.fail("%w", err)
	}
	return path
}

// list reads "[" items "]", calling item at the start of each.
func (p *parser) list(item func()) {
	p.token("[")
	if p.peek("]") {
		p.at++
		return
	}
	for p.err == nil {
		item()
		if p.peek("]") {
			p.at++
			return
		}
		p.token(",")
	}
}

func (p *parser) peek(token string) bool {
	return p.err == nil && strings.HasPrefix(p.text[p.at:], token)
}

func (p *parser) token(token string) {
	if p.err != nil {
		return
	}
	if !p.peek(token) {
		p.fail("want %q: %w", token, ErrFormat)
		return
	}
	p.at += len(token)
}

func (p *parser) string() string {
	p.token(`"`)
	if p.err != nil {
		return ""
	}
	rest := p.text[p.at:]
	end := strings.IndexAny(rest, `"\`)
	if end >= 0 && rest[end] == '"' {
		p.at += end + 1
		return rest[:end]
	}
	return p.escaped(rest)
}

// escaped reads a string that contains a backslash.
func (p *parser) escaped(rest string) string {
	var b strings.Builder
	for {
		i := strings.IndexAny(rest, `"\`)
		if i < 0 || rest[i] == '\\' && i+1 == len(rest) {
			p.fail("string does not end: %w", ErrFormat)
			return ""
		}
		b.WriteString(rest[:i])
		if rest[i] == '"' {
			p.at = len(p.text) - len(rest) + i + 1
			return b.String()
		}
		b.WriteByte(unescape(rest[i+1]))
		rest = rest[i+2:]
	}
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}
