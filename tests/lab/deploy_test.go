package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/deploy"
	"cairn/deploy/ssh"
	"cairn/services/system"
	"cairn/store"
	"cairn/store/disk"
	"cairn/tests/lab"
)

// cairn builds the program, static, as machines get it.
func cairn(t *testing.T) string {
	t.Helper()
	return versioned(t, "unknown")
}

// coordinator is a store with its daemon, and a lab to deploy to.
type coordinator struct {
	*lab.Lab
	t      *testing.T
	local  deploy.Local
	opts   deploy.Options
	binary store.Path // cairn, in the store
}

func newCoordinator(t *testing.T, hosts int) *coordinator {
	t.Helper()
	c := &coordinator{t: t, Lab: lab.New(t, hosts, nil)}
	program := cairn(t)
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	layout.SocketPath = filepath.Join(c.Dir(), "daemon") // short
	key, err := archive.GenerateKey("coordinator-1")
	if err == nil {
		err = errors.Join(disk.Init(layout), key.WriteFile(filepath.Join(layout.ConfDir, "signing-key.sec")))
	}
	if err != nil {
		t.Fatal(err)
	}
	startDaemon(t, layout)
	c.local = deploy.Local{Key: key.Public(), Binary: program, Dial: func(ctx context.Context) (*client.Conn, error) {
		return client.Dial(ctx, layout.SocketPath, nil)
	}}
	c.opts = deploy.Options{SSH: ssh.Options{Program: c.SSH()}, ConfirmWithin: 10 * time.Second}
	c.binary = c.add("cairn", program)
	return c
}

// in is the same coordinator, with options of its own, in a subtest.
func (c *coordinator) in(t *testing.T) *coordinator {
	d := *c
	d.t = t
	return &d
}

