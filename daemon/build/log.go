package build

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"cairn/archive"
	"cairn/store"
	"cairn/store/failpoint"
)

const (
	tailLines   = 25       // lines of log in an error
	maxLine     = 64 << 10 // longer lines are cut in pieces
	messageMark = "@nix "
)

// packedSuffix is what the name of a packed log ends in.
const packedSuffix = ".bz2"

// packFrom is from how many bytes on a log is packed: below, that would save no block of the disk.
const packFrom = 4 << 10

// logPath returns where the log of a derivation is, unless it is packed.
//
// Nix's clients read logs themselves, below its log directory, plain or packed with bzip2 under a name that ends in ".bz2", and
// prefer the plain one. So a log is plain while it is written, which lets "nix log" show that of a running
// build, and whoever wants packed ones (compress-build-log) has a long one packed when it is complete. A crash
// leaves the plain file, which is as good.
func (b *Builder) logPath(drv store.Path) string {
	base := drv.Base()
	return filepath.Join(b.store.Layout().LogDir, "drvs", base[:2], base[2:])
}

// logWriter is the log of a running build: a file that can be read while it grows, events for
// those who watch, and the last lines for the error message.
type logWriter struct {
	tell    func(Event)
	warn    func(error) // called when the log is found to be incomplete
	touched func()      // called for each write
	stop    context.CancelCauseFunc
	limit   int64
	path    string
	keep    bool // leave the file when the log ends
	pack    bool // as a packed one, if it is long

	mu        sync.Mutex // guards the rest
	file      *os.File
	buffer    *bufio.Writer
	partial   []byte
	tail      []string
	size      int64
	followers int
	grown     chan struct{} // closed and replaced when the file has grown
	closed    bool
	err       error
}

func (b *Builder) newLogWriter(drv store.Path, tell func(Event), limit int64, stop context.CancelCauseFunc) (*logWriter, error) {
	path := b.logPath(drv)
	file, err := createLog(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	failpoint.Hit("build/log/named")
	os.Remove(path + packedSuffix)
	return &logWriter{
		tell: tell, stop: stop, limit: limit, path: path, keep: b.settings.KeepBuildLog, pack: b.settings.CompressBuildLog,
		warn: func(err error) {
			b.opts.Logger.Warn("a build log is not complete", "drv", drv.String(), "log", path, "error", err)
		},
		file: file, buffer: bufio.NewWriterSize(file, 1<<10), grown: make(chan struct{}),
	}, nil
}

// createLog makes a new file. An older log of that name may still be followed, so the name gets another file.
func createLog(path string) (*os.File, error) {
	const mode = 0o644
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	}
	if errors.Is(err, os.ErrExist) {
		if file, err = os.CreateTemp(filepath.Dir(path), ".log-*"); err != nil {
			return nil, err
		}
		if err = os.Rename(file.Name(), path); err != nil {
			os.Remove(file.Name())
		}
	}
	if err == nil {
		err = file.Chmod(mode) // whatever the umask
	}
	if err != nil && file != nil {
		file.Close()
	}
	return file, err
}

// Write takes a piece of output. It never fails: a log that cannot be written does not fail a build. Close tells the daemon's log of it.
func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return len(p), nil
	}
	if l.touched != nil {
		l.touched()
	}
	l.size += int64(len(p))
	if l.limit > 0 && l.size > l.limit {
		l.stop(errLogLimit)
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			l.partial = append(l.partial, rest...)
			break
		}
		l.line(append(l.partial, rest[:i]...))
		l.partial, rest = l.partial[:0], rest[i+1:]
	}
	if len(l.partial) > maxLine {
		l.line(l.partial)
		l.partial = l.partial[:0]
	}
	l.flush()
	return len(p), nil
}

// touch says that the build is alive though it writes nothing.
func (l *logWriter) touch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.touched != nil {
		l.touched()
	}
}

// line takes a whole line. The caller holds mu.
func (l *logWriter) line(b []byte) {
	if bytes.HasPrefix(b, []byte(messageMark)) && l.message(b[len(messageMark):]) {
		return
	}
	l.put(string(b))
}

func (l *logWriter) put(line string) {
	if _, err := io.WriteString(l.buffer, line+"\n"); err != nil && l.err == nil {
		l.err = err
	}
	line = strings.TrimSuffix(line, "\r")
	if i := strings.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	l.tail = append(l.tail, line)
	if len(l.tail) > 2*tailLines {
		l.tail = append(l.tail[:0], l.tail[tailLines:]...)
	}
	l.tell(Event{Kind: Line, Text: line})
}

// message takes a structured message and reports whether it is one.
func (l *logWriter) message(b []byte) bool {
	var m struct{ Action, Phase, Msg string }
	if json.Unmarshal(b, &m) != nil || m.Action == "" {
		return false
	}
	switch m.Action {
	case "setPhase":
		l.tell(Event{Kind: Phase, Text: m.Phase})
	case "msg":
		l.put(m.Msg)
	default:
		l.tell(Event{Kind: Message, Text: string(b)})
	}
	return true
}

// note adds a line of the daemon's own.
func (l *logWriter) note(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.put(line)
		return
	}
	l.tell(Event{Kind: Line, Text: line})
}

func (l *logWriter) flush() {
	if err := l.buffer.Flush(); err != nil && l.err == nil {
		l.err = err
	}
	if l.followers > 0 {
		close(l.grown)
		l.grown = make(chan struct{})
	}
}

