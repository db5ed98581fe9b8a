// Package lab starts real Debian hosts to test on: systemd as PID 1, its own journal, D-Bus and networkd, OpenSSH,
// each with an address on a private bridge in a network namespace. A lab host is never the machine the tests run on.
//
// The verbs: [Start] N hosts, [Host.Run] a command over ssh, [Host.Put] a file, [Host.Cut] and [Host.Heal] the link,
// [Host.Kill] (a power cut: nothing is stopped, the disk stays) and [Host.Boot]. [Lab.Close] removes everything.
//
// # What a lab is made of
//
//	CACHE/<suite>-<key>/          base system, made once by debootstrap; read-only lower layer of every host
//	CACHE/<suite>-<key>.ext4      the same as a disk image, for hosts with a kernel of their own
//	CACHE/linux-<key>             their kernel
//	/run/cairn-lab/<name>/        one lab; a tmpfs, so removing it is unmounting it
//	    lock                      flock'ed by the owner for as long as it lives
//	    lab.json                  what Open needs
//	    id, id.pub, known_hosts   the key that every host lets in as root; the hosts' own keys
//	    ssh_config, ssh           configuration, and a wrapper that runs ssh with it in the lab's network
//	    <host>/{up,work,root,log} overlay and console; with a kernel of its own, disk instead, and in root what is the host's own
//	network namespace cairn-lab-<name>, with bridge br0 at 10.66.0.1/24 and host hN at 10.66.0.(10+N)
//	cgroup cairn-lab-<name>-<host>
//
// Everything carries the lab's name, so two labs run side by side, and a lab whose owner was killed is recognised by
// its free lock: the next Start removes it. A detached lab (labctl up) has no living owner and stays until it is taken down.
//
// Hosts are containers (systemd-nspawn): they share this machine's kernel and its clock, resource limits are accepted
// but not enforced, and what was written but not synced survives a power cut.
//
// # Hosts with a kernel of their own
//
// With Options.Kernel each host is a User-Mode Linux kernel, an ordinary process, with the same base system on a disk of its own:
// reboots are real, limits hold, and a power cut loses what had not been brought to the disk. It takes no KVM and no modules.
// Its file system is told not to guess which renames should be durable. Everything works as for containers but Host.Enter;
// a host has one processor and 512 MB, starts in some seconds, and forks several times slower. See [Kernel] for where the kernel comes from.
//
// Environment: CAIRN_LAB_CACHE (default /var/cache/cairn/lab), CAIRN_LAB_SUITE (default trixie),
// CAIRN_LAB_KERNEL (a User-Mode Linux kernel, plain or .xz).
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// stateDir holds one directory per lab.
const stateDir = "/run/cairn-lab"

// Options change what Start makes. The zero value is good for tests.
type Options struct {
	Name     string    // default: random; at most 6 lower-case letters and digits
	Suite    string    // Debian release: trixie, bookworm, sid; default CAIRN_LAB_SUITE or trixie
	Base     string    // a ready base system instead of the cached one
	Kernel   bool      // each host has a kernel of its own
	Detached bool      // the lab outlives this process, until Open and Close
	Log      io.Writer // progress of slow steps; default none
}

// Lab is a running network of hosts.
type Lab struct {
	Name  string
	Hosts []*Host

	dir    string
	base   string
	kernel string // of every host; "": this machine's
	image  string // disk image of base, if there is a kernel
	lock   *os.File
}

// record is lab.json.
type record struct {
	Base     string `json:"base"`
	Kernel   string `json:"kernel,omitempty"`
	Image    string `json:"image,omitempty"`
	Hosts    int    `json:"hosts"`
	Detached bool   `json:"detached"`
}

