package sandbox

import "golang.org/x/sys/unix"

// tables: this machine's own and i386's, whose programs it runs too.
var tables = []table{
	{arch: unix.AUDIT_ARCH_X86_64, limit: 0x40000000, rules: rules64},
	{arch: unix.AUDIT_ARCH_I386, rules: rules32},
}

var rules64 = []rule{
	{unix.SYS_CLONE, uint32(unix.EPERM), newSpaces},
	{unix.SYS_FCHMOD, uint32(unix.EPERM), mode1},
	{unix.SYS_FCHMODAT, uint32(unix.EPERM), mode2},
	{unix.SYS_OPENAT, uint32(unix.EPERM), openMode3},
	{unix.SYS_MKNODAT, uint32(unix.EPERM), typeDevice2},
	{unix.SYS_SOCKET, uint32(unix.EAFNOSUPPORT), oddFamily},
	{unix.SYS_SOCKETPAIR, uint32(unix.EAFNOSUPPORT), oddFamily},
	{unix.SYS_CHMOD, uint32(unix.EPERM), mode1},
	{unix.SYS_OPEN, uint32(unix.EPERM), openMode2},
	{unix.SYS_CREAT, uint32(unix.EPERM), mode1},
	{unix.SYS_MKNOD, uint32(unix.EPERM), typeDevice1},
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

// rules32 are the same calls by i386's numbers, the older calls that it has beside them, and the
// multiplexer of socket calls, whose arguments cannot be seen.
var rules32 = []rule{
	{120, uint32(unix.EPERM), newSpaces},        // clone
	{94, uint32(unix.EPERM), mode1},             // fchmod
	{306, uint32(unix.EPERM), mode2},            // fchmodat
	{295, uint32(unix.EPERM), openMode3},        // openat
	{297, uint32(unix.EPERM), typeDevice2},      // mknodat
	{359, uint32(unix.EAFNOSUPPORT), oddFamily}, // socket
	{360, uint32(unix.EAFNOSUPPORT), oddFamily}, // socketpair
	{15, uint32(unix.EPERM), mode1},             // chmod
	{5, uint32(unix.EPERM), openMode2},          // open
	{8, uint32(unix.EPERM), mode1},              // creat
	{14, uint32(unix.EPERM), typeDevice1},       // mknod
	{21, uint32(unix.EPERM), always},            // mount
	{52, uint32(unix.EPERM), always},            // umount2
	{217, uint32(unix.EPERM), always},           // pivot_root
	{61, uint32(unix.EPERM), always},            // chroot
	{310, uint32(unix.EPERM), always},           // unshare
	{346, uint32(unix.EPERM), always},           // setns
	{428, uint32(unix.EPERM), always},           // open_tree
	{467, uint32(unix.EPERM), always},           // open_tree_attr
	{429, uint32(unix.EPERM), always},           // move_mount
	{430, uint32(unix.EPERM), always},           // fsopen
	{431, uint32(unix.EPERM), always},           // fsconfig
	{432, uint32(unix.EPERM), always},           // fsmount
	{433, uint32(unix.EPERM), always},           // fspick
	{442, uint32(unix.EPERM), always},           // mount_setattr
	{357, uint32(unix.EPERM), always},           // bpf
	{336, uint32(unix.EPERM), always},           // perf_event_open
	{374, uint32(unix.EPERM), always},           // userfaultfd
	{288, uint32(unix.EPERM), always},           // keyctl
	{286, uint32(unix.EPERM), always},           // add_key
	{287, uint32(unix.EPERM), always},           // request_key
	{226, uint32(unix.ENOTSUP), always},         // setxattr
	{227, uint32(unix.ENOTSUP), always},         // lsetxattr
	{228, uint32(unix.ENOTSUP), always},         // fsetxattr
	{463, uint32(unix.ENOTSUP), always},         // setxattrat
	{235, uint32(unix.ENOTSUP), always},         // removexattr
	{236, uint32(unix.ENOTSUP), always},         // lremovexattr
	{237, uint32(unix.ENOTSUP), always},         // fremovexattr
	{466, uint32(unix.ENOTSUP), always},         // removexattrat
	{435, uint32(unix.ENOSYS), always},          // clone3
	{437, uint32(unix.ENOSYS), always},          // openat2
	{452, uint32(unix.ENOSYS), always},          // fchmodat2
	{469, uint32(unix.ENOSYS), always},          // file_setattr
	{425, uint32(unix.ENOSYS), always},          // io_uring_setup
	{426, uint32(unix.ENOSYS), always},          // io_uring_enter
	{427, uint32(unix.ENOSYS), always},          // io_uring_register
	{22, uint32(unix.EPERM), always},            // umount
	{102, uint32(unix.ENOSYS), always},          // socketcall
}
