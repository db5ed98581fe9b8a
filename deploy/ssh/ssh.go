// Package ssh reaches hosts over the system's own ssh program.
//
// # Why the program
//
// The user's configuration, agent, hardware keys, jump hosts and known_hosts then work as they do at the prompt.
// [Dial] starts one master, `ssh -M -S socket -N host`, with the socket in a private directory; commands and streams
// are channels that this process opens itself through that socket (OpenSSH's proxy multiplexing), so that a command
// costs one round trip and no process. One master per [Conn]: closing it ends everything on it, and a new Dial is a
// really new connection, which is what a confirmation after a switch needs.
//
// # Trust
//
// With a pinned key, that key and no other is accepted, whatever known_hosts says; otherwise known_hosts decides, as the
// user's configuration has it. Nothing is ever asked (BatchMode): many hosts are reached at once, often from no terminal.
//
// # Errors
//
// A refused or broken connection is an [*Error]: which host, what kind (the sentinels below, for errors.Is), what ssh said,
// and the next step. Kinds are told by ssh's messages, which are stable and not translated; what is not recognised
// stays ErrUnreachable with ssh's own words. A command that ran and failed is an [*ExitError].
//
// # Dead links
//
// The master asks the server for a sign of life every Options.Keepalive and gives up after three without an answer;
// every channel then ends with ErrLost. Nothing is resumed here.
package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// What can be wrong with a connection.
var (
	ErrUnreachable    = errors.New("host is unreachable")
	ErrAuth           = errors.New("authentication refused")
	ErrHostKeyChanged = errors.New("host key changed")
	ErrHostKeyUnknown = errors.New("host key unknown")
	ErrLost           = errors.New("connection lost")
)

// Error is a connection that was refused or broke.
type Error struct {
	Kind error  // one of the sentinels
	Host string // as the target names it
	Text string // what ssh said
	Next string // the next step; may be empty
}

func (e *Error) Error() string {
	s := fmt.Sprintf("connect to %s: %v", e.Host, e.Kind)
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

func (e *Error) Unwrap() error { return e.Kind }

// Hint is the next step for the person who reads the error.
func (e *Error) Hint() string { return e.Next }

// Target is where to connect and as whom. Empty fields are left to the user's configuration.
type Target struct {
	Host     string // name, address or alias of the configuration
	Port     int
	User     string
	Identity string // private key file; when set, only this one is tried
	HostKey  string // pinned: "ssh-ed25519 AAAA…"
}

func (t Target) String() string {
	s := t.Host
	if t.User != "" {
		s = t.User + "@" + s
	}
	if t.Port != 0 {
		s += " port " + strconv.Itoa(t.Port)
	}
	return s
}

// check refuses what ssh could take for an option, and a pin that is none.
func (t Target) check() error {
	switch {
	case t.Host == "" || strings.HasPrefix(t.Host, "-") || strings.ContainsAny(t.Host, " \t\r\n\x00"):
		return fmt.Errorf("host %q is not a host name", t.Host)
	case strings.HasPrefix(t.User, "-") || strings.ContainsAny(t.User, " \t\r\n\x00"):
		return fmt.Errorf("user %q is not a user name", t.User)
	case t.Port < 0 || t.Port > 65535:
		return fmt.Errorf("port %d is not between 1 and 65535", t.Port)
	}
	if t.HostKey == "" {
		return nil
	}
	_, err := ParseHostKey(t.HostKey)
	return err
}

// ParseHostKey checks a pinned host key, "type base64 [comment]", and returns it without the comment.
func ParseHostKey(s string) (string, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(s))
	if err != nil || len(options) > 0 || len(rest) > 0 {
		return "", fmt.Errorf("host key %.40q is not one line \"type base64\", as in /etc/ssh/ssh_host_ed25519_key.pub", s)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), nil
}

// Options change how hosts are reached. The zero value is good.
type Options struct {
	Program   string        // default "ssh"
	Config    string        // configuration file instead of the user's and the system's
	Connect   time.Duration // limit of TCP connect and of the whole log-in; default 15 s
	Keepalive time.Duration // default 3 s; a dead link is noticed after three
}

func (o *Options) withDefaults() Options {
	v := Options{}
	if o != nil {
		v = *o
	}
	if v.Program == "" {
		v.Program = "ssh"
	}
	if v.Connect == 0 {
		v.Connect = 15 * time.Second
	}
	if v.Keepalive == 0 {
		v.Keepalive = 3 * time.Second
	}
	return v
}

// Conn is a connection to a host. It is safe for concurrent use.
type Conn struct {
	target Target
	dir    string
	master *exec.Cmd
	said   *tail
	client *ssh.Client
	ended  chan struct{} // closed when the master is gone
	once   sync.Once
}

// Dial connects and logs in.
func Dial(ctx context.Context, target Target, opts *Options) (*Conn, error) {
	if err := target.check(); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", target, err)
	}
	dir, err := privateDir()
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", target, err)
	}
	c := &Conn{target: target, dir: dir, said: new(tail), ended: make(chan struct{})}
	if err := c.start(opts.withDefaults()); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("connect to %s: %w", target, err)
	}
	if err := c.join(ctx, opts.withDefaults()); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// privateDir makes a directory whose name leaves room for a socket's.
func privateDir() (string, error) {
	base := os.TempDir()
	if len(base) > 50 {
		base = "/tmp"
	}
	return os.MkdirTemp(base, "cairn-ssh-")
}

func (c *Conn) socket() string { return filepath.Join(c.dir, "m") }

