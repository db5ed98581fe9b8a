package sandbox

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Open files of the fork server, and of the stages. What a request brings gets the lowest free numbers. The builder gets the first three.
const (
	serverFD = 3 // the fork server's socket
	imageFD  = 4
	logFD    = 5
	reportFD = 6

	statusFD = 3 // reportFD from then on
	turnFD   = 4 // an event: stage 1 is done
)

// requestFiles is how many open files a request brings.
const requestFiles = 3

// A desk is all the memory that the fork server and the stages write to beside a little of a stack, and this file is all the code that
// they run. They have been forked from a Go program without its heap, its data and its other threads: nothing here may
// allocate, grow the stack, look at a package's variable, panic, or call what does. Each function says so to the compiler and
// the race detector.
type desk struct {
	image   *header // of the stages that are being forked
	size    uint64  // of the image, as a request says it
	message unix.Msghdr
	vector  unix.Iovec
	rights  struct {
		unix.Cmsghdr
		files [requestFiles]int32
		_     int32
	}
	turn   uint64
	ended  uint32
	report record
}

// prepare has messages be received into the desk.
func (d *desk) prepare() {
	d.vector.Base = (*byte)(unsafe.Pointer(&d.size))
	d.vector.SetLen(int(unsafe.Sizeof(d.size)))
	d.message.Iov = &d.vector
	d.message.SetIovlen(1)
	d.message.Control = (*byte)(unsafe.Pointer(&d.rights))
}

// fork makes the fork server: a copy of this process that has, of its memory, only what is not listed, and the stack where it
// stands.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) fork(without []span) (uintptr, syscall.Errno) {
	const page, around = 1 << 12, 1 << 14 // what is below does not take a tenth of it
	var here byte
	low := (uintptr(unsafe.Pointer(&here)) - around) &^ (page - 1)
	for i := range without {
		from, to := without[i].from, without[i].to
		if from < low+2*around && to > low {
			if from < low {
				raw(unix.SYS_MADVISE, from, low-from, unix.MADV_DONTFORK, 0, 0, 0)
			}
			from = low + 2*around
		}
		if from < to {
			raw(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTFORK, 0, 0, 0)
		}
	}
	pid, errno := raw(unix.SYS_CLONE, unix.CLONE_PARENT, 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		d.serve()
	}
	return pid, errno
}

// serve answers one request after the other until the daemon has closed its end.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) serve() {
	raw(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	for {
		raw(unix.SYS_CLOSE_RANGE, serverFD+1, uintptr(^uint32(0)), 0, 0, 0, 0)
		d.message.Controllen = uint64(unsafe.Sizeof(d.rights))
		n, errno := raw(unix.SYS_RECVMSG, serverFD, uintptr(unsafe.Pointer(&d.message)), 0, 0, 0, 0)
		if errno != 0 || n != unsafe.Sizeof(d.size) {
			exit(0)
		}
		d.answer()
	}
}

// answer forks stage 1, as a child of the daemon, in whose memory the image is.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) answer() {
	at, size := uintptr(unsafe.Pointer(d.image)), uintptr(d.size)
	if _, errno := raw(unix.SYS_MMAP, at, size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_FIXED, imageFD, 0); errno != 0 {
		d.fail(reportFD, "map the program", errno)
		return
	}
	pid, errno := raw(unix.SYS_CLONE, unix.CLONE_PARENT|d.image.spaces[0], 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		d.stage1()
	}
	raw(unix.SYS_MUNMAP, at, size, 0, 0, 0, 0)
	if errno != 0 {
		d.fail(reportFD, "create namespaces", errno)
		return
	}
	d.report = record{kind: hasStarted, value: uint32(pid)}
	d.send(reportFD, 0, 0)
}

// stage1 begins when the daemon knows of it, and gives it leave.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) stage1() {
	raw(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	raw(unix.SYS_DUP3, reportFD, statusFD, unix.O_CLOEXEC, 0, 0, 0)
	if n, _ := raw(unix.SYS_READ, statusFD, uintptr(unsafe.Pointer(&d.turn)), 1, 0, 0, 0); n != 1 || !d.run(stageFirst) {
		exit(1)
	}
	pid, errno := raw(unix.SYS_CLONE, d.image.spaces[1]|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		d.fail(statusFD, "start the builder", errno)
		exit(1)
	}
	if pid == 0 {
		d.stage2()
	}
	if d.run(stageThen) {
		d.reap(pid)
	}
	exit(0)
}

// stage2 begins when stage 1 is done.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) stage2() {
	n, errno := raw(unix.SYS_READ, turnFD, uintptr(unsafe.Pointer(&d.turn)), unsafe.Sizeof(d.turn), 0, 0, 0)
	if n != unsafe.Sizeof(d.turn) {
		d.fail(statusFD, "wait for stage 1", errno)
		exit(1)
	}
	d.run(stageBuilder)
	exit(1)
}

// run makes the calls of a list until one fails, which it reports.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) run(list uintptr) bool {
	kept := uintptr(0)
	part := (*part)(unsafe.Add(unsafe.Pointer(&d.image.lists), list*unsafe.Sizeof(part{})))
	for i := uintptr(0); i < part.count; i++ {
		c := (*call)(unsafe.Add(unsafe.Pointer(d.image), part.at+i*unsafe.Sizeof(call{})))
		a := c.args[0]
		if c.takes {
			a = kept
		}
		r, errno := raw(c.number, a, c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		if errno == 0 && r < c.least {
			errno = unix.EIO
		}
		if errno != 0 && uintptr(errno) != c.ignore {
			d.report = record{kind: hasFailed, value: uint32(errno), step: uint32(c.step.size), what: uint32(c.what.size)}
			d.send(statusFD, c.step.at, c.what.at)
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
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) reap(builder uintptr) {
	const anyone = ^uintptr(0)
	for {
		pid, errno := raw(unix.SYS_WAIT4, anyone, uintptr(unsafe.Pointer(&d.ended)), 0, 0, 0, 0)
		if errno != 0 {
			d.fail(statusFD, "wait for the builder", errno)
			return
		}
		if pid == builder {
			d.report = record{kind: hasEnded, value: d.ended}
			d.send(statusFD, 0, 0)
			return
		}
	}
}

// fail reports a step that is a constant.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) fail(status uintptr, step string, errno syscall.Errno) {
	d.report = record{kind: hasFailed, value: uint32(errno), step: uint32(len(step))}
	d.send(status, uintptr(unsafe.Pointer(unsafe.StringData(step))), 0)
}

// send writes the report, and texts of the lengths that it says.
//
//go:nocheckptr
//go:norace
//go:nosplit
func (d *desk) send(status, step, what uintptr) {
	raw(unix.SYS_WRITE, status, uintptr(unsafe.Pointer(&d.report)), unsafe.Sizeof(d.report), 0, 0, 0)
	if d.report.step > 0 {
		raw(unix.SYS_WRITE, status, step, uintptr(d.report.step), 0, 0, 0)
	}
	if d.report.what > 0 {
		raw(unix.SYS_WRITE, status, what, uintptr(d.report.what), 0, 0, 0)
	}
}

//go:norace
//go:nosplit
func exit(code uintptr) {
	for {
		raw(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}

//go:norace
//go:nosplit
func raw(number, a, b, c, d, e, f uintptr) (uintptr, syscall.Errno) {
	r, _, errno := syscall.RawSyscall6(number, a, b, c, d, e, f)
	return r, errno
}
