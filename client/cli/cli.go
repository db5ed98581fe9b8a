// Package cli is the command line: a tree of commands, one file per noun, and the table that
// turns errors into exit codes (exit.go).
//
// A command is three short things: newXCmd declares it, xOptions holds its flags, runX works.
// It sees the world only through [Env], so that a test runs any command in process.
//
// Rules of the surface:
//
//   - What a person or a program asked for goes to standard output, all else to standard error.
//   - Every listing has --json; its field names are stable.
//   - An error is one line "error: …", a "hint: …" line follows where there is a next step.
//   - Progress is drawn on a terminal and is plain lines elsewhere; escape sequences of build
//     logs never reach the terminal.
//   - Commands decide nothing: they parse, call an engine or the daemon, and print.
//
// A command that needs the store asks the daemon at the socket. With --root R (or Nix's
// environment variables for a store elsewhere) and no daemon there, it runs one inside itself
// for its own duration, so that a store in a home directory needs neither root nor a service.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Version is stamped by the linker.
var Version = "unknown"

// Env is the world as a command sees it.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Dir            string // working directory; relative file names start here
	Root           string // --root: everything below this directory
}

// Main runs the command line of this process, the program's name first, and returns its exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	return RunAs(ctx, &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Dir: dir}, args[0], args[1:])
}

// Run runs one command and returns the exit code.
func Run(ctx context.Context, env *Env, args []string) int {
	root := newRootCmd(env)
	started := false
	eachCommand(root, func(cmd *cobra.Command) {
		if run := cmd.RunE; run != nil {
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				started = true // what fails before is the command line's fault
				return run(cmd, args)
			}
		}
	})
	root.SetArgs(append([]string{}, args...)) // never nil, which means os.Args
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && context.Cause(ctx) != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	if !started && err != nil {
		err = &usageError{err}
	}
	if as[*usageError](err) {
		if !started && strings.HasPrefix(err.Error(), "unknown command") {
			err = fileHint(err, args)
		}
		err = hinted(err, "see '%s --help'", cmd.CommandPath())
	}
	return report(env.Stderr, err)
}

// fileHint is for those who give a file where a command should be.
func fileHint(err error, args []string) error {
	for _, a := range args {
		file, _ := fileName(a)
		if strings.HasPrefix(a, "-") || filepath.Ext(file) != ".star" {
			continue
		}
		return hinted(err, "say what to do with it: 'cairn eval %s', 'cairn system reconfigure %s', 'cairn deploy %s'", a, a, a)
	}
	return err
}

func newRootCmd(env *Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "cairn",
		Short: "Keep machines in a declared state",
		Long: `cairn keeps machines in a declared state.

You describe services and whole systems in a file; a daemon builds them into a
hash-addressed store; a switch of one symlink makes them live; a roll-back is
another switch; a signed archive carries them to other machines.`,
		Example: `  cairn system reconfigure web.star
  cairn deploy machines.star`,
		Version:           Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.PersistentFlags().StringVar(&env.Root, "root", env.Root, "work on the store and the state below `DIR` instead of this machine's")
	root.AddGroup(
		&cobra.Group{ID: "machines", Title: "Machines:"},
		&cobra.Group{ID: "store", Title: "Store:"},
		&cobra.Group{ID: "service", Title: "Service:"},
	)
	root.AddCommand(commands(env)...)
	root.SetHelpCommandGroupID("service")
	root.SetCompletionCommandGroupID("service")
	eachCommand(root, func(cmd *cobra.Command) {
		if cmd.HasSubCommands() && !cmd.Runnable() {
			cmd.RunE = runGroup
		}
	})
	return root
}

// eachCommand calls fn for a command and all below it.
func eachCommand(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, sub := range cmd.Commands() {
		eachCommand(sub, fn)
	}
}

// runGroup runs a command that only holds others.
func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	err := fmt.Errorf("unknown command %q of %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = hinted(err, "did you mean %q?", cmd.CommandPath()+" "+near[0])
	}
	return &usageError{err}
}

// path makes a file name of the command line absolute.
func (e *Env) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(e.Dir, name)
}
