package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
)

// settings are a session's choices.
type settings struct {
	build   build.Settings
	verbose bool // build output as lines of log
}

// setting is something that a client may override by name.
type setting struct {
	right right
	set   func(*settings, string) error
}

// overrides are the settings by name; other names are ignored, as they mean things that are not here.
var overrides = map[string]setting{
	"timeout":               {anyone, seconds(func(s *settings) *time.Duration { return &s.build.Timeout })},
	"build-timeout":         {anyone, seconds(func(s *settings) *time.Duration { return &s.build.Timeout })},
	"max-silent-time":       {anyone, seconds(func(s *settings) *time.Duration { return &s.build.MaxSilent })},
	"build-max-silent-time": {anyone, seconds(func(s *settings) *time.Duration { return &s.build.MaxSilent })},
	"max-build-log-size":    {trusted, maxLog},
	"build-max-log-size":    {trusted, maxLog},
	"keep-going":            {trusted, flag(func(s *settings) *bool { return &s.build.KeepGoing })},
	"keep-failed":           {trusted, flag(func(s *settings) *bool { return &s.build.KeepFailed })},
	"cores":                 {trusted, cores},
	"build-cores":           {trusted, cores},
}

// maxSeconds keeps times of clients in the range of durations.
const maxSeconds = 1 << 32

func seconds(field func(*settings) *time.Duration) func(*settings, string) error {
	return func(s *settings, v string) error {
		n, err := strconv.ParseUint(v, 10, 63)
		*field(s) = time.Duration(min(n, maxSeconds)) * time.Second
		return err
	}
}

func flag(field func(*settings) *bool) func(*settings, string) error {
	return func(s *settings, v string) error {
		switch v {
		case "true", "yes", "1":
			*field(s) = true
		case "false", "no", "0":
			*field(s) = false
		default:
			return fmt.Errorf("%q is neither true nor false", v)
		}
		return nil
	}
}

func maxLog(s *settings, v string) (err error) {
	s.build.MaxLog, err = strconv.ParseInt(v, 10, 64)
	return err
}

func cores(s *settings, v string) error {
	n, err := strconv.ParseUint(v, 10, 31)
	s.build.Cores = int(n)
	return err
}

// setOptions replaces what was set before.
func (x *session) setOptions(_ context.Context, o *protocol.Options) (reply, error) {
	s := settings{build: x.server.build.Settings(), verbose: o.VerboseBuild}
	s.build.KeepFailed = o.KeepFailed
	s.build.KeepGoing = o.KeepGoing
	s.build.Cores = int(min(o.Cores, 1<<16))
	if o.MaxSilent > 0 {
		s.build.MaxSilent = time.Duration(min(o.MaxSilent, maxSeconds)) * time.Second
	}
	for _, name := range slices.Sorted(maps.Keys(o.Overrides)) {
		known, ok := overrides[name]
		if !ok {
			x.server.log.Debug("ignore setting", "name", name)
			continue
		}
		if known.right == trusted && !x.peer.Trusted {
			x.warn("ignoring the setting '%s', because you are not a trusted user", name)
			continue
		}
		if err := known.set(&s, o.Overrides[name]); err != nil {
			x.warn("ignoring the setting '%s': %v", name, err)
		}
	}
	x.set = s
	return nil, nil
}

// warn tells the client, as Nix's daemon would.
func (x *session) warn(format string, args ...any) {
	x.tell("warning: " + fmt.Sprintf(format, args...))
}
