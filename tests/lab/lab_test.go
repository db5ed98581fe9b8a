package lab_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/tests/lab"
)

func TestLab(t *testing.T) {
	t.Parallel()
	l := lab.New(t, 2, nil)
	ctx := t.Context()
	h1, h2 := l.Hosts[0], l.Hosts[1]

	t.Run("run", func(t *testing.T) {
		out, err := h1.Run(ctx, "echo", "it's", "a b", "$HOME")
		if want := "it's a b $HOME\n"; err != nil || out != want {
			t.Fatalf("got %q, %v; want %q", out, err, want)
		}
		if _, err := h1.Run(ctx, "sh", "-c", "echo no >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: no") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("systemd", func(t *testing.T) {
		if out, err := h2.Run(ctx, "systemctl", "is-system-running", "--wait"); strings.TrimSpace(out) != "running" {
			failed, _ := h2.Run(ctx, "systemctl", "--failed", "--no-legend")
			t.Fatalf("system is %q, %v; failed units: %s", out, err, failed)
		}
		out, _ := h2.Run(ctx, "systemctl", "is-enabled", "nginx", "rsync", "chrony", "ssh")
		if out != "disabled\ndisabled\ndisabled\nenabled\n" {
			t.Errorf("units are %q", out)
		}
	})
	t.Run("put", func(t *testing.T) {
		if err := h1.Put(ctx, "/opt/x/y", strings.NewReader("hello\n"), 0o750); err != nil {
			t.Fatal(err)
		}
		out, err := h1.Run(ctx, "sh", "-c", "stat -c %a /opt/x/y; cat /opt/x/y")
		if err != nil || out != "750\nhello\n" {
			t.Fatalf("got %q, %v", out, err)
		}
	})
	t.Run("cut", func(t *testing.T) {
		ping := []string{"curl", "-s", "-m", "2", "-o", "/dev/null", "telnet://" + h2.Addr() + ":22"}
		if err := h2.Cut(); err != nil {
			t.Fatal(err)
		}
		if _, err := h1.Run(ctx, ping...); err == nil || !strings.Contains(err.Error(), "exit status 28") {
			t.Errorf("reached a host that is cut: %v", err)
		}
		if out, err := h2.Enter(ctx, "hostname"); err != nil || out != "h2\n" {
			t.Errorf("enter a host that is cut: %q, %v", out, err)
		}
		if err := h2.Heal(); err != nil {
			t.Fatal(err)
		}
		if err := h2.Wait(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("power cut", func(t *testing.T) {
		before, err := h1.Run(ctx, "sh", "-c", "echo kept > /var/kept; sync; cat /proc/sys/kernel/random/boot_id /etc/machine-id")
		if err != nil {
			t.Fatal(err)
		}
		if err := h1.Kill(); err != nil {
			t.Fatal(err)
		}
		if h1.Up() {
			t.Error("up after a power cut")
		}
		if err := h1.Boot(ctx); err != nil {
			t.Fatal(err)
		}
		out, err := h1.Run(ctx, "cat", "/var/kept", "/etc/machine-id")
		if err != nil || !strings.HasPrefix(out, "kept\n") || !strings.HasSuffix(before, out[5:]) {
			t.Fatalf("got %q, %v; before %q", out, err, before)
		}
	})
	t.Run("reboot", func(t *testing.T) {
		if _, err := h1.Run(ctx, "touch", "/run/before"); err != nil {
			t.Fatal(err)
		}
		h1.Run(ctx, "systemctl", "reboot") // may or may not see the connection end
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		for ctx.Err() == nil {
			if out, err := h1.Run(ctx, "sh", "-c", "test ! -e /run/before && cat /var/kept"); err == nil && out == "kept\n" {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatal("did not come back from a reboot")
	})
}

// TestSweep starts a lab in another process, kills that, and expects the next Start to clear it away.
func TestSweep(t *testing.T) {
	if os.Getenv("CAIRN_LAB_ORPHAN") != "" {
		lab.New(t, 1, &lab.Options{Name: "orphan"})
		os.Stdout.WriteString("up\n")
		select {}
	}
	if os.Getenv("CAIRN_LAB")+os.Getenv("CAIRN_CI") == "" {
		t.Skip("lab not asked for; run as root: make lab, or CAIRN_LAB=1 go test")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSweep$", "-test.v")
	cmd.Env = append(os.Environ(), "CAIRN_LAB_ORPHAN=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "up" {
	}
	cmd.Process.Kill()
	cmd.Wait()
	orphan, err := lab.Open("orphan")
	if err != nil || !orphan.Hosts[0].Up() {
		t.Fatalf("no orphan to clear away: %v", err)
	}
	lab.New(t, 1, nil)
	left, _ := filepath.Glob("/sys/fs/cgroup/*/cairn-lab-orphan-*")
	if _, err := os.Stat(orphan.Dir()); !os.IsNotExist(err) || orphan.Hosts[0].Up() || left != nil {
		t.Errorf("orphan still there: %v, %v", err, left)
	}
}

func TestSideBySide(t *testing.T) {
	t.Parallel()
	a, b := lab.New(t, 1, nil), lab.New(t, 1, nil)
	for _, l := range []*lab.Lab{a, b} {
		if out, err := l.Hosts[0].Run(t.Context(), "hostname"); err != nil || out != "h1\n" {
			t.Fatalf("got %q, %v", out, err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.Dir()); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
	if _, err := b.Hosts[0].Run(t.Context(), "true"); err != nil {
		t.Errorf("closing one lab hurt another: %v", err)
	}
}

func TestMirror(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"deb822", "debian.sources", "# c\nTypes: deb\nURIs: http://m.example/debian-security/\nSuites: x-security\n\nTypes: deb deb-src\n# comment\nURIs: https://m.example/debian/\nSuites: x\n", "https://m.example/debian"},
		{"disabled", "debian.sources", "Types: deb\nEnabled: no\nURIs: http://a.example/debian\n\nTypes: deb\nURIs:\n http://b.example/debian\n", "http://b.example/debian"},
		{"one line", "x.list", "# deb http://no.example/debian x main\ndeb-src http://no.example/debian x main\ndeb [arch=amd64 signed-by=/k] http://m.example/debian x main\n", "http://m.example/debian"},
		{"other people's", "x.list", "deb https://o.example/apt stable main\n", ""},
		{"another name", "x.list", "deb http://s.example/debian-security x main\ndeb http://s.example/pool/debian-remote x main\n", "http://s.example/pool/debian-remote"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			os.Mkdir(filepath.Join(dir, "sources.list.d"), 0o755)
			if err := os.WriteFile(filepath.Join(dir, "sources.list.d", c.file), []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := lab.Mirror(dir)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}
