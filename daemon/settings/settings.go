// Package settings is what a daemon may be told: Nix's settings, by Nix's names, with Nix's defaults where ours are not
// better, and the syntax of nix.conf.
//
// A file is lines "name = value", where words are separated by blanks; what follows "#" is a comment.
// "include FILE" reads another file, "!include FILE" does so if there is one; a relative name is relative to the file that
// says it. "extra-NAME = value" appends to a setting that is a list or a set of words.
//
// # Where values come from
//
// Later ones win, as in Nix:
//
//	CONFDIR/nix.conf                                              the machine's
//	NIX_USER_CONF_FILES, or else XDG_CONFIG_DIRS and XDG_CONFIG_HOME    the daemon's user's
//	NIX_CONFIG                                                    the environment's
//	the daemon's command line
//	what a client sends with SetOptions                           for its session
//
// Explain says which line a value comes from.
//
// A client may override what Setting says: whoever has the verb "override" of the access list (Nix: is trusted) everything but what belongs to the
// daemon alone, others what costs nobody but themselves. Substituters of a client that is not trusted must be among those that the daemon trusts.
// What is ignored is told to the client in Nix's words.
//
// Three settings are rules of the access list (package archive): allowed-users, trusted-users and trusted-public-keys.
//
// Everything here is pure: files come from a function.
package settings

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Settings are all that a daemon can be told. Defaults makes a value; the zero value builds nothing.
type Settings struct {
	// Builds.
	MaxJobs             int           // builds at a time on this machine; 0: none here
	Cores               int           // NIX_BUILD_CORES; 0: all
	Timeout             time.Duration // of one build; 0: none
	MaxSilent           time.Duration // longest time without output; 0: none
	MaxLog              int64         // bytes of log of one build; 0: none
	KeepFailed          bool          // leave the directory of a failed build
	KeepGoing           bool          // build what can be built after a failure
	Fallback            bool          // build what could not be substituted
	System              string        // what this machine is; empty: what it is
	ExtraPlatforms      []string      // what it can build besides
	SystemFeatures      []string      // that derivations may require
	SandboxPaths        []string      // "target", "target=source", with "?" behind it when it may be missing
	PostBuildHook       string        // program run after each build
	DiffHook            string        // program that shows how two results of a build differ
	RunDiffHook         bool
	Builders            string // other machines: lines, or @file; ";" separates, too
	BuildersSubstitute  bool   // let them fetch inputs from caches
	ExperimentalOptions []string
	KeepBuildLog        bool
	CompressBuildLog    bool
	HashedMirrors       []string
	ImpureEnv           map[string]string // set in fixed outputs in the place of the daemon's environment

	// Substitution.
	Substitute          bool
	Substituters        []string
	TrustedSubstituters []string      // that a client who is not trusted may choose, too
	TrustedPublicKeys   []string      // "name:base64"
	RequireSignatures   bool          // of what comes from a cache
	ConnectTimeout      time.Duration // 0: the cache's own default
	StalledTimeout      time.Duration // of a download that makes no progress
	DownloadAttempts    int
	HTTPConnections     int
	MaxSubstitutions    int // at a time; 0: HTTPConnections
	NetrcFile           string

	// Trust.
	TrustedUsers   []string
	AllowedUsers   []string
	SecretKeyFiles []string // that sign what is built here
	BuildUsers     string   // group of Nix's build users; its members are refused as clients

	// Garbage.
	KeepOutputs     bool
	KeepDerivations bool
	AutoOptimise    bool
	OptimiseOnAdd   bool
	MinFree         Amount        // collect when less is free; zero: never by itself
	MaxFree         Amount        // until so much is free; zero: all of it
	MinFreeInterval time.Duration // between looks

	// Backups of the database.
	BackupInterval time.Duration // 0: none
	BackupKeep     int

	// Verification in the background.
	ScrubInterval time.Duration // 0: none
	ScrubRate     int64         // bytes per second; 0: no limit

	// VersionText is what the handshake shows in the place of our own version.
	VersionText string

	origins Origins // where values come from, while files are read
}

// Rights says who may set something.
type Rights uint8

// The rights.
const (
	Anyone  Rights = iota // every client, for its session
	Trusted               // trusted clients, for their session
	Daemon                // files and the command line only
)

func (r Rights) String() string {
	switch r {
	case Anyone:
		return "anyone"
	case Trusted:
		return "trusted"
	}
	return "daemon"
}

// MarshalText gives the text form.
func (r Rights) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Setting describes one.
type Setting struct {
	Name    string
	Aliases []string
	Rights  Rights
	Default string // as text
	Doc     string
	value   func(*Settings) value
}

// Appends reports whether "extra-" may stand before its name.
func (s *Setting) Appends() bool {
	_, ok := s.value(&Settings{}).(appender)
	return ok
}

// Text returns the setting's value in s as it would be written.
func (s *Setting) Text(of *Settings) string { return s.value(of).String() }

