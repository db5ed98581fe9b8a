package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run runs a builder until it ends or ctx does, with its standard output and error going to log.
// When it returns, nothing of the builder is running any more.
// The error is nil whenever the builder itself was started, and ctx's cause when that ended it.
func (l *Launcher) Run(ctx context.Context, spec *Spec, log io.Writer) (Status, error) {
	return l.RunOpen(ctx, spec, log, nil)
}

// RunOpen is Run for a sandbox that gets further mounts while its builder runs: opened is called with it when its
// first process is there. It may not be used before the builder shows that it runs.
func (l *Launcher) RunOpen(ctx context.Context, spec *Spec, log io.Writer, opened func(*Box)) (Status, error) {
	if err := ctx.Err(); err != nil {
		return Status{}, context.Cause(ctx)
	}
	p, err := newProcess()
	if err != nil {
		return Status{}, err
	}
	defer p.close()
	if err := l.start(spec, int(p.logW.Fd()), p.theirs); err != nil {
		return Status{}, err
	}
	p.handOver()
	box := &Box{}
	defer context.AfterFunc(ctx, box.kill)()
	copied := p.copyLog(log)
	reported := collect(p.status, func(pid int) error {
		box.begin(pid)
		if opened != nil {
			opened(box)
		}
		err := p.release(ctx, pid)
		if err != nil {
			box.kill()
		}
		return err
	})
	ended, usage := box.wait()
	p.finishLog(copied)
	if ctx.Err() != nil {
		return Status{ExitCode: -1, Signal: syscall.SIGKILL}, context.Cause(ctx)
	}
	return reported.result(ended, usage)
}

// process is stage 1 as its parent sees it.
type process struct {
	logR, logW *os.File
	status     *os.File // reports come, leave to begin goes
	theirs     int      // the other end
}

func newProcess() (*process, error) {
	p := &process{theirs: -1}
	var err error
	if p.logR, p.logW, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("sandbox: make a pipe: %w", err)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.close()
		return nil, fmt.Errorf("sandbox: make a socket: %w", err)
	}
	unix.SetNonblock(ends[0], true)
	p.status, p.theirs = os.NewFile(uintptr(ends[0]), "status"), ends[1]
	return p, nil
}

// handOver closes what only the sandbox has from now on.
func (p *process) handOver() {
	p.logW.Close()
	unix.Close(p.theirs)
	p.theirs = -1
}

// release lets stage 1 begin, unless ctx has ended.
func (p *process) release(ctx context.Context, pid int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !privileged() {
		for _, m := range idMaps(uint32(os.Geteuid()), uint32(os.Getegid())) {
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, m.file), []byte(m.text), 0); err != nil {
				return err
			}
		}
	}
	_, err := p.status.Write([]byte{1})
	return err
}

func (p *process) close() {
	for _, f := range []*os.File{p.logR, p.logW, p.status} {
		if f != nil {
			f.Close()
		}
	}
	if p.theirs >= 0 {
		unix.Close(p.theirs)
	}
}

// logBuffers are for builders' output; most write nothing.
var logBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyLog copies until every writer has closed, or finishLog runs out of patience.
func (p *process) copyLog(log io.Writer) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		memory := logBuffers.Get().(*[32 << 10]byte)
		defer logBuffers.Put(memory)
		for buf := memory[:]; ; {
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

// result says how a builder ended by what was reported of it, and by how stage 1 has ended.
func (r *report) result(ended unix.WaitStatus, usage *unix.Rusage) (Status, error) {
	st := Status{ExitCode: -1, User: time.Duration(usage.Utime.Nano()), System: time.Duration(usage.Stime.Nano())}
	switch {
	case r.step != "":
		return st, r.err()
	case r.ended && r.status.Signaled():
		st.Signal = r.status.Signal()
	case r.ended:
		st.ExitCode = r.status.ExitStatus()
	case ended.Signaled():
		st.Signal = ended.Signal()
	default:
		return st, &SetupError{Step: "run stage 1", Text: fmt.Sprintf("it ended without a report (%#x)", ended)}
	}
	return st, nil
}
