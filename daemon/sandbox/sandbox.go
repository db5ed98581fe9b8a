// Package sandbox runs one builder, a program nobody trusts, in namespaces of its own.
// It knows nothing of stores and derivations: a Spec is plain data, and what the builder may
// see is exactly what the Spec lists.
//
// # Life of a build process
//
//	parent       the daemon. Its Launcher asks a fork server for each builder, copies the log, waits, kills.
//	fork server  a process of the daemon's own executable (server.go) that maps the request, which is the lists of system calls that the
//	             stages will make (program.go), forks stage 1 into new namespaces, and forgets it: stage 1 is a child of the daemon.
//	stage 1      process 1 of the new pid namespace. Begins when the daemon knows its process id. Mounts, change of root, loopback,
//	             host name. Forks stage 2, maps its ids, drops its own capabilities, reaps, and reports how stage 2 ended.
//	             When it ends, for whatever reason, the kernel kills everything else in the namespace.
//	stage 2      limits, capabilities, no_new_privs, Landlock, seccomp; then becomes the builder.
//
// The stages are forked and not executed because to start this program takes longer than all that they do, and the fork server is not the daemon because to
// copy a large process does, too. It has given up all memory that is not the program's text and constants, a page to write
// to, and some of a stack; so in it and in the stages run a few functions that do nothing but make system calls (desk.go).
// Every builder has namespaces, mounts and processes of its own, and nothing of one is in the memory that the next is forked from.
// When the daemon dies so do the fork server and each stage 1; when the fork server dies builders go on, and the next one gets another.
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
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
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

// Steps that errors are told apart by.
const (
	StepExecute = "execute" // the builder itself: a missing or unusable program
	stepProc    = "mount /proc"
)

// probe is a program that stage 2 takes as "exit with 0 instead".
const probe = "/proc/sandbox-probe"

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

// program is the builder's path inside.
func (s *Spec) program() string { return cmp.Or(s.Path, s.Argv[0]) }

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

// Available makes an empty sandbox and reports why the host cannot give one.
func Available() error {
	root, err := os.MkdirTemp("", "sandbox-")
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	defer os.Remove(root)
	var l Launcher
	defer l.Close()
	var log strings.Builder
	st, err := l.Run(context.Background(), &Spec{Path: probe, Argv: []string{probe}, Dir: "/", Root: root, HostUID: 65534, HostGID: 65534}, &log)
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
