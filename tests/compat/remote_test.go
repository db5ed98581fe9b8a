package compat

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
)

// wrap makes programs with the names of Nix's in a folder of their own, which work on a side's store whatever the environment of
// their caller is: what a remote machine's ssh server would start. On our side they are links to this program.
func (s *side) wrap(w *world) (bin string) {
	s.t.Helper()
	bin = filepath.Join(w.root, s.name, "bin")
	links := filepath.Join(w.root, s.name, "links")
	for _, d := range []string{bin, links} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	self := filepath.Join(links, "cairn")
	if err := copyProgram(self); err != nil {
		s.t.Fatal(err)
	}
	for _, name := range []string{"nix-store", "nix-daemon"} {
		program := filepath.Join(links, name)
		env := s.env
		if s == w.ours {
			if err := os.Symlink("cairn", program); err != nil {
				s.t.Fatal(err)
			}
		} else {
			program = "/usr/bin/" + name
			env = append(env, "NIX_REMOTE=local")
		}
		text := "#!/bin/sh\nexec env -i " + quoteAll(env) + " " + program + ` "$@"` + "\n"
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	return bin
}

func copyProgram(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return exec.Command("cp", self, to).Run()
}

func quoteAll(words []string) string {
	var list []string
	for _, w := range words {
		list = append(list, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return strings.Join(list, " ")
}

// uris are how a side is reached without ssh, by both protocols.
func (s *side) uris(w *world) map[string]string {
	bin := s.wrap(w)
	return map[string]string{
		"ssh":    "ssh://localhost?remote-program=" + bin + "/nix-store",
		"ssh-ng": "ssh-ng://localhost?remote-program=" + bin + "/nix-daemon",
	}
}

// infoOf returns what a store says of paths, without what is its own affair.
func (s *side) infoOf(t *testing.T, store string, paths ...string) map[string]any {
	t.Helper()
	argv := []string{"nix", "path-info", "--json", "-r"}
	if store != "" {
		argv = append(argv, "--store", store)
	}
	text := []byte(s.run(append(argv, paths...)...))
	infos := map[string]any{}
	var list []map[string]any
	if json.Unmarshal(text, &list) == nil {
		for _, i := range list {
			infos[fmt.Sprint(i["path"])] = i
		}
	} else if err := json.Unmarshal(text, &infos); err != nil {
		t.Fatalf("path-info: %v: %s", err, text)
	}
	for _, i := range infos {
		if m, ok := i.(map[string]any); ok {
			delete(m, "registrationTime")
			delete(m, "ultimate")
			delete(m, "valid")
		}
	}
	return infos
}

// TestRemoteStore copies closures to us and back with nix over both protocols, and looks at what arrived.
func TestRemoteStore(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.theirs.file("g.nix", graph())
		out := w.theirs.run("nix-build", "g.nix", "-A", "onFirst", "--no-out-link")
		other := w.theirs.run("nix-build", "g.nix", "-A", "two", "--no-out-link")
		want := w.theirs.infoOf(t, "", out, other)
		for name, uri := range w.ours.uris(w) {
			path := map[string]string{"ssh": out, "ssh-ng": other}[name]
			w.theirs.run("nix", "copy", "--no-check-sigs", "--to", uri, path)
			for p, info := range w.theirs.infoOf(t, uri, path) {
				if !reflect.DeepEqual(info, want[p]) {
					t.Errorf("%s: %s is\n%v, want\n%v", name, p, info, want[p])
				}
			}
			w.theirs.run("nix-store", "--delete", path)
			w.theirs.run("nix", "copy", "--no-check-sigs", "--from", uri, path)
			w.theirs.run("nix-store", "--verify-path", path)
		}
	})
}

// file writes a file into the side's working directory.
func (s *side) file(name, contents string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.work, name), []byte(contents), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// TestCopyClosure is nix-copy-closure, which looks for nix-store in the other machine's PATH.
func TestCopyClosure(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.theirs.file("g.nix", graph())
		out := w.theirs.run("nix-build", "g.nix", "-A", "onFirst", "--no-out-link")
		w.theirs.env = append(w.theirs.env, "PATH="+w.ours.wrap(w)+":"+os.Getenv("PATH"))
		w.theirs.run("nix-copy-closure", "--to", "localhost", out)
		if p, err := store.Dir(w.dir).ParsePath(out); err != nil || !w.ours.store.IsValid(p) {
			t.Fatalf("%s did not arrive: %v", out, err)
		}
		before := w.theirs.run("cat", out)
		w.theirs.run("/usr/bin/nix-store", "--delete", out)
		w.theirs.run("nix-copy-closure", "--from", "localhost", out)
		if after := w.theirs.run("cat", out); after != before {
			t.Errorf("got %q back, want %q", after, before)
		}
	})
}

