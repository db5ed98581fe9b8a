package protocol

import (
	"fmt"
	"time"

	"cairn/store"
)

// Status says how a build went.
type Status uint64

// The statuses of Nix.
const (
	Built Status = iota
	Substituted
	AlreadyValid
	PermanentFailure
	InputRejected
	OutputRejected
	TransientFailure
	CachedFailure
	TimedOut
	MiscFailure
	DependencyFailed
	LogLimitExceeded
	NotDeterministic
	ResolvesToAlreadyValid
	NoSubstituters
)

var statusNames = [...]string{
	"built", "substituted", "already valid", "failed", "input rejected", "output rejected", "failed for now",
	"failed before", "timed out", "failed", "a dependency failed", "log limit exceeded", "not deterministic",
	"resolves to already valid", "no substituters",
}

// OK reports whether the outputs are there.
func (s Status) OK() bool {
	return s == Built || s == Substituted || s == AlreadyValid || s == ResolvesToAlreadyValid
}

func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status %d", uint64(s))
}

// BuildResult is how the build of one target went.
type BuildResult struct {
	Target           Target // what was asked; not part of the encoding
	Status           Status
	Error            string
	TimesBuilt       uint64
	NonDeterministic bool
	Start, Stop      int64          // seconds since 1970
	CPUUser          *time.Duration // nil: unknown
	CPUSystem        *time.Duration
	Outputs          map[string]store.Realisation
	Impure           bool // the outputs are this build's alone; not part of the encoding
}

// BuildResult writes
//
//	status, error; ≥1.29: times built, non-deterministic, start, stop; ≥1.37: CPU times;
//	with FeatureRealisations: map output → unkeyed realisation; else ≥1.28: map id → JSON
func (e *Encoder) BuildResult(r *BuildResult) {
	e.Uint64(uint64(r.Status))
	e.Text(r.Error)
	if e.Version >= Minor(29) {
		e.Uint64(r.TimesBuilt)
		e.Bool(r.NonDeterministic)
		e.Uint64(uint64(r.Start))
		e.Uint64(uint64(r.Stop))
	}
	if e.Version >= Minor(37) {
		e.microseconds(r.CPUUser)
		e.microseconds(r.CPUSystem)
	}
	switch {
	case e.Has(FeatureRealisations):
		e.outputsByName(r.Outputs)
	case e.Version >= Minor(28):
		e.outputsByID(r.Outputs)
	}
}

func (e *Encoder) microseconds(t *time.Duration) {
	if t == nil {
		e.Uint64(0)
		return
	}
	e.Uint64(1)
	e.Uint64(uint64(max(t.Microseconds(), 0)))
}

// BuildResult reads what BuildResult writes.
func (d *Decoder) BuildResult() *BuildResult {
	r := &BuildResult{Status: Status(d.Uint64()), Error: d.Text(MaxValue)}
	if d.Version >= Minor(29) {
		r.TimesBuilt = d.Uint64()
		r.NonDeterministic = d.Bool()
		r.Start = d.Int63()
		r.Stop = d.Int63()
	}
	if d.Version >= Minor(37) {
		r.CPUUser = d.microseconds()
		r.CPUSystem = d.microseconds()
	}
	if !d.Has(FeatureRealisations) && d.Version < Minor(28) {
		return r
	}
	r.Outputs = d.outputs(d.Has(FeatureRealisations))
	return r
}

func (d *Decoder) microseconds() *time.Duration {
	switch tag := d.Uint64(); tag {
	case 0:
		return nil
	case 1:
		n := d.Int63()
		if n > int64(1<<63-1)/int64(time.Microsecond) {
			d.reject(fmt.Errorf("time of %d microseconds is out of range", n))
			n = 0
		}
		t := time.Duration(n) * time.Microsecond
		return &t
	default:
		d.fail(fmt.Errorf("optional time has the unknown tag %d", tag))
		return nil
	}
}
