package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/tests/lab"
)

// line is the real command line: the program as it is shipped, a store of its own, and hosts to deploy to.
type line struct {
	*lab.Lab
	t       *testing.T
	program string
	dir     string // of files; the store is in its folder root
}

func newLine(t *testing.T, hosts int) *line {
	t.Helper()
	l := &line{t: t, Lab: lab.New(t, hosts, nil), program: cairn(t), dir: t.TempDir()}
	l.run(0, "init")
	return l
}

// in is the same in a subtest.
func (l *line) in(t *testing.T) *line {
	d := *l
	d.t = t
	return &d
}

// said is what a command printed.
type said struct {
	t              *testing.T
	what           string
	stdout, stderr string
}

// run runs "cairn ARGS" in the lab's network and wants an exit status.
func (l *line) run(want int, args ...string) said {
	l.t.Helper()
	return l.watch(want, "", nil, args...)
}

// watch is run that calls do once a word was printed.
func (l *line) watch(want int, word string, do func(), args ...string) said {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 90*time.Second)
	defer cancel()
	cmd := l.command(ctx, args...)
	var stdout bytes.Buffer
	stderr := trigger{word: word, do: do}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	return l.exited(want, cmd.Run(), said{l.t, "cairn " + strings.Join(args, " "), stdout.String(), stderr.String()}, began)
}

// command is "cairn ARGS" in the lab's network.
func (l *line) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := []string{l.program, args[0], "--root", filepath.Join(l.dir, "root")}
	if args[0] == "deploy" {
		argv = append(argv, "--ssh-config", l.SSHConfigFile())
	}
	cmd := l.Command(ctx, append(argv, args[1:]...)...)
	cmd.Dir = l.dir
	return cmd
}

// on runs cairn on a host.
func (l *line) on(n, want int, args ...string) said {
	l.t.Helper()
	began := time.Now()
	cmd := exec.CommandContext(l.t.Context(), l.SSH(), append([]string{l.Hosts[n-1].Name, "/cairn/bin/cairn"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	return l.exited(want, err, said{l.t, l.Hosts[n-1].Name + ": cairn " + strings.Join(args, " "), stdout.String(), stderr.String()}, began)
}

func (l *line) exited(want int, err error, s said, began time.Time) said {
	l.t.Helper()
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		l.t.Fatal(err)
	}
	l.t.Logf("$ %s (%.1f s, exit status %d)\n%s%s", s.what, time.Since(began).Seconds(), got, s.stdout, s.stderr)
	if got != want {
		l.t.Fatalf("%s: exit status %d, want %d", s.what, got, want)
	}
	return s
}

// out and err want a regular expression in what was printed.
func (s said) out(expr string) said { return s.has(s.stdout, "standard output", expr) }
func (s said) err(expr string) said { return s.has(s.stderr, "standard error", expr) }

func (s said) has(text, where, expr string) said {
	s.t.Helper()
	if !regexp.MustCompile("(?m)" + expr).MatchString(text) {
		s.t.Errorf("%s: no %q in %s", s.what, expr, where)
	}
	return s
}

// trigger keeps what is written and calls do when a word was in it.
type trigger struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	word string
	do   func()
}

func (w *trigger) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if w.do != nil && bytes.Contains(w.buf.Bytes(), []byte(w.word)) {
		w.do()
		w.do = nil
	}
	return len(p), nil
}

func (w *trigger) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

const fleet = `load("@cairn//base.star", "base_services", "etc", "etc_file", "port", "ports", "unit", "units")

def _more():
    text = args.get("unit", "")
    if not text:
        return []
    more = [simple_service("more", units, [unit("more.service", text = "[Service]\n" + text + "\n")])]
    if args.get("port", ""):
        more.append(simple_service("its port", ports, [port(int(args.get("port", "")), unit = "more.service")]))
    return more

def _system(name):
    note = simple_service("note", etc, [etc_file("cairn-note", plain_file("note", args.get("note", "one") + "\n"))])
    return system(host_name = name, services = base_services + [note] + _more())

machines = [
    machine(name, system = _system(name), environment = managed_host(host = host, user = args.get("user", "root"), identity = IDENTITY, host_key = key))
    for name, host, key in [HOSTS]
]
first = machines[0].system
`

