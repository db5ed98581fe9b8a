package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// separateMounts keeps what follows from reaching the host.
func separateMounts(*Spec) error {
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// mountRoot puts a small file system of our own where the root will be.
func mountRoot(spec *Spec) error {
	unix.Umask(0)
	return unix.Mount("root", spec.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=16m,nr_inodes=100k")
}

// mountProc mounts the new namespace's /proc over the host's: starting stage 2 needs it before there is a root to put it in.
func mountProc(*Spec) error {
	err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (parts of the host's /proc are hidden, as in a container; the kernel then refuses another one to ordinary users)", err)
	}
	return err
}

func moveProc(spec *Spec) error {
	if err := os.Mkdir(spec.Root+"/proc", 0o555); err != nil {
		return err
	}
	return unix.Mount("/proc", spec.Root+"/proc", "", unix.MS_MOVE, "")
}

// mountDevices makes a /dev with the devices that are safe for anybody.
func mountDevices(spec *Spec) error {
	dev := spec.Root + "/dev"
	for _, dir := range []string{dev, dev + "/pts", dev + "/shm"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := attach("/dev/"+name, dev+"/"+name, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	if err := unix.Mount("shm", dev+"/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=50%"); err != nil {
		return fmt.Errorf("shm: %w", err)
	}
	if err := unix.Mount("devpts", dev+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,mode=0620,ptmxmode=0666"); err != nil {
		return fmt.Errorf("pts: %w", err)
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, dev+"/"+name); err != nil {
			return err
		}
	}
	return nil
}

func mountInputs(spec *Spec) error {
	for _, m := range spec.Mounts {
		attr := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
		if !m.Writable {
			attr |= unix.MOUNT_ATTR_RDONLY
		}
		err := attach(m.Source, spec.Root+m.Target, attr)
		if m.Optional && errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// attach binds source, with everything mounted below it, on target, which is made when missing.
// A symlink is made again rather than followed.
func attach(source, target string, attr uint64) error {
	var st unix.Stat_t
	if err := unix.Lstat(source, &st); err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	if err := makeMountPoint(source, target, st.Mode); err != nil {
		return fmt.Errorf("make mount point %s: %w", target, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	fd, err := cloneMount(source, attr)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// cloneMount makes a mount of source that is nowhere yet.
func cloneMount(source string, attr uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", source, err)
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("restrict mount of %s: %w", source, err)
	}
	return fd, nil
}

func makeMountPoint(source, target string, mode uint32) error {
	if mode&unix.S_IFMT == unix.S_IFLNK {
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return make1(target, func() error { return os.Symlink(link, target) })
	}
	if _, err := os.Lstat(target); err == nil {
		return nil
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return make1(target, func() error { return os.Mkdir(target, 0o755) })
	}
	return make1(target, func() error {
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// make1 runs do, after making the parent directories when they turn out to be missing.
func make1(target string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return do()
}

func writeFiles(spec *Spec) error {
	for _, path := range slices.Sorted(maps.Keys(spec.Files)) {
		target := spec.Root + path
		err := make1(target, func() error { return os.WriteFile(target, []byte(spec.Files[path]), 0o444) })
		if err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(spec.Symlinks)) {
		target := spec.Root + path
		if err := make1(target, func() error { return os.Symlink(spec.Symlinks[path], target) }); err != nil {
			return err
		}
	}
	return nil
}

// changeRoot makes the new root the only one and seals it.
func changeRoot(spec *Spec) error {
	if err := unix.Chdir(spec.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	return unix.Chdir("/")
}
