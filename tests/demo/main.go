// Command demo shows cairn at work on two real hosts (package lab): it deploys examples/fleet to them, changes it,
// breaks it in two ways and watches what protects the hosts, looks at generations, rolls back, and collects garbage.
// Each step is a command that a person would type, what it printed, and a check that it did what it says.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"cairn/tests/lab"
)

func main() {
	binary := flag.String("cairn", "./cairn", "the program to show")
	examples := flag.String("examples", "examples", "the folder of the examples")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *binary, *examples); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, examples string) (err error) {
	if err := lab.Available(); err != nil {
		return err
	}
	started := time.Now()
	say("Two Debian hosts with systemd and sshd on a private network of their own. The base system is made once, which takes a minute or two.")
	l, err := lab.Start(ctx, 2, &lab.Options{Log: os.Stdout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	d, err := newDemo(ctx, l, binary, examples)
	if err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	d.note("up after %s: %s, %s", since(started), l.Hosts[0].Addr(), l.Hosts[1].Addr())
	for _, s := range []func() error{d.first, d.again, d.change, d.refused, d.cutOff, d.history, d.garbage} {
		if err := s(); err != nil {
			return err
		}
	}
	say("Done in %s. What happened:\n%s", since(started), strings.Join(d.summary, "\n"))
	return nil
}

// demo is the coordinator: a store in a directory, and the file that is deployed.
type demo struct {
	ctx     context.Context
	lab     *lab.Lab
	binary  string
	dir     string // of the coordinator's store
	fleet   string
	args    []string // of the file
	summary []string
}

func newDemo(ctx context.Context, l *lab.Lab, binary, examples string) (*demo, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(l.Identity() + ".pub")
	if err != nil {
		return nil, err
	}
	var hosts []string
	for _, h := range l.Hosts {
		hosts = append(hosts, h.Addr())
	}
	d := &demo{ctx: ctx, lab: l, binary: binary, dir: dir, fleet: filepath.Join(examples, "fleet", "fleet.star")}
	d.args = []string{"--arg", "hosts=" + strings.Join(hosts, ","), "--arg", "root_key=" + strings.TrimSpace(string(key)),
		"--arg", "alice_key=" + strings.TrimSpace(string(key))}
	_, err = d.cairn("init")
	return d, err
}

// first brings both hosts from nothing to a system.
func (d *demo) first() error {
	say("1. Deploy examples/fleet: users, sshd, nginx, rsync, a clock and timers. The hosts have no cairn yet.")
	began := time.Now()
	if _, err := d.deploy(); err != nil {
		return err
	}
	if err := d.pages("Hello"); err != nil {
		return err
	}
	out, err := d.lab.Hosts[0].Run(d.ctx, "rsync", "rsync://localhost/")
	if err != nil || !strings.Contains(out, "site") {
		return fmt.Errorf("rsync lists %q: %w", out, err)
	}
	d.done("first deploy of both hosts, cairn itself included: %s; nginx and rsync answer", since(began))
	return nil
}

// again shows that nothing happens when nothing changed.
func (d *demo) again() error {
	say("2. The same again: nothing is sent, nothing restarts.")
	began := time.Now()
	out, err := d.deploy()
	if err != nil {
		return err
	}
	if strings.Count(out, "unchanged") != len(d.lab.Hosts) {
		return fmt.Errorf("a second deploy was not without effect:\n%s", out)
	}
	d.done("second deploy: unchanged, %s", since(began))
	return nil
}

// change deploys another greeting and compares processes.
func (d *demo) change() error {
	say("3. Change the greeting. What depends on it changes; every other process stays.")
	before, err := d.pids()
	if err != nil {
		return err
	}
	if _, err := d.cairn(append([]string{"deploy", "--dry-run", "--machine", "web-1", d.fleet}, d.with("greeting=Good morning")...)...); err != nil {
		return err
	}
	began := time.Now()
	if _, err := d.deploy("greeting=Good morning"); err != nil {
		return err
	}
	took := since(began)
	if err := d.pages("Good morning"); err != nil {
		return err
	}
	after, err := d.pids()
	if err != nil {
		return err
	}
	if before["ssh"] != after["ssh"] {
		return fmt.Errorf("sshd was restarted without need: process %s, then %s", before["ssh"], after["ssh"])
	}
	d.note("main processes before: %v", before)
	d.note("main processes after:  %v", after)
	d.done("a change of the site: live after %s; sshd kept process %s", took, after["ssh"])
	return nil
}

// refused breaks nginx's configuration; its own checker says so before anything changes.
func (d *demo) refused() error {
	say("4. Break it: a directive that nginx does not know. Nothing must change.")
	out, err := d.deploy("greeting=Good morning", "nginx_extra=no_such_directive on;")
	if err == nil {
		return fmt.Errorf("a broken configuration was deployed:\n%s", out)
	}
	if err := d.pages("Good morning"); err != nil {
		return err
	}
	d.done("a broken nginx configuration: not deployed; both hosts still serve")
	return nil
}

// cutOff moves sshd to another port, so that nobody comes back to confirm.
func (d *demo) cutOff() error {
	say("5. Break it worse: move sshd to a port where this coordinator does not look. The switch itself succeeds, but nobody can come back to confirm it, and each host rolls itself back.")
	began := time.Now()
	out, err := d.deploy("greeting=Good morning", "ssh_port=2222", "confirm-within 20s")
	if err == nil {
		return fmt.Errorf("a deploy that locks us out was called a success:\n%s", out)
	}
	if err := d.await(90*time.Second, func() error { return d.pages("Good morning") }); err != nil {
		return fmt.Errorf("the hosts did not come back: %w", err)
	}
	out, err = d.deploy("greeting=Good morning")
	if err != nil || strings.Count(out, "unchanged") != len(d.lab.Hosts) {
		return fmt.Errorf("the hosts are not where they were: %w\n%s", err, out)
	}
	d.done("a switch that locked us out: undone by the hosts themselves, reachable again after %s", since(began))
	return nil
}

// history lists generations and rolls one host back.
func (d *demo) history() error {
	say("6. Generations, and a roll-back of web-1 alone.")
	if _, err := d.execute("list-generations"); err != nil {
		return err
	}
	if _, err := d.execute("roll-back", "--machine", "web-1"); err != nil {
		return err
	}
	if err := d.page(d.lab.Hosts[0], "Hello"); err != nil {
		return err
	}
	if err := d.page(d.lab.Hosts[1], "Good morning"); err != nil {
		return err
	}
	if _, err := d.deploy("greeting=Good morning"); err != nil {
		return err
	}
	d.done("web-1 rolled back to its first generation, and forward again by a deploy")
	return nil
}

// garbage forgets old generations and collects what only they kept.
func (d *demo) garbage() error {
	say("7. Forget all generations but the current one, and collect what only they kept.")
	if _, err := d.execute("delete-generations"); err != nil {
		return err
	}
	out, err := d.onMachines("cairn", "gc")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "/cairn/store/") {
		return fmt.Errorf("nothing was collected:\n%s", out)
	}
	if _, err := d.onMachines("cairn", "store", "verify", "--contents"); err != nil {
		return err
	}
	d.done("old generations collected; both stores verify; both hosts still serve")
	return d.pages("Good morning")
}

// with returns the file's arguments with further ones.
func (d *demo) with(args ...string) []string {
	all := append([]string(nil), d.args...)
	for _, a := range args {
		if flag, value, ok := strings.Cut(a, " "); ok && flag == "confirm-within" {
			all = append(all, "--"+flag, value)
			continue
		}
		all = append(all, "--arg", a)
	}
	return all
}

func (d *demo) deploy(args ...string) (string, error) {
	return d.cairn(append([]string{"deploy", d.fleet}, d.with(args...)...)...)
}

// execute runs "cairn system …" on the machines.
func (d *demo) execute(command string, flags ...string) (string, error) {
	args := append(append([]string{"deploy", "-x", d.fleet}, flags...), d.args...)
	return d.cairn(append(args, "--", "cairn", "system", command)...)
}

func (d *demo) onMachines(command ...string) (string, error) {
	args := append(append([]string{"deploy", "-x", d.fleet}, d.args...), "--")
	return d.cairn(append(args, command...)...)
}

// cairn runs a command in the lab's network and shows it without what is only for the lab.
func (d *demo) cairn(args ...string) (string, error) {
	fmt.Printf("\n  $ cairn %s\n", strings.Join(readable(args), " "))
	argv := []string{d.binary, args[0], "--root", filepath.Join(d.dir, "root")}
	if args[0] == "deploy" {
		argv = append(argv, "--ssh-config", d.lab.SSHConfigFile())
	}
	cmd := d.lab.Command(d.ctx, append(argv, args[1:]...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, &indented{w: os.Stdout}), &indented{w: os.Stdout}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		d.note("exit status %d", exit.ExitCode())
		err = fmt.Errorf("cairn %s: %w", args[0], err)
	}
	return out.String(), err
}

// readable leaves out keys and addresses.
func readable(args []string) []string {
	var words []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--arg" && i+1 < len(args) {
			if k, _, _ := strings.Cut(args[i+1], "="); k == "hosts" || k == "root_key" || k == "alice_key" {
				i++
				continue
			}
		}
		w := args[i]
		if strings.ContainsAny(w, " ;") {
			w = "'" + w + "'"
		}
		words = append(words, w)
	}
	return words
}

