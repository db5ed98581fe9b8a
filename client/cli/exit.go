package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes. 100 to 104 are those of nix-build.
const (
	exitOK               = 0
	exitError            = 1   // anything that has no row of its own
	exitUsage            = 2   // unknown command or flag, wrong arguments
	exitBuildFailed      = 100 // a builder failed
	exitTimeout          = 101 // a builder took or was silent for too long
	exitHashMismatch     = 102 // a fixed output or a download has another hash
	exitNotDeterministic = 104 // a second build differs
	exitInterrupted      = 130 // interrupt, as a shell says it
)

// exitTable maps errors to codes; the first row that matches counts.
var exitTable = []struct {
	code int
	is   func(error) bool
}{
	{exitUsage, as[*usageError]},
	{exitInterrupted, is(errInterrupted)},
	{exitInterrupted, is(context.Canceled)},
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

// usageError is a wrong command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usage marks err as a wrong command line of cmd.
func usage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return hinted(&usageError{err}, "see '%s --help'", cmd.CommandPath())
}

// hintError carries the next step for the person who reads the error.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// hinted adds a next step to err.
func hinted(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// hints lists the next steps along the chain of err, the outermost last.
func hints(err error) []string {
	var all []string
	for err != nil {
		if h, ok := err.(*hintError); ok {
			all = append([]string{h.hint}, all...)
		}
		err = errors.Unwrap(err)
	}
	return all
}