// Close ends the log. It may be called more than once.
func (l *logWriter) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.err
	}
	if len(l.partial) > 0 {
		l.line(l.partial)
	}
	l.closed = true
	l.err = errors.Join(l.err, l.buffer.Flush(), l.finish(), l.file.Close())
	failpoint.Hit("build/log/written")
	close(l.grown)
	if l.err != nil {
		l.warn(l.err)
	}
	return l.err
}

// finish packs the complete file, or removes it if logs are not kept.
func (l *logWriter) finish() error {
	fi, err := l.file.Stat()
	switch {
	case err != nil:
		return err
	case !l.keep:
		return os.Remove(l.path)
	case !l.pack || fi.Size() < packFrom:
		return nil
	}
	// The packed log gets its name when it is complete, and only then the plain one goes.
	temp := filepath.Join(filepath.Dir(l.path), "."+filepath.Base(l.path)+packedSuffix)
	if err := packFile(temp, l.file, fi.Size()); err != nil {
		os.Remove(temp)
		return fmt.Errorf("pack log: %w", err)
	}
	failpoint.Hit("build/log/packed")
	if err := os.Rename(temp, l.path+packedSuffix); err != nil {
		return fmt.Errorf("pack log: %w", err)
	}
	failpoint.Hit("build/log/packed-named")
	return os.Remove(l.path)
}

func packFile(name string, from io.ReaderAt, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := archive.NewBzip2(f)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, io.NewSectionReader(from, 0, size)); err != nil {
		return err
	}
	return errors.Join(w.Close(), f.Close())
}

// lastLines returns the end of the log as an error shows it.
func (l *logWriter) lastLines(drv store.Path) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tail) == 0 {
		return ""
	}
	tail := l.tail[max(0, len(l.tail)-tailLines):]
	return fmt.Sprintf(";\nlast %d log lines:\n> %s\nFor full logs, run 'nix log %s'.", len(tail), strings.Join(tail, "\n> "), drv)
}

func (j *job) setLog(l *logWriter) {
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	j.log = l
}

// linkLog lets a derivation's log be found that was built as another one.
func (j *job) linkLog(resolved store.Path) {
	from, to := j.b.logPath(j.key.drv), j.b.logPath(resolved)
	if os.MkdirAll(filepath.Dir(from), 0o755) != nil {
		return
	}
	for _, suffix := range []string{"", packedSuffix} {
		if _, err := os.Stat(to + suffix); err != nil {
			continue
		}
		target, err := filepath.Rel(filepath.Dir(from), to+suffix)
		if err != nil {
			return
		}
		os.Remove(from)
		os.Remove(from + packedSuffix)
		os.Symlink(target, from+suffix)
		return
	}
}

// running returns the log of a running build, that of the resolved derivation included.
func (b *Builder) running(drv store.Path) *logWriter {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, mode := range []Mode{Normal, Check, Repair} {
		for j := b.jobs[jobKey{drv, mode}]; j != nil; j = j.child {
			if j.log != nil {
				return j.log
			}
		}
	}
	return nil
}

// FollowLog writes the log of a derivation to w: what there is and, while it is being built, what comes, until the build ends.
func (b *Builder) FollowLog(ctx context.Context, drv store.Path, w io.Writer) error {
	if l := b.running(drv); l != nil {
		return l.follow(ctx, w)
	}
	err := copyLog(w, b.logPath(drv))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("log of %s: it was not built here, or its log was deleted: %w", drv, os.ErrNotExist)
	}
	return err
}

// copyLog writes a complete log to w, plain or packed.
func copyLog(w io.Writer, path string) error {
	f, err := os.Open(path)
	packing := archive.Uncompressed
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.Open(path + packedSuffix)
		packing = archive.Bzip2
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	r, err := archive.NewDecompressor(f, packing)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer r.Close()
	if _, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

// AddLog keeps the log of a derivation that was built elsewhere. Whether the peer may add one is the caller's business.
func (b *Builder) AddLog(ctx context.Context, drv store.Path, r io.Reader) error {
	l, err := b.newLogWriter(drv, func(Event) {}, 0, func(error) {})
	if err != nil {
		return err
	}
	if _, err := io.Copy(l, &cancellable{ctx, r}); err != nil {
		l.Close()
		return fmt.Errorf("add log of %s: %w", drv, err)
	}
	return l.Close()
}

type cancellable struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancellable) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func (l *logWriter) follow(ctx context.Context, w io.Writer) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return copyLog(w, l.path)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()))
	if err == nil {
		l.followers++
		l.flush()
	}
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.followers--
	}()
	if _, err := io.Copy(w, &growing{ctx: ctx, log: l, file: f}); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

// growing reads a file to its end, and its end is where the log is closed.
type growing struct {
	ctx  context.Context
	log  *logWriter
	file *os.File
}

func (g *growing) Read(p []byte) (int, error) {
	for {
		g.log.mu.Lock()
		grown, closed := g.log.grown, g.log.closed
		g.log.mu.Unlock()
		n, err := g.file.Read(p)
		if n > 0 || err != io.EOF || closed {
			return n, err
		}
		select {
		case <-grown:
		case <-g.ctx.Done():
			return 0, context.Cause(g.ctx)
		}
	}
}
