package system

// Spec is a folded service graph: everything a system is made of, as plain values.
// Before the build its strings may contain placeholders of outputs that are not built yet;
// in the manifest of a built system they are real paths.
type Spec struct {
	HostName   string            `json:"hostName,omitempty"`
	Timezone   string            `json:"timezone,omitempty"` // a name below /usr/share/zoneinfo
	Etc        []EtcFile         `json:"etc,omitempty"`
	Units      []Unit            `json:"units,omitempty"`
	Users      []User            `json:"users,omitempty"`
	Groups     []Group           `json:"groups,omitempty"`
	Tmpfiles   []string          `json:"tmpfiles,omitempty"`  // tmpfiles.d lines
	Packages   []string          `json:"packages,omitempty"`  // store paths whose union is the profile
	Checks     []Check           `json:"checks,omitempty"`    // run on the target before anything changes
	Health     []Health          `json:"health,omitempty"`    // must pass before a switch counts
	Ports      []Port            `json:"ports,omitempty"`     // what the units listen on
	HostPaths  []string          `json:"hostPaths,omitempty"` // programs of the host that are used
	Provenance map[string]string `json:"provenance,omitempty"`
}

// EtcFile is a file or directory below /etc.
type EtcFile struct {
	Path    string `json:"path"`              // relative to /etc
	Source  string `json:"source"`            // store path or placeholder, or something below one
	Mode    string `json:"mode,omitempty"`    // empty: a symlink; octal: a copy
	User    string `json:"user,omitempty"`    // of a copy; default root
	Group   string `json:"group,omitempty"`   // of a copy; default root
	Replace bool   `json:"replace,omitempty"` // may take the place of a file that is not ours
}

// Unit is a systemd unit file and what a switch does with the unit.
type Unit struct {
	Name            string   `json:"name"`
	Text            string   `json:"text"` // the complete unit file
	WantedBy        []string `json:"wantedBy,omitempty"`
	RequiredBy      []string `json:"requiredBy,omitempty"`
	OnChange        string   `json:"onChange,omitempty"`        // "restart" (default), "reload", "keep"
	ReloadTriggers  []string `json:"reloadTriggers,omitempty"`  // a change of these only reloads
	RestartTriggers []string `json:"restartTriggers,omitempty"` // a change of these restarts
	Start           bool     `json:"start"`                     // start at a switch; absent in JSON means true
	Replace         bool     `json:"replace,omitempty"`         // may override a unit of the host
	Protected       bool     `json:"protected,omitempty"`       // the way in depends on it
}

// User is an account.
type User struct {
	Name           string   `json:"name"`
	Comment        string   `json:"comment,omitempty"`
	Home           string   `json:"home,omitempty"`
	Shell          string   `json:"shell,omitempty"`
	UID            *int     `json:"uid,omitempty"`
	System         bool     `json:"system,omitempty"`
	Group          string   `json:"group,omitempty"`  // primary; default: a group called as the user
	Groups         []string `json:"groups,omitempty"` // supplementary
	CreateHome     bool     `json:"createHome,omitempty"`
	AuthorizedKeys []string `json:"authorizedKeys,omitempty"` // store paths; they become /etc/ssh/authorized_keys.d/NAME
}

// Group is a group of accounts.
type Group struct {
	Name   string `json:"name"`
	GID    *int   `json:"gid,omitempty"`
	System bool   `json:"system,omitempty"`
}

// Check is a program that must exit with 0 on the target before anything changes.
type Check struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
}

// Health is a question that must be answered well after the units have started.
type Health struct {
	Name           string   `json:"name"`
	Unit           string   `json:"unit,omitempty"`
	Kind           string   `json:"kind"`                     // "unit", "tcp", "command", "http"
	Port           int      `json:"port,omitempty"`           // tcp
	Host           string   `json:"host,omitempty"`           // tcp; default 127.0.0.1
	URL            string   `json:"url,omitempty"`            // http; any status below 400 is well
	Argv           []string `json:"argv,omitempty"`           // command; exit status 0 is well
	TimeoutSeconds int      `json:"timeoutSeconds,omitempty"` // tries go on so long; default 10
	SettleSeconds  int      `json:"settleSeconds,omitempty"`  // how long a unit must stay well; default 2
}

// Port is what a unit listens on.
type Port struct {
	Number   int    `json:"number"`
	Protocol string `json:"protocol,omitempty"` // "tcp" (default), "udp"
	Unit     string `json:"unit,omitempty"`
	Address  string `json:"address,omitempty"` // default: all
}
