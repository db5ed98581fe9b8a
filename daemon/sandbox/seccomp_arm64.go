package sandbox

import "golang.org/x/sys/unix"

// tables: this machine's own.
var tables = []table{
	{arch: unix.AUDIT_ARCH_AARCH64, rules: rules64},
}

var rules64 = []rule{
	{unix.SYS_CLONE, uint32(unix.EPERM), newSpaces},
	{unix.SYS_FCHMOD, uint32(unix.EPERM), mode1},
	{unix.SYS_FCHMODAT, uint32(unix.EPERM), mode2},
	{unix.SYS_OPENAT, uint32(unix.EPERM), openMode3},
	{unix.SYS_MKNODAT, uint32(unix.EPERM), typeDevice2},
	{unix.SYS_SOCKET, uint32(unix.EAFNOSUPPORT), oddFamily},
	{unix.SYS_SOCKETPAIR, uint32(unix.EAFNOSUPPORT), oddFamily},
	{unix.SYS_MOUNT, uint32(unix.EPERM), always},
	{unix.SYS_UMOUNT2, uint32(unix.EPERM), always},
	{unix.SYS_PIVOT_ROOT, uint32(unix.EPERM), always},
	{unix.SYS_CHROOT, uint32(unix.EPERM), always},
	{unix.SYS_UNSHARE, uint32(unix.EPERM), always},
	{unix.SYS_SETNS, uint32(unix.EPERM), always},
	{unix.SYS_OPEN_TREE, uint32(unix.EPERM), always},
	{unix.SYS_OPEN_TREE_ATTR, uint32(unix.EPERM), always},
	{unix.SYS_MOVE_MOUNT, uint32(unix.EPERM), always},
	{unix.SYS_FSOPEN, uint32(unix.EPERM), always},
	{unix.SYS_FSCONFIG, uint32(unix.EPERM), always},
	{unix.SYS_FSMOUNT, uint32(unix.EPERM), always},
	{unix.SYS_FSPICK, uint32(unix.EPERM), always},
	{unix.SYS_MOUNT_SETATTR, uint32(unix.EPERM), always},
	{unix.SYS_BPF, uint32(unix.EPERM), always},
	{unix.SYS_PERF_EVENT_OPEN, uint32(unix.EPERM), always},
	{unix.SYS_USERFAULTFD, uint32(unix.EPERM), always},
	{unix.SYS_KEYCTL, uint32(unix.EPERM), always},
	{unix.SYS_ADD_KEY, uint32(unix.EPERM), always},
	{unix.SYS_REQUEST_KEY, uint32(unix.EPERM), always},
	{unix.SYS_SETXATTR, uint32(unix.ENOTSUP), always},
	{unix.SYS_LSETXATTR, uint32(unix.ENOTSUP), always},
	{unix.SYS_FSETXATTR, uint32(unix.ENOTSUP), always},
	{unix.SYS_SETXATTRAT, uint32(unix.ENOTSUP), always},
	{unix.SYS_REMOVEXATTR, uint32(unix.ENOTSUP), always},
	{unix.SYS_LREMOVEXATTR, uint32(unix.ENOTSUP), always},
	{unix.SYS_FREMOVEXATTR, uint32(unix.ENOTSUP), always},
	{unix.SYS_REMOVEXATTRAT, uint32(unix.ENOTSUP), always},
	{unix.SYS_CLONE3, uint32(unix.ENOSYS), always},
	{unix.SYS_OPENAT2, uint32(unix.ENOSYS), always},
	{unix.SYS_FCHMODAT2, uint32(unix.ENOSYS), always},
	{unix.SYS_FILE_SETATTR, uint32(unix.ENOSYS), always},
	{unix.SYS_IO_URING_SETUP, uint32(unix.ENOSYS), always},
	{unix.SYS_IO_URING_ENTER, uint32(unix.ENOSYS), always},
	{unix.SYS_IO_URING_REGISTER, uint32(unix.ENOSYS), always},
}
