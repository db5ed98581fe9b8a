package ssh_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"cairn/deploy/ssh"
)

// server is an sshd on loopback that lets one key in and runs commands with sh.
type server struct {
	net.Listener
	host gossh.Signer
	user gossh.PublicKey

	mu    sync.Mutex
	conns []net.Conn
}

func newServer(t *testing.T, user gossh.PublicKey) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l, host: newSigner(t), user: user}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, nc)
			s.mu.Unlock()
			wg.Go(func() { s.serve(nc) })
		}
	})
	t.Cleanup(func() { l.Close(); s.drop(); wg.Wait() })
	return s
}

// drop closes every connection, as a cut does.
func (s *server) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
}

func (s *server) serve(nc net.Conn) {
	defer nc.Close()
	config := &gossh.ServerConfig{PublicKeyCallback: func(_ gossh.ConnMetadata, k gossh.PublicKey) (*gossh.Permissions, error) {
		if !bytes.Equal(k.Marshal(), s.user.Marshal()) {
			return nil, errors.New("who?")
		}
		return nil, nil
	}}
	config.AddHostKey(s.host)
	_, channels, requests, err := gossh.NewServerConn(nc, config)
	if err != nil {
		return
	}
	go gossh.DiscardRequests(requests)
	var wg sync.WaitGroup
	for n := range channels {
		ch, reqs, err := n.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { session(ch, reqs) })
	}
	wg.Wait()
}

func session(ch gossh.Channel, reqs <-chan *gossh.Request) {
	defer ch.Close()
	for r := range reqs {
		r.Reply(r.Type == "exec", nil)
		if r.Type != "exec" {
			continue
		}
		var line struct{ Command string }
		gossh.Unmarshal(r.Payload, &line)
		cmd := exec.Command("sh", "-c", line.Command)
		in, _ := cmd.StdinPipe()
		cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
		cmd.Start()
		go func() { io.Copy(in, ch); in.Close() }()
		cmd.Wait()
		ch.SendRequest("exit-status", false, gossh.Marshal(struct{ S uint32 }{uint32(cmd.ProcessState.ExitCode())}))
		return
	}
}

func newSigner(t *testing.T) gossh.Signer {
	t.Helper()
	_, k, _ := ed25519.GenerateKey(rand.Reader)
	s, err := gossh.NewSignerFromKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newIdentity writes a private key file.
func newIdentity(t *testing.T) (string, gossh.PublicKey) {
	t.Helper()
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	block, err := gossh.MarshalPrivateKey(key, "test")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := gossh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return file, k
}

func line(k gossh.PublicKey) string {
	return strings.TrimSpace(string(gossh.MarshalAuthorizedKey(k)))
}

// fixture is a server and what is needed to reach it.
func fixture(t *testing.T) (*server, ssh.Target, *ssh.Options) {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		if os.Getenv("CAIRN_CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no ssh program; run: apt-get install openssh-client")
	}
	id, pub := newIdentity(t)
	s := newServer(t, pub)
	port := s.Addr().(*net.TCPAddr).Port
	known := filepath.Join(t.TempDir(), "known_hosts")
	config := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf("Host *\n  UserKnownHostsFile %s\n  GlobalKnownHostsFile /dev/null\n  IdentityAgent none\n  LocalForward 127.0.0.1:1 127.0.0.1:1\n  ControlPersist yes\n", known)
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o600), os.WriteFile(known, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	target := ssh.Target{Host: "127.0.0.1", Port: port, User: "somebody", Identity: id, HostKey: line(s.host.PublicKey())}
	return s, target, &ssh.Options{Config: config, Connect: 5 * time.Second, Keepalive: time.Second}
}

