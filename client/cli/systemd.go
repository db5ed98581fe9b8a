package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"cairn/client"
	"cairn/store/disk"
)

const (
	unitDir         = "/etc/systemd/system"
	installedBinary = "/cairn/bin/cairn"
	linkedBinary    = "/usr/local/bin/cairn"
)

const daemonUnit = "cairn-daemon.service"

const daemonText = `# Installed by 'cairn init --daemon'.
[Unit]
Description=cairn daemon
Documentation=man:systemd.service(5)
RequiresMountsFor=/cairn

[Service]
Type=notify
NotifyAccess=main
ExecStart=` + installedBinary + ` daemon
Restart=always
RestartSec=1
KillMode=mixed
TimeoutStopSec=150
LimitNOFILE=1048576
TasksMax=infinity
Delegate=yes
OOMPolicy=continue

[Install]
WantedBy=multi-user.target
`

// installServices installs the binary and the daemon's unit, and starts it.
// Only what differs is touched; the daemon restarts when it or its unit changed.
func installServices(ctx context.Context, env *Env, layout disk.Layout) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return hinted(errors.New("install services: this machine does not run systemd"), "run 'cairn daemon' under your own supervisor")
	}
	changed, err := installBinary()
	if err != nil {
		return permissionHint(fmt.Errorf("install services: %w", err))
	}
	newUnit, err := installFile(filepath.Join(unitDir, daemonUnit), []byte(daemonText), 0o644)
	if err != nil {
		return permissionHint(fmt.Errorf("install services: %w", err))
	}
	if err := systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	if err := systemctl(ctx, "enable", "--quiet", daemonUnit); err != nil {
		return err
	}
	verb := "start"
	if changed || newUnit {
		verb = "restart"
	}
	if err := systemctl(ctx, verb, daemonUnit); err != nil {
		return hinted(err, "'journalctl -u cairn-daemon.service' says why")
	}
	env.printf("daemon: cairn-daemon.service, %sed\n", verb)
	return awaitDaemon(ctx, layout)
}

// installBinary copies this program to where the units expect it and reports whether it changed.
func installBinary() (bool, error) {
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	b, err := os.ReadFile(self)
	if err != nil {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(installedBinary), 0o755); err != nil {
		return false, err
	}
	changed, err := installFile(installedBinary, b, 0o755)
	if err != nil {
		return false, err
	}
	if _, err := os.Lstat(linkedBinary); errors.Is(err, fs.ErrNotExist) {
		return changed, os.Symlink(installedBinary, linkedBinary)
	}
	return changed, nil
}

// installFile replaces a file atomically unless it has the contents already.
func installFile(name string, contents []byte, mode os.FileMode) (changed bool, err error) {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, contents) {
		return false, nil
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".cairn-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, bytes.NewReader(contents))
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(f.Name(), name)
}

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// awaitDaemon waits until the daemon answers.
func awaitDaemon(ctx context.Context, layout disk.Layout) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := client.Dial(ctx, layout.SocketPath, &client.Options{Dir: layout.Dir})
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return hinted(err, "'journalctl -u cairn-daemon.service' says why")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// notify tells systemd about this service; without systemd it does nothing.
func notify(getenv func(string) string, state string) error {
	name := getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}
