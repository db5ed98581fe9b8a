package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/derivation/eval"
	"cairn/services/activate"
	"cairn/store"
	"cairn/store/profile"
)

// Exit codes. 100 to 104 are those of nix-build.
const (
	exitOK               = 0
	exitError            = 1
	exitUsage            = 2
	exitConfig           = 3
	exitConflict         = 4
	exitRolledBack       = 5
	exitMachines         = 6
	exitUnauthorized     = 7
	exitNoDaemon         = 8
	exitBuildFailed      = 100
	exitTimeout          = 101
	exitHashMismatch     = 102
	exitNotDeterministic = 104
	exitInterrupted      = 130
)

// exitDocs says what each code means, for the reference.
var exitDocs = []struct {
	code int
	text string
}{
	{exitOK, "done"},
	{exitError, "anything that has no row of its own"},
	{exitUsage, "unknown command or flag, wrong arguments"},
	{exitConfig, "the configuration file is wrong or missing; the message has file, line and column"},
	{exitConflict, "a switch would touch what is not ours; nothing was changed"},
	{exitRolledBack, "a switch failed and everything is as it was"},
	{exitMachines, "not all machines are where they should be; the summary says which"},
	{exitUnauthorized, "a signer or a caller lacks the right; nothing was changed"},
	{exitNoDaemon, "no daemon answers"},
	{exitBuildFailed, "a builder failed"},
	{exitTimeout, "a builder took, or was silent for, too long"},
	{exitHashMismatch, "a fixed output, a download or an archive has another hash, or an archive is damaged"},
	{exitNotDeterministic, "a second build gave another result"},
	{exitInterrupted, "interrupted"},
}

// exitTable maps errors to codes; the first row that matches counts.
var exitTable = []struct {
	code int
	is   func(error) bool
}{
	{exitUsage, as[*usageError]},
	{exitInterrupted, is(errInterrupted)},
	{exitInterrupted, is(context.Canceled)},
	{exitConfig, as[*eval.Error]},
	{exitConfig, as[*configError]},
	{exitConfig, is(eval.ErrLimit)},
	{exitConflict, as[*activate.Refused]},
	{exitRolledBack, isUndone},
	{exitMachines, as[*machinesError]},
	{exitUnauthorized, is(protocol.ErrNotAllowed)},
	{exitUnauthorized, is(archive.ErrUnauthorized)},
	{exitNoDaemon, is(errNoDaemon)},
	{exitTimeout, is(statusError(protocol.TimedOut))},
	{exitNotDeterministic, is(statusError(protocol.NotDeterministic))},
	{exitHashMismatch, isHashMismatch},
	{exitHashMismatch, is(store.ErrHashMismatch)},
	{exitHashMismatch, is(archive.ErrCorrupt)},
	{exitBuildFailed, as[*buildError]},
}

var errInterrupted = errors.New("interrupted")

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// isUndone finds a switch after which everything is as it was.
func isUndone(err error) bool {
	u, ok := errors.AsType[*activate.Undone](err)
	return ok && len(u.Left) == 0
}

// exitCode finds the code of an error.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	for _, row := range exitTable {
		if row.is(err) {
			return row.code
		}
	}
	return exitError
}

// report prints an error with its hint and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(w, "error: %s\n", strings.TrimRight(stripEscapes(text), "\n"))
	}
	for _, hint := range nextSteps(err) {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
	return exitCode(err)
}

// hintTable has next steps for errors that several commands meet and that bring none.
var hintTable = []struct {
	is   func(error) bool
	hint string
}{
	{is(archive.ErrUnauthorized), "nothing was imported; when the key is the one you expect: cairn acl allow KEY-FILE (the sender's /etc/cairn/signing-key.pub)"},
	{is(protocol.ErrNotAllowed), "'cairn acl mine' says what you may do; root can add to it: cairn acl allow user:NAME VERB"},
	{is(client.ErrUnsupported), "the daemon is Nix's, or an older cairn: there 'cairn init --daemon' of this version puts itself in its place"},
	{is(archive.ErrCorrupt), "nothing of it was kept; make it again with 'cairn archive --export', or copy it again"},
	{is(cache.ErrReadOnly), "a web server has to take PUT; on the machine that holds its files, push to the folder: file:///FOLDER"},
	{isDatabaseLost, "nothing was changed; 'cairn store rebuild --dry-run' says what can be made again from the objects and the backups"},
	{isReadOnly, "nothing half done was kept; 'findmnt -T DIR' says how DIR is mounted, and 'dmesg' perhaps why: mount it writable and try again"},
	{isForbidden, "the daemon may not write there: look at owner, mode and attributes of the directory with ls -ld and lsattr -d"},
	{isDiskFull, "'cairn gc' deletes what nothing needs, 'cairn gc --dry-run' only lists it; nothing half done was kept"},
	{is(activate.ErrNoSystemd), "a switch needs a host whose first process is systemd; 'cairn system build' and 'cairn deploy' work without"},
	{is(profile.ErrNoGeneration), "'cairn system list-generations' lists what there is"},
}

// isDiskFull also understands an error that came from the daemon, which has no code for it.
func isDiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "no space left")
}

// isReadOnly understands an error of the daemon, too, as isDiskFull does.
func isReadOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || strings.Contains(err.Error(), "read-only file system")
}

// isForbidden finds what the operating system refuses to the daemon, which is not what the daemon refuses.
func isForbidden(err error) bool {
	daemons, ok := errors.AsType[*protocol.Error](err)
	return ok && (strings.HasSuffix(daemons.Text, ": permission denied") || strings.HasSuffix(daemons.Text, ": operation not permitted"))
}

// nextSteps are the hints of an error; never none where the table has one.
func nextSteps(err error) []string {
	steps := hints(err)
	if len(steps) > 0 {
		return steps
	}
	for _, row := range hintTable {
		if row.is(err) {
			return []string{row.hint}
		}
	}
	return nil
}

// usageError is a wrong command line; Run adds where to read on.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// hintError carries the next step for the person who reads the error.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// Hint is the next step.
func (e *hintError) Hint() string { return e.hint }

// hinted adds a next step to err.
func hinted(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// hints lists the next steps that err and what it wraps have, the outermost last.
// Packages below give theirs by a method Hint.
func hints(err error) []string {
	var all []string
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		all = hints(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, below := range e.Unwrap() {
			all = append(all, hints(below)...)
		}
	}
	if h, ok := err.(interface{ Hint() string }); ok && h.Hint() != "" && !slices.Contains(all, h.Hint()) {
		all = append(all, h.Hint())
	}
	return all
}
