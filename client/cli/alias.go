package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/archive"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store/disk"
)

// Nix's clients start Nix's programs on other machines: "nix-daemon --stdio" for ssh-ng://, "nix-store --serve" for ssh://.
// Under these names, by a link, this program does what those would, with Nix's options and Nix's places:
//
//	NIX_STORE_DIR /nix/store   NIX_STATE_DIR /nix/var/nix   NIX_LOG_DIR /nix/var/log/nix   NIX_CONF_DIR /etc/nix
//
// unless the environment says others; where nothing is at Nix's places and something at ours, ours.

// RunAs runs one command under the name that the program was started with, and returns the exit code.
func RunAs(ctx context.Context, env *Env, name string, args []string) int {
	var run func(context.Context, *Env, *nixOptions) error
	name = filepath.Base(name)
	switch name {
	case "nix-daemon":
		run = runNixDaemon
	case "nix-store":
		run = runNixStore
	default:
		return Run(ctx, env, args)
	}
	o, err := parseNixOptions(name, args)
	if err == nil {
		if err = env.chooseStore(cmp.Or(o.store, env.Getenv("NIX_REMOTE"))); err == nil {
			env.Getenv = nixPlaces(env.Getenv, env.Root)
		}
	}
	if err == nil {
		err = run(ctx, env, o)
	}
	if err != nil && context.Cause(ctx) != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	return report(env.Stderr, err)
}

