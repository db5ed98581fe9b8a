package protocol

import (
	"fmt"

	"cairn/archive/wire"
	"cairn/store"
)

// The serve protocol is that of "nix-store --serve", which ssh:// stores speak. It has the primitives of the worker
// protocol, and in the place of messages the standard error of the process:
//
//	session  = handshake { command }
//	command  = u64 number, fields                 client → server
//	answer   = fields                             server → client; a failure ends the process
//
// An Encoder or Decoder of a serve session has a serve version in its Format and must be used with the methods
// of this file and with values that no version changes.
const (
	serveClientMagic = 0x390c9deb
	serveServerMagic = 0x5452eecb

	// ServeNewest and ServeOldest are the versions that are served.
	ServeNewest Version = 2<<8 | 8
	ServeOldest Version = 2<<8 | 5
)

// ServeMinor returns the version 2.n.
func ServeMinor(n int) Version { return 2<<8 | Version(n) }

// ServeCommand is the number of a command.
type ServeCommand uint64

// The commands.
const (
	ServeQueryValidPaths ServeCommand = iota + 1
	ServeQueryPathInfos
	ServeDumpStorePath
	ServeImportPaths
	ServeExportPaths
	ServeBuildPaths
	ServeQueryClosure
	ServeBuildDerivation
	ServeAddToStoreNar
)

// ServeHandshake does the server's part of a handshake, announcing newest, or ServeNewest when that is zero.
func ServeHandshake(r *wire.Reader, w *wire.Writer, dir store.Dir, newest Version) (Format, error) {
	return serveHandshake(r, w, dir, newest, serveServerMagic, serveClientMagic)
}

// ServeGreet does the client's part.
func ServeGreet(r *wire.Reader, w *wire.Writer, dir store.Dir, newest Version) (Format, error) {
	return serveHandshake(r, w, dir, newest, serveClientMagic, serveServerMagic)
}

func serveHandshake(r *wire.Reader, w *wire.Writer, dir store.Dir, newest Version, mine, theirs uint64) (Format, error) {
	if newest == 0 {
		newest = ServeNewest
	}
	f := Format{Dir: dir, Version: newest}
	speak := func() error {
		w.Uint64(mine)
		w.Uint64(uint64(newest))
		return w.Flush()
	}
	if mine == serveClientMagic {
		if err := speak(); err != nil {
			return f, err
		}
	}
	d := NewDecoder(r, f)
	if magic := d.Uint64(); d.broken != nil || magic != theirs {
		return f, cmpErr(d.broken, fmt.Errorf("peer sent %#x: %w", magic, ErrNoServe))
	}
	peer := Version(d.Uint64())
	if d.broken != nil {
		return f, d.broken
	}
	if mine == serveServerMagic {
		if err := speak(); err != nil {
			return f, err
		}
	}
	if peer>>8 != newest>>8 || peer < ServeOldest {
		return f, fmt.Errorf("peer speaks serve protocol %s, wanted is %s to %s", peer, ServeOldest, newest)
	}
	f.Version = min(newest, peer)
	return f, nil
}

// ServeOptions are the limits of a build.
type ServeOptions struct {
	MaxSilent  uint64 // seconds; 0: no limit
	Timeout    uint64
	MaxLog     uint64 // bytes
	Repeats    uint64 // of long ago: build so often again
	KeepFailed bool   // ≥2.7
}

// ServeOptions writes the limits of a build.
func (e *Encoder) ServeOptions(o *ServeOptions) {
	e.Uint64(o.MaxSilent)
	e.Uint64(o.Timeout)
	e.Uint64(o.MaxLog)
	e.Uint64(o.Repeats)
	e.Bool(false) // a word about repeated builds
	if e.Version >= ServeMinor(7) {
		e.Bool(o.KeepFailed)
	}
}

// ServeOptions reads the limits of a build.
func (d *Decoder) ServeOptions() *ServeOptions {
	o := &ServeOptions{MaxSilent: d.Uint64(), Timeout: d.Uint64(), MaxLog: d.Uint64(), Repeats: d.Uint64()}
	d.Bool()
	if d.Version >= ServeMinor(7) {
		o.KeepFailed = d.Bool()
	}
	return o
}

// ServeInfo writes what QueryPathInfos says of a path after the path itself.
//
//	deriver or "", set references, download size, nar size, nar hash "sha256:"nix32, content address or "", set signatures
func (e *Encoder) ServeInfo(i *store.Info) {
	e.Path(i.Deriver)
	e.Paths(i.References)
	e.Uint64(uint64(i.NarSize))
	e.Uint64(uint64(i.NarSize))
	e.Text(i.NarHash.String())
	e.Text(i.CA.String())
	e.TextSet(i.Signatures)
}

// ServeInfo reads what ServeInfo writes.
func (d *Decoder) ServeInfo(p store.Path) *store.Info {
	i := &store.Info{Path: p, Deriver: d.OptionalPath(), References: d.Paths()}
	d.Uint64()
	i.NarSize = d.Int63()
	i.NarHash, i.CA, i.Signatures = d.NarHash(), d.ContentAddress(), d.Texts(MaxPath)
	return i
}

// ServeResult writes the result of BuildDerivation.
//
//	status, error, times built, non-deterministic, start, stop; ≥2.8: map output → unkeyed realisation; ≥2.6: map id → JSON
func (e *Encoder) ServeResult(r *BuildResult) {
	e.Uint64(uint64(r.Status))
	e.Text(r.Error)
	e.Uint64(r.TimesBuilt)
	e.Bool(r.NonDeterministic)
	e.Uint64(uint64(r.Start))
	e.Uint64(uint64(r.Stop))
	switch {
	case e.Version >= ServeMinor(8):
		e.outputsByName(r.Outputs)
	case e.Version >= ServeMinor(6):
		e.outputsByID(r.Outputs)
	}
}

// ServeResult reads what ServeResult writes.
func (d *Decoder) ServeResult() *BuildResult {
	r := &BuildResult{Status: Status(d.Uint64()), Error: d.Text(MaxValue), TimesBuilt: d.Uint64(), NonDeterministic: d.Bool(), Start: d.Int63(), Stop: d.Int63()}
	r.Outputs = map[string]store.Realisation{}
	if d.Version >= ServeMinor(6) {
		r.Outputs = d.outputs(d.Version >= ServeMinor(8))
	}
	return r
}

// ServeTargets writes what BuildPaths is to build.
func (e *Encoder) ServeTargets(list []Target) {
	e.Uint64(uint64(len(list)))
	for _, t := range list {
		if t.IsAll() {
			e.Path(t.Path)
			continue
		}
		e.Text(t.String())
	}
}

// ServeTargets reads them: a derivation alone stands for all its outputs.
func (d *Decoder) ServeTargets() []Target {
	var list []Target
	for range d.Count() {
		t := parsed(d, d.Text(MaxPath), func(s string) (Target, error) { return ParseTarget(d.Dir, s) })
		if d.broken != nil {
			return nil
		}
		if t.Outputs == nil && t.Path.IsDerivation() {
			t.Outputs = All()
		}
		list = append(list, t)
	}
	return list
}
