package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

func namespaceName(lab string) string { return "cairn-lab-" + lab }

func (l *Lab) namespacePath() string { return "/run/netns/" + namespaceName(l.Name) }

// makeNetwork makes the namespace and the bridge; nothing of the machine's own network is touched.
func (l *Lab) makeNetwork(ctx context.Context) error {
	if err := run(ctx, "ip", "netns", "add", namespaceName(l.Name)); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "br0", "type", "bridge", "forward_delay", "0"},
		{"addr", "add", "10.66.0.1/24", "dev", "br0"},
		{"link", "set", "br0", "up"},
	} {
		if err := l.ip(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) ip(ctx context.Context, args ...string) error {
	return run(ctx, append([]string{"ip", "-n", namespaceName(l.Name)}, args...)...)
}

// Dial connects to a literal address in the lab's network; it fits http.Transport.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with this goroutine, and its namespace with it
		var r result
		if r.err = enterNetwork(l.namespacePath()); r.err == nil {
			r.conn, r.err = new(net.Dialer).DialContext(ctx, network, addr)
		}
		done <- r
	}()
	r := <-done
	return r.conn, r.err
}

func enterNetwork(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}
