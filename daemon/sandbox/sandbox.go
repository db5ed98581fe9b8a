// Package sandbox runs one builder, a program nobody trusts, in namespaces of its own.
// It knows nothing of stores and derivations: a Spec is plain data, and what the builder may
// see is exactly what the Spec lists.
//
// # Life of a build process
//
//	parent    the daemon. Clones stage 1 of its own executable into new namespaces, hands it the
//	          Spec in a memory file, copies the log, waits, kills.
//	stage 1   process 1 of the new pid namespace. Runs the steps in stages.go: mounts, change of root, loopback,
//	          host name. Starts stage 2, drops its own capabilities, reaps, and reports how stage 2 ended.
//	          When it ends, for whatever reason, the kernel kills everything else in the namespace.
//	stage 2   limits, capabilities, no_new_privs, Landlock, seccomp; then becomes the builder.
//
// With CAP_SYS_ADMIN the namespaces of stage 1 belong to the host's user namespace and only stage 2
// enters a new one, so the builder has no power over its mounts even if it found a way to regain capabilities; the
// builder's files belong to Spec.HostUID. An ordinary user's stage 1 enters a user namespace
// at once, with a map of one id. The builder sees uid 1000 and gid 100 both ways.
//
// # Security boundary
//
// A builder may never:
//   - see a file that Spec does not list, nor write to a read-only one (recursive read-only mounts, a root file system
//     of its own that is sealed read-only, pivot_root, the old root detached);
//   - see, signal or trace a process that is not its child or sibling (pid namespace; process 1 is not dumpable);
//   - reach the network, the host's abstract sockets, System V or POSIX IPC, or a virtual machine's host (net and ipc
//     namespaces; only Unix, IP, netlink and packet sockets can be made);
//   - gain privileges (no_new_privs, empty capability and bounding sets, no new namespaces, no mount, no keyrings, no
//     bpf, no io_uring), or leave a set-user-id, set-group-id or device file or an extended attribute behind (seccomp);
//   - outlive Run: when Run returns every process of the namespace is dead and waited for by the kernel;
//   - use another system call table than the machine's own and, on amd64, that of i386, which has the same rules.
//
// A builder with Network shares the host's network, and nothing else. Landlock keeps it from the host's
// abstract sockets where the kernel can (6.12), but a process outside can still connect to one of its own and be handed open files.
// Whoever uses its output must therefore copy it, not move it.
// An ordinary user's builder has that user's supplementary groups, because nobody but root can drop them.
//
// While a builder runs more can be shown to it (Box): mounts that are as read-only as those from the start. The mount points lie where
// the builder may write, so it can spoil them for itself, but for nobody else.
//
// A host that cannot give all of this gets an error that says why; there is no weaker mode.
//
// What it does not do: bound memory, processors or disk (limits belong to the daemon's service unit), hide the
// kernel's version and the processor, or make a builder deterministic.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The ids that a builder sees itself under.
const (
	UID = 1000
	GID = 100
)

// Spec says what to run and what it may see. Paths are absolute and clean.
type Spec struct {
	Argv []string // Argv[0] is the program's path inside, unless Path is set
	Path string   // the program, when Argv[0] should be something else
	Env  []string
	Dir  string // working directory inside

	Root     string            // an existing empty directory outside, to build the root file system on
	Mounts   []Mount           // in order, so that later ones may lie within earlier ones
	Files    map[string]string // path inside → contents, mode 0444
	Symlinks map[string]string // path inside → target

	Network bool   // share the host's network
	Linux32 bool   // present the machine as its 32-bit variant
	HostUID uint32 // who owns the builder's files outside; used only with CAP_SYS_ADMIN
	HostGID uint32
}

// Mount makes a file or a directory of the host visible. Mount points are created.
type Mount struct {
	Source   string // outside; never followed when it is a symlink
	Target   string // inside
	Writable bool
	Optional bool // a missing source is skipped
}

// Status is how the builder ended.
type Status struct {
	ExitCode int            // -1 when a signal ended it
	Signal   syscall.Signal // 0 when it exited
	User     time.Duration
	System   time.Duration
}

// Success reports whether the builder exited with 0.
func (s Status) Success() bool { return s.ExitCode == 0 && s.Signal == 0 }

func (s Status) String() string {
	if s.Signal != 0 {
		return fmt.Sprintf("killed by signal %d (%s)", int(s.Signal), s.Signal)
	}
	return fmt.Sprintf("exit code %d", s.ExitCode)
}

// A SetupError says which step of making the sandbox the host refused.
// The step "execute" is the builder itself: a missing or unusable program.
type SetupError struct {
	Step string
	Text string
	Hint string // why the host may be unable to, when known
}