// nixPlaces adds Nix's defaults to an environment, for a store below root.
func nixPlaces(getenv func(string) string, root string) func(string) string {
	places := map[string]string{
		"NIX_STORE_DIR": "/nix/store", "NIX_STATE_DIR": "/nix/var/nix", "NIX_LOG_DIR": "/nix/var/log/nix", "NIX_CONF_DIR": "/etc/nix",
	}
	if getenv("NIX_STORE_DIR")+getenv("NIX_STATE_DIR") == "" && !exists(root+"/nix/var/nix") && exists(root+"/cairn/var") {
		places = nil
	}
	if state := getenv("NIX_STATE_DIR"); state != "" && places != nil {
		places["NIX_LOG_DIR"] = filepath.Join(state, "log")
	}
	return func(name string) string { return cmp.Or(getenv(name), places[name]) }
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// chooseStore makes the store that a URI of Nix names the one of this command.
//
//	"" auto daemon local      this machine's       unix:///SOCKET    the daemon's at SOCKET
//	/R  local?root=/R         the one below /R
func (e *Env) chooseStore(uri string) error {
	scheme, query, _ := strings.Cut(uri, "?")
	getenv := e.Getenv
	switch socket, isSocket := strings.CutPrefix(scheme, "unix://"); {
	case isSocket && filepath.IsAbs(socket):
		e.Getenv = func(name string) string {
			if name == "NIX_DAEMON_SOCKET_PATH" {
				return socket
			}
			return getenv(name)
		}
	case filepath.IsAbs(uri):
		e.Root = uri
	case scheme == "", scheme == "auto", scheme == "daemon", scheme == "local", isSocket && socket == "":
		if root, ok := strings.CutPrefix(query, "root="); ok && filepath.IsAbs(root) && !strings.Contains(root, "&") {
			e.Root = root
		} else if query != "" {
			return fmt.Errorf("store %q: of its parameters only root=DIR is understood", uri)
		}
	default:
		return hinted(fmt.Errorf("store %q is not one of this machine", uri), "daemon, unix:///SOCKET, local?root=DIR and DIR are understood")
	}
	return nil
}

// nixOptions are what Nix's programs take.
type nixOptions struct {
	engineOptions
	program                      string
	daemon, stdio, version       bool
	serve, write                 bool
	forceTrusted, forceUntrusted bool
	store                        string
	other                        string // the first thing that is none of these
}

// parseNixOptions understands the options of nix-daemon and nix-store --serve, and those that all of Nix's programs have.
func parseNixOptions(program string, args []string) (*nixOptions, error) {
	o := &nixOptions{program: program}
	flags := map[string]*bool{
		"--daemon": &o.daemon, "--stdio": &o.stdio, "--version": &o.version, "--serve": &o.serve, "--write": &o.write,
		"--force-trusted": &o.forceTrusted, "--force-untrusted": &o.forceUntrusted,
	}
	ignored := []string{"-v", "-vv", "-vvv", "--verbose", "--quiet", "--debug", "--default-trust", "-Q", "--no-build-output", "--print-build-logs", "-L"}
	next := func() (string, error) {
		if len(args) == 0 {
			return "", errors.New("an argument is missing at the end of the command line")
		}
		a := args[0]
		args = args[1:]
		return a, nil
	}
	for len(args) > 0 {
		a, _ := next()
		var err error
		switch name := strings.TrimLeft(a, "-"); {
		case flags[a] != nil:
			*flags[a] = true
		case slices.Contains(ignored, a):
		case a == "--store":
			o.store, err = next()
		case a == "--log-format":
			_, err = next()
		case a == "--option":
			var n, v string
			if n, err = next(); err == nil {
				v, err = next()
			}
			o.setOption(n + "=" + v)
		case a == "-j", strings.HasPrefix(a, "--") && isSetting(name):
			var v string
			v, err = settingValue(name, next)
			o.setOption(cmp.Or(map[string]string{"j": "max-jobs"}[name], strings.TrimPrefix(name, "no-")) + "=" + v)
		case o.other == "":
			o.other = a
		}
		if err != nil {
			return nil, &usageError{fmt.Errorf("%s %s: %w", program, a, err)}
		}
	}
	return o, nil
}

func isSetting(name string) bool {
	s, _ := settings.Find(strings.TrimPrefix(name, "no-"))
	return s != nil
}

// settingValue is that of an option with a setting's name: booleans take none.
func settingValue(name string, next func() (string, error)) (string, error) {
	if _, off := strings.CutPrefix(name, "no-"); off {
		return "false", nil
	}
	if s, _ := settings.Find(name); s != nil && (s.Default == "true" || s.Default == "false") {
		return "true", nil
	}
	return next()
}

// runNixDaemon is nix-daemon.
func runNixDaemon(ctx context.Context, env *Env, o *nixOptions) error {
	switch {
	case o.version:
		return o.printVersion(env)
	case o.other != "":
		return &usageError{hinted(fmt.Errorf("nix-daemon: unrecognised option '%s'", o.other), "this is cairn; 'cairn daemon --help' lists what its daemon can do")}
	case o.forceTrusted && o.forceUntrusted:
		return &usageError{errors.New("nix-daemon: --force-trusted and --force-untrusted exclude each other")}
	}
	d := &daemonOptions{engineOptions: o.engineOptions, stdio: o.stdio}
	if o.forceTrusted {
		d.rights = archive.All
	}
	if o.forceUntrusted {
		d.rights = archive.Ordinary
	}
	return runDaemon(ctx, env, d)
}

// printVersion says the version in Nix's form, which scripts look at.
func (o *nixOptions) printVersion(env *Env) error {
	layout, err := env.layout()
	if err != nil {
		return err
	}
	set, err := o.settings(layout, env.Getenv, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if set.VersionText != "" {
		env.printf("%s (Nix) %s\n", o.program, set.VersionText)
		return nil
	}
	env.printf("%s (cairn) %s\n", o.program, Version)
	return nil
}

// insteadOf says which of our commands does what an option of nix-store does.
var insteadOf = map[string]string{
	"--realise": "cairn build", "--realize": "cairn build", "-r": "cairn build",
	"--query": "cairn store query", "-q": "cairn store query", "-qR": "cairn store closure",
	"--add": "cairn store add", "--add-fixed": "cairn store add", "--dump": "cairn store dump", "--restore": "cairn archive --extract",
	"--gc": "cairn gc", "--delete": "cairn store delete", "--verify": "cairn store verify", "--verify-path": "cairn store verify",
	"--repair-path": "cairn store repair", "--optimise": "cairn store optimise", "--optimize": "cairn store optimise", "--dump-db": "cairn store dump-db",
	"--export": "cairn archive --export", "--import": "cairn archive --import", "--read-log": "cairn log", "-l": "cairn log",
	"--init": "cairn init", "--generate-binary-cache-key": "cairn archive --generate-key",
}

// runNixStore is the part of nix-store that other machines ask for.
func runNixStore(ctx context.Context, env *Env, o *nixOptions) error {
	switch {
	case o.version:
		return o.printVersion(env)
	case o.serve && o.other == "":
		return serveLegacy(ctx, env, &legacyOptions{write: o.write, engineOptions: o.engineOptions})
	}
	err := fmt.Errorf("nix-store %s: this is cairn under the name of nix-store, for --serve alone", o.other)
	if instead := insteadOf[o.other]; instead != "" {
		return &usageError{hinted(err, "use '%s', or Nix's own nix-store with NIX_REMOTE=daemon", instead)}
	}
	return &usageError{hinted(err, "'cairn --help' lists the commands; Nix's own nix-store works with NIX_REMOTE=daemon")}
}

// dialDaemon connects to the daemon of a layout. Unless most is none, the session may do no more than that.
func dialDaemon(ctx context.Context, layout disk.Layout, most archive.Verbs) (*net.UnixConn, error) {
	name, release, err := client.SocketName(layout.SocketPath)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return nil, err
	}
	if most != 0 && most != archive.All {
		if err := protocol.WriteLimit(c, most); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c.(*net.UnixConn), nil
}

// installNixNames makes links in a folder of PATH with which this program answers to Nix's names. Nix itself is not hidden.
func installNixNames(env *Env, dir, program string) error {
	for _, name := range []string{"nix-daemon", "nix-store"} {
		link := filepath.Join(dir, name)
		if to, err := os.Readlink(link); err == nil && to == program {
			continue
		}
		for _, d := range append(filepath.SplitList(env.Getenv("PATH")), dir) {
			if there := filepath.Join(d, name); exists(there) {
				return hinted(fmt.Errorf("make link %s: %s is there already", link, there), "where Nix is installed, its clients reach cairn with remote-program=%s", program)
			}
		}
		if err := os.Symlink(program, link); err != nil {
			return fmt.Errorf("make link: %w", err)
		}
		env.printf("link: %s\n", link)
	}
	return nil
}