// TestNixBuildsOnUs lets nix send builds to us.
func TestNixBuildsOnUs(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.local()
		w.theirs.file("g.nix", graph())
		for name, uri := range w.ours.uris(w) {
			attr := map[string]string{"ssh": "onFirst", "ssh-ng": "two"}[name]
			build := []string{"nix-build", "g.nix", "--no-out-link", "--max-jobs", "0", "--builders", uri + " - - 2 1 ca-derivations"}
			out := w.theirs.run(append(build, "-A", attr)...)
			p, err := store.Dir(w.dir).ParsePath(lines(out)[0])
			if err != nil || !w.ours.store.IsValid(p) {
				t.Errorf("%s: %s was not built by us: %v", name, out, err)
			}
			bad := w.theirs.try(nil, append(build, "-A", "broken")...)
			if bad.code == 0 || !strings.Contains(bad.err, "about to fail") {
				t.Errorf("%s: a failing build: %d %s", name, bad.code, bad.err)
			}
		}
	})
}

// TestWeBuildOnNix sends builds to nix, by both protocols.
func TestWeBuildOnNix(t *testing.T) {
	w := newWorld(t)
	w.ours.file("g.nix", graph())
	for name, uri := range w.theirs.uris(w) {
		attr := map[string]string{"ssh": "two", "ssh-ng": "onFloating"}[name]
		build := []string{"nix-build", "g.nix", "--no-out-link", "--max-jobs", "0", "--option", "builders", uri + " - - 2 1 ca-derivations"}
		done := w.ours.try(nil, append(build, "-A", attr)...)
		if attr == "onFloating" && (!strings.Contains(done.err, "\nbuilding first\n") || !strings.Contains(done.err, "first.drv' on '"+uri+"'")) {
			t.Errorf("%s: the client is told\n%s", name, done.err)
		}
		out := strings.TrimSpace(done.out)
		if done.code != 0 {
			t.Fatalf("%s: %d %s", name, done.code, done.err)
		}
		p, err := store.Dir(w.dir).ParsePath(lines(out)[0])
		if err != nil || !w.ours.store.IsValid(p) {
			t.Errorf("%s: %s did not come back: %v", name, out, err)
		}
		w.theirs.run("nix-store", "--verify-path", lines(out)[0])
		bad := w.ours.try(nil, append(build, "-A", "broken")...)
		if bad.code == 0 || !strings.Contains(bad.err, "about to fail") || !strings.Contains(bad.err, "exit code 3") {
			t.Errorf("%s: a failing build: %d %s", name, bad.code, bad.err)
		}
	}
}

// sshServer is OpenSSH on loopback, for root, whose PATH leads to our programs.
type sshServer struct {
	port      int
	key, host string // files: the client's private key, known_hosts
	process   *os.Process
}

