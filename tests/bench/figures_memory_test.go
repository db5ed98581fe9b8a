package bench

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// most is the bound on the memory of each process that has to do with a large object, in MiB.
const most = 128

// memory is the figure of what processes take at most when an object is large.
type memory struct {
	*gauge
	from, to *side
	cache    *exec.Cmd
	url      string // of the cache
	file     string // added as
	path     string
	bytes    int64
	clients  float64 // what the largest client of an operation took, in MiB
	mu       sync.Mutex
}

// largeObject tells the most memory that daemons and clients take while an object of 4 GiB goes through them in each way. Of a client it is what was
// seen of it every few milliseconds. The daemons have written the rows of many objects before, so that their database has all the memory that it takes.
func largeObject(g *gauge) {
	size, before := int64(4<<30), 100000
	if small() {
		size, before = 64<<20, 3000
	}
	root := arena(g.t)
	m := &memory{gauge: g, bytes: size, from: startCairn(g.t, root, "cairn"), file: filepath.Join(root, "large")}
	m.to = m.from.twin()
	m.to.trust(m.from)
	for _, s := range []*side{m.from, m.to} {
		s.load(&forest{tag: "before", count: before, bytes: smallBytes})
		for begin := time.Now(); s.objects() > 0 && time.Since(begin) < 10*time.Second; {
			s.collect() // nothing, until the daemon has seen that the client is gone
		}
		s.expect(0)
	}
	m.sparse()
	m.step("add", "add", m.add)
	m.hollow()
	m.step("add-again", "add again what looks new", m.addSame)
	m.step("verify", "verify", m.client(m.from, "store", "verify", m.path))
	m.step("dump", "write its NAR", m.client(m.from, "store", "dump", m.path))
	m.step("copy", "copy from daemon to daemon", m.client(m.from, "store", "copy", "--no-check-sigs", "--to", "unix://"+m.to.socket, m.path))
	m.received()
	m.step("archive", "export it to an import", m.exportImport)
	m.received()
	m.step("add-nix", "add with nix's client", func() { m.run(m.to, nil, io.Discard, "nix-store", "--add", m.file) })
	m.received()
	m.step("push", "push to a cache", m.client(m.from, "cache", "push", "--quiet", "file://"+filepath.Join(root, "cache"), m.path))
	m.serve("none")
	m.step("serve", "serve over HTTP as it is", m.get)
	m.step("fetch", "fetch it from there", m.client(m.to, "build", "--quiet", "--option", "substituters="+m.url, m.path))
	m.received()
	m.serve("zstd")
	m.step("serve-zstd", "serve over HTTP, packed", m.get)
	m.step("fetch-zstd", "fetch it from there", m.client(m.to, "build", "--quiet", "--option", "substituters="+m.url, m.path))
	m.received()
}

// sparse makes the file: zeros that take no room, and a few bytes.
func (m *memory) sparse() {
	m.t.Helper()
	if err := os.WriteFile(m.file, []byte("large"), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Truncate(m.file, m.bytes); err != nil {
		m.t.Fatal(err)
	}
	if err := touch(m.file, 0); err != nil {
		m.t.Fatal(err)
	}
}

// hollow gives back the room of the object's zeros. It stays the same to everyone who reads it.
func (m *memory) hollow() {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.from.real, filepath.Base(m.path)), os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	const punchHole, keepSize = 2, 1
	for _, begin := range []int64{1 << 20, m.bytes/2 + 1<<20} {
		if err := syscall.Fallocate(int(f.Fd()), punchHole|keepSize, begin, m.bytes/2-2<<20); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := os.Chtimes(f.Name(), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		m.t.Fatal(err)
	}
}

// step tells what the daemons, the cache and the clients take at most while fn runs.
func (m *memory) step(name, work string, fn func()) {
	m.t.Helper()
	pids := []int{m.from.cmd.Process.Pid, m.to.cmd.Process.Pid}
	who := []string{"daemon", "daemon that receives"}
	if m.cache != nil {
		pids, who = append(pids, m.cache.Process.Pid), append(who, "cache")
	}
	for _, pid := range pids {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			m.t.Fatal(err)
		}
	}
	m.clients = 0
	begin := time.Now()
	fn()
	work = fmt.Sprintf("%d MiB: %s (%.1f s): ", m.bytes>>20, work, time.Since(begin).Seconds())
	var all []string
	largest := m.clients
	for i, pid := range pids {
		peak := processStatus(m.t, pid, "VmHWM")
		largest = max(largest, peak)
		all = append(all, fmt.Sprintf("%s %.0f", who[i], peak))
	}
	all = append(all, fmt.Sprintf("client %.0f", m.clients))
	m.tell("memory-"+name, work+strings.Join(all, ", "), largest, most, "MiB")
}

