package sandbox

import (
	"errors"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxFiles        = 4096
	addrNoRandomize = 0x0040000
	perLinux32      = 0x0008

	landlockScopes = 1<<0 | 1<<1 // abstract sockets, signals
)

// privileged reports whether this process may make namespaces without a user namespace.
func privileged() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if os.Geteuid() != 0 || unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	const want = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SETPCAP
	return data[0].Effective&want == want
}

// confine takes from the builder's process all that a builder must not have.
func (p *program) confine(spec *Spec, mighty bool) {
	p.begin(stageBuilder, "leave stage 1's session")
	p.add("", unix.SYS_SETSID)
	if mighty {
		p.begin(stageBuilder, "take the builder's ids")
		p.add("", unix.SYS_SETRESGID, GID, GID, GID)
		p.add("", unix.SYS_SETRESUID, UID, UID, UID)
	}
	p.setLimits()
	p.setPersonality(spec)
	p.begin(stageBuilder, "enter the build directory")
	p.add(spec.Dir, unix.SYS_CHDIR, p.text(spec.Dir))
	p.begin(stageBuilder, "drop capabilities")
	for c := range lastCapability() + 1 {
		p.add("", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
	}
	p.add("", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	p.dropCapabilities()
	p.begin(stageBuilder, "forbid new privileges")
	p.add("", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	if spec.Network {
		p.confineSockets()
	}
	p.begin(stageBuilder, "filter system calls")
	p.add("", unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, p.filter())
}

// setLimits bounds what a builder inherits of the daemon's own limits.
func (p *program) setLimits() {
	p.begin(stageBuilder, "set limits")
	p.add("", unix.SYS_UMASK, 0o022)
	p.add("", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, put(p, unix.Rlimit{}))
	files := unix.Rlimit{Cur: maxFiles, Max: maxFiles}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		files.Cur = min(files.Max, maxFiles)
	}
	p.add("", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, put(p, files))
}

// setPersonality fixes the address layout and, for 32-bit builds, the machine's name.
func (p *program) setPersonality(spec *Spec) {
	p.begin(stageBuilder, "set the personality")
	persona := uintptr(addrNoRandomize)
	if spec.Linux32 {
		persona |= perLinux32
	}
	p.add("", unix.SYS_PERSONALITY, persona)
}

// dropCapabilities empties the three sets that a process may empty without any.
func (p *program) dropCapabilities() {
	hdr := put(p, unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3})
	p.add("", unix.SYS_CAPSET, hdr, put(p, [2]unix.CapUserData{}))
}

// lastCapability is the last one that the kernel knows.
var lastCapability = sync.OnceValue(func() uintptr {
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_READ, c+1, 0, 0, 0); errors.Is(err, unix.EINVAL) {
			return c
		}
	}
})

// confineSockets keeps a builder that shares the host's network from connecting to the host's abstract sockets.
// Kernels before 6.12 cannot; the package comment says what follows from that.
func (p *program) confineSockets() {
	const versionFlag = 1
	version, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, versionFlag)
	if errno != 0 || version < 6 {
		return
	}
	p.begin(stageBuilder, "confine sockets")
	attr := [3]uint64{2: landlockScopes}
	p.add("make rules", unix.SYS_LANDLOCK_CREATE_RULESET, put(p, attr), unsafe.Sizeof(attr), 0).keep = true
	p.with("", unix.SYS_LANDLOCK_RESTRICT_SELF, 0)
	p.with("", unix.SYS_CLOSE)
}
