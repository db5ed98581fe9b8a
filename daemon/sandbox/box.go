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
	mu    sync.Mutex // guards ended, and what uses pid while it is false
	pid   int
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
	attr := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if !m.Writable {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	tree, err := cloneMount(m.Source, attr)
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

// end makes further mounts fail, before the process id can mean another process.
func (b *Box) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}
