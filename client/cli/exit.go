package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/derivation/eval"
	"cairn/services/activate"
	"cairn/store"
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
	{exitConfig, "the configuration file is wrong; the message has file, line and column"},
	{exitConflict, "a switch would touch what is not ours; nothing was changed"},
	{exitRolledBack, "a switch failed and everything is as it was"},
	{exitMachines, "not all machines are where they should be; the summary says which"},
	{exitUnauthorized, "a signer or a caller lacks the right; nothing was changed"},
	{exitNoDaemon, "no daemon answers"},
	{exitBuildFailed, "a builder failed"},
	{exitTimeout, "a builder took, or was silent for, too long"},
	{exitHashMismatch, "a fixed output, a download or an archive has another hash"},
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
	{exitConflict, as[*activate.Refused]},
	{exitRolledBack, as[*activate.Undone]},
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
	for _, hint := range hints(err) {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
	return exitCode(err)
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

// hints lists the next steps along the chain of err, the outermost last.
// Packages below give theirs by a method Hint.
func hints(err error) []string {
	var all []string
	for err != nil {
		if h, ok := err.(interface{ Hint() string }); ok && h.Hint() != "" {
			all = append([]string{h.Hint()}, all...)
		}
		err = errors.Unwrap(err)
	}
	return all
}
