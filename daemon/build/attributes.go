package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"cairn/store"
)

// attributes are a derivation's structured attributes: the value of "__json". Nil when it has none.
type attributes map[string]any

// structured parses the attributes. Placeholders of outputs have been replaced in their text.
func (a *attempt) structured() (attributes, error) {
	text, ok := a.drv.Env["__json"]
	if !ok {
		return nil, nil
	}
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	attrs := attributes{}
	if err := dec.Decode(&attrs); err != nil {
		return nil, fmt.Errorf("derivation '%s': structured attributes: %w", a.key.drv, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("derivation '%s': structured attributes: something follows the value", a.key.drv)
	}
	return attrs, nil
}

// words returns a list of strings: an attribute, or, without structured attributes, the words of a variable.
func (t attributes) words(env map[string]string, name string) []string {
	if t == nil {
		return strings.Fields(env[name])
	}
	return stringsOf(t[name])
}

func stringsOf(v any) []string {
	var list []string
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok {
				list = append(list, s)
			}
		}
	}
	return list
}

// attributeFiles adds .attrs.json and .attrs.sh: the attributes with the outputs' paths in "outputs"
// and the closures that exportReferencesGraph names.
func (a *attempt) attributeFiles(attrs attributes, files map[string][]byte) error {
	all := maps.Clone(attrs)
	outputs := map[string]any{}
	for _, o := range a.outputs {
		outputs[o.name] = o.path.String()
	}
	all["outputs"] = outputs
	graphs, _ := attrs["exportReferencesGraph"].(map[string]any)
	for name, v := range graphs {
		infos, err := a.graph(stringsOf(v))
		if err != nil {
			return err
		}
		all[name] = graphValue(infos)
	}
	files[".attrs.json"] = jsonOf(all)
	files[".attrs.sh"] = shellText(all)
	return nil
}

// graphValue is the structured form of a graph.
func graphValue(infos []*store.Info) []any {
	size := map[store.Path]*store.Info{}
	for _, i := range infos {
		size[i.Path] = i
	}
	list := []any{}
	for _, i := range infos {
		refs := []any{}
		for _, r := range store.SortPaths(slices.Clone(i.References)) {
			refs = append(refs, r.String())
		}
		v := map[string]any{
			"closureSize": json.Number(fmt.Sprint(closureSize(size, i.Path, map[store.Path]bool{}))),
			"narHash":     i.NarHash.String(),
			"narSize":     json.Number(fmt.Sprint(i.NarSize)),
			"path":        i.Path.String(),
			"references":  refs,
		}
		if !i.CA.IsZero() {
			v["ca"] = i.CA.String()
		}
		list = append(list, v)
	}
	return list
}

func closureSize(infos map[store.Path]*store.Info, p store.Path, seen map[store.Path]bool) int64 {
	if seen[p] || infos[p] == nil {
		return 0
	}
	seen[p] = true
	n := infos[p].NarSize
	for _, r := range infos[p].References {
		n += closureSize(infos, r, seen)
	}
	return n
}

func jsonOf(attrs attributes) []byte {
	var b bytes.Buffer
	writeJSON(&b, map[string]any(attrs))
	return b.Bytes()
}

// writeJSON writes the form that Nix writes: no spaces, keys sorted, only what must be is escaped.
func writeJSON(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case map[string]any:
		sep := byte('{')
		for _, k := range slices.Sorted(maps.Keys(v)) {
			b.WriteByte(sep)
			writeString(b, k)
			b.WriteByte(':')
			writeJSON(b, v[k])
			sep = ','
		}
		if sep == '{' {
			b.WriteByte(sep)
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			writeJSON(b, e)
		}
		b.WriteByte(']')
	case string:
		writeString(b, v)
	case nil:
		b.WriteString("null")
	case json.Number:
		b.WriteString(numberText(v))
	default:
		fmt.Fprint(b, v)
	}
}

// isFloat reports whether a number is no integer of 64 bits, as it is written.
func isFloat(n json.Number) bool {
	if _, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
		return false
	}
	_, err := strconv.ParseUint(n.String(), 10, 64)
	return err != nil
}

// numberText writes integers as they are, and other numbers as the library does that Nix writes JSON with: the shortest digits, a
// fraction always, an exponent when the point would stand before the fourth zero or behind the fifteenth digit.
func numberText(n json.Number) string {
	f, err := n.Float64()
	if !isFloat(n) || err != nil {
		return n.String()
	}
	text := strconv.FormatFloat(f, 'e', -1, 64)
	_, exponent, _ := strings.Cut(text, "e")
	if at, err := strconv.Atoi(exponent); err != nil || at+1 <= -4 || at+1 > 15 {
		return text
	}
	text = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text
}

func writeString(b *bytes.Buffer, s string) {
	b.WriteByte('"')
	for _, r := range s {
		if i := strings.IndexRune("\"\\\b\f\n\r\t", r); i >= 0 && r != utf8.RuneError {
			b.WriteByte('\\')
			b.WriteByte("\"\\bfnrt"[i])
		} else if r < 0x20 {
			fmt.Fprintf(b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}

// shellText declares as shell variables what can be: strings, integers, booleans, null, and flat
// lists and maps of those.
func shellText(attrs attributes) []byte {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		if !isShellName(name) {
			continue
		}
		if s, ok := shellScalar(attrs[name]); ok {
			fmt.Fprintf(&b, "declare %s=%s\n", name, s)
		} else if s, ok := shellList(attrs[name]); ok {
			fmt.Fprintf(&b, "declare -a %s=(%s)\n", name, s)
		} else if s, ok := shellMap(attrs[name]); ok {
			fmt.Fprintf(&b, "declare -A %s=(%s)\n", name, s)
		}
	}
	return []byte(b.String())
}

func isShellName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func shellScalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return "'" + strings.ReplaceAll(v, "'", `'\''`) + "'", true
	case json.Number:
		if !isFloat(v) {
			return v.String(), true
		}
		// What has no fraction, with the precision of 32 bits, counts as an integer.
		f, err := v.Float64()
		whole := float64(float32(f)) == math.Ceil(float64(float32(f)))
		return strconv.FormatFloat(math.Trunc(f), 'f', 0, 64), err == nil && whole
	case bool:
		if v {
			return "1", true
		}
		return "", true
	case nil:
		return "''", true
	}
	return "", false
}

func shellList(v any) (string, bool) {
	list, ok := v.([]any)
	var b strings.Builder
	for _, e := range list {
		s, scalar := shellScalar(e)
		if !scalar {
			return "", false
		}
		b.WriteString(s + " ")
	}
	return b.String(), ok
}

func shellMap(v any) (string, bool) {
	m, ok := v.(map[string]any)
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s, scalar := shellScalar(m[k])
		if !scalar {
			return "", false
		}
		key, _ := shellScalar(k)
		b.WriteString("[" + key + "]=" + s + " ")
	}
	return b.String(), ok
}
