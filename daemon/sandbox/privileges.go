package sandbox

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxFiles        = 4096
	addrNoRandomize = 0x0040000
	perLinux32      = 0x0008

	landlockScopes = 1<<0 | 1<<1 // abstract sockets, signals
)

func setLimits(*Spec) error {
	unix.Umask(0o022)
	if err := syscall.Setrlimit(unix.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return err
	}
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	lim.Cur = min(lim.Max, maxFiles)
	return syscall.Setrlimit(unix.RLIMIT_NOFILE, &lim)
}

// setPersonality fixes the address layout and, for 32-bit builds, the machine's name.
func setPersonality(spec *Spec) error {
	p := uintptr(addrNoRandomize)
	if spec.Linux32 {
		p |= perLinux32
	}
	_, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, p, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// dropCapabilities empties all five sets of this thread, which is the one that becomes the builder.
func dropCapabilities(*Spec) error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // past the last one the kernel knows
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&hdr, &none[0])
}

// clearCapabilities takes all capabilities from every thread of stage 1.
// A program linked with C (tests under the race detector) can do so only for the one that reaps.
func clearCapabilities(*Spec) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&none)
	if errno == unix.ENOTSUP {
		return unix.Capset(&hdr, &none[0])
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// confineSockets keeps a builder that shares the host's network from connecting to the host's abstract sockets.
// Kernels before 6.12 cannot; the package comment says what follows from that.
func confineSockets(spec *Spec) error {
	if !spec.Network {
		return nil
	}
	const versionFlag = 1
	version, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, versionFlag)
	if errno != 0 || version < 6 {
		return nil
	}
	attr := [3]uint64{2: landlockScopes}
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
