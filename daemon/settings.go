package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"cairn/archive"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
)

// choices are what a session has set.
type choices struct {
	*settings.Settings                    // never changed, only replaced
	verbose            bool               // build output as lines of log
	builder            *build.Builder     // with these settings; nil until it is used
	level              protocol.Verbosity // of the lines of log that are wanted

	signers   *archive.ACL // made of signersOf and these settings; nil until it is used
	signersOf *archive.ACL
}

// maxSeconds keeps times of clients in the range of durations.
const maxSeconds = 1 << 32

// setOptions replaces what was set before: the daemon's settings, then the fixed fields, then the overrides by name.
func (x *session) setOptions(_ context.Context, o *protocol.Options) (reply, error) {
	s := x.server.settings.Clone()
	s.KeepFailed, s.KeepGoing, s.Fallback = o.KeepFailed, o.KeepGoing, o.Fallback
	if o.Cores != protocol.Keep {
		s.Cores = int(min(o.Cores, 1<<16))
	}
	if o.MaxJobs != protocol.Keep {
		s.MaxJobs = int(min(o.MaxJobs, 1<<16))
	}
	s.Substitute = o.UseSubstitutes
	if o.MaxSilent > 0 {
		s.MaxSilent = time.Duration(min(o.MaxSilent, maxSeconds)) * time.Second
	}
	x.set.level = o.Verbosity
	for _, name := range slices.Sorted(maps.Keys(o.Overrides)) {
		if warning := s.Override(name, o.Overrides[name], x.may(archive.Override)); warning != "" {
			x.warn("%s", warning)
		}
	}
	x.set = choices{Settings: s, verbose: o.VerboseBuild, level: o.Verbosity}
	return nil, nil
}

// warn tells the client, as Nix's daemon would.
func (x *session) warn(format string, args ...any) {
	x.say(protocol.LevelWarn, "warning: "+fmt.Sprintf(format, args...))
}