// start runs the master.
func (c *Conn) start(o Options) error {
	args, err := c.arguments(o)
	if err != nil {
		return err
	}
	c.master = exec.Command(o.Program, args...)
	c.master.Env = append(os.Environ(), "LC_ALL=C")
	c.master.Stderr = c.said
	c.master.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for us to handle
	c.master.WaitDelay = time.Second                           // a jump host's ssh may hold stderr
	if err := c.master.Start(); err != nil {
		return err
	}
	go func() {
		c.master.Wait()
		close(c.ended)
	}()
	return nil
}

func (c *Conn) arguments(o Options) ([]string, error) {
	var args []string
	if o.Config != "" {
		args = append(args, "-F", o.Config)
	}
	args = append(args, "-M", "-S", c.socket(), "-N", "-T", "-x", "-a")
	option := func(format string, v ...any) { args = append(args, "-o", fmt.Sprintf(format, v...)) }
	option("ControlPersist=no")
	option("BatchMode=yes")
	option("ClearAllForwardings=yes")
	option("PermitLocalCommand=no")
	option("RemoteCommand=none")
	option("LogLevel=INFO")
	option("ConnectTimeout=%d", seconds(o.Connect))
	option("ServerAliveInterval=%d", seconds(o.Keepalive))
	option("ServerAliveCountMax=3")
	if c.target.HostKey != "" {
		file, algorithms, err := c.pin()
		if err != nil {
			return nil, err
		}
		option("UserKnownHostsFile=%s", file)
		option("GlobalKnownHostsFile=/dev/null")
		option("StrictHostKeyChecking=yes")
		option("CheckHostIP=no")
		option("UpdateHostKeys=no")
		option("VerifyHostKeyDNS=no")
		option("HostKeyAlgorithms=%s", algorithms)
	}
	if c.target.Port != 0 {
		args = append(args, "-p", strconv.Itoa(c.target.Port))
	}
	if c.target.User != "" {
		args = append(args, "-l", c.target.User)
	}
	if c.target.Identity != "" {
		args = append(args, "-i", c.target.Identity)
		option("IdentitiesOnly=yes")
	}
	return append(args, "--", c.target.Host), nil
}

func seconds(d time.Duration) int { return max(1, int(d.Round(time.Second)/time.Second)) }

// pin writes a known_hosts that knows one key, for every name, and says which signatures it can make.
func (c *Conn) pin() (file, algorithms string, err error) {
	key, err := ParseHostKey(c.target.HostKey)
	if err != nil {
		return "", "", err
	}
	kind, _, _ := strings.Cut(key, " ")
	algorithms = kind
	if kind == ssh.KeyAlgoRSA {
		algorithms = ssh.KeyAlgoRSASHA512 + "," + ssh.KeyAlgoRSASHA256
	}
	file = filepath.Join(c.dir, "known_hosts")
	return file, algorithms, os.WriteFile(file, []byte("* "+key+"\n"), 0o600)
}

// join waits for the master's socket, which is there once the log-in succeeded, and opens it.
func (c *Conn) join(ctx context.Context, o Options) error {
	limit := time.NewTimer(o.Connect + 5*time.Second)
	defer limit.Stop()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		if nc, err := net.Dial("unix", c.socket()); err == nil {
			return c.multiplex(nc)
		}
		select {
		case <-tick.C:
		case <-c.ended:
			return c.refused()
		case <-limit.C:
			return &Error{Kind: ErrUnreachable, Host: c.target.String(), Text: "no log-in within " + (o.Connect + 5*time.Second).String(),
				Next: "look whether its sshd answers: ssh -v " + c.target.Host}
		case <-ctx.Done():
			return fmt.Errorf("connect to %s: %w", c.target, context.Cause(ctx))
		}
	}
}

func (c *Conn) multiplex(nc net.Conn) error {
	conn, channels, requests, err := ssh.NewControlClientConn(nc)
	if err != nil {
		nc.Close()
		return fmt.Errorf("connect to %s: speak to ssh's control socket: %w", c.target, err)
	}
	c.client = ssh.NewClient(conn, channels, requests)
	return nil
}

// refused makes the error of a master that ended before or after the log-in.
func (c *Conn) refused() error {
	e := classify(c.said.String())
	e.Host = c.target.String()
	e.Next = strings.ReplaceAll(e.Next, "HOST", c.target.Host)
	if c.target.HostKey != "" && errors.Is(e.Kind, ErrHostKeyChanged) {
		e.Next = "if the host was made anew, put its new key into host_key; look at it on the host's console with: cat /etc/ssh/ssh_host_ed25519_key.pub"
	}
	return e
}

// lost makes the error of a channel that broke. When that is the connection's end, ssh says why in a moment.
func (c *Conn) lost(err error) error {
	select {
	case <-c.ended:
		text := strings.TrimSpace(c.said.String())
		if text == "" {
			text = err.Error()
		}
		return &Error{Kind: ErrLost, Host: c.target.String(), Text: lastLine(text), Next: "run the command again; what was begun on the host ends there by itself"}
	case <-time.After(300 * time.Millisecond):
		return fmt.Errorf("host %s: %w: %w", c.target, ErrLost, err)
	}
}

// Target is what was dialled.
func (c *Conn) Target() Target { return c.target }

// Close ends the connection and everything on it.
func (c *Conn) Close() error {
	c.once.Do(func() {
		if c.client != nil {
			c.client.Close()
		}
		c.master.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.ended:
		case <-time.After(2 * time.Second):
			c.master.Process.Kill()
			<-c.ended
		}
		os.RemoveAll(c.dir)
	})
	return nil
}

// tail keeps the last bytes of what ssh says.
type tail struct {
	mu sync.Mutex // guards b
	b  []byte
}

const maxTail = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - maxTail; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ToValidUTF8(t.b, []byte("?")))
}
