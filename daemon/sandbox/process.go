package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
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
	data, err := json.Marshal(spec)
	if err != nil {
		return Status{}, fmt.Errorf("sandbox: encode spec: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return Status{}, context.Cause(ctx)
	}
	p, err := newProcess(data)
	if err != nil {
		return Status{}, err
	}
	defer p.close()
	if err := l.send(int(p.spec.Fd()), int(p.logW.Fd()), int(p.statusW.Fd())); err != nil {
		return Status{}, err
	}
	p.logW.Close()
	p.statusW.Close()
	box := &Box{}
	defer context.AfterFunc(ctx, box.kill)()
	copied := p.copyLog(log)
	reported := collect(p.statusR, func(pid int) {
		box.begin(pid)
		if ctx.Err() != nil {
			box.kill()
		}
		if opened != nil {
			opened(box)
		}
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
	spec             *os.File
	logR, logW       *os.File
	statusR, statusW *os.File
}

func newProcess(spec []byte) (*process, error) {
	p := &process{}
	var err error
	if p.spec, err = memoryFile(spec); err != nil {
		return nil, err
	}
	if p.logR, p.logW, err = os.Pipe(); err == nil {
		p.statusR, p.statusW, err = os.Pipe()
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("sandbox: make pipes: %w", err)
	}
	return p, nil
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
	for _, f := range []*os.File{p.spec, p.logR, p.logW, p.statusR, p.statusW} {
		if f != nil {
			f.Close()
		}
	}
}

// copyLog copies until every writer has closed, or finishLog runs out of patience.
func (p *process) copyLog(log io.Writer) <-chan struct{} {
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

// result says how a builder ended by what was reported of it, and by how stage 1 has ended.
func (r *report) result(ended syscall.WaitStatus, usage *unix.Rusage) (Status, error) {
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
