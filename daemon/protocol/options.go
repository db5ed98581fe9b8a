package protocol

// Options are what a client sets for its session.
type Options struct {
	KeepFailed     bool
	KeepGoing      bool
	Fallback       bool
	Verbosity      Verbosity
	MaxJobs        uint64 // 0: nothing is built on the daemon's machine; Keep: what the daemon says
	MaxSilent      uint64 // seconds; 0: no limit
	UseBuildHook   bool
	VerboseBuild   bool // build output as lines of log instead of results
	Cores          uint64
	UseSubstitutes bool
	Overrides      map[string]string // ≥1.12: settings by name
}

// Keep in the place of a number of jobs or processors leaves the daemon's own. Nix's clients never send it.
const Keep = ^uint64(0)

// verboseBuild and quietBuild are verbosities: output is shown up to that level.
const (
	verboseBuild = uint64(LevelError)
	quietBuild   = uint64(LevelVomit)
)

// Options writes the fields of OpSetOptions.
func (e *Encoder) Options(o *Options) {
	e.Bool(o.KeepFailed)
	e.Bool(o.KeepGoing)
	e.Bool(o.Fallback)
	e.Uint64(uint64(o.Verbosity))
	e.Uint64(o.MaxJobs)
	e.Uint64(o.MaxSilent)
	e.Bool(o.UseBuildHook)
	if o.VerboseBuild {
		e.Uint64(verboseBuild)
	} else {
		e.Uint64(quietBuild)
	}
	e.Uint64(0)
	e.Uint64(0)
	e.Uint64(o.Cores)
	e.Bool(o.UseSubstitutes)
	if e.Version >= Minor(12) {
		e.Map(o.Overrides)
	}
}

// Options reads the fields of OpSetOptions.
func (d *Decoder) Options() *Options {
	o := &Options{
		KeepFailed: d.Bool(),
		KeepGoing:  d.Bool(),
		Fallback:   d.Bool(),
		Verbosity:  Verbosity(d.Uint64()),
		MaxJobs:    d.Uint64(),
		MaxSilent:  d.Uint64(),
	}
	o.UseBuildHook = d.Bool()
	o.VerboseBuild = d.Uint64() == verboseBuild
	d.Uint64()
	d.Uint64()
	o.Cores = d.Uint64()
	o.UseSubstitutes = d.Bool()
	if d.Version >= Minor(12) {
		o.Overrides = d.Map(MaxPath, MaxText)
	}
	return o
}
