// Package deploy brings other machines to their systems, over ssh.
//
// # What happens on one machine
//
//	connect       the user's own ssh; the host's key is checked first (package deploy/ssh)
//	agent         start `cairn serve` there as root, by sudo -n if need be; without the same binary there: bring it,
//	              and have it set up directories, keys and the daemon
//	lease         nobody else deploys to the machine meanwhile
//	facts         what it is, which system and generation it has, whether its daemon answers
//	authorize     the machine's ACL names our daemon's key; an archive signed by it is accepted from then on
//	ship          one question for the closure, signed bundles of what is missing, mostly one (package archive/ship)
//	plan          preflight on the machine: every conflict, before any change
//	switch        by the `activate` program of the new system, in a unit of its own, so that it goes on
//	              whatever becomes of the connection; its watchdog is armed
//	confirm       over a new connection: one that the new configuration let in
//
// A switch that fails is undone there by the engine of package services/activate; one that nobody confirms, because no new
// connection comes about, by the watchdog. Either way no machine stays half done and no other machine is touched by it.
// What became of a switch is read from the machine's journal, never from an exit status.
//
// Everything between the coordinator and the agent is in message.go. The agent trusts who talks to it: that is root's
// standard input. Bundles it hands to the daemon, whose ACL decides.
//
// # Results
//
//	deployed      the machine runs the new system, confirmed
//	unchanged     it did already; nothing was sent and nothing restarted
//	planned       dry run
//	refused       conflicts; nothing was changed
//	rolled back   the switch failed or cut the connection; the old system runs again
//	failed        before the switch; the old system runs
//	unreachable   no connection
//	unknown       the switch began and the machine cannot be asked; it rolls back by itself when the time is over
//	skipped       a machine of an earlier batch failed
//
// # Goroutines
//
// Run starts one per machine, at most Options.Parallel at a time, and waits for all. Machines share nothing but the
// observer, which must be safe for concurrent use.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/archive"
	"cairn/client"
	"cairn/deploy/ssh"
	"cairn/services/activate"
	"cairn/store"
)

// Machine is a system and where to bring it.
type Machine struct {
	Name        string
	Environment Environment
	System      store.Path // built, and valid in the local store
}

// Environment is how a machine comes to be and how it is reached.
type Environment interface {
	// Provision makes the machine unless it is there already.
	Provision(ctx context.Context) error
	// Dial connects to it.
	Dial(ctx context.Context, opts *ssh.Options) (*ssh.Conn, error)
	// Destroy removes what Provision made.
	Destroy(ctx context.Context) error
	String() string
}

// ManagedHost is a machine that exists and is reached by ssh.
type ManagedHost ssh.Target

// Provision has nothing to do: the host exists.
func (ManagedHost) Provision(context.Context) error { return nil }

// Dial connects.
func (h ManagedHost) Dial(ctx context.Context, opts *ssh.Options) (*ssh.Conn, error) {
	return ssh.Dial(ctx, ssh.Target(h), opts)
}

// Destroy refuses: we did not make the host.
func (h ManagedHost) Destroy(context.Context) error {
	return fmt.Errorf("destroy %s: it was not made by deploy", h)
}

func (h ManagedHost) String() string { return ssh.Target(h).String() }

// Local is the coordinator's side.
type Local struct {
	// Dial connects to the local daemon, which signs what is shipped. Each machine gets its own connection.
	Dial func(ctx context.Context) (*client.Conn, error)
	// Key is the public half of the daemon's signing key.
	Key archive.PublicKey
	// Binary is the program that machines get; default: this one.
	Binary string
}

// Options change how Run goes about. The zero value is good.
type Options struct {
	SSH           ssh.Options
	Parallel      int           // machines at a time; default 8
	Batch         int           // machines that must succeed before the next ones begin; default: all are one batch
	ConfirmWithin time.Duration // a machine undoes a switch that was not confirmed for so long; default 60 s
	DryRun        bool          // show what would happen; no machine is changed
	Owner         string        // who the lease says has it; default user@host
}

func (o *Options) withDefaults() Options {
	v := Options{}
	if o != nil {
		v = *o
	}
	if v.Parallel < 1 {
		v.Parallel = 8
	}
	if v.ConfirmWithin <= 0 {
		v.ConfirmWithin = time.Minute
	}
	if v.Owner == "" {
		v.Owner = whoAmI()
	}
	return v
}

// Status is where a machine ended up.
type Status string

// The statuses; see the package comment.
const (
	Deployed    Status = "deployed"
	Unchanged   Status = "unchanged"
	Planned     Status = "planned"
	Refused     Status = "refused"
	RolledBack  Status = "rolled back"
	Failed      Status = "failed"
	Unreachable Status = "unreachable"
	Unknown     Status = "unknown"
	Skipped     Status = "skipped"
)

// Result says what became of one machine.
type Result struct {
	Machine    string         `json:"machine"`
	Host       string         `json:"host"`
	Status     Status         `json:"status"`
	System     string         `json:"system"`
	Generation int            `json:"generation,omitempty"` // current when it was last seen
	Objects    int            `json:"objects"`              // sent
	Bytes      int64          `json:"bytes"`                // of them, as sent
	Seconds    float64        `json:"seconds"`
	Plan       *activate.Plan `json:"plan,omitempty"`
	Preview    *Preview       `json:"preview,omitempty"` // of a dry run
	Journal    string         `json:"journal,omitempty"` // of the switch, on the machine
	Error      string         `json:"error,omitempty"`

	Err error `json:"-"`
}

// OK reports whether the machine is where it should be.
func (r *Result) OK() bool {
	return r.Status == Deployed || r.Status == Unchanged || r.Status == Planned
}

// String is the summary's line of a machine.
func (r *Result) String() string {
	s := fmt.Sprintf("%s: %s", r.Machine, r.Status)
	if r.Generation > 0 {
		s += fmt.Sprintf(", generation %d", r.Generation)
	}
	if r.Objects > 0 {
		s += fmt.Sprintf(", %d objects sent", r.Objects)
	}
	if r.Error != "" {
		s += ": " + r.Error
	}
	return s
}

// Event is progress of one machine.
type Event struct {
	Machine string
	Step    string // "connect", "agent", "lease", "authorize", "ship", "plan", "switch", "confirm", "done"
	Text    string // for people
	Bytes   int64  // of "ship": sent so far
}

// Observer is told what happens. It is called from several goroutines.
type Observer func(Event)

// Errors that callers test for with errors.Is; those of a connection are in package ssh.
var (
	ErrSudoPassword = errors.New("sudo wants a password")
	ErrSudoRefused  = errors.New("sudo refuses")
	ErrLeased       = errors.New("another deploy has the machine")
	ErrNoDaemon     = errors.New("the machine's daemon does not answer")
	ErrArchitecture = errors.New("the machine has another architecture")
)

// hintError carries a next step; see Hint.
type hintError struct {
	error
	next string
}

func (e *hintError) Unwrap() error { return e.error }

// Hint is the next step for the person who reads the error.
func (e *hintError) Hint() string { return e.next }

func hinted(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}
