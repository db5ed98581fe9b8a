package crash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store/disk"
)

// What runs in the host that loses power: its only process but daemon and driver, with number 1.

// The host's disks: the store's, the log of its writes, the one on which cuts are replayed, and what is written there after a cut.
const (
	storeDisk  = "/dev/ubda"
	logDisk    = "/dev/ubdb"
	replayDisk = "/dev/ubdc"
	afterDisk  = "/dev/ubdd"

	logDevice = "writes"
	cutDevice = "cut"
	mountAt   = "/mnt"
	resultIn  = "/result" // a file of the directory that is the host's root
)

// Environment of the host, from its kernel's command line.
const (
	powerCuts = "CAIRN_POWER_CUTS"
	powerSeed = "CAIRN_POWER_SEED"
	powerTime = "CAIRN_POWER_TIME" // of the load
	powerFS   = "CAIRN_POWER_FS"   // the name of the file system
	markDisk  = "CAIRN_CRASH_MARK" // of the driver: events go to the log of writes, too
)

// powerResult is what the host reports.
type powerResult struct {
	Cuts, Entries, Flushes, Acknowledged, Replayed int
	Record, Replay                                 time.Duration
	Failures                                       []string
}

// powerHost is the host's life.
func powerHost() error {
	var res powerResult
	if err := powerRun(&res); err != nil {
		res.Failures = append(res.Failures, err.Error())
	}
	b, err := json.Marshal(res)
	if err == nil {
		err = os.WriteFile(resultIn, b, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "power:", err)
	}
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func powerRun(res *powerResult) error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	os.Setenv("HOME", "/tmp")
	cuts, _ := strconv.Atoi(os.Getenv(powerCuts))
	seed, _ := strconv.ParseUint(os.Getenv(powerSeed), 10, 64)
	load, err := time.ParseDuration(os.Getenv(powerTime))
	if err != nil {
		return err
	}
	t := &hostTester{}
	start := time.Now()
	r, err := record(t, load)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	res.Record = time.Since(start)
	start = time.Now()
	err = replayCuts(t, r, cuts, rand.New(rand.NewPCG(seed, 0)), res)
	res.Replay = time.Since(start)
	res.Failures = append(res.Failures, t.failures...)
	return err
}

// record runs a load on a disk whose writes are logged.
func record(t *hostTester, load time.Duration) (r *rig, err error) {
	defer t.recover(&err)
	sectors, err := sectorsOf(storeDisk)
	if err != nil {
		return nil, err
	}
	device, err := mapDevice(logDevice, sectors, "log-writes", storeDisk+" "+logDisk)
	if err != nil {
		return nil, err
	}
	if err := mountStore(device); err != nil {
		return nil, err
	}
	r = &rig{program: thisProgram, root: filepath.Join(mountAt, "r"), bundles: "/tmp/bundles", journal: "/tmp/journal", powerCut: true}
	if r.layout, err = disk.NewLayout(r.root, noEnv); err != nil {
		return nil, err
	}
	r.cairn(t, "", "init", "--root", r.root)
	r.makeBundles(t, "/tmp/source")
	unix.Sync()
	if err := markLog("begin"); err != nil {
		return nil, err
	}
	for _, load := range []string{"rebuild", "engine"} {
		if errs := r.drive(t, load, "", markDisk+"=1"); errs != "" {
			t.Errorf("driver: %s: %s", load, errs)
		}
	}
	d := r.daemon(t, "")
	done := make(chan string)
	go func() { done <- r.drive(t, "power", "", markDisk+"=1") }()
	time.Sleep(load)
	if err := markLog("end"); err != nil {
		return nil, err
	}
	d.kill()
	if errs := <-done; errs != "" {
		t.Errorf("driver: %s\ndaemon: %s", errs, d.log.String())
	}
	return r, errors.Join(unix.Unmount(mountAt, 0), unmapDevice(logDevice))
}

// mountStore mounts the file system that the host is for.
func mountStore(device string) error {
	i := slices.IndexFunc(fileSystems, func(fs fileSystem) bool { return fs.name == os.Getenv(powerFS) })
	if i < 0 {
		return fmt.Errorf("no file system %q", os.Getenv(powerFS))
	}
	if err := unix.Mount(device, mountAt, fileSystems[i].name, 0, fileSystems[i].options); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return nil
}

func markLog(text string) error { return messageDevice(logDevice, "mark "+text) }

func sectorsOf(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	return size / sectorSize, err
}

// replayCuts brings the writes to another disk in the order in which they became durable, cuts the power at random moments of that, and checks
// what the file system then has.
func replayCuts(t *hostTester, r *rig, cuts int, random *rand.Rand, res *powerResult) error {
	log, err := os.Open(logDisk)
	if err != nil {
		return err
	}
	defer log.Close()
	entries, err := readLog(log)
	if err != nil {
		return err
	}
	first, last := markAt(entries, "begin"), markAt(entries, "end")
	if first < 0 || last < 0 {
		return errors.New("the log has no beginning or no end")
	}
	p := &replayed{log: log, random: random}
	if p.disk, err = os.OpenFile(replayDisk, os.O_RDWR, 0); err != nil {
		return err
	}
	defer p.disk.Close()
	res.Entries = last - first
	chosen := chooseCuts(entries, first, last, cuts, random, res)
	var events []event
	for i, e := range entries[:last] {
		if chosen[i] {
			if err := p.cut(t, r, i, e, events); err != nil {
				return fmt.Errorf("cut at entry %d: %w", i, err)
			}
			res.Cuts++
			res.Replayed += len(events)
		}
		if e.flags&logMark != 0 && i > first {
			var ev event
			if err := json.Unmarshal([]byte(e.mark), &ev); err != nil {
				return fmt.Errorf("mark %q: %w", e.mark, err)
			}
			events = append(events, ev)
		}
		if err := p.pass(e); err != nil {
			return err
		}
	}
	res.Acknowledged = len(events)
	return nil
}

