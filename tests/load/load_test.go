// Package load has many clients work with one daemon at once, and looks what becomes of it and how much memory it takes.
//
// The daemon is a process of its own, and so is each of the clients (client_test.go), which add, ask and build until their time is over.
// In the second part a third of them are killed at random moments, and replaced. Afterwards
//
//   - no client has seen an error,
//   - everything that was acknowledged to anybody, the killed ones included, is valid and has its hash,
//   - the daemon has no session left, and has never taken more memory than maxMemory.
//
// CAIRN_LOAD is how long each part takes, the default is 4s with fewer clients: make load T=1m
//
// Beside the many clients there is much at once: an object of CAIRN_LOAD_SIZE MiB (size_test.go) and a closure of CAIRN_LOAD_PATHS objects
// (paths_test.go) go all ways between two stores that there are. No process may take memory that grows with them, but for the list of the paths.
package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/client"
	"cairn/client/cli"
	"cairn/client/config"
	"cairn/daemon/sandbox"
	"cairn/store"
	"cairn/store/disk"
)

// maxMemory is what the daemon may take, in MiB. The race detector takes several times as much.
const maxMemory = 256

// role is the variable that makes this program the daemon or a client.
const role = "CAIRN_LOAD_ROLE"

func TestMain(m *testing.M) {
	sandbox.Init()
	config.Init()
	switch os.Getenv(role) {
	case "daemon":
		os.Exit(cli.Main(os.Args))
	case "client":
		if err := work(os.Args[1], os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestClients(t *testing.T) { newRig(t).part(t, false) }

// TestKilledClients kills a third of the clients in the middle of what they do.
func TestKilledClients(t *testing.T) { newRig(t).part(t, true) }

// host is a store and its daemon.
type host struct {
	root   string
	layout disk.Layout
	daemon *exec.Cmd
	log    bytes.Buffer
}

// rig is a host and the clients' journals.
type rig struct {
	*host
	journals string
	clients  int
	length   time.Duration
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{clients: 40, length: 4 * time.Second}
	if s := os.Getenv("CAIRN_LOAD"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("CAIRN_LOAD: %v", err)
		}
		r.clients, r.length = 200, d
	}
	dir := tempDir(t)
	r.host, r.journals = newHost(t, filepath.Join(dir, "r")), filepath.Join(dir, "j")
	if err := os.Mkdir(r.journals, 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// newHost makes a store and starts its daemon.
func newHost(t *testing.T, root string, args ...string) *host {
	t.Helper()
	h := &host{root: root}
	var err error
	if h.layout, err = disk.NewLayout(h.root, nil); err != nil {
		t.Fatal(err)
	}
	if out, err := process("daemon", "init", "--root", h.root).CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	h.start(t, args...)
	return h
}

// tempDir is on memory where there is some.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "load")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(name, 0o700)
			}
			return nil
		})
		os.RemoveAll(dir)
	})
	return dir
}

func process(as string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), role+"="+as)
	return cmd
}

// start starts the daemon.
func (h *host) start(t *testing.T, args ...string) {
	t.Helper()
	h.daemon = process("daemon", append([]string{"daemon", "--root", h.root}, args...)...)
	h.daemon.Stderr = &h.log
	if err := h.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.daemon.Process.Kill() })
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("unix", h.layout.SocketPath); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("daemon does not listen:\n%s", h.log.String())
}

