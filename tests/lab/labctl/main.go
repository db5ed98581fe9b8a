// Command labctl runs a lab of real Debian hosts for people and for the demo; see package lab.
//
//	labctl [-name NAME] [-suite SUITE] [-kernel] up N
//	                                            start N hosts h1…hN and wait until they answer;
//	                                            with -kernel each has a kernel of its own
//	labctl run HOST COMMAND…                    run a command on a host
//	labctl put HOST FILE PATH                   copy a file to a host
//	labctl cut HOST | heal HOST                 take the host off the network, and back
//	labctl kill HOST | boot HOST                power cut; start again
//	labctl exec COMMAND…                        run a command here, in the lab's network, with CAIRN_SSH set
//	labctl info                                 hosts, addresses, host keys, identity as JSON
//	labctl down                                 remove everything
//	labctl base                                 only make the base system
//	labctl kernel                               only make the kernel of hosts that have one of their own
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"

	"cairn/tests/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := control(ctx)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "labctl:", err)
		os.Exit(1)
	}
}

// verbs: name, number of arguments at least, action.
var verbs = []struct {
	name string
	args int
	do   func(ctx context.Context, l *lab.Lab, args []string) error
}{
	{"run", 2, func(ctx context.Context, l *lab.Lab, args []string) error {
		h, err := host(l, args[0])
		if err != nil {
			return err
		}
		out, err := h.RunInput(ctx, os.Stdin, args[1:]...)
		os.Stdout.WriteString(out)
		return err
	}},
	{"put", 3, put},
	{"cut", 1, onHost(func(_ context.Context, h *lab.Host) error { return h.Cut() })},
	{"heal", 1, onHost(func(_ context.Context, h *lab.Host) error { return h.Heal() })},
	{"kill", 1, onHost(func(_ context.Context, h *lab.Host) error { return h.Kill() })},
	{"boot", 1, onHost(func(ctx context.Context, h *lab.Host) error { return h.Boot(ctx) })},
	{"exec", 1, func(ctx context.Context, l *lab.Lab, args []string) error {
		cmd := l.Command(ctx, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), "CAIRN_SSH="+l.SSH())
		return cmd.Run()
	}},
	{"info", 0, info},
	{"down", 0, func(_ context.Context, l *lab.Lab, _ []string) error { return l.Close() }},
}

func control(ctx context.Context) error {
	name := flag.String("name", "demo", "name of the lab")
	suite := flag.String("suite", "", "Debian release of the hosts (default trixie)")
	kernel := flag.Bool("kernel", false, "hosts have a kernel of their own")
	flag.Parse()
	verb, args := flag.Arg(0), []string(nil)
	if flag.NArg() > 1 {
		args = flag.Args()[1:]
	}
	switch {
	case verb == "up" && len(args) == 1:
		return up(ctx, args[0], &lab.Options{Name: *name, Suite: *suite, Kernel: *kernel, Detached: true, Log: os.Stderr})
	case verb == "base":
		dir, err := lab.Base(ctx, *suite, os.Stderr)
		fmt.Println(dir)
		return err
	case verb == "kernel":
		file, err := lab.Kernel(ctx, true, os.Stderr)
		fmt.Println(file)
		return err
	}
	for _, v := range verbs {
		if v.name != verb || len(args) < v.args {
			continue
		}
		l, err := lab.Open(*name)
		if err != nil {
			return err
		}
		return v.do(ctx, l, args)
	}
	return errors.New("usage: labctl [-name NAME] [-suite SUITE] [-kernel] up N | run HOST COMMAND… | put HOST FILE PATH | cut|heal|kill|boot HOST | exec COMMAND… | info | down | base | kernel")
}

func up(ctx context.Context, count string, opts *lab.Options) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return fmt.Errorf("number of hosts: %w", err)
	}
	l, err := lab.Start(ctx, n, opts)
	if err != nil {
		return err
	}
	for _, h := range l.Hosts {
		fmt.Println(h.Name, h.Addr())
	}
	return nil
}

func host(l *lab.Lab, name string) (*lab.Host, error) {
	if h := l.Host(name); h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("lab %s has no host %s", l.Name, name)
}

func onHost(do func(context.Context, *lab.Host) error) func(context.Context, *lab.Lab, []string) error {
	return func(ctx context.Context, l *lab.Lab, args []string) error {
		h, err := host(l, args[0])
		if err != nil {
			return err
		}
		return do(ctx, h)
	}
}

func put(ctx context.Context, l *lab.Lab, args []string) error {
	h, err := host(l, args[0])
	if err != nil {
		return err
	}
	f, err := os.Open(args[1])
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return h.Put(ctx, args[2], f, st.Mode())
}

func info(_ context.Context, l *lab.Lab, _ []string) error {
	type hostInfo struct {
		Name    string `json:"name"`
		Addr    string `json:"addr"`
		HostKey string `json:"host_key"`
		Up      bool   `json:"up"`
	}
	v := struct {
		Name     string     `json:"name"`
		Dir      string     `json:"dir"`
		Identity string     `json:"identity"`
		Config   string     `json:"ssh_config"`
		SSH      string     `json:"ssh"`
		Hosts    []hostInfo `json:"hosts"`
	}{l.Name, l.Dir(), l.Identity(), l.SSHConfigFile(), l.SSH(), nil}
	for _, h := range l.Hosts {
		key, err := h.HostKey()
		if err != nil {
			return err
		}
		v.Hosts = append(v.Hosts, hostInfo{h.Name, h.Addr(), key, h.Up()})
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
