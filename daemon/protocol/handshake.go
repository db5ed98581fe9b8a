package protocol

import (
	"errors"
	"fmt"
	"slices"

	"cairn/archive/wire"
	"cairn/store"
)

// The numbers that start a session.
const (
	clientMagic = 0x6e697863
	serverMagic = 0x6478696f
)

// Trust is what a server says of the peer from 1.35 on.
type Trust uint64

// The trusts.
const (
	TrustUnknown Trust = iota
	Trusted
	NotTrusted
)

// ErrNoPeer says that the other side does not speak the worker protocol.
var ErrNoPeer = errors.New("peer does not speak the worker protocol")

// ErrNoServe says that the other side does not speak the serve protocol.
var ErrNoServe = errors.New("peer does not speak the protocol of nix-store --serve")

// maxFeatures bounds what a peer may announce.
const maxFeatures = 256

// Server is what a server says of itself in the handshake.
type Server struct {
	Dir      store.Dir
	Name     string    // the version text, e.g. "2.8.0"
	Version  Version   // zero: Newest
	Features []Feature // announced from 1.38 on
	Trust    Trust
}

// Guix forked the protocol at 1.15 and counts its own minors from 0x60 on; 1.5 says 0x164. Its client sees from our number that
// it does not talk to its own daemon, and keeps to what the fork had. What a server would have to do beside to be
// its daemon: announce 0x164 to it alone (its magic is Nix's, so a setting must say so), then SetOptions without jobs, silence
// and cores, which come by name, and operations 80 (names of built-in builders) and 81 (substitute URLs).
const (
	guixOldest = Version(1<<8 | 0x60)
	guixSpeaks = Version(1<<8 | 15)
)

// Handshake does the server's part up to but not including the message Last,
// with which the caller accepts the session, or Error, with which it refuses it.
//
//	C: u64 clientMagic            S: u64 serverMagic, u64 version
//	C: u64 version
//	[≥1.38] C: set features       S: set features
//	[≥1.14] C: u64 0 (or non-zero and one more)    [≥1.11] C: u64 0
//	[≥1.33] S: text name          [≥1.35] S: u64 trust
func (s Server) Handshake(r *wire.Reader, w *wire.Writer) (Format, error) {
	f := Format{Dir: s.Dir, Version: s.Version}
	if f.Version == 0 {
		f.Version = Newest
	}
	d, e := NewDecoder(r, f), NewEncoder(w, f)
	d.budget = 1 << 20
	if magic := d.Uint64(); magic != clientMagic {
		return f, cmpErr(d.broken, fmt.Errorf("client sent %#x: %w", magic, ErrNoPeer))
	}
	e.Uint64(serverMagic)
	e.Uint64(uint64(f.Version))
	if err := e.Flush(); err != nil {
		return f, err
	}
	peer := Version(d.Uint64())
	if d.broken != nil {
		return f, d.broken
	}
	if peer>>8 != f.Version>>8 || peer < Oldest {
		return f, fmt.Errorf("client speaks protocol %s, served is %s to %s", peer, Oldest, f.Version)
	}
	if peer >= guixOldest {
		peer = guixSpeaks
	}
	f.Version = min(f.Version, peer)
	if f.Version >= Minor(38) {
		theirs := d.features()
		if d.broken != nil {
			return f, d.broken
		}
		e.features(s.Features)
		f.Features = common(s.Features, theirs)
		if err := e.Flush(); err != nil {
			return f, err
		}
	}
	if f.Version >= Minor(14) && d.Uint64() != 0 {
		d.Uint64()
	}
	if f.Version >= Minor(11) {
		d.Uint64()
	}
	if d.broken != nil {
		return f, d.broken
	}
	if f.Version >= Minor(33) {
		e.Text(s.Name)
	}
	if f.Version >= Minor(35) {
		e.Uint64(uint64(s.Trust))
	}
	return f, nil
}

// Client is what a client says of itself in the handshake.
type Client struct {
	Dir      store.Dir
	Version  Version // zero: Newest
	Features []Feature
}

// Answer is what the server said of itself.
type Answer struct {
	Format
	Name      string
	Trust     Trust
	Announced []Feature // by the server, those too that were not agreed on
}

// Handshake does the client's part, up to but not including the messages that follow.
func (c Client) Handshake(r *wire.Reader, w *wire.Writer) (Answer, error) {
	a := Answer{Format: Format{Dir: c.Dir, Version: c.Version}}
	if a.Version == 0 {
		a.Version = Newest
	}
	d, e := NewDecoder(r, a.Format), NewEncoder(w, a.Format)
	d.budget = 1 << 20
	e.Uint64(clientMagic)
	e.Uint64(uint64(a.Version))
	if err := e.Flush(); err != nil {
		return a, err
	}
	if magic := d.Uint64(); magic != serverMagic {
		return a, cmpErr(d.broken, fmt.Errorf("server sent %#x: %w", magic, ErrNoPeer))
	}
	peer := Version(d.Uint64())
	if d.broken != nil {
		return a, d.broken
	}
	if peer>>8 != a.Version>>8 || peer < OldestServer {
		return a, fmt.Errorf("server speaks protocol %s, wanted is at least %s", peer, OldestServer)
	}
	a.Version = min(a.Version, peer)
	if a.Version >= Minor(38) {
		e.features(c.Features)
		if err := e.Flush(); err != nil {
			return a, err
		}
		a.Announced = d.features()
		a.Features = common(c.Features, a.Announced)
	}
	if a.Version >= Minor(14) {
		e.Uint64(0)
	}
	if a.Version >= Minor(11) {
		e.Uint64(0)
	}
	if err := e.Flush(); err != nil {
		return a, err
	}
	if a.Version >= Minor(33) {
		a.Name = d.Text(MaxPath)
	}
	if a.Version >= Minor(35) {
		a.Trust = Trust(d.Uint64())
	}
	return a, d.broken
}

func (e *Encoder) features(list []Feature) {
	texts := make([]string, len(list))
	for i, f := range list {
		texts[i] = string(f)
	}
	e.TextSet(texts)
}

func (d *Decoder) features() []Feature {
	n := d.Count()
	if n > maxFeatures {
		d.fail(fmt.Errorf("peer announces %d features: %w", n, ErrTooMuch))
		return nil
	}
	var list []Feature
	for range n {
		list = append(list, Feature(d.Text(MaxPath)))
	}
	return list
}

func common(ours, theirs []Feature) []Feature {
	var both []Feature
	for _, f := range ours {
		if slices.Contains(theirs, f) {
			both = append(both, f)
		}
	}
	slices.Sort(both)
	return both
}

// cmpErr returns the first error that is one.
func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
