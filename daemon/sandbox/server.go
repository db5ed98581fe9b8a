package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	serverName = "cairn-sandbox"
	serverFD   = 3 // its socket

	// Requests bring open files: the Spec, and where log and reports go.
	requestFiles = 3

	// lowFD is above all that the stages use, so that giving these their files overwrites none.
	lowFD = 10
)

// Init must be the first thing main does: it returns at once unless this process was started as a fork server, which it then becomes.
func Init() {
	if len(os.Args) == 1 && os.Args[0] == serverName {
		runtime.LockOSThread()
		os.Exit(serve())
	}
}

// serve answers one request after the other until the daemon closes its end.
func serve() int {
	for fd := 0; fd < lowFD; {
		var err error
		if fd, err = unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return 1
		}
	}
	mighty := privileged()
	body, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4*requestFiles))
	for {
		n, oobn, _, _, err := unix.Recvmsg(serverFD, body, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n == 0:
			return 0
		}
		files, err := receive(rights[:oobn])
		if err == nil && len(files) == requestFiles {
			answer(files, mighty)
		}
		for _, fd := range files {
			unix.Close(fd)
		}
	}
}

func receive(rights []byte) ([]int, error) {
	list, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(list) != 1 {
		return nil, err
	}
	return unix.ParseUnixRights(&list[0])
}

// answer starts a sandbox, or reports why it could not.
func answer(files []int, mighty bool) {
	status := files[2]
	if step, err := launch(files[0], given{log: files[1], status: status}, mighty); err != nil {
		r := record{kind: hasFailed}
		what := err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			r.value = uint32(errno)
		}
		unix.Write(status, r.encode(step, what))
	}
}

// launch forks stage 1. It starts when the daemon can be told of it, so that none is lost.
func launch(file int, files given, mighty bool) (step string, err error) {
	spec, err := readSpec(file)
	if err != nil {
		return "read the spec", err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return "make a pipe", err
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	files.goOn, files.hold = ends[0], ends[1]
	p, err := newProgram(spec, files, mighty)
	if err != nil {
		return "mount inputs", err
	}
	pid, errno := p.start(namespaces1(spec, mighty))
	runtime.KeepAlive(p)
	if errno != 0 {
		return "create namespaces", errno
	}
	if !mighty {
		if err := mapSelf(int(pid)); err != nil {
			return "map ids", err
		}
	}
	unix.Write(files.status, record{kind: hasStarted, value: uint32(pid)}.encode("", ""))
	unix.Write(files.hold, []byte{1})
	return "", nil
}

// namespaces1 are those of stage 1.
func namespaces1(spec *Spec, mighty bool) uintptr {
	spaces := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP)
	if !spec.Network {
		spaces |= unix.CLONE_NEWNET
	}
	if !mighty {
		spaces |= unix.CLONE_NEWUSER
	}
	return spaces
}

// start forks with all signals blocked, or a handler could run in the child.
func (p *program) start(spaces uintptr) (pid uintptr, errno syscall.Errno) {
	var old, all [signals / 8]byte
	for i := range all {
		all[i] = 0xff
	}
	sigmask(&all, &old)
	pid, errno = p.fork(spaces)
	sigmask(&old, nil)
	return pid, errno
}

func sigmask(set, old *[signals / 8]byte) {
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), signals/8, 0, 0)
}

// mapSelf gives a process in a user namespace of its own the builder's ids in the place of ours.
func mapSelf(pid int) error {
	for _, f := range []struct{ name, text string }{
		{"setgroups", "deny"},
		{"uid_map", idMap(UID, uint32(os.Geteuid()))},
		{"gid_map", idMap(GID, uint32(os.Getegid()))},
	} {
		if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/"+f.name, []byte(f.text), 0); err != nil {
			return err
		}
	}
	return nil
}

func readSpec(fd int) (*Spec, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	data := make([]byte, st.Size)
	if _, err := unix.Pread(fd, data, 0); err != nil {
		return nil, err
	}
	spec := &Spec{}
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if len(spec.Argv) == 0 {
		return nil, errors.New("no program")
	}
	return spec, nil
}
