package protocol

import (
	"maps"
	"slices"

	"cairn/archive/wire"
	"cairn/store"
)

// Encoder writes values. The wire writer below keeps the first error until Flush.
type Encoder struct {
	Format
	w *wire.Writer
}

// NewEncoder returns an encoder.
func NewEncoder(w *wire.Writer, f Format) *Encoder { return &Encoder{Format: f, w: w} }

// Wire returns the writer below, for frames and archives.
func (e *Encoder) Wire() *wire.Writer { return e.w }

// Flush sends what is buffered and returns the first error.
func (e *Encoder) Flush() error { return e.w.Flush() }

// Uint64 writes an integer.
func (e *Encoder) Uint64(v uint64) { e.w.Uint64(v) }

// Bool writes a truth value.
func (e *Encoder) Bool(b bool) { e.w.Bool(b) }

// Text writes a text.
func (e *Encoder) Text(s string) { e.w.String(s) }

// Texts writes a list of texts in their order.
func (e *Encoder) Texts(list []string) {
	e.Uint64(uint64(len(list)))
	for _, s := range list {
		e.Text(s)
	}
}

// TextSet writes a set of texts.
func (e *Encoder) TextSet(list []string) {
	e.Texts(slices.Compact(slices.Sorted(slices.Values(list))))
}

// Map writes a map of texts.
func (e *Encoder) Map(m map[string]string) {
	e.Uint64(uint64(len(m)))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.Text(k)
		e.Text(m[k])
	}
}

// Path writes a store path, the zero value as empty text.
func (e *Encoder) Path(p store.Path) { e.Text(p.String()) }

// Paths writes a set of store paths.
func (e *Encoder) Paths(list []store.Path) {
	if !slices.IsSortedFunc(list, store.Path.Compare) {
		list = slices.Clone(list)
	}
	e.PathList(store.SortPaths(list))
}

// PathList writes store paths in their order.
func (e *Encoder) PathList(list []store.Path) {
	e.Uint64(uint64(len(list)))
	for _, p := range list {
		e.Path(p)
	}
}

// Method writes a content address without digest.
func (e *Encoder) Method(m store.Method, a store.Algorithm) { e.Text(MethodText(m, a)) }

// MethodText returns what Method writes: "text:sha256", "fixed:sha1", "fixed:r:sha256".
func MethodText(m store.Method, a store.Algorithm) string {
	switch m {
	case store.Text:
		return "text:" + a.String()
	case store.Recursive:
		return "fixed:r:" + a.String()
	}
	return "fixed:" + a.String()
}
