package protocol

import (
	"maps"
	"slices"

	"cairn/store"
)

// Missing is the reply of OpQueryMissing: what a build would have to do.
type Missing struct {
	Build      []store.Path // derivations
	Substitute []store.Path
	Unknown    []store.Path
	Download   uint64 // bytes
	Unpacked   uint64 // bytes
}

// Missing writes the reply of OpQueryMissing.
func (e *Encoder) Missing(m *Missing) {
	e.Paths(m.Build)
	e.Paths(m.Substitute)
	e.Paths(m.Unknown)
	e.Uint64(m.Download)
	e.Uint64(m.Unpacked)
}

// Missing reads the reply of OpQueryMissing.
func (d *Decoder) Missing() *Missing {
	return &Missing{Build: d.Paths(), Substitute: d.Paths(), Unknown: d.Paths(), Download: d.Uint64(), Unpacked: d.Uint64()}
}

// OutputMap writes the reply of OpQueryDerivationOutputMap; unknown paths are zero.
func (e *Encoder) OutputMap(m map[string]store.Path) {
	e.Uint64(uint64(len(m)))
	for _, n := range slices.Sorted(maps.Keys(m)) {
		e.Text(n)
		e.Path(m[n])
	}
}

// OutputMap reads the reply of OpQueryDerivationOutputMap.
func (d *Decoder) OutputMap() map[string]store.Path {
	m := map[string]store.Path{}
	for range d.Count() {
		n := d.outputName()
		p := d.OptionalPath()
		if d.broken != nil {
			return nil
		}
		m[n] = p
	}
	return m
}