// run runs a client and remembers what it took.
func (m *memory) run(s *side, in io.Reader, out io.Writer, argv ...string) {
	m.t.Helper()
	cmd, errs := s.client(m.t.Context(), argv...)
	cmd.Stdin, cmd.Stdout = in, out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() {
		for ; !stop.Load(); time.Sleep(5 * time.Millisecond) {
			m.seen(residentMost(cmd.Process.Pid))
		}
	})
	err := cmd.Wait()
	stop.Store(true)
	wg.Wait()
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%.4000s", s.name, strings.Join(argv, " "), err, errs)
	}
}

func (m *memory) seen(mib float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clients = max(m.clients, mib)
}

// client is a step that runs one of our commands, whose output nobody reads.
func (m *memory) client(s *side, argv ...string) func() {
	return func() { m.run(s, nil, io.Discard, append([]string{s.cairn}, argv...)...) }
}

func (m *memory) add() {
	var out strings.Builder
	m.run(m.from, nil, &out, m.from.cairn, "store", "add", m.file)
	m.path = strings.TrimSpace(out.String())
}

// addSame adds the file with other times, so that it has to be read.
func (m *memory) addSame() {
	if err := os.Chtimes(m.file, time.Now(), time.Now().Add(-time.Hour)); err != nil {
		m.t.Fatal(err)
	}
	m.run(m.from, nil, io.Discard, m.from.cairn, "store", "add", m.file)
	m.from.expect(1)
}

// exportImport has two clients with a pipe in between.
func (m *memory) exportImport() {
	r, w, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	cmd, errs := m.from.client(m.t.Context(), m.from.cairn, "archive", "--export", m.path)
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		m.t.Fatal(err)
	}
	pid := cmd.Process.Pid
	var exporter float64
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() {
		for ; !stop.Load(); time.Sleep(5 * time.Millisecond) {
			exporter = max(exporter, residentMost(pid))
		}
	})
	m.run(m.to, r, io.Discard, m.to.cairn, "archive", "--import")
	err = cmd.Wait()
	stop.Store(true)
	wg.Wait()
	m.seen(exporter)
	if err != nil {
		m.t.Fatalf("export: %v\n%.4000s", err, errs)
	}
}

// received checks that the second daemon has the object, and deletes it there.
func (m *memory) received() {
	m.t.Helper()
	m.to.expect(1)
	fi, err := os.Stat(filepath.Join(m.to.real, filepath.Base(m.path)))
	if err != nil || fi.Size() != m.bytes {
		m.t.Fatalf("received %v, %v", fi, err)
	}
	m.to.collect()
	m.to.expect(0)
}

// serve starts a cache for the first daemon's store, in place of the one that there is.
func (m *memory) serve(compression string) {
	m.t.Helper()
	m.endCache()
	cmd, _ := m.from.client(m.t.Context(), m.from.cairn, "cache", "serve", "--listen", "127.0.0.1:0", "--compression", compression)
	cmd.Stderr = nil
	out, err := cmd.StderrPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.cache = cmd
	m.t.Cleanup(m.endCache)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, url, ok := strings.Cut(lines.Text(), " at http://"); ok {
			m.url = "http://" + url
			go io.Copy(io.Discard, out)
			return
		}
	}
	m.t.Fatal("the cache does not say where it listens")
}

func (m *memory) endCache() {
	if m.cache != nil {
		m.cache.Process.Signal(syscall.SIGTERM)
		m.cache.Wait()
		m.cache = nil
	}
}

// get downloads the object's archive.
func (m *memory) get() {
	m.t.Helper()
	digest, _, _ := strings.Cut(filepath.Base(m.path), "-")
	var info strings.Builder
	m.download("/"+digest+".narinfo", &info)
	for line := range strings.Lines(info.String()) {
		if url, ok := strings.CutPrefix(line, "URL: "); ok {
			m.download("/"+strings.TrimSpace(url), io.Discard)
			return
		}
	}
	m.t.Fatalf("no URL in %q", info.String())
}

func (m *memory) download(name string, to io.Writer) {
	m.t.Helper()
	resp, err := http.Get(m.url + name)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(to, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		m.t.Fatalf("get %s: %s: %v", name, resp.Status, err)
	}
}

// processStatus is a field of a living process's status, in MiB.
func processStatus(t *testing.T, pid int, field string) float64 {
	t.Helper()
	mib, ok := statusField(pid, field)
	if !ok {
		t.Fatalf("process %d has no %s", pid, field)
	}
	return mib
}

// residentMost is what a process, which may have ended, has taken at most, in MiB.
func residentMost(pid int) float64 {
	mib, _ := statusField(pid, "VmHWM")
	return mib
}

func statusField(pid int, field string) (mib float64, ok bool) {
	kib, err := strconv.Atoi(strings.TrimSuffix(procField(fmt.Sprintf("/proc/%d/status", pid), field), " kB"))
	return float64(kib) / 1024, err == nil
}