// part has the clients work for a time, and then checks everything.
func (r *rig) part(t *testing.T, kill bool) {
	ctx, cancel := context.WithTimeout(t.Context(), r.length)
	defer cancel()
	watched := make(chan struct{})
	var memory int
	go func() {
		defer close(watched)
		memory = r.watch(ctx)
	}()
	var wg sync.WaitGroup
	var mu sync.Mutex
	killed := 0
	for n := range r.clients {
		wg.Go(func() {
			for life := 0; ctx.Err() == nil; life++ {
				dead, err := r.client(ctx, fmt.Sprintf("%d-%d", n, life), kill && n%3 == 0)
				mu.Lock()
				if dead {
					killed++
				}
				mu.Unlock()
				if err != nil {
					t.Errorf("client %d: %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	<-watched
	r.settled(t)
	facts := r.replay(t)
	r.stop(t)
	lost, valid := r.check(t, facts)
	t.Logf("%d clients for %v, %d killed; %s; lost: %d of %d acknowledged; valid and verified: %d; daemon: at most %d MiB",
		r.clients, r.length, killed, facts, lost, len(facts.paths), valid, memory)
	if raceEnabled {
		return
	}
	if memory > maxMemory {
		t.Errorf("the daemon took %d MiB; %d are allowed", memory, maxMemory)
	}
}

// client runs one client to its end, or kills it somewhere before.
func (r *rig) client(ctx context.Context, name string, kill bool) (killed bool, err error) {
	end, _ := ctx.Deadline()
	cmd := process("client", r.layout.SocketPath, filepath.Join(r.journals, name), end.Format(time.RFC3339Nano))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return false, err
	}
	if kill {
		fuse := time.AfterFunc(time.Duration(rand.Int64N(int64(r.length/2))), func() { cmd.Process.Kill() })
		defer fuse.Stop()
	}
	err = cmd.Wait()
	if kill && !cmd.ProcessState.Exited() {
		return true, nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errs.String())
	}
	return false, err
}

// watch returns the most memory that the daemon had, in MiB.
func (r *rig) watch(ctx context.Context) (most int) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		most = max(most, r.memory())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return max(most, r.memory())
		}
	}
}

// memory is the daemon's resident memory in MiB.
func (r *rig) memory() int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.daemon.Process.Pid))
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	if fields := strings.Fields(rest); len(fields) > 0 {
		kib, _ := strconv.Atoi(fields[0])
		return kib >> 10
	}
	return 0
}

// settled waits until the daemon has no session but the one that asks.
func (r *rig) settled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, r.layout.SocketPath, &client.Options{Dir: r.layout.Dir})
	if err != nil {
		t.Fatalf("dial after the load: %v\n%s", err, r.log.String())
	}
	defer c.Close()
	for {
		s, err := c.Status(ctx)
		if err != nil {
			t.Fatalf("sessions are left: %v", err)
		}
		if s.Connections == 1 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// stop ends the daemon as a service manager would.
func (r *rig) stop(t *testing.T) {
	t.Helper()
	r.daemon.Process.Signal(os.Interrupt)
	if err := r.daemon.Wait(); err != nil {
		t.Errorf("daemon: %v\n%s", err, r.log.String())
	}
}

// facts is what the clients were told.
type facts struct {
	paths map[store.Path]bool
	took  map[string][]time.Duration // by verb
}

func (f *facts) String() string {
	var list []string
	for _, verb := range []string{"add", "query", "build"} {
		d := f.took[verb]
		if len(d) == 0 {
			continue
		}
		slices.Sort(d)
		at := func(q float64) time.Duration {
			return d[int(q*float64(len(d)-1))].Round(100 * time.Microsecond)
		}
		list = append(list, fmt.Sprintf("%d × %s, half within %v, 99%% within %v, all within %v", len(d), verb, at(0.5), at(0.99), at(1)))
	}
	return strings.Join(list, "; ")
}

// replay reads the journals.
func (r *rig) replay(t *testing.T) *facts {
	t.Helper()
	f := &facts{paths: map[store.Path]bool{}, took: map[string][]time.Duration{}}
	names, err := filepath.Glob(filepath.Join(r.journals, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(text); lines.Scan(); {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) != nil {
				continue // the killed client's last word
			}
			f.took[e.Verb] = append(f.took[e.Verb], e.Took)
			for _, p := range e.Paths {
				f.paths[p] = true
			}
		}
		text.Close()
	}
	for _, verb := range []string{"add", "query", "build"} {
		if len(f.took[verb]) == 0 {
			t.Errorf("no client has done %q", verb)
		}
	}
	return f
}

// check opens the store and verifies all of it. It returns how much was acknowledged and is not there, and how much is.
func (r *rig) check(t *testing.T, f *facts) (lost, valid int) {
	t.Helper()
	s, err := disk.Open(t.Context(), r.layout, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for p := range f.paths {
		if !s.IsValid(p) {
			t.Errorf("%s was acknowledged and is lost", p)
			lost++
		}
	}
	res, err := s.Verify(t.Context(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("%s: %v", p.Path, p.Err) })
	if err != nil {
		t.Fatal(err)
	}
	return lost, res.Paths
}