// pages checks what every host serves.
func (d *demo) pages(greeting string) error {
	for _, h := range d.lab.Hosts {
		if err := d.page(h, greeting); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) page(h *lab.Host, greeting string) error {
	web := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: d.lab.Dial, DisableKeepAlives: true}}
	url := "http://" + h.Addr() + "/"
	resp, err := web.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("fetch %s: %w", url, err)
	}
	if !strings.Contains(string(page), greeting+" from") {
		return fmt.Errorf("%s serves %q, want %q", url, page, greeting)
	}
	d.note("%s serves %q", url, greeting)
	return nil
}

// pids returns the main processes of services of the first host.
func (d *demo) pids() (map[string]string, error) {
	pids := map[string]string{}
	for _, u := range []string{"ssh", "nginx", "rsync"} {
		out, err := d.lab.Hosts[0].Run(d.ctx, "systemctl", "show", "-P", "MainPID", u+".service")
		if err != nil {
			return nil, err
		}
		pids[u] = strings.TrimSpace(out)
	}
	return pids, nil
}

// await repeats a check until it succeeds or the time is over.
func (d *demo) await(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) || d.ctx.Err() != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func (d *demo) done(format string, args ...any) {
	d.summary = append(d.summary, "  - "+fmt.Sprintf(format, args...))
}

func (d *demo) note(format string, args ...any) { fmt.Printf("  # "+format+"\n", args...) }

func say(format string, args ...any) { fmt.Printf("\n"+format+"\n", args...) }

func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Millisecond) }

// indented sets lines apart from what the demo says itself.
type indented struct {
	w      io.Writer
	inLine bool
}

func (i *indented) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		if !i.inLine {
			io.WriteString(i.w, "    ")
		}
		i.inLine = !bytes.HasSuffix(line, []byte("\n"))
		i.w.Write(line)
	}
	return len(b), nil
}