// fleet writes the file that is deployed, with the hosts' keys of now.
func (l *line) fleet() {
	l.t.Helper()
	var hosts strings.Builder
	for _, h := range l.Hosts {
		key, err := h.HostKey()
		if err != nil {
			l.t.Fatal(err)
		}
		fmt.Fprintf(&hosts, "(%q, %q, %q), ", h.Name, h.Addr(), key)
	}
	text := strings.NewReplacer("HOSTS", hosts.String(), "IDENTITY", fmt.Sprintf("%q", l.Identity())).Replace(fleet)
	if err := os.WriteFile(filepath.Join(l.dir, "fleet.star"), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// state is what of a host must be as before after a failure.
func (l *line) state(n int) string {
	l.t.Helper()
	out, err := l.Hosts[n-1].Enter(l.t.Context(), "sh", "-c", `cat /etc/cairn-note; readlink /cairn/var/profiles/system /run/current-system
ls -l /etc/systemd/system /etc/systemd/system/multi-user.target.wants | grep -e cairn/var/profiles -e more; systemctl is-active more.service; systemctl --failed --no-legend; hostname`)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// same wants a host's state to be what it was.
func (l *line) same(n int, before string) {
	l.t.Helper()
	if after := l.state(n); after != before {
		l.t.Errorf("h%d is not as before:\n%swas:\n%s", n, after, before)
	}
}

func (l *line) enter(n int, script string) {
	l.t.Helper()
	if _, err := l.Hosts[n-1].Enter(l.t.Context(), "sh", "-c", script); err != nil {
		l.t.Fatal(err)
	}
}

// TestCommandLine gives the real program bad input that only hosts can give. Each time the exit status is that of the table,
// what is printed names the machine, what is wrong and the next step, and the hosts are as before.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	l := newLine(t, 3)
	l.fleet()
	first := l.run(0, "deploy", "fleet.star")
	first.out(`^h1: deployed, generation 1`).out(`^h3: deployed`)
	one := []string{l.state(1), l.state(2), l.state(3)}
	if !strings.HasPrefix(one[0], "one\nsystem-1-link\n") {
		t.Fatalf("h1 is at %s", one[0])
	}
	for _, c := range []struct {
		name string
		run  func(*line, []string)
	}{
		{"target down", (*line).targetDown},
		{"host key changed", (*line).hostKeyChanged},
		{"sudo wants a password", (*line).sudoPassword},
		{"unit does not start", (*line).failingUnit},
		{"port in use", (*line).portInUse},
		{"connection cut", (*line).connectionCut},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			c.run(l, one)
			for n := range l.Hosts {
				l.same(n+1, one[n])
			}
		})
	}
	for begin := time.Now(); l.command(t.Context(), "deploy", "fleet.star").Run() != nil && time.Since(begin) < time.Minute; time.Sleep(time.Second) {
		// The deploy that was cut off has h3 until its lease ends.
	}
	l.run(0, "deploy", "fleet.star").out(`^h1: unchanged`).out(`^h2: unchanged`).out(`^h3: unchanged`)
}

