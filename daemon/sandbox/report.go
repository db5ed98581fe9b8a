package sandbox

import (
	"encoding/binary"
	"fmt"
	"io"
	"syscall"
	"unsafe"
)

// A record stands before each report on a sandbox, in the machine's own byte order, and after it the texts whose lengths it gives (desk.go).
type record struct {
	kind  uint32
	value uint32 // a process id, a status as wait4 gives it, or an error's number
	step  uint32 // bytes
	what  uint32
}

// The kinds of reports, in their order.
const (
	hasStarted uint32 = iota + 1
	hasFailed
	hasEnded
)

// maxText bounds what a report says.
const maxText = 64 << 10

// report is what is known of how a sandbox ended.
type report struct {
	step, what string
	errno      syscall.Errno
	ended      bool
	status     syscall.WaitStatus
}

// err is what the step that failed says.
func (r *report) err() error {
	e := &SetupError{Step: r.step, Text: r.what}
	if r.errno == 0 {
		return e
	}
	e.Hint = hint(r.errno)
	if e.Text = r.errno.Error(); r.what != "" {
		e.Text = r.what + ": " + e.Text
	}
	if r.step == stepProc && r.errno == syscall.EPERM {
		e.Text += " (parts of the host's /proc are hidden, as in a container; the kernel then refuses another one to ordinary users)"
	}
	return e
}

func readRecord(from io.Reader) (r record, step, what string, err error) {
	var head [unsafe.Sizeof(r)]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return r, "", "", err
	}
	for i, v := range []*uint32{&r.kind, &r.value, &r.step, &r.what} {
		*v = binary.NativeEndian.Uint32(head[4*i:])
	}
	if r.step > maxText || r.what > maxText {
		return r, "", "", fmt.Errorf("sandbox: a report of %d and %d bytes", r.step, r.what)
	}
	text := make([]byte, r.step+r.what)
	if _, err := io.ReadFull(from, text); err != nil {
		return r, "", "", err
	}
	return r, string(text[:r.step]), string(text[r.step:]), nil
}

// collect reads all reports. started is called with the process id when there is one; when it fails nothing more is to come.
func collect(from io.Reader, started func(pid int) error) report {
	var all report
	for {
		r, step, what, err := readRecord(from)
		switch {
		case err != nil:
			return all
		case r.kind == hasStarted:
			if err := started(int(r.value)); err != nil {
				all.step, all.what = "let it begin", err.Error()
				return all
			}
		case r.kind == hasFailed && all.step == "": // what comes after follows from it
			all.step, all.what, all.errno = step, what, syscall.Errno(r.value)
		case r.kind == hasEnded:
			all.ended, all.status = true, syscall.WaitStatus(r.value)
		}
	}
}
