package protocol

import "cairn/store"

// The last version without, and thus the layout that AddMultipleToStore has always.
const infoLayout = 16

// Info writes what is known of a path without the path itself.
//
//	deriver or "", narHash base 16, set references, registration time, nar size,
//	≥1.16: bool ultimate, set signatures, content address or ""
func (e *Encoder) Info(i *store.Info) { e.info(i, e.Version >= Minor(infoLayout)) }

func (e *Encoder) info(i *store.Info, full bool) {
	e.Path(i.Deriver)
	e.Text(i.NarHash.Hex())
	e.Paths(i.References)
	e.Uint64(uint64(max(i.RegisteredAt, 0)))
	e.Uint64(uint64(i.NarSize))
	if full {
		e.Bool(i.Ultimate)
		e.TextSet(i.Signatures)
		e.Text(i.CA.String())
	}
}

// KeyedInfo writes the path and its info.
func (e *Encoder) KeyedInfo(i *store.Info) {
	e.Path(i.Path)
	e.Info(i)
}

// StreamInfo writes path and info as AddMultipleToStore wants them, whatever the version.
func (e *Encoder) StreamInfo(i *store.Info) {
	e.Path(i.Path)
	e.info(i, true)
}

// Info reads what Info writes, of the given path.
func (d *Decoder) Info(p store.Path) *store.Info { return d.info(p, d.Version >= Minor(infoLayout)) }

func (d *Decoder) info(p store.Path, full bool) *store.Info {
	i := &store.Info{Path: p}
	i.Deriver = d.OptionalPath()
	i.NarHash = d.NarHash()
	i.References = d.Paths()
	i.RegisteredAt = d.Int63()
	i.NarSize = d.Int63()
	if full {
		i.Ultimate = d.Bool()
		i.Signatures = d.Texts(MaxPath)
		i.CA = d.ContentAddress()
	}
	return i
}

// KeyedInfo reads a path and its info.
func (d *Decoder) KeyedInfo() *store.Info { return d.Info(d.Path()) }

// StreamInfo reads what StreamInfo writes.
func (d *Decoder) StreamInfo() *store.Info { return d.info(d.Path(), true) }
