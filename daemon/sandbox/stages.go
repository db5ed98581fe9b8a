package sandbox

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// layOut writes what the stages of a sandbox do.
func (p *program) layOut(spec *Spec, mighty bool) error {
	if len(spec.Argv) == 0 {
		return &SetupError{Step: StepExecute, Text: "no program"}
	}
	p.detach()
	p.mountRoot(spec)
	p.mountProc()
	p.mountDevices()
	if err := p.mountInputs(spec); err != nil {
		return err
	}
	p.writeFiles(spec)
	p.changeRoot()
	if !spec.Network {
		p.loopbackUp()
	}
	p.setNames()
	if mighty {
		p.begin(stageFirst, "drop groups")
		p.add("", unix.SYS_SETGROUPS, 0, 0)
	}
	p.release(spec, mighty)
	p.confine(spec, mighty)
	p.execute(spec)
	if p.cut != "" {
		return &SetupError{Step: StepExecute, Text: fmt.Sprintf("%q has a zero byte", p.cut)}
	}
	p.seal(spacesOf(spec, mighty))
	return nil
}

// spacesOf returns the namespaces of stages 1 and 2: the builder's process gets a user namespace of its own unless it is in one already.
func spacesOf(spec *Spec, mighty bool) [2]uintptr {
	spaces := [2]uintptr{unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP}
	if !spec.Network {
		spaces[0] |= unix.CLONE_NEWNET
	}
	if mighty {
		spaces[1] = unix.CLONE_NEWUSER
	} else {
		spaces[0] |= unix.CLONE_NEWUSER
	}
	return spaces
}

// detach takes from stage 1 what it does not need, and the builder must not reach.
func (p *program) detach() {
	p.begin(stageFirst, "hide from the builder")
	p.add("", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	p.begin(stageFirst, "arrange open files")
	p.add("", unix.SYS_DUP3, logFD, 1, 0)
	p.add("", unix.SYS_DUP3, logFD, 2, 0)
	p.add("", unix.SYS_CLOSE_RANGE, turnFD, uintptr(^uint32(0)), 0)
	p.add("", unix.SYS_EVENTFD2, 0, unix.EFD_CLOEXEC) // the lowest free number is turnFD
}

func (p *program) setNames() {
	p.begin(stageFirst, "set the host name")
	const host, domain = "localhost", "(none)"
	p.add("", unix.SYS_SETHOSTNAME, p.text(host), uintptr(len(host)))
	p.add("", unix.SYS_SETDOMAINNAME, p.text(domain), uintptr(len(domain)))
}

func (p *program) loopbackUp() {
	p.begin(stageFirst, "bring up loopback")
	lo := struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: unix.IFF_UP | unix.IFF_RUNNING}
	copy(lo.name[:], "lo")
	p.add("make a socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).keep = true
	p.with("", unix.SYS_IOCTL, unix.SIOCSIFFLAGS, put(p, lo))
	p.with("", unix.SYS_CLOSE)
}

// release ends stage 1's work: what is left is to reap.
func (p *program) release(spec *Spec, mighty bool) {
	if mighty {
		p.begin(stageThen, "map the builder's ids")
		for _, m := range idMaps(spec.HostUID, spec.HostGID) {
			file := "/proc/2/" + m.file // the second process of the namespace is the builder
			p.add(file, unix.SYS_OPENAT, atCWD, p.text(file), unix.O_WRONLY|unix.O_CLOEXEC, 0).keep = true
			p.write(file, m.text)
		}
	}
	p.begin(stageThen, "drop capabilities")
	p.dropCapabilities()
	p.begin(stageThen, "release the builder")
	p.add("", unix.SYS_WRITE, turnFD, put(p, uint64(1)), 8)
}

// idMap is what is written to a file of a process to map its ids.
type idMap struct{ file, text string }

func idMaps(uid, gid uint32) []idMap {
	line := func(inside int, outside uint32) string {
		return strconv.Itoa(inside) + " " + strconv.FormatUint(uint64(outside), 10) + " 1\n"
	}
	return []idMap{{"setgroups", "deny"}, {"uid_map", line(UID, uid)}, {"gid_map", line(GID, gid)}}
}

// write writes to the file that was opened last, and closes it.
func (p *program) write(path, text string) {
	p.with(path, unix.SYS_WRITE, put(p, []byte(text)...), uintptr(len(text))).least = uintptr(len(text))
	p.with("", unix.SYS_CLOSE)
}

// execute resets signals, all of which are blocked, and whose handlers are those of a program that is gone, and becomes the builder.
func (p *program) execute(spec *Spec) {
	const signals, size = 64, 64 / 8
	p.begin(stageBuilder, "reset signals")
	standard := put(p, [32]byte{}) // no kernel's sigaction is longer
	for s := uintptr(1); s <= signals; s++ {
		p.add("", unix.SYS_RT_SIGACTION, s, standard, 0, size).ignore = uintptr(unix.EINVAL) // of those that nobody can handle
	}
	p.add("", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, put(p, [size]byte{}), 0, size)
	path := spec.program()
	if path == probe {
		p.add("", unix.SYS_EXIT_GROUP, 0)
		return
	}
	p.begin(stageBuilder, "close files")
	p.add("", unix.SYS_CLOSE_RANGE, 3, uintptr(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	p.begin(stageBuilder, StepExecute)
	p.add(path, unix.SYS_EXECVE, p.text(path), p.texts(spec.Argv), p.texts(spec.Env))
}