func dial(t *testing.T, target ssh.Target, opts *ssh.Options) *ssh.Conn {
	t.Helper()
	c, err := ssh.Dial(t.Context(), target, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRun(t *testing.T) {
	_, target, opts := fixture(t)
	c := dial(t, target, opts)
	var out, errs bytes.Buffer
	words := []string{"it's", "a b", "$HOME", "", "*", "\n", "-n"}
	err := c.Run(t.Context(), ssh.Command{Argv: append([]string{"printf", "%s|"}, words...), Stdout: &out})
	if want := strings.Join(words, "|") + "|"; err != nil || out.String() != want {
		t.Errorf("got %q, %v; want %q", out.String(), err, want)
	}
	out.Reset()
	err = c.Run(t.Context(), ssh.Command{Argv: []string{"sh", "-c", "cat; echo bad >&2; exit 7"}, Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errs})
	exit, _ := errors.AsType[*ssh.ExitError](err)
	if exit == nil || exit.Status != 7 || out.String() != "in" || errs.String() != "bad\n" || exit.Stderr != "" {
		t.Errorf("got %v, %q, %q", err, out.String(), errs.String())
	}
	err = c.Run(t.Context(), ssh.Command{Argv: []string{"sh", "-c", "echo why >&2; exit 1"}})
	if err == nil || err.Error() != "run sh: exited with status 1: why" {
		t.Errorf("got %v", err)
	}
}

func TestStreams(t *testing.T) {
	_, target, opts := fixture(t)
	c := dial(t, target, opts)
	data := make([]byte, 5<<20)
	rand.Read(data)
	var wg sync.WaitGroup
	for range 4 { // at once, over one connection
		wg.Go(func() {
			s, err := c.Stream(t.Context(), "cat")
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			go func() { s.Write(data); s.CloseWrite() }()
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if err := s.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCancel(t *testing.T) {
	_, target, opts := fixture(t)
	c := dial(t, target, opts)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	if err := c.Run(ctx, ssh.Command{Argv: []string{"sleep", "1"}}); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if err := c.Run(t.Context(), ssh.Command{Argv: []string{"true"}}); err != nil {
		t.Errorf("the connection suffered: %v", err)
	}
}

func TestLost(t *testing.T) {
	s, target, opts := fixture(t)
	c := dial(t, target, opts)
	time.AfterFunc(100*time.Millisecond, s.drop)
	s1, err := c.Stream(t.Context(), "sleep", "1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s1.Wait(); !errors.Is(err, ssh.ErrLost) {
			t.Errorf("got %v", err)
		}
	}
	if err := c.Run(t.Context(), ssh.Command{Argv: []string{"true"}}); !errors.Is(err, ssh.ErrLost) {
		t.Errorf("after the loss: %v", err)
	}
}

func TestRefused(t *testing.T) {
	_, target, opts := fixture(t)
	other, _ := newIdentity(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	wrong := line(newSigner(t).PublicKey())
	ecdsaKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ecdsaPublic, _ := gossh.NewPublicKey(&ecdsaKey.PublicKey)
	ecdsaLine := line(ecdsaPublic)
	for _, c := range []struct {
		name   string
		change func(*ssh.Target)
		known  string // line of known_hosts
		kind   error
		text   string
	}{
		{"pinned key is another", func(t *ssh.Target) { t.HostKey = wrong }, "", ssh.ErrHostKeyChanged, "SHA256:"},
		{"pinned key of a type the host lacks", func(t *ssh.Target) {
			t.HostKey = ecdsaLine
		}, "", ssh.ErrHostKeyChanged, "no matching host key type"},
		{"unknown host", func(t *ssh.Target) { t.HostKey = "" }, "", ssh.ErrHostKeyUnknown, "host key"},
		{"known_hosts has another", func(t *ssh.Target) { t.HostKey = "" }, fmt.Sprintf("[127.0.0.1]:%d %s", target.Port, wrong), ssh.ErrHostKeyChanged, ""},
		{"wrong identity", func(t *ssh.Target) { t.Identity = other }, "", ssh.ErrAuth, "Permission denied"},
		{"nobody listens", func(t *ssh.Target) { t.Port = port }, "", ssh.ErrUnreachable, "Connection refused"},
		{"no such host", func(t *ssh.Target) { t.Host = "no-such-host.invalid" }, "", ssh.ErrUnreachable, "Could not resolve"},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := target
			c.change(&target)
			b, _ := os.ReadFile(opts.Config)
			known := strings.Fields(strings.Split(string(b), "\n")[1])[1]
			os.WriteFile(known, []byte(c.known+"\n"), 0o600)
			_, err := ssh.Dial(t.Context(), target, opts)
			e, ok := errors.AsType[*ssh.Error](err)
			if !ok || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || e.Hint() == "" || !strings.Contains(err.Error(), target.Host) {
				t.Fatalf("got %v; want %v with %q", err, c.kind, c.text)
			}
			t.Log(err, "\n  hint:", e.Hint())
		})
	}
}

func TestKnownHost(t *testing.T) {
	s, target, opts := fixture(t)
	b, _ := os.ReadFile(opts.Config)
	known := strings.Fields(strings.Split(string(b), "\n")[1])[1]
	os.WriteFile(known, fmt.Appendf(nil, "[127.0.0.1]:%d %s\n", target.Port, line(s.host.PublicKey())), 0o600)
	target.HostKey = ""
	if err := dial(t, target, opts).Run(t.Context(), ssh.Command{Argv: []string{"true"}}); err != nil {
		t.Error(err)
	}
}

func TestBadTarget(t *testing.T) {
	for _, target := range []ssh.Target{
		{}, {Host: "-oProxyCommand=touch /tmp/x"}, {Host: "a b"}, {Host: "h", User: "-l"}, {Host: "h", Port: 70000},
		{Host: "h", HostKey: "ssh-ed25519"}, {Host: "h", HostKey: "ssh-ed25519 AAAA"},
	} {
		if _, err := ssh.Dial(t.Context(), target, nil); err == nil || errors.Is(err, ssh.ErrUnreachable) {
			t.Errorf("%+v: got %v", target, err)
		}
	}
}

func TestNothingLeft(t *testing.T) {
	_, target, opts := fixture(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	c := dial(t, target, opts)
	c.Close()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestQuote(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{"a", "b/c.d", "x=1"}, "a b/c.d x=1"},
		{[]string{"", "it's", "a\nb"}, `'' 'it'\''s' 'a` + "\n" + `b'`},
		{[]string{"~", "#x", "{a,b}"}, "'~' '#x' '{a,b}'"},
	} {
		if got := ssh.Quote(c.argv); got != c.want {
			t.Errorf("%q: got %s, want %s", c.argv, got, c.want)
		}
	}
}
