package nar

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many files a worker makes at most before it looks for others.
const batchSize = 128

// errStopped says that reading ended because of another error.
var errStopped = errors.New("stopped")

// epoch is one second after the epoch, for access and modification.
var epoch = []unix.Timespec{{Sec: 1}, {Sec: 1}}

// planter makes files with several workers. One goroutine gives it work.
type planter struct {
	files  Files // nil: maker, which does not make large files
	maker  Maker
	made   atomic.Bool // something exists
	queue  chan *batch // nil before there is more than one
	wg     sync.WaitGroup
	failed atomic.Bool

	mu  sync.Mutex // guards err
	err error      // the first
}

// folder is an open directory in which files are being made. When nothing uses it any more it gets its final metadata.
type folder struct {
	fd    int
	users atomic.Int32
}

// newFolder returns a directory with one user, who reads what is to be in it.
func newFolder(fd int) *folder {
	f := &folder{fd: fd}
	f.users.Store(1)
	return f
}

// job is a small file or a link to make.
type job struct {
	header *Header
	dir    *folder
	name   string
	data   []byte // in a block
}

// batch is jobs whose data is in one block.
type batch struct {
	jobs  []job
	block *block
}

var batches = sync.Pool{New: func() any { return &batch{jobs: make([]job, 0, batchSize)} }}

func newBatch(b *block) *batch {
	batch := batches.Get().(*batch)
	batch.block = b
	b.users.Add(1)
	return batch
}

func (b *batch) release() {
	b.block.release()
	clear(b.jobs)
	b.jobs, b.block = b.jobs[:0], nil
	batches.Put(b)
}

func (t *planter) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
	t.failed.Store(true)
}

func (t *planter) stopped() bool { return t.failed.Load() }

func (t *planter) first() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// plant makes the files of a batch, soon.
func (t *planter) plant(b *batch) {
	if t.queue == nil {
		t.queue = make(chan *batch, maxBlocks)
		for range min(4, runtime.GOMAXPROCS(0)) {
			t.wg.Go(func() {
				for b := range t.queue {
					t.work(b)
				}
			})
		}
	}
	t.queue <- b
}

// wait waits until everything is made.
func (t *planter) wait() {
	if t.queue != nil {
		close(t.queue)
	}
	t.wg.Wait()
}

// work makes the files of a batch.
func (t *planter) work(b *batch) {
	defer b.release()
	for i := range b.jobs {
		j := &b.jobs[i]
		if !t.stopped() {
			if err := t.make(j); err != nil {
				t.fail(makeError(j.header.Type, j.header.Path, err))
			}
		}
		t.done(j.dir)
	}
}

func (t *planter) make(j *job) error {
	var err error
	switch {
	case j.header.Type == Symlink:
		err = makeLink(j.dir.fd, j.name, j.header.Target)
	case t.files != nil:
		err = t.files.Make(j.dir.fd, j.name, j.header, j.data)
	default:
		err = t.maker.Make(j.dir.fd, j.name, j.header.Executable, j.data)
	}
	if err == nil {
		t.made.Store(true)
	}
	return err
}

func makeLink(at int, name, target string) error {
	if err := retry(func() error { return unix.Symlinkat(target, at, name) }); err != nil {
		return err
	}
	err := unix.UtimesNanoAt(at, name, epoch, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		unix.Unlinkat(at, name, 0)
	}
	return err
}

// Maker makes the regular files of one tree; it may be used by several goroutines. Files get their mode when they are created; whether that
// is the one they were to have, which a umask or a default ACL may prevent, it looks at until it was once.
type Maker struct {
	sync  bool
	exact [2]atomic.Bool // no other mode is to be expected: of plain files, and of executable ones
}

// Make makes a canonical regular file called name in the directory at: exclusively, and without following a link.
// When it fails it leaves nothing.
func (m *Maker) Make(at int, name string, executable bool, data []byte) error {
	mode, exact := fileMode(executable), &m.exact[0]
	if executable {
		exact = &m.exact[1]
	}
	fd, err := create(at, name, mode)
	if err != nil {
		return err
	}
	if err = writeAll(fd, data); err == nil && !exact.Load() {
		err = m.setMode(fd, mode, exact)
	}
	if err = closeFile(fd, m.sync, err); err != nil {
		unix.Unlinkat(at, name, 0)
	}
	return err
}