func (l *line) targetDown(one []string) {
	if err := l.Hosts[1].Kill(); err != nil {
		l.t.Fatal(err)
	}
	l.run(6, "deploy", "fleet.star").
		out(`^h1: unchanged`).out(`^h2: unreachable.*connect to .*` + l.Hosts[1].Addr()).out(`^h3: unchanged`).
		err(`^hint: h2: .*is the host up`).err(`^error: 1 of 3 machines not where they should be`)
	if err := l.Hosts[1].Boot(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *line) hostKeyChanged([]string) {
	l.enter(2, "cp -a /etc/ssh /root/ssh && rm /etc/ssh/ssh_host_* && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && systemctl restart ssh")
	l.run(6, "deploy", "--machine", "h2", "--arg", "note=two", "fleet.star").
		out(`^h2: unreachable.*` + l.Hosts[1].Addr() + `.*host key changed.*SHA256:`).err(`^hint: h2: .*(ssh-keygen -R|host_key)`)
	l.run(6, "deploy", "-x", "--machine", "h2", "fleet.star", "--", "true").
		out(`^h2: .*host key changed`).err(`^hint: h2: `).err(`^error: 1 of 1 machine`)
	l.enter(2, "cp -a /root/ssh/. /etc/ssh/ && systemctl restart ssh")
}

func (l *line) sudoPassword([]string) {
	pub, err := os.ReadFile(l.Identity() + ".pub")
	if err != nil {
		l.t.Fatal(err)
	}
	l.enter(1, "useradd -m -s /bin/bash strict && mkdir -p /home/strict/.ssh && echo '"+strings.TrimSpace(string(pub))+
		"' > /home/strict/.ssh/authorized_keys && chown -R strict /home/strict/.ssh && echo 'strict ALL=(ALL) ALL' > /etc/sudoers.d/strict")
	l.run(6, "deploy", "--machine", "h1", "--arg", "user=strict", "--arg", "note=two", "fleet.star").
		out(`^h1: failed.*become root: sudo wants a password`).err(`^hint: h1: .*/etc/sudoers.d.*NOPASSWD`)
	l.enter(1, "userdel -r strict 2>/dev/null; rm /etc/sudoers.d/strict")
}

func (l *line) failingUnit(one []string) {
	args := []string{"--arg", "note=two", "--arg", "unit=Type=exec\nExecStart=/bin/sh -c 'echo cannot go on; exit 3'"}
	l.run(6, append([]string{"deploy", "--machine", "h1", "fleet.star"}, args...)...).
		out(`^h1: rolled back, generation 1.*more.service`).err(`^hint: h1: .*journalctl -u more.service`)
	l.same(1, one[0])
	// The same on the machine itself, with the system that is in its store now.
	sys := strings.TrimSpace(l.run(0, append([]string{"system", "build", "fleet.star:first"}, args...)...).stdout)
	l.on(1, 5, "system", "reconfigure", sys).
		err(`^error: .*was undone, the old state is back: .*more.service`).err(`^hint: .*journalctl -u more.service`)
}

func (l *line) portInUse([]string) {
	l.enter(1, "systemd-run -q --unit=squatter /usr/bin/rsync --daemon --no-detach --port=7777 --config=/dev/null && sleep 0.5")
	args := []string{"--arg", "note=two", "--arg", "unit=ExecStart=/bin/sleep 1000", "--arg", "port=7777"}
	l.run(6, append([]string{"deploy", "--machine", "h1", "fleet.star"}, args...)...).
		out(`^h1: refused, generation 1`).out(`7777/tcp.*squatter`).err(`^hint: h1: put it right on the machine or in the configuration`)
	sys := strings.TrimSpace(l.run(0, append([]string{"system", "build", "fleet.star:first"}, args...)...).stdout)
	l.on(1, 4, "system", "reconfigure", sys).
		err(`^error: 1 conflict, nothing was changed`).err(`7777/tcp.*wanted by more.service, is held by .*squatter`).err(`^hint: put it right on the machine or in the configuration`)
	l.on(1, 4, "system", "reconfigure", "--dry-run", sys).out(`7777`)
	l.enter(1, "systemctl stop squatter")
}

func (l *line) connectionCut(one []string) {
	h := l.Hosts[2]
	var healed sync.WaitGroup
	back := ""
	cut := func() {
		if err := h.Cut(); err != nil {
			l.t.Error(err)
		}
		healed.Go(func() { // past the network: the machine goes back alone
			for range 200 {
				time.Sleep(200 * time.Millisecond)
				out, err := h.Enter(l.t.Context(), "sh", "-c", "tail -qn 1 /cairn/var/journal/switch-*.jsonl")
				if err == nil && strings.Contains(out, `"undone"`) {
					back = l.state(3)
					break
				}
			}
			if err := h.Heal(); err != nil {
				l.t.Error(err)
			}
		})
	}
	s := l.watch(6, "h3: journal ", cut, "deploy", "-v", "--confirm-within", "5s", "--machine", "h3", "--arg", "note=two", "fleet.star")
	healed.Wait()
	if back != one[2] {
		l.t.Errorf("when the link was still cut the machine was at\n%s, not at\n%s", back, one[2])
	}
	s.out(`^h3: rolled back, generation 1`).err(`^hint: h3: `)
}
