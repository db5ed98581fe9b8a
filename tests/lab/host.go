package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one machine of a lab.
type Host struct {
	Name string // h1, h2, …

	number  int
	lab     *Lab
	running sync.WaitGroup // the goroutine that waits for systemd-nspawn
	closing atomic.Bool    // do not boot again
}

// Addr is the host's address in the lab's network.
func (h *Host) Addr() string { return fmt.Sprintf("10.66.0.%d", 10+h.number) }

// HostKey is the host's public key as known_hosts has it: type and base 64.
func (h *Host) HostKey() (string, error) {
	b, err := os.ReadFile(h.file("etc/ssh/ssh_host_ed25519_key.pub"))
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return "", fmt.Errorf("host key of %s: %q", h.Name, b)
	}
	return f[0] + " " + f[1], nil
}

func (h *Host) dir() string             { return filepath.Join(h.lab.dir, h.Name) }
func (h *Host) root() string            { return filepath.Join(h.dir(), "root") }
func (h *Host) file(name string) string { return filepath.Join(h.root(), name) }
func (h *Host) group() string           { return namespaceName(h.lab.Name) + "-" + h.Name }
func (h *Host) machine() string         { return h.lab.Name + "-" + h.Name }
func (h *Host) link() string            { return "vb-" + h.machine() } // 15 characters at most
func (h *Host) hasLink() bool           { return h.lab.ip(context.Background(), "link", "show", h.link()) == nil }

// make mounts the host's disk and gives it name, address, keys and identity.
// A kernel of its own mounts its disk itself and takes those from the directory root, in which there is nothing else.
func (h *Host) make(ctx context.Context) error {
	for _, d := range []string{"up", "work", "root", "root/etc/ssh"} {
		if err := os.MkdirAll(filepath.Join(h.dir(), d), 0o755); err != nil {
			return err
		}
		if d == "root" && h.lab.kernel == "" {
			if err := h.mount(); err != nil {
				return err
			}
		}
	}
	pub, err := os.ReadFile(h.lab.Identity() + ".pub")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{
		{"etc/hostname", h.Name + "\n", 0o644},
		{"etc/hosts", "127.0.0.1 localhost\n127.0.1.1 " + h.Name + "\n::1 localhost\n", 0o644},
		{"etc/machine-id", randomHex(16) + "\n", 0o444},
		{"etc/systemd/network/10-host0.network", "[Match]\nName=host0\n\n[Network]\nAddress=" + h.Addr() + "/24\nGateway=10.66.0.1\nLinkLocalAddressing=no\n", 0o644},
		{"root/.ssh/authorized_keys", string(pub), 0o600},
	} {
		if err := h.write(f.name, f.text, f.mode); err != nil {
			return err
		}
	}
	return run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", h.Name, "-f", h.file("etc/ssh/ssh_host_ed25519_key"))
}