// setMode sees to it that a file has a mode, and notes whether it was created with it.
func (m *Maker) setMode(fd int, mode uint32, exact *atomic.Bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode == unix.S_IFREG|mode {
		exact.Store(true)
		return nil
	}
	return unix.Fchmod(fd, mode)
}

func fileMode(executable bool) uint32 {
	if executable {
		return 0o555
	}
	return 0o444
}

func create(at int, name string, mode uint32) (int, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// closeFile gives a file that was written without an error its final times and closes it.
func closeFile(fd int, sync bool, err error) error {
	if err == nil {
		err = sealTimes(fd, sync)
	}
	if e := unix.Close(fd); err == nil && e != unix.EINTR {
		err = e
	}
	return err
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// seal gives an open object its final metadata.
func seal(fd int, mode uint32, sync bool) error {
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	return sealTimes(fd, sync)
}

// sealTimes gives an open object its final times.
func sealTimes(fd int, sync bool) error {
	// As UtimesNanoAt with no path, not an empty one, which the kernel would look up.
	if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(unsafe.SliceData(epoch))), 0, 0, 0); e != 0 {
		return e
	}
	if !sync {
		return nil
	}
	return retry(func() error { return unix.Fsync(fd) })
}

// done says that one user of a directory needs it no more.
func (t *planter) done(dir *folder) {
	if dir.users.Add(-1) != 0 {
		return
	}
	if !t.stopped() {
		if err := seal(dir.fd, 0o555, t.maker.sync); err != nil {
			t.fail(err)
		}
	}
	unix.Close(dir.fd)
}

// largeFile is a file whose data comes in pieces. One goroutine writes them, and another sums them when somebody wants that.
type largeFile struct {
	t      *planter
	header *Header
	dir    *folder
	name   string
	fd     int
	pieces chan piece
	sum    chan piece // nil: nobody wants it
	summed sync.WaitGroup
	sealed func(at int, name string) error
	whole  bool // set before the last piece has been taken: all data has come
}

// piece is data in a block.
type piece struct {
	data  []byte
	block *block
}

func (t *planter) large(dir *folder, name string, h *Header) (*largeFile, error) {
	fd, err := create(dir.fd, name, 0o600)
	if err != nil {
		return nil, err
	}
	t.made.Store(true)
	dir.users.Add(1)
	f := &largeFile{t: t, header: h, dir: dir, name: name, fd: fd, pieces: make(chan piece, maxBlocks)}
	var w io.Writer
	if t.files != nil {
		w, f.sealed = t.files.Large(h.Size, h.Executable)
	}
	if w != nil {
		f.sum = make(chan piece, maxBlocks)
		f.summed.Go(func() { f.feed(w) })
	}
	t.wg.Go(f.run)
	return f, nil
}

// write passes a piece on.
func (f *largeFile) write(b *block, data []byte) {
	b.users.Add(1)
	f.pieces <- piece{data, b}
	if f.sum != nil {
		b.users.Add(1)
		f.sum <- piece{data, b}
	}
}

// end says that there is no more.
func (f *largeFile) end() {
	close(f.pieces)
	if f.sum != nil {
		close(f.sum)
	}
}

func (f *largeFile) feed(w io.Writer) {
	for p := range f.sum {
		if _, err := w.Write(p.data); err != nil {
			f.t.fail(err)
		}
		p.block.release()
	}
}

func (f *largeFile) run() {
	var err error
	for p := range f.pieces {
		if err == nil && !f.t.stopped() {
			if err = writeAll(f.fd, p.data); err != nil {
				f.t.fail(makeError(Regular, f.header.Path, err))
			}
		}
		p.block.release()
	}
	f.summed.Wait()
	if err == nil {
		err = unix.Fchmod(f.fd, fileMode(f.header.Executable))
	}
	if err = closeFile(f.fd, f.t.maker.sync, err); err == nil && f.whole && f.sealed != nil && !f.t.stopped() {
		err = f.sealed(f.dir.fd, f.name)
	}
	if err != nil {
		f.t.fail(makeError(Regular, f.header.Path, err))
	}
	f.t.done(f.dir)
}