func (e *SetupError) Error() string {
	s := "sandbox: " + e.Step + ": " + e.Text
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Run runs a builder until it ends or ctx does, with its standard output and error going to log.
// When it returns, nothing of the builder is running any more.
// The error is nil whenever the builder itself was started, and ctx's cause when that ended it.
func Run(ctx context.Context, spec *Spec, log io.Writer) (Status, error) {
	return RunOpen(ctx, spec, log, nil)
}

// RunOpen is Run for a sandbox that gets further mounts while its builder runs: opened is called with it when its
// first process is there. It may not be used before the builder shows that it runs.
func RunOpen(ctx context.Context, spec *Spec, log io.Writer, opened func(*Box)) (Status, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return Status{}, fmt.Errorf("sandbox: encode spec: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return Status{}, context.Cause(ctx)
	}
	p, err := newProcess(data, spec.Network)
	if err != nil {
		return Status{}, err
	}
	defer p.close()
	// The death signal of the child is tied to the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := p.cmd.Start(); err != nil {
		return Status{}, &SetupError{Step: "create namespaces", Text: plain(err), Hint: hint(err)}
	}
	stop := context.AfterFunc(ctx, func() { p.cmd.Process.Kill() })
	defer stop()
	box := &Box{pid: p.cmd.Process.Pid}
	if opened != nil {
		opened(box)
	}
	copied := p.copyLog(log)
	reported, _ := p.collect()
	box.end()
	waitErr := p.cmd.Wait()
	p.finishLog(copied)
	if ctx.Err() != nil {
		return Status{ExitCode: -1, Signal: syscall.SIGKILL}, context.Cause(ctx)
	}
	return p.status(reported, waitErr)
}

// process is stage 1 as its parent sees it.
type process struct {
	cmd            *exec.Cmd
	spec           *os.File
	logR, logW     *os.File
	statusR, statW *os.File
}

func newProcess(spec []byte, network bool) (*process, error) {
	p := &process{}
	var err error
	if p.spec, err = memoryFile(spec); err != nil {
		return nil, err
	}
	if p.logR, p.logW, err = os.Pipe(); err == nil {
		p.statusR, p.statW, err = os.Pipe()
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("sandbox: make pipes: %w", err)
	}
	p.cmd = &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{stage1Name},
		Env:         []string{"GOMAXPROCS=1", "GORACE=atexit_sleep_ms=0"},
		Dir:         "/",
		Stdout:      p.logW,
		Stderr:      p.logW,
		ExtraFiles:  []*os.File{p.spec, p.statW},
		SysProcAttr: stage1Attributes(network),
	}
	return p, nil
}

func stage1Attributes(network bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
	}
	if !network {
		a.Cloneflags |= unix.CLONE_NEWNET
	}
	if !privileged() {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: UID, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: GID, HostID: os.Getegid(), Size: 1}}
		a.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP}
	}
	return a
}

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

func memoryFile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("sandbox-spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("sandbox: make memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "sandbox-spec")
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("sandbox: write memory file: %w", err)
	}
	return f, nil
}

func (p *process) close() {
	for _, f := range []*os.File{p.spec, p.logR, p.logW, p.statusR, p.statW} {
		if f != nil {
			f.Close()
		}
	}
}

// copyLog copies until every writer has closed, or finishLog runs out of patience.
func (p *process) copyLog(log io.Writer) <-chan struct{} {
	p.logW.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 32<<10)
		for {
			n, err := p.logR.Read(buf)
			if n > 0 {
				log.Write(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return done
}

// finishLog is called when all processes are dead. A pipe that still has a writer was
// handed to somebody outside, and is left to him.
func (p *process) finishLog(copied <-chan struct{}) {
	p.logR.SetReadDeadline(time.Now().Add(time.Second))
	<-copied
}

// collect reads the report that stages 1 and 2 write.
func (p *process) collect() (*report, error) {
	p.statW.Close()
	data, err := io.ReadAll(io.LimitReader(p.statusR, 64<<10))
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	r := &report{}
	for {
		var next report
		if err := dec.Decode(&next); err != nil {
			return r, nil
		}
		if r.Step == "" {
			*r = next
		}
	}
}

func (p *process) status(r *report, waitErr error) (Status, error) {
	state := p.cmd.ProcessState
	st := Status{ExitCode: -1, User: state.UserTime(), System: state.SystemTime()}
	switch {
	case r != nil && r.Step != "":
		return st, &SetupError{Step: r.Step, Text: r.Error, Hint: hint(r.Errno)}
	case r != nil && r.Ended:
		st.ExitCode, st.Signal = r.ExitCode, r.Signal
		return st, nil
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		st.Signal = ws.Signal()
		return st, nil
	}
	return st, &SetupError{Step: "run stage 1", Text: fmt.Sprint(waitErr)}
}

// Available makes an empty sandbox and reports why the host cannot give one.
func Available() error {
	root, err := os.MkdirTemp("", "sandbox-")
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	defer os.Remove(root)
	var log strings.Builder
	st, err := Run(context.Background(), &Spec{Path: probe, Argv: []string{probe}, Dir: "/", Root: root, HostUID: 65534, HostGID: 65534}, &log)
	if err == nil && !st.Success() {
		err = &SetupError{Step: "probe", Text: strings.TrimSpace(st.String() + " " + log.String())}
	}
	return err
}

func plain(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// hint explains a refusal by what the host's settings say.
func hint(err error) string {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EUSERS) && !errors.Is(err, unix.EACCES) {
		return ""
	}
	for _, s := range []struct{ file, bad, text string }{
		{"/proc/sys/user/max_user_namespaces", "0", "user namespaces are disabled: set sysctl user.max_user_namespaces above 0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "ordinary users may not make user namespaces: set sysctl kernel.unprivileged_userns_clone=1, or run the daemon as root"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts user namespaces: set sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run the daemon as root"},
	} {
		if b, err := os.ReadFile(s.file); err == nil && strings.TrimSpace(string(b)) == s.bad {
			return s.text
		}
	}
	if os.Geteuid() == 0 && !privileged() {
		return "root lacks CAP_SYS_ADMIN here: this is a container that must be given it, or must allow user namespaces"
	}
	return "the process may be in a chroot, in a container without nested namespaces, or under a seccomp filter"
}
