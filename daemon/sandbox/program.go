package sandbox

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A program is what the two processes of a sandbox do, laid out before they are forked: after a fork of a Go program its
// child may neither allocate nor grow its stack nor be preempted, so all that it does is to make one system call after the other.
// What these point to is in the memory that the child gets a copy of.
type program struct {
	first   []call  // stage 1, until the builder's process is there
	then    []call  // and with it
	builder []call  // stage 2
	spaces  uintptr // new namespaces of the builder's process

	list  *[]call // that is being written
	step  string
	holds []any           // what calls point to
	made  map[string]bool // directories that calls make

	ended  uint32 // the child's, as the next
	report record
}

// A call is one system call.
type call struct {
	step, what string // that it is part of, and what it does, for the report of a failure
	number     uintptr
	args       [8]uintptr    // six of them
	take       int           // the argument that is the result kept last, or unused
	keep       bool          // the result
	least      uintptr       // a result below is a failure
	ignore     syscall.Errno // an error that is none
}

// unused is an element of call.args that no call has.
const unused = 7

// begin has the next calls be part of a step.
func (p *program) begin(list *[]call, step string) {
	p.list, p.step = list, step
}

// add appends a call. What it returns is good until the next one.
func (p *program) add(what string, number uintptr, args ...uintptr) *call {
	c := call{step: p.step, what: what, number: number, take: unused}
	copy(c.args[:], args)
	*p.list = append(*p.list, c)
	return &(*p.list)[len(*p.list)-1]
}

// text returns the address of a string that ends in a zero byte. Those of the sandbox's own have none within.
func (p *program) text(s string) uintptr {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return hold(p, &b[0])
}

// hold keeps a value for the calls that point to it, and returns its address.
func hold[T any](p *program, v *T) uintptr {
	p.holds = append(p.holds, v)
	return uintptr(unsafe.Pointer(v))
}

// texts returns the address of a list of strings as execve takes it.
func (p *program) texts(list []string) uintptr {
	addrs := make([]uintptr, len(list)+1)
	for i, s := range list {
		addrs[i] = p.text(s)
	}
	return hold(p, &addrs[0])
}

// fork starts the program in a child of this process's parent, and returns its process id.
//
//go:norace
//go:nosplit
func (p *program) fork(spaces uintptr) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT|spaces, 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		p.become()
	}
	return pid, errno
}

// become is the child.
//
//go:norace
//go:nosplit
func (p *program) become() {
	if !p.run(p.first) {
		exit(1)
	}
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, p.spaces|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		p.fail("start the builder", "", errno)
		exit(1)
	}
	if pid == 0 {
		p.run(p.builder)
		exit(1)
	}
	if !p.run(p.then) {
		exit(1)
	}
	p.reap(pid)
	exit(0)
}

// run makes calls until one fails, which it reports.
//
//go:norace
//go:nosplit
func (p *program) run(calls []call) bool {
	kept := uintptr(0)
	for i := range calls {
		c := &calls[i]
		c.args[c.take&unused] = kept
		r, _, errno := syscall.RawSyscall6(c.number, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		if errno == 0 && r < c.least {
			errno = unix.EPIPE
		}
		if errno != 0 && errno != c.ignore {
			p.fail(c.step, c.what, errno)
			return false
		}
		if c.keep {
			kept = r
		}
	}
	return true
}

// reap waits for all children until the builder has ended, and says how.
//
//go:norace
//go:nosplit
func (p *program) reap(builder uintptr) {
	const anyone = ^uintptr(0)
	for {
		pid, _, errno := syscall.RawSyscall6(unix.SYS_WAIT4, anyone, uintptr(unsafe.Pointer(&p.ended)), 0, 0, 0, 0)
		if errno != 0 {
			p.fail("wait for the builder", "", errno)
			return
		}
		if pid == builder {
			p.report = record{kind: hasEnded, value: p.ended}
			p.send("", "")
			return
		}
	}
}

//go:norace
//go:nosplit
func (p *program) fail(step, what string, errno syscall.Errno) {
	p.report = record{kind: hasFailed, value: uint32(errno), step: uint32(len(step)), what: uint32(len(what))}
	p.send(step, what)
}

//go:norace
//go:nosplit
func (p *program) send(step, what string) {
	write(uintptr(unsafe.Pointer(&p.report)), unsafe.Sizeof(p.report))
	write(uintptr(unsafe.Pointer(unsafe.StringData(step))), uintptr(len(step)))
	write(uintptr(unsafe.Pointer(unsafe.StringData(what))), uintptr(len(what)))
}

//go:norace
//go:nosplit
func write(data, size uintptr) {
	if size > 0 {
		syscall.RawSyscall6(unix.SYS_WRITE, statusFD, data, size, 0, 0, 0)
	}
}

//go:norace
//go:nosplit
func exit(code uintptr) {
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