func markAt(entries []entry, text string) int {
	return slices.IndexFunc(entries, func(e entry) bool { return e.mark == text })
}

// chooseCuts picks entries before which the power is cut: flushes, before which all that was written since the last one may be lost or not, and
// acknowledgements, when nothing need be on disk but what was flushed.
func chooseCuts(entries []entry, first, last, cuts int, random *rand.Rand, res *powerResult) map[int]bool {
	var possible []int
	for i := first + 1; i < last; i++ {
		if entries[i].flags&logFlush != 0 {
			res.Flushes++
		}
		if entries[i].flags&(logFlush|logMark) != 0 {
			possible = append(possible, i)
		}
	}
	random.Shuffle(len(possible), func(i, j int) { possible[i], possible[j] = possible[j], possible[i] })
	chosen := map[int]bool{}
	for _, i := range possible[:min(cuts, len(possible))] {
		chosen[i] = true
	}
	return chosen
}

// replayed is a disk as it would be if the power were cut.
type replayed struct {
	log     *os.File
	disk    *os.File
	pending []entry // written and not flushed
	random  *rand.Rand
}

// pass goes on by one entry.
func (p *replayed) pass(e entry) error {
	if e.flags&logFlush != 0 {
		for _, w := range p.pending {
			if err := p.write(p.disk, w); err != nil {
				return err
			}
		}
		p.pending = nil
	}
	switch {
	case e.sectors == 0 || e.flags&(logMark|logDiscard) != 0:
	case e.flags&logFUA != 0:
		p.pending = slices.DeleteFunc(p.pending, func(w entry) bool { // older
			return w.sector >= e.sector && w.sector+w.sectors <= e.sector+e.sectors
		})
		return p.write(p.disk, e)
	default:
		p.pending = append(p.pending, blocks(e)...)
	}
	return nil
}

// blocks splits a write into what a disk writes whole.
func blocks(e entry) []entry {
	var list []entry
	for at := int64(0); at < e.sectors; at += 8 {
		list = append(list, entry{sector: e.sector + at, sectors: min(8, e.sectors-at), data: e.data + at*sectorSize})
	}
	return list
}

func (p *replayed) write(to io.WriterAt, e entry) error {
	b := make([]byte, e.sectors*sectorSize)
	if _, err := p.log.ReadAt(b, e.data); err != nil {
		return err
	}
	_, err := to.WriteAt(b, e.sector*sectorSize)
	return err
}

// cut checks the disk as it is after a power cut just before an entry.
func (p *replayed) cut(t *hostTester, r *rig, i int, e entry, events []event) error {
	if err := p.disk.Sync(); err != nil {
		return err
	}
	sectors, err := sectorsOf(replayDisk)
	if err != nil {
		return err
	}
	device, err := mapDevice(cutDevice, sectors, "snapshot", replayDisk+" "+afterDisk+" N 8")
	if err != nil {
		return err
	}
	defer unmapDevice(cutDevice)
	kept, err := p.keepSome(device, e)
	if err != nil {
		return err
	}
	if err := mountStore(device); err != nil {
		return err
	}
	before := len(t.failures)
	checkCut(t, r, events)
	if len(t.failures) > before {
		t.failures = append(t.failures, fmt.Sprintf("the failures before were after a power cut before entry %d, with %d of %d unflushed blocks on disk", i, kept, len(p.pending)))
	}
	return unix.Unmount(mountAt, 0)
}

// keepSome writes a random part of what was not flushed, when the cut is before a flush.
func (p *replayed) keepSome(device string, e entry) (kept int, err error) {
	if e.flags&logFlush == 0 {
		return 0, nil
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	share := []float64{0, 0.1, 0.5, 0.9, 1}[p.random.IntN(5)]
	for _, w := range p.pending {
		if p.random.Float64() < share {
			kept++
			if err := p.write(f, w); err != nil {
				return kept, err
			}
		}
	}
	return kept, f.Sync()
}

// checkCut opens the store and checks it.
func checkCut(t *hostTester, r *rig, events []event) {
	var err error
	defer func() {
		if err != nil {
			t.failures = append(t.failures, err.Error())
		}
	}()
	defer t.recover(&err)
	want := newState()
	for _, e := range events {
		want.apply(e)
	}
	s, openErr := disk.Open(t.Context(), r.layout, nil)
	if openErr != nil {
		t.Fatalf("open after power cut: %v", openErr)
	}
	defer s.Close()
	r.checkOpen(t, s, want)
}

// hostTester collects failures.
type hostTester struct{ failures []string }

var errFatal = errors.New("test ended")

func (t *hostTester) Helper()                  {}
func (t *hostTester) Context() context.Context { return context.Background() }
func (t *hostTester) Error(args ...any)        { t.failures = append(t.failures, fmt.Sprint(args...)) }
func (t *hostTester) Errorf(f string, args ...any) {
	t.failures = append(t.failures, fmt.Sprintf(f, args...))
}

func (t *hostTester) Fatal(args ...any) {
	t.Error(args...)
	panic(errFatal)
}

func (t *hostTester) Fatalf(f string, args ...any) {
	t.Errorf(f, args...)
	panic(errFatal)
}

func (t *hostTester) TempDir() string {
	dir, err := os.MkdirTemp("", "power")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// recover ends what Fatal has interrupted.
func (t *hostTester) recover(err *error) {
	if r := recover(); r == errFatal {
		*err = errFatal
	} else if r != nil {
		panic(r)
	}
}
