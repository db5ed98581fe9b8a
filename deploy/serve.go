package deploy

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"

	"cairn/services/activate"
	"cairn/store/disk"
)

// installed is where `init --daemon` puts the program.
const installed = binaryDir + "/cairn"

// Main is the command that the coordinator runs on machines:
//
//	serve [--from SSH_CONNECTION]        the agent, on standard input and output
//	serve activate [--socket PATH]       what the agent has the program of a system do
func Main(ctx context.Context, args []string, in io.Reader, out io.Writer, getenv func(string) string) error {
	if len(args) > 0 && args[0] == "activate" {
		return mainActivation(ctx, args[1:], in, out)
	}
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	from := flags.String("from", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return errors.Join(errors.New("serve is for cairn deploy to run; it takes no arguments"), err)
	}
	layout, err := disk.NewLayout("", getenv)
	if err != nil {
		return err
	}
	session := activate.CurrentSession(getenv)
	session.SSH = session.SSH || *from != ""
	return Serve(ctx, in, out, Agent{Layout: layout, Program: ownProgram(), Session: session})
}

// ownProgram is where the watchdog finds the program, also after a reboot.
func ownProgram() string {
	if _, err := os.Stat(installed); err == nil {
		return installed
	}
	exe, err := os.Executable()
	if err != nil {
		return installed
	}
	return exe
}

func mainActivation(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("serve activate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return errors.Join(errors.New("serve activate is for cairn's agent to run"), err)
	}
	if *socket == "" {
		return runActivation(ctx, readWriter{in, out})
	}
	conn, err := net.Dial("unix", *socket)
	if err != nil {
		return fmt.Errorf("activate: call the agent: %w", err)
	}
	defer conn.Close()
	return runActivation(ctx, conn)
}

type readWriter struct {
	io.Reader
	io.Writer
}