func startSSH(t *testing.T, w *world, path string) *sshServer {
	t.Helper()
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		if os.Getenv("CAIRN_CI") == "1" {
			t.Fatal(err)
		}
		t.Skip("no sshd; enable with: make deps")
	}
	dir := filepath.Join(w.root, "sshd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll("/run/sshd", 0o755)
	for _, name := range []string{"host", "client"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	s := &sshServer{port: freePort(t), key: filepath.Join(dir, "client"), host: filepath.Join(dir, "known")}
	hostKey, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\nSetEnv PATH=%s\n",
		s.port, filepath.Join(dir, "host"), s.key+".pub", path)
	for name, text := range map[string]string{"config": config, "known": "* " + string(hostKey)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "config"))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.process = cmd.Process
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", errs.String())
		}
	})
	for range 200 {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port)); err == nil {
			c.Close()
			return s
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("sshd does not listen: %s", errs.String())
	return nil
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// options are NIX_SSHOPTS.
func (s *sshServer) options() string {
	return fmt.Sprintf("-p %d -i %s -oUserKnownHostsFile=%s -oStrictHostKeyChecking=yes -oIdentitiesOnly=yes -F /dev/null", s.port, s.key, s.host)
}

// TestRealSSH lets a stock client reach us over a real ssh server, with nothing said but the host.
func TestRealSSH(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ssh := startSSH(t, w, w.ours.wrap(w)+":/usr/bin:/bin")
	w.theirs.env = append(w.theirs.env, "NIX_SSHOPTS="+ssh.options())
	w.theirs.file("g.nix", graph())
	out := w.theirs.run("nix-build", "g.nix", "-A", "first", "--no-out-link")
	w.theirs.run("nix", "copy", "--no-check-sigs", "--to", "ssh-ng://root@127.0.0.1", out)
	w.theirs.run("nix-copy-closure", "--to", "root@127.0.0.1", out)
	w.local()
	for _, scheme := range []string{"ssh", "ssh-ng"} {
		attr := map[string]string{"ssh": "onFirst", "ssh-ng": "two"}[scheme]
		got := w.theirs.run("nix-build", "g.nix", "-A", attr, "--no-out-link", "--max-jobs", "0", "--builders", scheme+"://root@127.0.0.1 - - 2 1 ca-derivations")
		if p, err := store.Dir(w.dir).ParsePath(lines(got)[0]); err != nil || !w.ours.store.IsValid(p) {
			t.Errorf("%s: %s was not built by us: %v", scheme, got, err)
		}
	}
}

// TestSSHDeath freezes the ssh connection to a builder in the middle of a build, and kills another, which end here in bounded time.
func TestSSHDeath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ssh := startSSH(t, w, w.theirs.wrap(w)+":/usr/bin:/bin")
	known, err := os.ReadFile(ssh.host)
	if err != nil {
		t.Fatal(err)
	}
	for scheme, signal := range map[string]syscall.Signal{"ssh": syscall.SIGSTOP, "ssh-ng": syscall.SIGKILL} {
		w.ours.file("slow.nix", fmt.Sprintf(`derivation { name = "slow-%s"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo begun; i=0; while [ $i -lt 500000 ]; do i=$((i+1)); done; echo > $out" ]; }`, scheme))
		drv, err := store.Dir(w.dir).ParsePath(w.ours.run("nix-instantiate", "slow.nix"))
		if err != nil {
			t.Fatal(err)
		}
		program := map[string]string{"ssh": "nix-store", "ssh-ng": "nix-daemon"}[scheme]
		builder := fmt.Sprintf("%s://root@127.0.0.1:%d?remote-program="+program+" - %s 1 1 - - %s", scheme, ssh.port, ssh.key, base64.StdEncoding.EncodeToString(bytes.TrimPrefix(known, []byte("* "))))
		r, machines := w.ours.buildHurt(t, drv, builder, func() { ssh.signalSessions(t, signal) })
		if !r.Status.OK() || len(machines) != 2 || machines[0] == "" || machines[1] != "" {
			t.Errorf("%s: %v: %s; built on %q", scheme, r.Status, r.Error, machines)
		}
		ssh.signalSessions(t, syscall.SIGKILL)
	}
}

// buildHurt builds on a machine which is hurt when the builder says "begun".
func (s *side) buildHurt(t *testing.T, drv store.Path, builder string, hurt func()) (*protocol.BuildResult, []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	conn, err := client.Dial(ctx, s.conn, &client.Options{Dir: store.Dir(s.dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetOptions(ctx, &protocol.Options{MaxJobs: 1, Overrides: map[string]string{"builders": builder}}); err != nil {
		t.Fatal(err)
	}
	var machines []string
	once := sync.OnceFunc(hurt)
	list, err := conn.Build(ctx, []protocol.Target{{Path: drv, Outputs: protocol.All()}}, client.Normal, client.ObserverFunc(func(m *protocol.Message) {
		switch {
		case m.Kind == protocol.KindStart && m.Activity == protocol.ActBuild:
			machines = append(machines, m.Fields[1].Text)
		case m.Kind == protocol.KindResult && m.Result == protocol.ResBuildLogLine && m.Fields[0].Text == "begun":
			once()
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	return list[0], machines
}

// signalSessions signals the server's processes that serve connections.
func (s *sshServer) signalSessions(t *testing.T, signal syscall.Signal) {
	for _, pid := range children(t, s.process.Pid) {
		for _, inner := range append(children(t, pid), pid) {
			syscall.Kill(inner, signal)
		}
	}
}

// children are the processes whose parent is pid.
func children(t *testing.T, pid int) (list []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		var child, parent int
		var state string
		child, _ = strconv.Atoi(filepath.Base(filepath.Dir(name)))
		_, rest, _ := strings.Cut(string(text), ") ")
		if fmt.Sscan(rest, &state, &parent); parent == pid {
			list = append(list, child)
		}
	}
	return list
}
