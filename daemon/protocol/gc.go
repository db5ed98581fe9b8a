package protocol

import (
	"fmt"
	"math"
	"time"

	"cairn/store"
)

// GCAction says what a collection does.
type GCAction uint64

// The actions of Nix.
const (
	GCReturnLive GCAction = iota
	GCReturnDead
	GCDeleteDead
	GCDeleteSpecific
)

// NoLimit is the MaxFreed of a collection without one.
const NoLimit = math.MaxUint64

// GCOptions are the fields of OpCollectGarbage.
type GCOptions struct {
	Action          GCAction
	Paths           []store.Path // GCDeleteSpecific; with FeatureDeleteReferrers all actions, unless Whole
	DeleteReferrers bool         // with FeatureDeleteReferrers
	Whole           bool         // with FeatureDeleteReferrers: the whole store, not Paths
	IgnoreLiveness  bool         // always refused
	MaxFreed        uint64
}

// GCOptions writes the fields of OpCollectGarbage.
func (e *Encoder) GCOptions(o *GCOptions) {
	e.Uint64(uint64(o.Action))
	if e.Has(FeatureDeleteReferrers) {
		if o.Whole || o.Action != GCDeleteSpecific && len(o.Paths) == 0 {
			e.Uint64(1)
		} else {
			e.Uint64(0)
			e.Paths(o.Paths)
			e.Bool(o.DeleteReferrers)
		}
	} else {
		e.Paths(o.Paths)
	}
	e.Bool(o.IgnoreLiveness)
	e.Uint64(o.MaxFreed)
	e.Uint64(0)
	e.Uint64(0)
	e.Uint64(0)
}

// GCOptions reads the fields of OpCollectGarbage.
func (d *Decoder) GCOptions() *GCOptions {
	o := &GCOptions{Action: GCAction(d.Uint64())}
	if d.Has(FeatureDeleteReferrers) {
		switch tag := d.Uint64(); tag {
		case 0:
			o.Paths = d.Paths()
			o.DeleteReferrers = d.Bool()
		case 1:
			o.Whole = true
		default:
			d.fail(fmt.Errorf("paths to collect have the unknown tag %d", tag))
		}
	} else {
		o.Paths = d.Paths()
	}
	o.IgnoreLiveness = d.Bool()
	o.MaxFreed = d.Uint64()
	d.Uint64()
	d.Uint64()
	d.Uint64()
	return o
}

// GCRequest is what OpCollectGarbage2 asks for, as JSON.
type GCRequest struct {
	DryRun   bool         `json:"dryRun,omitempty"`
	MaxFreed int64        `json:"maxFreed,omitempty"` // bytes; 0: no limit
	Paths    []store.Path `json:"paths,omitempty"`    // only these
	// Free stops the deletion when so much is free where the store is: bytes as settings write them, or "20%" of bytes and inodes.
	Free string `json:"free,omitempty"`
	// OlderThan spares what was registered at that time, in seconds since 1970, or later; 0: nothing.
	OlderThan int64 `json:"olderThan,omitempty"`
	// WithoutLinks are roots that a dry run takes for deleted.
	WithoutLinks []string `json:"withoutLinks,omitempty"`
}

// Options returns the same request as one of OpCollectGarbage, or nil when that cannot say it.
func (q *GCRequest) Options() *GCOptions {
	if q.Free != "" || q.OlderThan != 0 || len(q.WithoutLinks) > 0 || q.DryRun && (len(q.Paths) > 0 || q.MaxFreed != 0) {
		return nil
	}
	o := &GCOptions{Action: GCDeleteDead, MaxFreed: NoLimit}
	switch {
	case q.DryRun:
		o.Action = GCReturnDead
	case len(q.Paths) > 0:
		o.Action, o.Paths = GCDeleteSpecific, q.Paths
	}
	if q.MaxFreed != 0 {
		o.MaxFreed = uint64(q.MaxFreed)
	}
	return o
}

// GCResult is what OpCollectGarbage2 answers, as JSON.
type GCResult struct {
	Paths      []store.Path `json:"paths"`
	BytesFreed int64        `json:"bytesFreed"`
}

// Root is a garbage collector root: a link, or what else keeps target alive.
type Root struct {
	Link   string
	Target store.Path
}

// Roots writes the reply of OpFindRoots.
func (e *Encoder) Roots(list []Root) {
	e.Uint64(uint64(len(list)))
	for _, r := range list {
		e.Text(r.Link)
		e.Path(r.Target)
	}
}

// Roots reads the reply of OpFindRoots.
func (d *Decoder) Roots() []Root {
	var list []Root
	for range d.Count() {
		r := Root{Link: d.Text(MaxPath), Target: d.Path()}
		if d.broken != nil {
			return nil
		}
		list = append(list, r)
	}
	return list
}

// GCResult writes the reply of OpCollectGarbage.
func (e *Encoder) GCResult(r *GCResult) {
	e.Paths(r.Paths)
	e.Uint64(uint64(r.BytesFreed))
	e.Uint64(0)
}

// GCResult reads the reply of OpCollectGarbage.
func (d *Decoder) GCResult() *GCResult {
	r := &GCResult{Paths: d.Paths(), BytesFreed: d.Int63()}
	d.Uint64()
	return r
}

// Chain says what keeps a path alive: a root, and the references from its target to the path.
type Chain struct {
	Kind  string       `json:"kind"`
	Link  string       `json:"link"`
	Who   *Who         `json:"who,omitempty"` // nil: not yours to know
	Paths []store.Path `json:"paths"`
}

// Who is behind a root: the process that uses it, or the owner. What is not known is zero.
type Who struct {
	PID     int       `json:"pid,omitempty"`
	Command string    `json:"command,omitempty"`
	UID     int       `json:"uid"` // -1: unknown
	Since   time.Time `json:"since,omitzero"`
	Until   time.Time `json:"until,omitzero"` // when it expires; zero: it does not
}

// RootInfo is a root as OpRoots lists it and OpAddRoot answers it.
type RootInfo struct {
	Kind   string     `json:"kind"`
	Name   string     `json:"name,omitempty"` // of a named root
	Link   string     `json:"link"`
	Target store.Path `json:"target"`
	Who    *Who       `json:"who,omitempty"` // nil: not yours to know
}

// AddRootRequest is what OpAddRoot asks for, as JSON.
type AddRootRequest struct {
	Path store.Path `json:"path"`
	Name string     `json:"name,omitempty"` // default: the object's base name
	TTL  int64      `json:"ttl,omitempty"`  // seconds until it expires; 0: never
}

// DeleteRootsRequest is what OpDeleteRoots asks for, as JSON.
type DeleteRootsRequest struct {
	Names []string `json:"names"`
	UID   *int     `json:"uid,omitempty"` // whose they are; default: the peer's
}