func startDaemon(t *testing.T, layout disk.Layout) {
	t.Helper()
	s, err := disk.Open(t.Context(), layout, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := build.New(s, nil)
	d := daemon.New(s, b, nil)
	l, err := daemon.Listen(layout)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { d.Serve(ctx, l) })
	t.Cleanup(func() {
		cancel()
		served.Wait()
		if err := errors.Join(d.Close(), b.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
}

// add puts a file or tree into the coordinator's store.
func (c *coordinator) add(name, path string, refs ...store.Path) store.Path {
	c.t.Helper()
	conn, err := c.local.Dial(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(nar.Dump(pw, path)) }()
	info, err := conn.AddToStore(c.t.Context(), name, store.Recursive, store.SHA256, refs, pr)
	if err != nil {
		c.t.Fatal(err)
	}
	return info.Path
}

// text puts a file with contents into the store.
func (c *coordinator) text(name, contents string) store.Path {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), name)
	if err := os.WriteFile(file, []byte(contents), 0o644); err != nil {
		c.t.Fatal(err)
	}
	return c.add(name, file)
}

// system puts a system object into the store.
func (c *coordinator) system(spec system.Spec, refs ...store.Path) store.Path {
	c.t.Helper()
	tree, err := spec.Tree(c.binary.String())
	if err != nil {
		c.t.Fatal(err)
	}
	dir := c.t.TempDir()
	for name, e := range tree {
		file := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil && e.Text != nil {
			err = os.WriteFile(file, []byte(*e.Text), 0o644)
		} else if err == nil {
			err = os.Symlink(e.Symlink, file)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return c.add("lab-system", dir, append(refs, c.binary)...)
}

// machine is the host with the number n, from 1, at a system.
func (c *coordinator) machine(n int, sys store.Path) deploy.Machine {
	c.t.Helper()
	h := c.Hosts[n-1]
	key, err := h.HostKey()
	if err != nil {
		c.t.Fatal(err)
	}
	return deploy.Machine{Name: h.Name, System: sys, Environment: deploy.ManagedHost{Host: h.Addr(), User: "root", Identity: c.Identity(), HostKey: key}}
}

// deploy deploys and logs what is said.
func (c *coordinator) deploy(machines ...deploy.Machine) []deploy.Result {
	return c.deployWatched(nil, machines...)
}

func (c *coordinator) deployWatched(watch deploy.Observer, machines ...deploy.Machine) []deploy.Result {
	c.t.Helper()
	start := time.Now()
	var mu sync.Mutex
	results := deploy.Run(c.t.Context(), machines, c.local, &c.opts, func(e deploy.Event) {
		if watch != nil {
			watch(e)
		}
		mu.Lock()
		defer mu.Unlock()
		if e.Text != "" {
			c.t.Logf("%6.2f %s: %s: %s", time.Since(start).Seconds(), e.Machine, e.Step, e.Text)
		}
	})
	for _, r := range results {
		c.t.Logf("%s (%.2f s, %d objects, %d bytes)", r.String(), r.Seconds, r.Objects, r.Bytes)
		var h interface{ Hint() string }
		if errors.As(r.Err, &h) {
			c.t.Log("   hint:", h.Hint())
		}
	}
	return results
}

// want checks the statuses.
func (c *coordinator) want(results []deploy.Result, statuses ...deploy.Status) {
	c.t.Helper()
	var got []deploy.Status
	for _, r := range results {
		got = append(got, r.Status)
		if r.OK() != slices.Contains([]deploy.Status{deploy.Deployed, deploy.Unchanged, deploy.Planned}, r.Status) {
			c.t.Errorf("%s: OK is %v", r.Status, r.OK())
		}
	}
	if !slices.Equal(got, statuses) {
		c.t.Fatalf("statuses are %q, want %q", got, statuses)
	}
}

// says returns what a command says on a host, which must be well.
func (c *coordinator) says(n int, argv ...string) string {
	c.t.Helper()
	out, err := c.Hosts[n-1].Enter(c.t.Context(), argv...)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// at checks which system and generation a host has, by its own links.
func (c *coordinator) at(n int, sys store.Path, generation int) {
	c.t.Helper()
	link := fmt.Sprintf("system-%d-link", generation)
	if got := c.says(n, "readlink", "/cairn/var/profiles/system", "/run/current-system"); got != link+"\n"+sys.String() {
		c.t.Errorf("h%d is at %q, want %s and %s", n, got, link, sys)
	}
}

func (c *coordinator) pid(n int, unit string) string {
	c.t.Helper()
	return c.says(n, "systemctl", "show", "-P", "MainPID", unit)
}

const sleeper = "[Service]\nExecStart=/bin/sleep %s\n"

// plainSystem has a unit and a file.
func (c *coordinator) plainSystem(seconds, motd string) (system.Spec, []store.Path) {
	file := c.text("motd", motd)
	return system.Spec{
		Units: []system.Unit{{Name: "sleeper.service", Text: fmt.Sprintf(sleeper, seconds), WantedBy: []string{"multi-user.target"}, Start: true}},
		Etc:   []system.EtcFile{{Path: "cairn-motd", Source: file.String()}},
	}, []store.Path{file}
}

func (c *coordinator) plain(seconds, motd string) store.Path {
	spec, refs := c.plainSystem(seconds, motd)
	return c.system(spec, refs...)
}

// TestDeploy is the way that the whole project is about: five hosts, and what may go wrong on them.
func TestDeploy(t *testing.T) {
	t.Parallel()
	c := newCoordinator(t, 5)
	network := func(n int, addr string) (system.Spec, []store.Path) {
		spec, refs := c.plainSystem("10001", "one\n")
		file := c.text("host0.network", "[Match]\nName=host0\n\n[Network]\nAddress="+addr+"/24\nLinkLocalAddressing=no\n")
		spec.Etc = append(spec.Etc, system.EtcFile{Path: "systemd/network/10-host0.network", Source: file.String(), Replace: true})
		spec.Units = append(spec.Units, system.Unit{
			Name: "network-apply.service", WantedBy: []string{"multi-user.target"}, Start: true, RestartTriggers: []string{file.String()},
			Text: "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/networkctl reload\nExecStart=/usr/bin/networkctl reconfigure host0\n",
		})
		return spec, append(refs, file)
	}
	h4, refs := network(4, c.Hosts[3].Addr())
	one, four := c.plain("10001", "one\n"), c.system(h4, refs...)
	first := []deploy.Machine{c.machine(1, one), c.machine(2, one), c.machine(3, one), c.machine(4, four), c.machine(5, one)}

	t.Run("first", func(t *testing.T) {
		c := c.in(t)
		results := c.deploy(first...)
		c.want(results, deploy.Deployed, deploy.Deployed, deploy.Deployed, deploy.Deployed, deploy.Deployed)
		for n, m := range first {
			if results[n].Bytes > 1<<20 {
				t.Errorf("h%d: got %d bytes: the program came twice", n+1, results[n].Bytes)
			}
			c.at(n+1, m.System, 1)
			if got := c.says(n+1, "cat", "/etc/cairn-motd"); got != "one" {
				t.Errorf("h%d: file is %q", n+1, got)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Run("again", func(t *testing.T) {
		c := c.in(t)
		before := c.pid(1, "sleeper")
		results := c.deploy(first...)
		c.want(results, deploy.Unchanged, deploy.Unchanged, deploy.Unchanged, deploy.Unchanged, deploy.Unchanged)
		for _, r := range results {
			if r.Objects != 0 || r.Bytes != 0 {
				t.Errorf("%s: %d objects, %d bytes sent", r.Machine, r.Objects, r.Bytes)
			}
		}
		if after := c.pid(1, "sleeper"); after != before || before == "0" {
			t.Errorf("process was %s, is %s", before, after)
		}
	})
	t.Run("broken", func(t *testing.T) { c.in(t).broken(one, four, network) })
	t.Run("dry run", func(t *testing.T) {
		c := c.in(t)
		c.opts.DryRun = true
		three := c.plain("10003", "three\n")
		results := c.deploy(c.machine(1, three), c.machine(3, one))
		c.want(results, deploy.Planned, deploy.Unchanged)
		if p := results[0].Preview; p == nil || p.Missing != 2 || !slices.Contains(p.Changes, "unit sleeper.service: changed") {
			t.Errorf("preview is %+v", p)
		}
	})
	t.Run("execute", func(t *testing.T) {
		results := deploy.Exec(t.Context(), []deploy.Machine{c.machine(1, one), c.machine(3, one)}, []string{"sh", "-c", `hostname; [ $(hostname) = h1 ] || exit 3`}, &c.opts, nil)
		if !results[0].OK() || results[0].Output != "h1\n" || results[1].OK() || results[1].Status != 3 || results[1].Output != "h3\n" {
			t.Errorf("got %+v", results)
		}
	})
}

// broken deploys to five hosts of which three go wrong, each in its way.
func (c *coordinator) broken(one, four store.Path, network func(int, string) (system.Spec, []store.Path)) {
	t := c.t
	two := c.plain("10002", "two\n")
	failing, refs := c.plainSystem("10002", "bad\n")
	failing.Units = append(failing.Units, system.Unit{Name: "failing.service", Text: "[Service]\nExecStart=/bin/false\n", WantedBy: []string{"multi-user.target"}, Start: true})
	three := c.system(failing, refs...)
	spec, refs := network(4, "10.99.0.4")
	cut := c.system(spec, refs...)
	if err := c.Hosts[1].Kill(); err != nil {
		t.Fatal(err)
	}
	results := c.deploy(c.machine(1, two), c.machine(2, two), c.machine(3, three), c.machine(4, cut), c.machine(5, two))
	c.want(results, deploy.Deployed, deploy.Unreachable, deploy.RolledBack, deploy.RolledBack, deploy.Deployed)
	if e := results[2].Error; !strings.Contains(e, "failing.service") {
		t.Errorf("h3: error does not name the unit: %s", e)
	}
	if !errors.Is(results[1].Err, ssh.ErrUnreachable) {
		t.Errorf("h2: %v", results[1].Err)
	}
	c.at(1, two, 2)
	c.at(5, two, 2)
	c.at(3, one, 1)
	c.at(4, four, 1)
	for n, want := range map[int]string{1: "10002", 3: "10001", 4: "10001"} {
		if got := c.says(n, "sh", "-c", "cat /etc/cairn-motd; systemctl show -P ExecStart sleeper; systemctl is-active sleeper; systemctl --failed --no-legend"); !strings.Contains(got, want) || !strings.HasSuffix(got, "\nactive") {
			t.Errorf("h%d: %s", n, got)
		}
	}
	if got := c.says(3, "sh", "-c", "ls /etc/systemd/system; cat /etc/cairn-motd"); strings.Contains(got, "failing.service") || !strings.HasSuffix(got, "one") {
		t.Errorf("h3 keeps something of the failed switch: %s", got)
	}
	if err := c.Hosts[1].Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.want(c.deploy(c.machine(2, two)), deploy.Deployed)
	c.at(2, two, 2)
}

// TestDeployAccess is about the way in: users, sudo, host keys.
func TestDeployAccess(t *testing.T) {
	t.Parallel()
	c := newCoordinator(t, 2)
	sys := c.plain("10001", "one\n")
	pub, err := os.ReadFile(c.Identity() + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	script := `set -e
for u in easy strict none; do useradd -m -s /bin/bash $u; mkdir -p /home/$u/.ssh; cat > /home/$u/.ssh/authorized_keys <<< "$1"; chown -R $u /home/$u/.ssh; done
echo 'easy ALL=(root) NOPASSWD: ALL' > /etc/sudoers.d/easy; echo 'strict ALL=(ALL) ALL' > /etc/sudoers.d/strict
echo 'echo Welcome to $(hostname), in the middle of your stream' >> /home/easy/.bashrc; sed -i '1,9d' /home/easy/.bashrc`
	for _, h := range c.Hosts {
		if _, err := h.Run(t.Context(), "bash", "-c", script, "bash", string(pub)); err != nil {
			t.Fatal(err)
		}
	}
	as := func(n int, user string) deploy.Machine {
		m := c.machine(n, sys)
		h := m.Environment.(deploy.ManagedHost)
		h.User = user
		m.Environment = h
		return m
	}
	t.Run("sudo wants a password", func(t *testing.T) {
		c := c.in(t)
		r := c.deploy(as(1, "strict"))
		c.want(r, deploy.Failed)
		if !errors.Is(r[0].Err, deploy.ErrSudoPassword) {
			t.Errorf("got %v", r[0].Err)
		}
		x := deploy.Exec(t.Context(), []deploy.Machine{as(1, "strict")}, []string{"id"}, &c.opts, nil)
		if !errors.Is(x[0].Err, deploy.ErrSudoPassword) {
			t.Errorf("execute: got %+v", x[0])
		}
		if out, err := c.Hosts[0].Enter(t.Context(), "ls", "/cairn"); err == nil {
			t.Errorf("something was left: %s", out)
		}
	})
	t.Run("no such user", func(t *testing.T) {
		c := c.in(t)
		r := c.deploy(as(1, "nobody-here"))
		c.want(r, deploy.Unreachable)
		if !errors.Is(r[0].Err, ssh.ErrAuth) {
			t.Errorf("got %v", r[0].Err)
		}
	})
	t.Run("ordinary user", func(t *testing.T) {
		c := c.in(t)
		c.want(c.deploy(as(1, "easy")), deploy.Deployed)
		c.at(1, sys, 1)
		c.want(c.deploy(as(1, "easy")), deploy.Unchanged)
		x := deploy.Exec(t.Context(), []deploy.Machine{as(1, "easy")}, []string{"id", "-u"}, &c.opts, nil)
		if !x[0].OK() || !strings.HasSuffix(x[0].Output, "0\n") {
			t.Errorf("execute: got %+v", x[0])
		}
	})
	t.Run("two at once", func(t *testing.T) {
		c := c.in(t)
		two := c.plain("10002", "two\n")
		var both [2][]deploy.Result
		var g sync.WaitGroup
		var begun sync.Once
		both[0] = c.deployWatched(func(e deploy.Event) {
			if e.Step == "switch" {
				begun.Do(func() { g.Go(func() { both[1] = c.deploy(c.machine(1, two)) }) })
			}
		}, c.machine(1, two))
		g.Wait()
		c.want(both[0], deploy.Deployed)
		if !errors.Is(both[1][0].Err, deploy.ErrLeased) {
			t.Errorf("the other one: %v", both[1][0].Err)
		}
	})
	t.Run("daemon is down", func(t *testing.T) {
		c := c.in(t)
		c.says(1, "systemctl", "stop", "cairn-daemon")
		c.want(c.deploy(c.machine(1, c.plain("10003", "three\n"))), deploy.Deployed)
	})
	t.Run("unit was stopped by hand", func(t *testing.T) {
		c := c.in(t)
		c.says(1, "systemctl", "stop", "sleeper")
		r := c.deploy(c.machine(1, c.plain("10003", "three\n")))
		c.want(r, deploy.Deployed)
		if r[0].Objects != 0 || c.pid(1, "sleeper") == "0" {
			t.Errorf("%d objects were sent, sleeper is %s", r[0].Objects, c.pid(1, "sleeper"))
		}
	})
	t.Run("full disk", func(t *testing.T) {
		c := c.in(t)
		c.says(2, "sh", "-c", "mkdir /cairn && mount -t tmpfs -o size=8m tmpfs /cairn")
		r := c.deploy(as(2, "root"))
		c.want(r, deploy.Failed)
		if !strings.Contains(r[0].Error, "No space left on device") {
			t.Errorf("got %v", r[0].Err)
		}
		c.says(2, "mount", "-o", "remount,size=60m", "/cairn")
		r = c.deploy(as(2, "root"))
		c.want(r, deploy.Failed)
		c.says(2, "sh", "-c", "systemctl stop cairn-daemon; umount -l /cairn")
	})
	t.Run("batch", func(t *testing.T) {
		c := c.in(t)
		c.opts.Batch = 1
		c.want(c.deploy(as(1, "strict"), as(2, "root")), deploy.Failed, deploy.Skipped)
	})
	t.Run("host key changed", func(t *testing.T) {
		c := c.in(t)
		m := c.machine(2, sys)
		if _, err := c.Hosts[1].Run(t.Context(), "sh", "-c", "cp -a /etc/ssh /root/ssh; rm /etc/ssh/ssh_host_*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; systemctl restart ssh"); err != nil {
			t.Fatal(err)
		}
		r := c.deploy(m)
		c.want(r, deploy.Unreachable)
		if !errors.Is(r[0].Err, ssh.ErrHostKeyChanged) {
			t.Errorf("got %v", r[0].Err)
		}
		c.says(2, "sh", "-c", "cp -a /root/ssh/. /etc/ssh/; systemctl restart ssh")
		c.want(c.deploy(m), deploy.Deployed)
	})
}

// TestDeployLink cuts the connection in the middle of things.
func TestDeployLink(t *testing.T) {
	t.Parallel()
	c := newCoordinator(t, 1)
	h := c.Hosts[0]
	once := func(step, text string, do func()) deploy.Observer {
		var o sync.Once
		return func(e deploy.Event) {
			if e.Step == step && (e.Bytes > 0 && text == "" || text != "" && strings.Contains(e.Text, text)) {
				o.Do(do)
			}
		}
	}
	cut := func() {
		if err := h.Cut(); err != nil {
			t.Error(err)
		}
	}
	heal := func() {
		if err := h.Heal(); err != nil {
			t.Error(err)
		}
	}
	one := c.plain("10001", "one\n")
	c.want(c.deploy(c.machine(1, one)), deploy.Deployed)

	t.Run("while shipping", func(t *testing.T) {
		c := c.in(t)
		big := bytes.Repeat([]byte("0123456789abcdef"), 2<<20)
		for i := range big {
			big[i] ^= byte(i>>8) * byte(i>>16) // does not compress to nothing
		}
		file := c.text("big", string(big))
		spec, refs := c.plainSystem("10001", "two\n")
		spec.Etc = append(spec.Etc, system.EtcFile{Path: "big", Source: file.String()})
		two := c.system(spec, append(refs, file)...)
		r := c.deployWatched(once("ship", "", cut), c.machine(1, two))
		c.want(r, deploy.Failed)
		if !errors.Is(r[0].Err, ssh.ErrLost) {
			t.Errorf("got %v", r[0].Err)
		}
		c.at(1, one, 1)
		if _, err := h.Enter(t.Context(), "ls", file.String()); err == nil {
			t.Error("an object of a cut-off bundle is visible")
		}
		heal()
		r = c.deploy(c.machine(1, two))
		for until := time.Now().Add(time.Minute); errors.Is(r[0].Err, deploy.ErrLeased) && time.Now().Before(until); { // the lease ends by itself
			time.Sleep(3 * time.Second)
			r = c.deploy(c.machine(1, two))
		}
		c.want(r, deploy.Deployed)
		c.at(1, two, 2)
	})
	t.Run("while switching, for a moment", func(t *testing.T) {
		c := c.in(t)
		c.opts.ConfirmWithin = 40 * time.Second
		three := c.plain("10003", "three\n")
		var healed sync.WaitGroup
		r := c.deployWatched(once("switch", "journal ", func() {
			cut()
			healed.Go(func() { time.Sleep(20 * time.Second); heal() })
		}), c.machine(1, three))
		healed.Wait()
		c.want(r, deploy.Deployed)
		c.at(1, three, 3)
	})
	t.Run("while switching, for good", func(t *testing.T) {
		c := c.in(t)
		c.opts.ConfirmWithin = 5 * time.Second
		four := c.plain("10004", "four\n")
		var back string
		var healed sync.WaitGroup
		r := c.deployWatched(once("switch", "journal ", func() {
			cut()
			healed.Go(func() { // looks past the network: the machine goes back alone
				for range 200 {
					time.Sleep(200 * time.Millisecond)
					if out, _ := h.Enter(t.Context(), "sh", "-c", "cat /cairn/var/journal/switch-*.jsonl | tail -n 1"); strings.Contains(out, `"undone"`) {
						back, _ = h.Enter(t.Context(), "readlink", "/cairn/var/profiles/system")
						break
					}
				}
				heal()
			})
		}), c.machine(1, four))
		healed.Wait()
		if back != "system-3-link\n" {
			t.Errorf("when the link was still cut the machine was at %q", back)
		}
		c.want(r, deploy.RolledBack)
	})
}
