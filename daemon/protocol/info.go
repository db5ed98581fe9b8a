package protocol

import "cairn/store"

// Info writes what is known of a path without the path itself.
//
//	deriver or "", narHash base 16, set references, registration time, nar size,
//	≥1.16: bool ultimate, set signatures, content address or ""
func (e *Encoder) Info(i *store.Info) {
	e.Path(i.Deriver)
	e.Text(i.NarHash.Hex())
	e.Paths(i.References)
	e.Uint64(uint64(max(i.RegisteredAt, 0)))
	e.Uint64(uint64(i.NarSize))
	if e.Version < Minor(16) {
		return
	}
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
	i := &store.Info{
		Path:         p,
		Deriver:      d.OptionalPath(),
		NarHash:      d.NarHash(),
		References:   d.Paths(),
		RegisteredAt: d.Int63(),
		NarSize:      d.Int63(),
	}
	if d.Version >= Minor(16) {
		i.Ultimate = d.Bool()
		i.Signatures = d.Texts(MaxPath)
		i.CA = d.ContentAddress()
	}
	return i
}

// KeyedInfo reads a path and its info.
func (d *Decoder) KeyedInfo() *store.Info { return d.Info(d.Path()) }
