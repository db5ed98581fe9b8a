package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Box is a sandbox whose builder runs.
type Box struct {
	mu    sync.Mutex // guards the rest, and what uses pid while ended is false
	pid   int        // of stage 1, our child; 0: there is none
	ended bool
}

// ErrEnded says that a builder does not run any more.
var ErrEnded = errors.New("the builder has ended")

// Mount makes a file or a directory of the host visible in a running sandbox, below a writable mount in which the mount point
// must have been made before. Without CAP_SYS_ADMIN over the sandbox's mounts it is errors.ErrUnsupported.
//
// The builder may have put something else in the mount point's place: then the mount fails, or lands elsewhere in
// what the builder alone sees. Symlinks at the end are not followed, and the host's root is out of reach.
func (b *Box) Mount(m Mount) error {
	if !privileged() {
		return errors.ErrUnsupported
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return ErrEnded
	}
	tree, err := cloneMount(&m)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	done := make(chan error, 1)
	go func() { done <- b.moveInto(tree, m.Target) }()
	if err := <-done; err != nil {
		return fmt.Errorf("mount %s on %s of a running sandbox: %w", m.Source, m.Target, err)
	}
	return nil
}

// moveInto attaches a detached mount within the sandbox. Its thread, which is in another mount namespace then, ends with its goroutine.
func (b *Box) moveInto(tree int, target string) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", b.pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the file system context of others: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the mount namespace: %w", err)
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// begin is called when stage 1 is there.
func (b *Box) begin(pid int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pid = pid
}

// kill ends stage 1, and with it the kernel ends all other processes of the sandbox.
func (b *Box) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pid != 0 && !b.ended {
		unix.Kill(b.pid, unix.SIGKILL)
	}
}

// wait waits for stage 1, which is about to end. Before its process id can mean another process, further mounts fail.
func (b *Box) wait() (unix.WaitStatus, *unix.Rusage) {
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	if b.pid == 0 {
		return 0, &unix.Rusage{}
	}
	return reap(b.pid)
}