func (h *Host) write(name, text string, mode os.FileMode) error {
	path := h.file(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	os.Remove(path)
	return os.WriteFile(path, []byte(text), mode)
}

func (h *Host) mount() error {
	var a, b unix.Stat_t
	if unix.Stat(h.root(), &a) == nil && unix.Stat(h.dir(), &b) == nil && a.Dev != b.Dev {
		return nil
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/up,workdir=%s/work", h.lab.base, h.dir(), h.dir())
	if err := unix.Mount("overlay", h.root(), "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", h.root(), err)
	}
	return nil
}

// Boot starts the host and waits until its sshd lets root in.
func (h *Host) Boot(ctx context.Context) error {
	if h.Up() {
		return fmt.Errorf("boot %s: is up already", h.Name)
	}
	if err := h.start(); err != nil {
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	return h.Wait(ctx)
}

// The host is run by sh, which first moves itself into the host's cgroups: "$1" is a list of files.
const enterGroups = `for f in $1; do echo $$ > $f || exit 1; done; shift; exec "$@"`

func (h *Host) start() error {
	groups, err := makeGroups(h.group())
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(h.dir(), "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	argv, env := h.nspawn(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1"
	if h.lab.kernel != "" {
		if err := h.plug(context.Background()); err != nil {
			return err
		}
		argv, env = h.uml(), "TMPDIR="+h.dir() // where its memory is
	}
	cmd := exec.Command("sh", append([]string{"-c", enterGroups, "sh", strings.Join(groups, " "), "nsenter", "--net=" + h.lab.namespacePath(), "--"}, argv...)...)
	cmd.Env = append(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	h.running.Go(func() { h.supervise(cmd) })
	return nil
}

func (h *Host) nspawn() []string {
	return []string{
		"systemd-nspawn", "-q", "-D", h.root(), "-M", h.machine(), "--hostname=" + h.Name, "--register=no", "--keep-unit",
		"--console=pipe", "--network-bridge=br0", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "-b",
	}
}

// rebooted is systemd-nspawn's exit status when the host asked for a reboot.
const rebooted = 133

// supervise waits for the host's end, and starts it again when it was a reboot from inside.
// A kernel of its own starts itself again.
func (h *Host) supervise(cmd *exec.Cmd) {
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) && exit.ExitCode() == rebooted && !h.closing.Load() {
		killGroups(h.group())
		h.start()
	}
}

// Wait returns when the host's sshd lets root in.
func (h *Host) Wait(ctx context.Context) error {
	limit := 2 * time.Minute
	if h.lab.kernel != "" {
		limit = 3 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		try, done := context.WithTimeout(ctx, 30*time.Second)
		if last = h.banner(try); last == nil {
			if _, last = h.Run(try, "true"); last == nil {
				done()
				return nil
			}
		}
		done()
		time.Sleep(20 * time.Millisecond)
	}
	log, _ := os.ReadFile(filepath.Join(h.dir(), "log"))
	return fmt.Errorf("host %s does not answer: %w; its console said: %s", h.Name, last, bytes.TrimSpace(log[max(0, len(log)-1000):]))
}

// banner waits for the first bytes of an sshd.
func (h *Host) banner(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := h.lab.Dial(ctx, "tcp", h.Addr()+":22")
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadFull(conn, make([]byte, 4))
	return err
}

// Up reports whether the host has a PID 1, or a kernel.
func (h *Host) Up() bool {
	if h.lab.kernel == "" {
		return h.init() != 0
	}
	for _, root := range hierarchies() {
		if len(groupProcesses(filepath.Join(root, h.group()))) > 0 {
			return true
		}
	}
	return false
}

// init returns the pid, out here, of the host's PID 1, or 0.
func (h *Host) init() int {
	for _, root := range hierarchies() {
		for _, pid := range groupProcesses(filepath.Join(root, h.group())) {
			b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
			_, rest, _ := strings.Cut(string(b), "\nNSpid:")
			line, _, _ := strings.Cut(rest, "\n")
			if f := strings.Fields(line); len(f) > 1 && f[len(f)-1] == "1" {
				return pid
			}
		}
	}
	return 0
}

// Kill is a power cut: every process dies at once, the disk stays as it is.
// With a kernel of its own, what had not been brought to the disk is lost.
func (h *Host) Kill() error {
	h.closing.Store(true)
	defer h.closing.Store(false)
	if err := killGroups(h.group()); err != nil {
		return err
	}
	h.running.Wait()
	if h.hasLink() {
		h.lab.ip(context.Background(), "link", "del", h.link()) // may go by itself meanwhile
	}
	return nil
}

// Cut takes the host off the network silently: nobody is told, packets just stop.
func (h *Host) Cut() error {
	return h.lab.ip(context.Background(), "link", "set", h.link(), "nomaster")
}

// Heal undoes Cut.
func (h *Host) Heal() error {
	return h.lab.ip(context.Background(), "link", "set", h.link(), "master", "br0")
}

// Run runs a command on the host over ssh, as root, without a shell's interpretation, and returns its standard output.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	return h.RunInput(ctx, nil, argv...)
}

// RunInput is Run with standard input.
func (h *Host) RunInput(ctx context.Context, stdin io.Reader, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, h.lab.SSH(), h.Name, "--", quote(argv))
	return output(cmd, stdin, h.Name, argv)
}

// Enter runs a command on the host past its network, by entering its namespaces: for looking at a host whose link is cut.
// A host with a kernel of its own has no namespaces to enter.
func (h *Host) Enter(ctx context.Context, argv ...string) (string, error) {
	if h.lab.kernel != "" {
		return "", fmt.Errorf("enter %s: it has a kernel of its own, so there is no way in but its network; use Run", h.Name)
	}
	pid := h.init()
	if pid == 0 {
		return "", fmt.Errorf("enter %s: is down", h.Name)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "--"}, argv...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "GORACE=" + os.Getenv("GORACE")}
	return output(cmd, nil, h.Name, argv)
}

func output(cmd *exec.Cmd, stdin io.Reader, host string, argv []string) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("run %s on %s: %w: %s", strings.Join(argv, " "), host, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// Put writes a file on the host, with its directories.
func (h *Host) Put(ctx context.Context, path string, r io.Reader, mode os.FileMode) error {
	_, err := h.RunInput(ctx, r, "install", "-D", "-m", strconv.FormatUint(uint64(mode.Perm()), 8), "/dev/stdin", path)
	return err
}

// quote makes one word list for the remote shell.
func quote(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}