// All returns every setting, in the order of names.
func All() []*Setting {
	list := make([]*Setting, len(table))
	for i := range table {
		list[i] = &table[i]
	}
	slices.SortFunc(list, func(a, b *Setting) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Find returns a setting by name or alias, or nil. extra says that the name began with "extra-" and the value is appended.
func Find(name string) (s *Setting, extra bool) {
	if s := find(name); s != nil {
		return s, false
	}
	rest, ok := strings.CutPrefix(name, "extra-")
	if !ok {
		return nil, false
	}
	if s = find(rest); s == nil || !s.Appends() {
		return nil, false
	}
	return s, true
}

func find(name string) *Setting {
	for i := range table {
		if table[i].Name == name || slices.Contains(table[i].Aliases, name) {
			return &table[i]
		}
	}
	return nil
}

// Defaults returns the settings that hold when nothing is said.
func Defaults() *Settings {
	s := &Settings{}
	for i := range table {
		if err := table[i].value(s).set(table[i].Default); err != nil {
			panic(fmt.Sprintf("BUG: default of %s: %v", table[i].Name, err))
		}
	}
	return s
}

// Clone returns a copy that shares nothing.
func (s *Settings) Clone() *Settings {
	c := *s
	for _, list := range []*[]string{
		&c.ExtraPlatforms, &c.SystemFeatures, &c.SandboxPaths, &c.ExperimentalOptions, &c.HashedMirrors, &c.Substituters, &c.TrustedSubstituters,
		&c.TrustedPublicKeys, &c.TrustedUsers, &c.AllowedUsers, &c.SecretKeyFiles,
	} {
		*list = slices.Clone(*list)
	}
	c.ImpureEnv = maps.Clone(s.ImpureEnv)
	return &c
}

// Set sets a setting by name. An unknown name is ErrUnknown.
func (s *Settings) Set(name, text string) error {
	setting, extra := Find(name)
	if setting == nil {
		return fmt.Errorf("%w '%s'", ErrUnknown, name)
	}
	if err := assign(setting.value(s), text, extra); err != nil {
		return fmt.Errorf("setting '%s': %w", name, err)
	}
	return nil
}

// Override sets what a client asks for. Warning is not empty when it was ignored, wholly or in part, and the client should know.
func (s *Settings) Override(name, text string, trusted bool) (warning string) {
	setting, extra := Find(name)
	switch {
	case setting == nil && slices.Contains(harmless, name):
		return ""
	case setting == nil && trusted:
		return ignored(name, text)
	case setting == nil:
		return restricted(name)
	case setting.Rights == Daemon && setting.Text(s) == text: // the client reads the same file
		return ""
	case setting.Rights == Daemon && trusted:
		return fmt.Sprintf("ignoring the setting '%s', which is the daemon's own; set it in nix.conf", name)
	case setting.Rights == Anyone || trusted:
	case setting.Name == "builders" && strings.TrimSpace(text) == "":
	case setting.Name == "substituters":
		return s.restrict(text, extra)
	default:
		return restricted(name)
	}
	if err := assign(setting.value(s), text, extra); err != nil {
		return fmt.Sprintf("ignoring the setting '%s': %v", name, err)
	}
	return ""
}

// harmless are settings that mean nothing here and that Nix takes from everybody.
var harmless = []string{"poll-interval", "build-poll-interval", "build-repeat", "repeat", "show-trace", "experimental-features", "plugin-files", "ssh-auth-sock"}

func restricted(name string) string {
	return fmt.Sprintf("ignoring the client-specified setting '%s', because it is a restricted setting and you are not a trusted user", name)
}

// ignored says what becomes of a setting that this daemon does not have.
func ignored(name, text string) string {
	switch sandbox := name == "sandbox" || name == "build-use-sandbox"; {
	case sandbox && text != "true":
		return fmt.Sprintf("ignoring '%s = %s': builds are always in a sandbox here", name, text)
	case isForeign(name):
		return ""
	}
	return fmt.Sprintf("ignoring the setting '%s', which this daemon does not know", name)
}

// restrict sets the substituters of a client that is not trusted.
func (s *Settings) restrict(text string, extra bool) (warning string) {
	may := append(slices.Clone(s.Substituters), s.TrustedSubstituters...)
	var good, bad []string
	if extra {
		good = slices.Clone(s.Substituters)
	}
	for _, uri := range strings.Fields(text) {
		same := func(u string) bool { return strings.TrimSuffix(u, "/") == strings.TrimSuffix(uri, "/") }
		switch {
		case !slices.ContainsFunc(may, same):
			bad = append(bad, uri)
		case !slices.ContainsFunc(good, same):
			good = append(good, uri)
		}
	}
	s.Substituters = good
	if len(bad) == 0 {
		return ""
	}
	return fmt.Sprintf("ignoring untrusted substituter '%s', you are not a trusted user; the daemon's trusted-substituters may list it", strings.Join(bad, "', '"))
}

// HasExperimental reports whether an experimental feature of Nix is asked for.
func (s *Settings) HasExperimental(name string) bool {
	return slices.Contains(s.ExperimentalOptions, name)
}
