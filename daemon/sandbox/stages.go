package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	stage1Name = "cairn-sandbox-1"
	stage2Name = "cairn-sandbox-2"
	probe      = "/proc/sandbox-probe" // a program that stage 2 takes as "exit with 0 instead"

	specFD   = 3
	statusFD = 4
	turnFD   = 5 // in stage 2: a byte goes out when it is loaded, one comes in when stage 1 is done
)

// report is what a stage tells the parent: a step that failed, or how the builder ended.
type report struct {
	Step     string         `json:",omitempty"`
	Error    string         `json:",omitempty"`
	Errno    syscall.Errno  `json:",omitempty"`
	Ended    bool           `json:",omitempty"`
	ExitCode int            `json:",omitempty"`
	Signal   syscall.Signal `json:",omitempty"`
}

func (r *report) send() {
	b, _ := json.Marshal(r)
	unix.Write(statusFD, b)
}

// step is one thing a stage does; its name stands in the error when the host refuses.
type step struct {
	name string
	do   func(*Spec) error
}

var stage1 = []step{
	{"hide from the builder", func(*Spec) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
	{"separate the mounts", separateMounts},
	{"mount /proc", mountProc},
	{"start the builder", startStage2},
	{"mount a root", mountRoot},
	{"move /proc", moveProc},
	{"mount /dev", mountDevices},
	{"mount inputs", mountInputs},
	{"write files", writeFiles},
	{"load the builder's stage", func(*Spec) error { return awaitTurn(builder.turn) }},
	{"change root", changeRoot},
	{"bring up loopback", loopbackUp},
	{"set the host name", setNames},
	{"drop capabilities", clearCapabilities},
	{"release the builder", func(*Spec) error { return passTurn(builder.turn) }},
}

var stage2 = []step{
	{"say that it is loaded", func(*Spec) error { return passTurn(turnFD) }},
	{"wait for stage 1", func(*Spec) error { return awaitTurn(turnFD) }},
	{"set limits", setLimits},
	{"set the personality", setPersonality},
	{"enter the build directory", func(s *Spec) error { return unix.Chdir(s.Dir) }},
	{"drop capabilities", dropCapabilities},
	{"forbid new privileges", func(*Spec) error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
	{"confine sockets", confineSockets},
	{"filter system calls", filterSystemCalls},
}

// Init must be the first thing main does: it returns at once unless this process
// was started by Run as a stage of a sandbox, which it then becomes.
func Init() {
	switch {
	case len(os.Args) != 1:
		return
	case os.Args[0] == stage1Name:
		runtime.LockOSThread()
		os.Exit(runStage1())
	case os.Args[0] == stage2Name:
		runtime.LockOSThread()
		os.Exit(runStage2())
	}
}

func runStage1() int {
	if _, ok := prepare(stage1); !ok {
		return 1
	}
	reap(builder.pid).send()
	return 0
}

func runStage2() int {
	spec, ok := prepare(stage2)
	if !ok {
		return 1
	}
	path := spec.Path
	if path == "" {
		path = spec.Argv[0]
	}
	if path == probe {
		return 0
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fail("close files", err)
		return 1
	}
	fail("execute", fmt.Errorf("%s: %w", path, syscall.Exec(path, spec.Argv, spec.Env)))
	return 1
}

// prepare reads the Spec and runs the steps.
func prepare(steps []step) (*Spec, bool) {
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(statusFD)
	unix.CloseOnExec(turnFD)
	spec, err := readSpec()
	if err != nil {
		fail("read the spec", err)
		return nil, false
	}
	for _, s := range steps {
		if err := s.do(spec); err != nil {
			fail(s.name, err)
			return nil, false
		}
	}
	return spec, true
}

func readSpec() (*Spec, error) {
	var st unix.Stat_t
	if err := unix.Fstat(specFD, &st); err != nil {
		return nil, err
	}
	data := make([]byte, st.Size)
	if _, err := unix.Pread(specFD, data, 0); err != nil {
		return nil, err
	}
	spec := &Spec{}
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, err
	}
	if len(spec.Argv) == 0 {
		return nil, errors.New("no program")
	}
	return spec, nil
}

func fail(name string, err error) {
	r := &report{Step: name, Error: err.Error()}
	errors.As(err, &r.Errno)
	r.send()
}

// builder is what stage 1 knows of stage 2.
var builder struct {
	pid  int
	turn int // our end of turnFD
}

// startStage2 starts the builder's process, in a user namespace of its own unless it is in one already.
// It starts before the root is changed, so that a program with shared libraries can be loaded (tests under the race detector),
// and waits; changing the root changes its root too.
func startStage2(spec *Spec) error {
	sys := &syscall.SysProcAttr{Setsid: true, AmbientCaps: []uintptr{unix.CAP_SETPCAP}}
	if unix.Getuid() != UID {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("drop groups: %w", err)
		}
		sys.Cloneflags = unix.CLONE_NEWUSER
		sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: UID, HostID: int(spec.HostUID), Size: 1}}
		sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: GID, HostID: int(spec.HostGID), Size: 1}}
		sys.Credential = &syscall.Credential{Uid: UID, Gid: GID, NoSetGroups: true}
	}
	turn, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(turn[1])
	builder.turn = turn[0]
	builder.pid, err = syscall.ForkExec("/proc/self/exe", []string{stage2Name}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []uintptr{0, 1, 2, specFD, statusFD, uintptr(turn[1])}, Sys: sys,
	})
	if errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w (the cairn program must be readable and executable by everybody)", err)
	}
	return err
}

func passTurn(fd int) error {
	_, err := unix.Write(fd, []byte{1})
	return err
}

func awaitTurn(fd int) error {
	n, err := unix.Read(fd, make([]byte, 1))
	if err == nil && n == 0 {
		err = errors.New("the other stage has ended")
	}
	return err
}

// reap waits for all children until the builder has ended.
func reap(builder int) *report {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return &report{Step: "wait for the builder", Error: err.Error()}
		case pid == builder && ws.Signaled():
			return &report{Ended: true, ExitCode: -1, Signal: ws.Signal()}
		case pid == builder:
			return &report{Ended: true, ExitCode: ws.ExitStatus()}
		}
	}
}

func setNames(*Spec) error {
	if err := unix.Sethostname([]byte("localhost")); err != nil {
		return err
	}
	return unix.Setdomainname([]byte("(none)"))
}

func loopbackUp(spec *Spec) error {
	if spec.Network {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
