package protocol

import "cairn/store"

// Info writes what is known of a path without the path itself.
//
//	deriver or "", narHash base 16, set references, registration time, nar size,
//	bool ultimate, set signatures, content address or ""
//
// It is the layout of 1.16, which every version that is served has.
func (e *Encoder) Info(i *store.Info) {
	e.Path(i.Deriver)
	e.Text(i.NarHash.Hex())
	e.Paths(i.References)
	e.Uint64(uint64(max(i.RegisteredAt, 0)))
	e.Uint64(uint64(i.NarSize))
	e.Bool(i.Ultimate)
	e.TextSet(i.Signatures)
	e.Text(i.CA.String())
}

// KeyedInfo writes the path and its info.
func (e *Encoder) KeyedInfo(i *store.Info) {
	e.Path(i.Path)
	e.Info(i)
}

// Info reads what Info writes, of the given path.
func (d *Decoder) Info(p store.Path) *store.Info {
	return &store.Info{
		Path:         p,
		Deriver:      d.OptionalPath(),
		NarHash:      d.NarHash(),
		References:   d.Paths(),
		RegisteredAt: d.Int63(),
		NarSize:      d.Int63(),
		Ultimate:     d.Bool(),
		Signatures:   d.Texts(MaxPath),
		CA:           d.ContentAddress(),
	}
}

// KeyedInfo reads a path and its info.
func (d *Decoder) KeyedInfo() *store.Info { return d.Info(d.Path()) }
