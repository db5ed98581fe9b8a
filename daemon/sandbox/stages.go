package sandbox

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// Open files of the stages. The builder gets the first three.
const (
	logFD    = 1 // and 2
	statusFD = 3
	turnFD   = 4 // an event: stage 1 is done
)

// given are the open files that the fork server has for a program.
type given struct {
	log, status int
	goOn, hold  int // ends of a pipe: the program begins when it can read a byte
}

// newProgram lays out what the two stages of a sandbox do.
func newProgram(spec *Spec, files given, mighty bool) (*program, error) {
	p := &program{made: map[string]bool{"/": true}}
	p.begin(&p.first, "await the start")
	p.add("", unix.SYS_CLOSE, uintptr(files.hold))
	p.add("", unix.SYS_READ, uintptr(files.goOn), hold(p, new([8]byte)), 1).least = 1
	p.detach(files)
	p.mountRoot(spec)
	p.mountProc()
	p.mountDevices()
	if err := p.mountInputs(spec); err != nil {
		return nil, err
	}
	p.writeFiles(spec)
	p.changeRoot()
	if !spec.Network {
		p.loopbackUp()
	}
	p.setNames()
	p.startBuilder(mighty)
	p.letBuilderGo(spec, mighty)
	p.confine(spec, mighty)
	p.execute(spec)
	return p, nil
}

// detach makes stage 1 a process of its own, which ends when the daemon does and has no open files but those that it needs.
func (p *program) detach(files given) {
	p.begin(&p.first, "leave the daemon's session")
	p.add("", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0) // hides from the builder
	p.add("", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	p.add("", unix.SYS_SETSID)
	p.begin(&p.first, "arrange open files")
	p.add("", unix.SYS_DUP3, uintptr(files.log), logFD, 0)
	p.add("", unix.SYS_DUP3, uintptr(files.log), logFD+1, 0)
	p.add("", unix.SYS_DUP3, uintptr(files.status), statusFD, unix.O_CLOEXEC)
	p.add("", unix.SYS_CLOSE_RANGE, turnFD, uintptr(^uint32(0)), 0)
	p.add("", unix.SYS_EVENTFD2, 0, unix.EFD_CLOEXEC) // the lowest free number is turnFD
}

func (p *program) setNames() {
	p.begin(&p.first, "set the host name")
	for number, name := range map[uintptr]string{unix.SYS_SETHOSTNAME: "localhost", unix.SYS_SETDOMAINNAME: "(none)"} {
		p.add("", number, p.text(name), uintptr(len(name)))
	}
}

func (p *program) loopbackUp() {
	p.begin(&p.first, "bring up loopback")
	lo := &struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: unix.IFF_UP | unix.IFF_RUNNING}
	copy(lo.name[:], "lo")
	p.add("make a socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).keep = true
	p.add("", unix.SYS_IOCTL, 0, unix.SIOCSIFFLAGS, hold(p, lo)).take = 0
	p.add("", unix.SYS_CLOSE).take = 0
}

// startBuilder ends the first part of stage 1. The builder's process gets a user namespace of its own unless it is in one already.
func (p *program) startBuilder(mighty bool) {
	if !mighty {
		return
	}
	p.begin(&p.first, "drop groups")
	p.add("", unix.SYS_SETGROUPS, 0, 0)
	p.spaces = unix.CLONE_NEWUSER
}

// letBuilderGo ends stage 1's work: what is left is to reap.
func (p *program) letBuilderGo(spec *Spec, mighty bool) {
	p.begin(&p.then, "map the builder's ids")
	if mighty {
		const dir = "/proc/2/" // the second process of the namespace is the builder
		p.writeFile(dir+"setgroups", "deny")
		p.writeFile(dir+"uid_map", idMap(UID, spec.HostUID))
		p.writeFile(dir+"gid_map", idMap(GID, spec.HostGID))
	}
	p.begin(&p.then, "drop capabilities")
	p.dropCapabilities()
	p.begin(&p.then, "release the builder")
	one := hold(p, &[8]byte{1})
	p.add("", unix.SYS_WRITE, turnFD, one, 8)
}

// writeFile writes to a file that exists.
func (p *program) writeFile(path, text string) {
	p.add("open "+path, unix.SYS_OPENAT, atCWD, p.text(path), unix.O_WRONLY|unix.O_CLOEXEC, 0).keep = true
	p.write(path, text)
	p.add("", unix.SYS_CLOSE).take = 0
}

// write writes to the file that was opened last.
func (p *program) write(path, text string) {
	c := p.add("write "+path, unix.SYS_WRITE, 0, p.text(text), uintptr(len(text)))
	c.take, c.least = 0, uintptr(len(text))
}

// idMap has an id inside be one outside.
func idMap(inside int, outside uint32) string {
	return strconv.Itoa(inside) + " " + strconv.FormatUint(uint64(outside), 10) + " 1\n"
}

// execute resets signals, whose handlers are the fork server's, and becomes the builder.
func (p *program) execute(spec *Spec) {
	p.begin(&p.builder, "reset signals")
	dflt := hold(p, new([32]byte)) // the kernel's sigaction is not longer
	for s := uintptr(1); s <= signals; s++ {
		p.add("", unix.SYS_RT_SIGACTION, s, dflt, 0, signals/8).ignore = unix.EINVAL // of those that nobody can handle
	}
	p.add("", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, hold(p, new([signals / 8]byte)), 0, signals/8)
	path := spec.Path
	if path == "" {
		path = spec.Argv[0]
	}
	if path == probe {
		p.add("", unix.SYS_EXIT_GROUP, 0)
		return
	}
	p.begin(&p.builder, "close files")
	p.add("", unix.SYS_CLOSE_RANGE, logFD+2, uintptr(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	p.begin(&p.builder, StepExecute)
	p.add(path, unix.SYS_EXECVE, p.text(path), p.texts(spec.Argv), p.texts(spec.Env))
}

// signals is how many there are.
const signals = 64