// New starts n hosts for a test and removes them when it ends.
// It skips the test where a lab was not asked for or cannot run, with the command that enables it.
func New(t testing.TB, n int, opts *Options) *Lab {
	t.Helper()
	if os.Getenv("CAIRN_CI") == "" && os.Getenv("CAIRN_LAB") == "" {
		t.Skip("lab not asked for; run as root: make lab, or CAIRN_LAB=1 go test")
	}
	if err := Available(); err != nil {
		if os.Getenv("CAIRN_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Log == nil {
		o.Log = testWriter{t}
	}
	l, err := Start(t.Context(), n, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.dump(t)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// dump logs what the hosts' journals say of trouble.
func (l *Lab) dump(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, h := range l.Hosts {
		look := h.Enter
		if l.kernel != "" {
			look = h.Run
		}
		if out, err := look(ctx, "journalctl", "-b", "-q", "--no-pager", "-p", "warning", "-n", "30", "-o", "cat"); err == nil && out != "" {
			t.Logf("journal of %s:\n%s", h.Name, out)
		}
	}
}

// Available says what this machine lacks to run a lab, and how to get it; nil if nothing.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("lab needs root: run as root, make lab")
	}
	return installed([]program{
		{"debootstrap", "debootstrap"}, {"systemd-nspawn", "systemd-container"}, {"ip", "iproute2"},
		{"ssh", "openssh-client"}, {"ssh-keygen", "openssh-client"}, {"nsenter", "util-linux"},
	})
}

// program is one that a lab runs, and the Debian package it is in.
type program struct{ name, pkg string }

func installed(programs []program) error {
	var missing []string
	for _, p := range programs {
		if _, err := exec.LookPath(p.name); err != nil && !slices.Contains(missing, p.pkg) {
			missing = append(missing, p.pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("lab lacks programs: run apt-get install %s", strings.Join(missing, " "))
	}
	return nil
}

var nameRE = regexp.MustCompile(`^[a-z0-9]{1,6}$`)

// Start makes n hosts h1…hn and waits until their sshd answers.
func Start(ctx context.Context, n int, opts *Options) (*Lab, error) {
	if opts == nil {
		opts = &Options{}
	}
	name := opts.Name
	if name == "" {
		name = randomHex(3)
	}
	if !nameRE.MatchString(name) || n < 1 || n > 200 {
		return nil, fmt.Errorf("start lab %q with %d hosts: name is 1 to 6 of a-z0-9, hosts 1 to 200", name, n)
	}
	if err := Available(); err != nil {
		return nil, err
	}
	r, err := prepare(ctx, opts)
	if err != nil {
		return nil, err
	}
	r.Hosts, r.Detached = n, opts.Detached
	l, err := create(name, r)
	if err != nil {
		return nil, fmt.Errorf("start lab %s: %w", name, err)
	}
	if err := l.up(ctx, n); err != nil {
		return nil, errors.Join(fmt.Errorf("start lab %s: %w", name, err), l.Close())
	}
	return l, nil
}

// prepare finds or makes what hosts are made of. A missing kernel is built only by CI: it takes long.
func prepare(ctx context.Context, opts *Options) (record, error) {
	r := record{Base: opts.Base}
	var err error
	if r.Base == "" {
		if r.Base, err = Base(ctx, opts.Suite, opts.Log); err != nil {
			return r, err
		}
	}
	if !opts.Kernel {
		return r, nil
	}
	if err := installed(umlPrograms); err != nil {
		return r, err
	}
	if r.Kernel, err = Kernel(ctx, os.Getenv("CAIRN_CI") != "", opts.Log); err != nil {
		return r, err
	}
	r.Image, err = image(ctx, r.Base)
	return r, err
}

// create sweeps dead labs and makes the directory of a new one, locked.
func create(name string, r record) (*Lab, error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, err
	}
	all, err := lockFile(filepath.Join(stateDir, ".lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	if err := sweep(); err != nil {
		return nil, err
	}
	dir := filepath.Join(stateDir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab is there already (labctl -name %s down removes it): %w", name, err)
	}
	if err := unix.Mount("cairn-lab", dir, "tmpfs", 0, "mode=755,size=75%"); err != nil {
		return nil, fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	l := &Lab{Name: name, dir: dir, base: r.Base, kernel: r.Kernel, image: r.Image}
	if l.lock, err = lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return l, os.WriteFile(filepath.Join(dir, "lab.json"), b, 0o644)
}

// sweep removes every lab whose owner is gone. The caller holds the lock of stateDir.
func sweep() error {
	entries, err := os.ReadDir(stateDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(stateDir, e.Name())
		if !e.IsDir() {
			continue
		}
		lock, err := lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // its owner lives
		}
		var r record
		b, _ := os.ReadFile(filepath.Join(dir, "lab.json"))
		json.Unmarshal(b, &r) // none or a torn one: died while starting
		if !r.Detached {
			err = destroy(e.Name())
		}
		lock.Close()
		if err != nil {
			return fmt.Errorf("remove dead lab %s: %w", e.Name(), err)
		}
	}
	return nil
}

func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// Open finds a detached lab that is up.
func Open(name string) (*Lab, error) {
	dir := filepath.Join(stateDir, name)
	b, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if err != nil {
		return nil, fmt.Errorf("open lab %s: is it up? %w", name, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	l := &Lab{Name: name, dir: dir, base: r.Base, kernel: r.Kernel, image: r.Image}
	l.addHosts(r.Hosts)
	return l, nil
}

func (l *Lab) addHosts(n int) {
	for i := 1; i <= n; i++ {
		l.Hosts = append(l.Hosts, &Host{Name: fmt.Sprintf("h%d", i), number: i, lab: l})
	}
}

// up makes network, keys and hosts, and boots them all.
func (l *Lab) up(ctx context.Context, n int) error {
	if err := l.makeNetwork(ctx); err != nil {
		return err
	}
	if err := run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", l.Identity()); err != nil {
		return err
	}
	l.addHosts(n)
	for _, h := range l.Hosts {
		if err := h.make(ctx); err != nil {
			return fmt.Errorf("make host %s: %w", h.Name, err)
		}
	}
	if err := l.writeSSH(); err != nil {
		return err
	}
	var g errgroup.Group
	for _, h := range l.Hosts {
		g.Go(func() error { return h.Boot(ctx) })
	}
	return g.Wait()
}

// Close stops all hosts at once and removes everything that Start made.
func (l *Lab) Close() error {
	for _, h := range l.Hosts {
		h.closing.Store(true)
	}
	err := destroy(l.Name)
	for _, h := range l.Hosts {
		h.running.Wait()
	}
	if l.lock != nil {
		l.lock.Close()
	}
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", l.Name, err)
	}
	return nil
}

// destroy removes what carries the lab's name, in the order that works from any half-made state.
func destroy(name string) error {
	dir := filepath.Join(stateDir, name)
	if err := killGroups(namespaceName(name) + "-*"); err != nil {
		return err
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join("/run/netns", namespaceName(name))); err == nil {
		if err := run(context.Background(), "ip", "netns", "del", namespaceName(name)); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// unmountBelow unmounts everything mounted at or below dir, innermost first.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) < 5 || f[4] != dir && !strings.HasPrefix(f[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("unmount %s: %w", f[4], err)
		}
	}
	return nil
}

// Host returns the host called name, or nil.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.Hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Dir is a directory of the lab's own, removed with it.
func (l *Lab) Dir() string { return l.dir }

// Identity is the private key file that every host lets in as root; the public key is beside it, in .pub.
func (l *Lab) Identity() string { return filepath.Join(l.dir, "id") }

// SSHConfigFile knows every host by name and by address.
func (l *Lab) SSHConfigFile() string { return filepath.Join(l.dir, "ssh_config") }

// KnownHostsFile holds the hosts' keys.
func (l *Lab) KnownHostsFile() string { return filepath.Join(l.dir, "known_hosts") }

// SSH is a program to use instead of ssh: it runs ssh with the lab's configuration in the lab's network.
func (l *Lab) SSH() string { return filepath.Join(l.dir, "ssh") }

// Command prepares a process in the lab's network, to be run by the caller.
func (l *Lab) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + l.namespacePath(), "--"}, argv...)...)
}

func (l *Lab) writeSSH() error {
	var config, known strings.Builder
	for _, h := range l.Hosts {
		key, err := h.HostKey()
		if err != nil {
			return err
		}
		fmt.Fprintf(&known, "%s,%s %s\n", h.Name, h.Addr(), key)
		fmt.Fprintf(&config, "Host %s\n  HostName %s\n", h.Name, h.Addr())
	}
	fmt.Fprintf(&config, "Host *\n  User root\n  IdentityFile %s\n  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  GlobalKnownHostsFile /dev/null\n"+
		"  StrictHostKeyChecking yes\n  BatchMode yes\n  ConnectTimeout 5\n  LogLevel ERROR\n", l.Identity(), l.KnownHostsFile())
	wrapper := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=%s -- ssh -F %s \"$@\"\n", l.namespacePath(), l.SSHConfigFile())
	return errors.Join(
		os.WriteFile(l.SSHConfigFile(), []byte(config.String()), 0o600),
		os.WriteFile(l.KnownHostsFile(), []byte(known.String()), 0o600),
		os.WriteFile(l.SSH(), []byte(wrapper), 0o755))
}

// run runs a program and puts what it said into the error.
func run(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
