package lab_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/services/activate"
	"cairn/services/system"
	"cairn/store"
	"cairn/tests/lab"
)

// TestMain turns the test's program into the one that switches a lab host, when it runs there.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "switcher" {
		os.Exit(switcher(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// switcher is the engine behind a command line: COMMAND [FLAGS] [ARGUMENT]. It prints the result as JSON.
// CAIRN_KILL=N kills it after the Nth journal record.
func switcher(args []string) int {
	flags := flag.NewFlagSet("switcher", flag.ContinueOnError)
	within := flags.Duration("confirm-within", 0, "")
	boot := flags.Bool("boot", false, "")
	force := flags.Bool("force", false, "")
	dry := flags.Bool("dry-run", false, "")
	lockout := flags.Bool("allow-lockout", false, "")
	journal := flags.String("journal", "", "")
	if err := flags.Parse(args[1:]); err != nil {
		return 2
	}
	killAt, _ := strconv.Atoi(os.Getenv("CAIRN_KILL"))
	seen := 0
	e := activate.New(&activate.Options{
		Program:      []string{"/cairn/bin/switcher", "recover"},
		Settle:       500 * time.Millisecond,
		AllowLockout: *lockout,
		Journaled: func(r *activate.Record) {
			if seen++; seen == killAt {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		},
	})
	defer e.Close()
	ctx := context.Background()
	opts := &activate.SwitchOptions{ConfirmWithin: *within, DryRun: *dry}
	var r any
	var err error
	switch args[0] {
	case "switch":
		var p store.Path
		if p, err = store.ParsePath(flags.Arg(0)); err == nil {
			r, err = e.Switch(ctx, p, opts)
		}
	case "generation":
		n, _ := strconv.Atoi(flags.Arg(0))
		r, err = e.SwitchGeneration(ctx, n, opts)
	case "roll-back":
		r, err = e.RollBack(ctx, opts)
	case "confirm":
		err = e.Confirm(ctx, *journal)
	case "recover":
		r, err = e.Recover(ctx, &activate.RecoverOptions{ID: *journal, Boot: *boot, Force: *force})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	json.NewEncoder(os.Stdout).Encode(r)
	if err != nil {
		return 1
	}
	return 0
}

// target is a lab host with a switcher.
type target struct {
	*lab.Host
	t   *testing.T
	lab *lab.Lab
}

func newTarget(t *testing.T) *target {
	l := lab.New(t, 1, nil)
	h := &target{Host: l.Hosts[0], t: t, lab: l}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	if err := h.Put(t.Context(), "/cairn/bin/switcher", exe, 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

// world makes a system and the objects it needs, as an archive.
type world struct {
	spec system.Spec
	tar  bytes.Buffer
	w    *tar.Writer
	t    *testing.T
}

func (w *world) entry(h tar.Header, text string) {
	h.Size = int64(len(text))
	if h.Mode == 0 {
		h.Mode = 0o444
	}
	if err := w.w.WriteHeader(&h); err != nil {
		w.t.Fatal(err)
	}
	io.WriteString(w.w, text)
}

// file adds an object and returns its path.
func (w *world) file(name, text string) string {
	p, err := store.DefaultDir.TextPath(name, store.SHA256.Sum([]byte(text)), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.entry(tar.Header{Name: p.String()[1:], Typeflag: tar.TypeReg}, text)
	return p.String()
}

// build puts a system into the store of the host, as the builder "tree" would, and returns its path.
func (h *target) build(describe func(w *world)) string {
	h.t.Helper()
	w := &world{t: h.t}
	w.w = tar.NewWriter(&w.tar)
	describe(w)
	tree, err := w.spec.Tree("")
	if err != nil {
		h.t.Fatal(err)
	}
	p, err := store.DefaultDir.TextPath("lab-system", store.SHA256.Sum([]byte(*tree["services.json"].Text)), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	for name, e := range tree {
		path := p.String()[1:] + "/" + name
		if e.Text != nil {
			w.entry(tar.Header{Name: path, Typeflag: tar.TypeReg}, *e.Text)
		} else {
			w.entry(tar.Header{Name: path, Typeflag: tar.TypeSymlink, Linkname: e.Symlink}, "")
		}
	}
	w.w.Close()
	cmd := exec.CommandContext(h.t.Context(), h.lab.SSH(), h.Name, "tar", "-x", "-C", "/", "-f", "-")
	cmd.Stdin = &w.tar
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("unpack system: %v: %s", err, out)
	}
	return p.String()
}

// enter runs a command on the host and fails the test when it fails.
func (h *target) enter(argv ...string) string {
	h.t.Helper()
	out, err := h.Enter(h.t.Context(), argv...)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (h *target) try(argv ...string) (activate.Result, error) {
	var r activate.Result
	out, err := h.Enter(h.t.Context(), append([]string{"/cairn/bin/switcher"}, argv...)...)
	if err2 := json.Unmarshal([]byte(out), &r); err2 != nil && err == nil {
		err = err2
	}
	return r, err
}

func (h *target) do(outcome string, argv ...string) activate.Result {
	h.t.Helper()
	start := time.Now()
	r, err := h.try(argv...)
	if err != nil {
		h.t.Fatal(err)
	}
	if r.Outcome != outcome {
		h.t.Fatalf("%v: outcome %q, want %q", argv, r.Outcome, outcome)
	}
	h.t.Logf("%s: %s in %s", argv[0], outcome, time.Since(start).Round(time.Millisecond))
	return r
}

func (h *target) fails(outcome, because string, argv ...string) activate.Result {
	h.t.Helper()
	r, err := h.try(argv...)
	if err == nil || r.Outcome != outcome || !strings.Contains(err.Error(), because) {
		h.t.Fatalf("%v: outcome %q, error %v; want %q and an error with %q", argv, r.Outcome, err, outcome, because)
	}
	h.t.Logf("as wanted: %v", err)
	return r
}

func (h *target) pid(unit string) string { return h.enter("systemctl", "show", "-P", "MainPID", unit) }

func (h *target) active(unit string) string {
	out, _ := h.Enter(h.t.Context(), "systemctl", "is-active", unit)
	return strings.TrimSpace(out)
}

// get fetches over HTTP from the lab's network.
func (h *target) get(port int) string {
	out, err := h.lab.Command(h.t.Context(), "curl", "-sS", "-m", "30", fmt.Sprintf("http://%s:%d/", h.Addr(), port)).CombinedOutput()
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace(string(out))
}

func (h *target) login(user string, port int, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	args := append([]string{h.lab.SSH(), "-p", strconv.Itoa(port), "-o", "HostKeyAlias=" + h.Name, "-l", user, h.Addr()}, argv...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// fingerprint is what of a host must be the same before and after: files of /etc with their contents, accounts, enabled and running units.
func (h *target) fingerprint() string {
	h.t.Helper()
	return h.enter("sh", "-c", `cd /etc && list() { find . \( -name 'cairn-recover*' -o -name '*-' -o -name '*.lock' -o -name .pwd.lock -o -path ./systemd/system/basic.target.wants \) -prune -o "$@"; }
{ list -type f -printf '%p %m %u %g\n' -o -type l -printf '%p -> %l\n' -o -type d -printf '%p/ %m\n'; list -type f -exec sha256sum {} + | sed -E 's/^(\S+)  (.*)/\2 \1/'; } | sort
hostname; readlink /run/current-system; readlink /cairn/var/profiles/system
systemctl list-units --type=service,socket,timer,path --state=active,failed --no-legend --plain | awk '{print $1, $3, $4}' | grep -v -e '^cairn-recover' -e '^user@' -e '^user-runtime-dir' -e '^systemd-hostnamed' -e '^systemd-timedated' -e '^cairn-watchdog' -e '^dpkg' -e '^run-' -e '^ldconfig' -e '^systemd-.*-update' -e '^systemd-update-done' -e '^systemd-sysusers' | sort`)
}

func different(a, b string) string {
	was, is := map[string]bool{}, map[string]bool{}
	for _, l := range strings.Split(a, "\n") {
		was[l] = true
	}
	var out []string
	for _, l := range strings.Split(b, "\n") {
		is[l] = true
		if !was[l] {
			out = append(out, "+ "+l)
		}
	}
	for _, l := range strings.Split(a, "\n") {
		if !is[l] {
			out = append(out, "- "+l)
		}
	}
	return strings.Join(out, "\n")
}

func (h *target) same(what, before string) {
	h.t.Helper()
	if d := different(before, h.fingerprint()); d != "" {
		h.t.Errorf("%s: the host differs from before:\n%s", what, d)
	}
}

// The parts of systems.

const keysFile = "/etc/ssh/authorized_keys.d/%u"

func (h *target) sshd(w *world, extra string) {
	config := w.file("sshd_config", "Port 22\nPort 2222\nPermitRootLogin prohibit-password\nUsePAM yes\nAuthorizedKeysFile .ssh/authorized_keys "+keysFile+"\n"+extra)
	w.spec.Units = append(w.spec.Units, system.Unit{
		Name: "ssh.service", Replace: true, Protected: true, Start: true, WantedBy: []string{"multi-user.target"},
		Text: "[Unit]\nDescription=OpenSSH of the lab\nAfter=network.target\n[Service]\nType=notify\nExecStart=/usr/sbin/sshd -D -f " + config +
			"\nExecReload=/bin/kill -HUP $MAINPID\nKillMode=process\nRuntimeDirectory=sshd\nRuntimeDirectoryMode=0755\n",
	})
	w.spec.Ports = append(w.spec.Ports, system.Port{Number: 22, Unit: "ssh.service"}, system.Port{Number: 2222, Unit: "ssh.service"})
	w.spec.HostPaths = append(w.spec.HostPaths, "/usr/sbin/sshd")
	w.spec.Health = append(w.spec.Health, system.Health{Name: "ssh", Unit: "ssh.service", Kind: "tcp", Port: 2222})
}

func nginx(w *world, port int, said string) {
	config := w.file("nginx.conf", fmt.Sprintf("pid /run/web-nginx.pid;\nevents {}\nhttp { access_log off; server { listen %d; return 200 \"%s\\n\"; } }\n", port, said))
	w.spec.Etc = append(w.spec.Etc, system.EtcFile{Path: "web/nginx.conf", Source: config})
	w.spec.Units = append(w.spec.Units, system.Unit{
		Name: "nginx.service", Replace: true, Start: true, WantedBy: []string{"multi-user.target"}, ReloadTriggers: []string{config},
		Text: "[Unit]\nDescription=nginx of the lab\nAfter=network.target\n[Service]\nType=forking\nPIDFile=/run/web-nginx.pid\n" +
			"ExecStart=/usr/sbin/nginx -c /etc/web/nginx.conf\nExecReload=/bin/kill -HUP $MAINPID\n",
	})
	w.spec.Checks = append(w.spec.Checks, system.Check{Name: "nginx", Argv: []string{"/usr/sbin/nginx", "-t", "-q", "-c", config, "-g", "error_log stderr;"}})
	w.spec.Ports = append(w.spec.Ports, system.Port{Number: port, Unit: "nginx.service"})
	w.spec.Health = append(w.spec.Health, system.Health{Name: "nginx", Unit: "nginx.service", Kind: "http", URL: fmt.Sprintf("http://127.0.0.1:%d/", port)})
}

func rsyncd(w *world, comment string) {
	config := w.file("rsyncd.conf", "port = 8730\nuse chroot = false\n[files]\npath = /srv/files\ncomment = "+comment+"\nread only = true\n")
	w.spec.Users = append(w.spec.Users, system.User{Name: "mirror", System: true, Home: "/srv/files", Shell: "/usr/sbin/nologin", Comment: "rsync"})
	w.spec.Tmpfiles = append(w.spec.Tmpfiles, "d /srv/files 0755 mirror mirror -", "f /srv/files/hello 0644 mirror mirror - world")
	w.spec.Units = append(w.spec.Units, system.Unit{
		Name: "mirror.service", Start: true, WantedBy: []string{"multi-user.target"},
		Text: "[Unit]\nDescription=rsync of the lab\n[Service]\nUser=mirror\nExecStart=/usr/bin/rsync --daemon --no-detach --config=" + config + "\n",
	})
	w.spec.Ports = append(w.spec.Ports, system.Port{Number: 8730, Unit: "mirror.service"})
	w.spec.Health = append(w.spec.Health, system.Health{Name: "mirror", Unit: "mirror.service", Kind: "unit", SettleSeconds: 1})
}

func (h *target) alice(w *world) {
	key, err := os.ReadFile(h.lab.Identity() + ".pub")
	if err != nil {
		h.t.Fatal(err)
	}
	w.spec.Users = append(w.spec.Users, system.User{Name: "alice", Groups: []string{"sudo"}, AuthorizedKeys: []string{w.file("alice.pub", string(key))}})
	w.spec.Etc = append(w.spec.Etc, system.EtcFile{Path: "sudoers.d/alice", Source: w.file("alice.sudoers", "alice ALL=(ALL) NOPASSWD: ALL\n"), Mode: "440"})
}

// full is a system with everything in it.
func (h *target) full(w *world) {
	w.spec.HostName = "declared"
	w.spec.Timezone = "Etc/UTC"
	h.sshd(w, "")
	nginx(w, 8080, "one")
	rsyncd(w, "first")
	h.alice(w)
}

func TestActivate(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	original := h.fingerprint()

	one := h.build(h.full)
	t.Run("from scratch", func(t *testing.T) {
		h.t = t
		p := h.do("planned", "switch", "-dry-run", one)
		t.Logf("%s", p.Plan)
		h.same("dry run", original)
		r := h.do("switched", "switch", one)
		if r.Generation != 1 {
			t.Errorf("generation %d", r.Generation)
		}
		h.serves("one", "first")
		if got := h.enter("hostname"); got != "declared" {
			t.Errorf("host name %s", got)
		}
		if out, err := h.login("alice", 2222, "sudo", "-n", "id", "-un"); err != nil || out != "root" {
			t.Errorf("login: %q %v", out, err)
		}
		h.do("unchanged", "switch", one)
	})
	if t.Failed() {
		return
	}

	t.Run("reload only", func(t *testing.T) {
		h.t = t
		before := h.pid("nginx.service")
		two := h.build(func(w *world) {
			h.full(w)
			w.spec.Etc, w.spec.Units = nil, nil
			w.spec.Checks, w.spec.Ports, w.spec.Health, w.spec.Users, w.spec.Tmpfiles = nil, nil, nil, nil, nil
			h.sshd(w, "")
			nginx(w, 8080, "two")
			rsyncd(w, "first")
			h.alice(w)
		})
		r := h.do("switched", "switch", two)
		h.actions(r, map[string]string{"nginx.service": "reload", "ssh.service": "keep", "mirror.service": "keep"})
		if h.pid("nginx.service") != before {
			t.Error("nginx has another process after a reload")
		}
		h.serves("two", "first")
	})

	t.Run("restart one", func(t *testing.T) {
		h.t = t
		web, ssh, mirror := h.pid("nginx.service"), h.pid("ssh.service"), h.pid("mirror.service")
		three := h.build(func(w *world) {
			w.spec.HostName = "declared"
			h.sshd(w, "")
			nginx(w, 8080, "two")
			rsyncd(w, "second")
			h.alice(w)
		})
		r := h.do("switched", "switch", three)
		h.actions(r, map[string]string{"nginx.service": "keep", "ssh.service": "keep", "mirror.service": "restart"})
		if h.pid("nginx.service") != web || h.pid("ssh.service") != ssh || h.pid("mirror.service") == mirror {
			t.Error("wrong units were restarted")
		}
		h.serves("two", "second")
	})

	t.Run("ssh restart keeps connections", func(t *testing.T) {
		h.t = t
		sys := h.build(func(w *world) {
			h.sshd(w, "MaxAuthTries 4\n")
			nginx(w, 8080, "two")
			rsyncd(w, "second")
			h.alice(w)
		})
		out, err := h.login("root", 2222, "/cairn/bin/switcher", "switch", sys)
		if err != nil || !strings.Contains(out, `"switched"`) {
			t.Fatalf("switch over the connection that restarts: %v: %s", err, out)
		}
		if out, err := h.login("alice", 2222, "true"); err != nil {
			t.Errorf("login after: %v %s", err, out)
		}
	})

	t.Run("stopped by an operator", func(t *testing.T) {
		h.t = t
		h.enter("systemctl", "stop", "nginx.service")
		r := h.do("switched", "switch", h.enter("readlink", "-f", "/cairn/var/profiles/system"))
		h.actions(r, map[string]string{"nginx.service": "start", "ssh.service": "keep"})
		if r.Generation != 4 {
			t.Errorf("generation %d, want the same", r.Generation)
		}
		h.serves("two", "second")
	})

	t.Run("remove", func(t *testing.T) {
		h.t = t
		sys := h.build(func(w *world) { h.sshd(w, ""); nginx(w, 8080, "two") })
		h.do("switched", "switch", sys)
		if got := h.active("mirror.service"); got != "inactive" {
			t.Errorf("mirror is %s", got)
		}
		if _, err := h.Enter(t.Context(), "systemctl", "cat", "mirror.service"); err == nil {
			t.Error("unit is still there")
		}
		for _, f := range []string{"/etc/sudoers.d/alice", "/etc/ssh/authorized_keys.d", "/etc/tmpfiles.d/cairn.conf", "/etc/systemd/system/mirror.service"} {
			if _, err := h.Enter(t.Context(), "test", "-e", f); err == nil {
				t.Errorf("%s is still there", f)
			}
		}
		for _, u := range []string{"alice", "mirror"} { // disabled, not deleted
			if got := h.enter("getent", "passwd", u); !strings.HasSuffix(got, ":/usr/sbin/nologin") {
				t.Errorf("user %s: %s", u, got)
			}
		}
		if out, err := h.login("alice", 2222, "true"); err == nil {
			t.Errorf("a removed user may log in: %s", out)
		}
	})

	t.Run("roll back", func(t *testing.T) {
		h.t = t
		r := h.do("switched", "roll-back")
		if r.Generation != 4 {
			t.Errorf("generation %d, want 4", r.Generation)
		}
		h.serves("two", "second")
		if out, err := h.login("alice", 2222, "sudo", "-n", "id", "-un"); err != nil || out != "root" {
			t.Errorf("login: %q %v", out, err)
		}
		h.do("switched", "generation", "1")
		h.serves("one", "first")
	})

	t.Run("failures leave the old state", func(t *testing.T) {
		h.t = t
		h.failures()
	})

	t.Run("give the host back", func(t *testing.T) {
		h.t = t
		h.fails("refused", "no ssh server", "switch", h.build(func(w *world) {
			w.spec.Units = []system.Unit{{Name: "ssh.service", Replace: true, Text: "[Service]\nExecStart=/bin/true\n"}}
		}))
		h.do("switched", "generation", "0")
		got := h.fingerprint()
		// accounts stay, disabled
		for _, line := range strings.Split(different(original, got), "\n") {
			if f := strings.Fields(line); len(f) > 1 && strings.Contains("./passwd ./shadow ./group ./gshadow ./subuid ./subgid", f[1]) {
				continue
			}
			if line != "" {
				t.Errorf("differs from before the first system: %s", line)
			}
		}
		if out, err := h.login("root", 22, "true"); err != nil {
			t.Errorf("login to the host's own sshd: %v %s", err, out)
		}
		if out := h.enter("systemctl", "show", "-P", "FragmentPath", "ssh.service"); strings.HasPrefix(out, "/etc/") {
			t.Errorf("ssh runs from %s", out)
		}
	})
}

// serves checks all services from outside.
func (h *target) serves(web, mirror string) {
	h.t.Helper()
	deadline := time.Now().Add(time.Minute) // an nginx that reloads serves the old for a moment
	for h.get(8080) != web && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	if got := h.get(8080); got != web {
		h.t.Errorf("nginx says %q, want %q", got, web)
	}
	for _, port := range []int{22, 2222} {
		if out, err := h.login("root", port, "true"); err != nil {
			h.t.Errorf("login at port %d: %v: %s", port, err, out)
		}
	}
	if out := h.enter("rsync", "rsync://"+h.Addr()+":8730/"); !strings.Contains(out, mirror) {
		h.t.Errorf("rsync says %q, want %q", out, mirror)
	}
}

func (h *target) actions(r activate.Result, want map[string]string) {
	h.t.Helper()
	for _, u := range r.Plan.Units {
		if w := want[u.Name]; w != "" && w != u.Action {
			h.t.Errorf("%s: %s (%s), want %s", u.Name, u.Action, u.Reason, w)
		}
	}
}

// failures tries what must not work, from a host that runs generation 1.
func (h *target) failures() {
	before := h.fingerprint()
	pids := h.pid("nginx.service") + h.pid("ssh.service") + h.pid("mirror.service")
	broken := func(change func(w *world)) string {
		return h.build(func(w *world) { h.full(w); change(w) })
	}
	for _, c := range []struct {
		name, outcome, because string
		change                 func(w *world)
	}{
		{"unit that does not start", "undone", "cannot go on", func(w *world) {
			w.spec.Units = append(w.spec.Units, system.Unit{Name: "bad.service", Start: true, Text: "[Service]\nType=exec\nExecStart=/bin/sh -c \"echo cannot go on; exit 3\"\n"})
		}},
		{"unit that dies at once", "undone", "bad.service", func(w *world) {
			w.spec.Units = append(w.spec.Units, system.Unit{Name: "bad.service", Start: true, Text: "[Service]\nRestart=always\nExecStart=/bin/sh -c \"sleep 0.2; exit 3\"\n"})
		}},
		{"changed unit that does not start", "undone", "mirror.service", func(w *world) {
			for i := range w.spec.Units {
				if w.spec.Units[i].Name == "mirror.service" {
					w.spec.Units[i].Text += "ExecStartPre=/bin/false\n"
				}
			}
			w.spec.HostName = "other"
			w.spec.Users = append(w.spec.Users, system.User{Name: "bob"}, system.User{Name: "daemon2", System: true})
		}},
		{"health check", "undone", "health check never", func(w *world) {
			w.spec.Health = append(w.spec.Health, system.Health{Name: "never", Kind: "tcp", Port: 9, TimeoutSeconds: 1})
			w.spec.Etc = append(w.spec.Etc, system.EtcFile{Path: "new/dir/file", Source: w.file("x", "x")})
		}},
		{"foreign file", "refused", "/etc/motd2", func(w *world) {
			w.spec.Etc = append(w.spec.Etc, system.EtcFile{Path: "motd2", Source: w.file("x", "x")})
		}},
		{"foreign unit", "refused", "chrony.service", func(w *world) {
			w.spec.Units = append(w.spec.Units, system.Unit{Name: "chrony.service", Start: true, Text: "[Service]\nExecStart=/bin/true\n"})
		}},
		{"masked unit", "refused", "masked", func(w *world) {
			w.spec.Units = append(w.spec.Units, system.Unit{Name: "masked.service", Start: true, Text: "[Service]\nExecStart=/bin/true\n"})
		}},
		{"port in use", "refused", "7777", func(w *world) {
			w.spec.Ports = append(w.spec.Ports, system.Port{Number: 7777, Unit: "other.service"})
		}},
		{"missing program", "refused", "/usr/bin/nothing", func(w *world) {
			w.spec.Units = append(w.spec.Units, system.Unit{Name: "bad.service", Start: true, Text: "[Service]\nExecStart=/usr/bin/nothing\n"})
		}},
		{"missing host path", "refused", "/usr/bin/nothing", func(w *world) {
			w.spec.HostPaths = append(w.spec.HostPaths, "/usr/bin/nothing")
		}},
		{"bad sudoers", "refused", "sudo would refuse", func(w *world) {
			w.spec.Etc = append(w.spec.Etc, system.EtcFile{Path: "sudoers.d/bad", Source: w.file("x", "alice ALL=(ALL NOPASSWD\n"), Mode: "440"})
		}},
		{"bad pam", "refused", "pam_nothing.so", func(w *world) {
			w.spec.Etc = append(w.spec.Etc, system.EtcFile{Path: "pam.d/bad", Source: w.file("x", "auth required pam_nothing.so\n")})
		}},
		{"check", "refused", "check refuses", func(w *world) {
			w.spec.Checks = append(w.spec.Checks, system.Check{Name: "refuses", Argv: []string{"/bin/false"}})
		}},
		{"account number", "refused", "number", func(w *world) {
			id := 4711
			w.spec.Users = append(w.spec.Users, system.User{Name: "www-data", System: true, UID: &id})
		}},
		{"time zone", "refused", "Mars/Base", func(w *world) { w.spec.Timezone = "Mars/Base" }},
	} {
		h.t.Run(c.name, func(t *testing.T) {
			defer func(old *testing.T) { h.t = old }(h.t)
			h.t = t
			switch c.name {
			case "foreign file":
				h.enter("sh", "-c", "echo mine > /etc/motd2")
				defer h.enter("rm", "/etc/motd2")
			case "masked unit":
				h.enter("ln", "-s", "/dev/null", "/etc/systemd/system/masked.service")
				defer h.enter("rm", "/etc/systemd/system/masked.service")
			case "port in use":
				h.enter("systemd-run", "-q", "--unit=squatter", "/usr/bin/rsync", "--daemon", "--no-detach", "--port=7777", "--config=/dev/null")
				defer h.enter("systemctl", "stop", "squatter")
				time.Sleep(200 * time.Millisecond)
			}
			h.fails(c.outcome, c.because, "switch", broken(c.change))
		})
		h.t.Run(c.name+" undone", func(t *testing.T) {
			defer func(old *testing.T) { h.t = old }(h.t)
			h.t = t
			h.same(c.name, before)
			h.serves("one", "first")
		})
	}
	h.t.Run("bad sshd", func(t *testing.T) {
		defer func(old *testing.T) { h.t = old }(h.t)
		h.t = t
		h.fails("refused", "does not pass", "switch", h.build(func(w *world) { h.sshd(w, "NoSuchWord yes\n") }))
		h.same("bad sshd", before)
	})
	if got := h.pid("nginx.service") + h.pid("ssh.service"); !strings.HasPrefix(pids, got) {
		h.t.Errorf("failures restarted what did not change: %s, %s", pids, got)
	}
}

// TestActivateFirstFails checks that a first switch that fails gives the host back whole, accounts too.
func TestActivateFirstFails(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	original := h.fingerprint()
	sys := h.build(func(w *world) {
		h.full(w)
		w.spec.Health = append(w.spec.Health, system.Health{Name: "never", Kind: "tcp", Port: 9, TimeoutSeconds: 1})
	})
	h.fails("undone", "health check never", "switch", sys)
	h.same("first switch failed", original)
	if out, err := h.login("root", 22, "true"); err != nil {
		t.Errorf("login to the host's own sshd: %v %s", err, out)
	}
}

// TestActivateFirstReboot checks that a first switch that nobody confirmed is gone after a reboot.
func TestActivateFirstReboot(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	original := h.fingerprint()
	h.do("awaiting", "switch", "-confirm-within", "10m", h.build(h.full))
	h.serves("one", "first")
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := h.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.eventually(func() bool { return different(original, h.fingerprint()) == "" })
	h.same("reboot", original)
	if out := h.enter("systemctl", "show", "-P", "FragmentPath", "ssh.service"); strings.HasPrefix(out, "/etc/") {
		t.Errorf("ssh runs from %s", out)
	}
	if out, _ := h.Enter(t.Context(), "systemctl", "is-failed", "cairn-recover.service"); strings.TrimSpace(out) == "failed" {
		t.Error("recovery failed")
	}
}

// TestActivateKilled kills the switcher after each record of its journal. Recover must give back the host as it was.
func TestActivateKilled(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	base := h.build(func(w *world) { h.sshd(w, ""); nginx(w, 8080, "one"); rsyncd(w, "first") })
	next := h.build(func(w *world) {
		w.spec.HostName = "killed"
		h.sshd(w, "MaxAuthTries 4\n")
		nginx(w, 8081, "two")
		h.alice(w)
		w.spec.Units = append(w.spec.Units, system.Unit{Name: "extra.service", Start: true, WantedBy: []string{"multi-user.target"}, Text: "[Service]\nExecStart=/bin/sleep infinity\n"})
		w.spec.Users = append(w.spec.Users, system.User{Name: "extra", System: true})
	})
	for _, from := range []string{"", base} {
		home := "0"
		if from != "" {
			home = strconv.Itoa(h.do("switched", "switch", from).Generation)
		}
		before := h.fingerprint()
		for n := 1; ; n++ {
			out, err := h.Enter(t.Context(), "env", "CAIRN_KILL="+strconv.Itoa(n), "/cairn/bin/switcher", "switch", next)
			if err == nil {
				t.Logf("killed at %d places", n-1)
				if !strings.Contains(out, `"switched"`) {
					t.Errorf("last: %s", out)
				}
				break
			}
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatal(err)
			}
			r, err := h.try("recover")
			if err != nil {
				t.Fatalf("recover after kill at %d: %v", n, err)
			}
			if r.Outcome == "switched" { // the kill came after the confirmation
				h.do("switched", "generation", home)
				continue
			}
			if d := different(before, h.fingerprint()); d != "" {
				t.Errorf("killed at %d (%s): differs:\n%s", n, r.Error, d)
			}
			if t.Failed() {
				return
			}
		}
		h.do("switched", "generation", home)
	}
}

// TestActivateUnconfirmed covers confirmation, its time-out, and a reboot before it.
func TestActivateUnconfirmed(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	base := h.build(func(w *world) { h.sshd(w, ""); nginx(w, 8080, "one"); rsyncd(w, "first") })
	next := h.build(func(w *world) {
		w.spec.HostName = "unconfirmed"
		h.sshd(w, "")
		nginx(w, 8080, "two")
		w.spec.Units = append(w.spec.Units, system.Unit{Name: "extra.service", Start: true, WantedBy: []string{"multi-user.target"}, Text: "[Service]\nExecStart=/bin/sleep infinity\n"})
	})
	h.do("switched", "switch", base)
	before := h.fingerprint()

	t.Run("confirmed", func(t *testing.T) {
		h.t = t
		r := h.do("awaiting", "switch", "-confirm-within", "30s", next)
		h.fails("", "waits to be confirmed", "switch", base)
		if _, err := h.try("confirm", "-journal", r.ID); err != nil && !strings.Contains(err.Error(), "unexpected end") {
			t.Error(err)
		}
		if got := h.get(8080); got != "two" {
			t.Errorf("nginx says %q", got)
		}
		if out := h.enter("systemctl", "list-timers", "--all", "--no-legend"); strings.Contains(out, "watchdog") {
			t.Errorf("watchdog is still armed: %s", out)
		}
		h.do("switched", "roll-back")
		h.same("roll back", before)
	})
	t.Run("time over", func(t *testing.T) {
		h.t = t
		h.do("awaiting", "switch", "-confirm-within", "2s", next)
		h.eventually(func() bool { return different(before, h.fingerprint()) == "" })
		h.serves("one", "first")
		if _, err := h.try("confirm"); err == nil || !strings.Contains(err.Error(), "no switch waits") {
			t.Errorf("late confirmation: %v", err)
		}
	})
	t.Run("killed before it waits", func(t *testing.T) {
		h.t = t
		h.Enter(t.Context(), "env", "CAIRN_KILL=9", "/cairn/bin/switcher", "switch", "-confirm-within", "3s", next)
		h.eventually(func() bool { return different(before, h.fingerprint()) == "" })
	})
	t.Run("reboot", func(t *testing.T) {
		h.t = t
		h.do("awaiting", "switch", "-confirm-within", "10m", next)
		if err := h.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.eventually(func() bool { return h.active("mirror.service") == "active" && h.active("nginx.service") == "active" })
		h.serves("one", "first")
		if got := h.active("extra.service"); got == "active" {
			t.Error("the new unit still runs")
		}
		if got := h.enter("hostname"); got == "unconfirmed" {
			t.Errorf("host name is still %s", got)
		}
		h.do("unchanged", "switch", base)
	})
	t.Run("power cut in the middle", func(t *testing.T) {
		h.t = t
		h.Enter(t.Context(), "env", "CAIRN_KILL=12", "/cairn/bin/switcher", "switch", next)
		if err := h.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.eventually(func() bool { return h.active("mirror.service") == "active" && h.active("nginx.service") == "active" })
		h.serves("one", "first")
		h.do("unchanged", "switch", base)
	})
	t.Run("confirmed systems boot", func(t *testing.T) {
		h.t = t
		h.do("switched", "switch", next)
		if err := h.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.eventually(func() bool { return h.active("extra.service") == "active" && h.get(8080) == "two" })
		if got := h.enter("readlink", "/run/booted-system"); got != next {
			t.Errorf("booted system is %s", got)
		}
		h.do("unchanged", "switch", next)
	})
}

func (h *target) eventually(ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if ok() {
			return
		}
	}
	h.t.Errorf("did not come about in a minute")
}

// TestActivateKinds covers timers, sockets, templates, drop-ins, masks, ports that change hands, and accounts.
func TestActivateKinds(t *testing.T) {
	t.Parallel()
	h := newTarget(t)
	h.enter("ln", "-sf", "/dev/null", "/etc/systemd/system/nginx.service")
	h.enter("systemctl", "daemon-reload")
	original := h.fingerprint()
	unit := func(name, text string) system.Unit { return system.Unit{Name: name, Text: text, Start: true} }
	describe := func(calendar, listen, argument, left, right, shell string, groups ...string) func(w *world) {
		return func(w *world) {
			h.sshd(w, "")
			nginx(w, 8080, "one")
			id := 4242
			w.spec.Groups = []system.Group{{Name: "shared", GID: &id}}
			w.spec.Users = []system.User{
				{Name: "daemon2", System: true, Group: "shared", Home: "/var/empty", Shell: shell},
				{Name: "carol", Shell: shell, Groups: groups, Comment: "Carol"},
			}
			timer := unit("tick.timer", "[Timer]\nOnCalendar="+calendar+"\n")
			timer.WantedBy = []string{"timers.target"}
			socket := unit("echo.socket", "[Socket]\nListenStream="+listen+"\nAccept=yes\n")
			socket.WantedBy = []string{"sockets.target"}
			w.spec.Units = append(w.spec.Units, timer, unit("tick.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n"),
				socket, unit("echo@.service", "[Service]\nExecStart=-/bin/cat\nStandardInput=socket\n"),
				unit("worker@.service", "[Service]\nExecStart=/bin/sleep "+argument+"\n"),
				unit("left.service", "[Service]\nExecStart=/usr/bin/rsync --daemon --no-detach --config=/dev/null --port="+left+"\n"),
				unit("right.service", "[Service]\nExecStart=/usr/bin/rsync --daemon --no-detach --config=/dev/null --port="+right+"\n"))
			for name, port := range map[string]string{"left.service": left, "right.service": right, "echo.socket": listen} {
				n, _ := strconv.Atoi(port)
				w.spec.Ports = append(w.spec.Ports, system.Port{Number: n, Unit: name})
			}
			w.spec.Etc = append(w.spec.Etc, system.EtcFile{Path: "systemd/system/systemd-resolved.service.d/lab.conf", Source: w.file("drop-in", "[Service]\nEnvironment=LAB="+argument+"\n")})
		}
	}
	one := h.build(describe("daily", "9001", "1001", "9101", "9102", "/bin/bash", "sudo"))
	resolved := h.pid("systemd-resolved.service")
	h.do("switched", "switch", one)
	if got := h.enter("systemctl", "is-active", "tick.timer", "echo.socket", "left.service", "right.service"); got != "active\nactive\nactive\nactive" {
		t.Errorf("units are %q", got)
	}
	if h.active("tick.service") == "active" || h.pid("systemd-resolved.service") == resolved {
		t.Error("the timer's service ran, or the drop-in did not restart its unit")
	}
	if got := h.enter("id", "-gn", "daemon2"); got != "shared" {
		t.Errorf("group of daemon2 is %s", got)
	}
	h.enter("systemctl", "start", "worker@a.service")
	worker := h.pid("worker@a.service")
	h.do("unchanged", "switch", one)

	before := h.fingerprint()
	two := h.build(describe("weekly", "9002", "1002", "9102", "9101", "/bin/sh"))
	r := h.do("switched", "switch", two)
	h.actions(r, map[string]string{"tick.timer": "restart", "echo.socket": "restart", "worker@a.service": "restart", "left.service": "restart", "nginx.service": "keep", "ssh.service": "keep", "tick.service": "keep"})
	if h.pid("worker@a.service") == worker {
		t.Error("an instance was not restarted")
	}
	if got := h.enter("systemctl", "is-active", "tick.timer", "echo.socket", "left.service", "right.service"); got != "active\nactive\nactive\nactive" {
		t.Errorf("units are %q", got)
	}
	if got := h.enter("getent", "passwd", "carol"); !strings.HasSuffix(got, ":Carol:/home/carol:/bin/sh") {
		t.Errorf("carol: %s", got)
	}
	if got := h.enter("id", "-nG", "carol"); got != "carol" {
		t.Errorf("groups of carol: %s", got)
	}

	h.do("switched", "roll-back")
	h.same("roll back", before)

	h.fails("undone", "never", "switch", h.build(func(w *world) {
		describe("weekly", "9002", "1002", "9102", "9101", "/bin/sh")(w)
		w.spec.Health = append(w.spec.Health, system.Health{Name: "never", Kind: "command", Argv: []string{"/bin/false"}, TimeoutSeconds: 1})
	}))
	h.same("failed", before)

	h.do("switched", "generation", "0")
	for _, line := range strings.Split(different(original, h.fingerprint()), "\n") {
		if f := strings.Fields(line); len(f) > 1 && !strings.Contains("./passwd ./shadow ./group ./gshadow ./subuid ./subgid", f[1]) {
			t.Errorf("differs from before the first system: %s", line)
		}
	}
}
