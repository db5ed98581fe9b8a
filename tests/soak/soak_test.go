// Package soak has hostile clients talk to a live daemon for as long as one wants, and looks what is left afterwards.
//
// The daemon is this process, under the race detector if the test is; attackers are processes of their own, as root and as a user whom nobody trusts.
// Each sends sessions (session_test.go) that are right, nearly right or garbage, some of which it breaks off, and one client that
// behaves must be served all the while. Afterwards
//
//   - the daemon has logged no bug, and the race detector nothing,
//   - there are as many goroutines, open files (but the database's) and leases as before, and no session or build,
//   - memory in use is near what it was after the first minute,
//   - the store verifies, and what the client that behaves added is there.
//
// CAIRN_SOAK is how long it takes; the default is 5s: make soak T=1h
package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/derivation/eval"
	"cairn/store"
	"cairn/store/disk"
)

// role is the variable that makes this program a client.
const role = "CAIRN_SOAK_ROLE"

func TestMain(m *testing.M) {
	sandbox.Init()
	var err error
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "attack":
		err = attack(os.Args[1], os.Args[2], os.Args[3] == "trusted", os.Args[4])
	case "behave":
		err = behave(os.Args[1], os.Args[4])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// rig is a daemon in this process.
type rig struct {
	t      *testing.T
	layout disk.Layout
	store  *disk.Store
	build  *build.Builder
	server *daemon.Server
	work   string // for what the attackers last sent
	bugs   bugs
}

// bugs is a log that keeps what says BUG.
type bugs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *bugs) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("BUG")) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.text.Write(p)
	}
	return len(p), nil
}

func (b *bugs) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	root, err := os.MkdirTemp("/dev/shm", "soak")
	if err != nil {
		root = t.TempDir()
	}
	t.Cleanup(func() { removeAll(root) })
	r := &rig{t: t, work: filepath.Join(root, "work")}
	for _, d := range []string{root, r.work} {
		os.MkdirAll(d, 0o755)
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if r.layout, err = disk.NewLayout(filepath.Join(root, "r"), nil); err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(r.layout); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(&r.bugs, nil))
	if r.store, err = disk.Open(t.Context(), r.layout, &disk.Options{NoSync: true, Logger: logger}); err != nil {
		t.Fatal(err)
	}
	set := settings.Defaults()
	set.Timeout, set.MaxLog, set.ConnectTimeout = 20*time.Second, 1<<20, time.Second
	r.build = build.New(r.store, &build.Options{Settings: set, Logger: logger})
	r.server = daemon.New(r.store, r.build, &daemon.Options{Settings: set, Logger: logger, MaxStall: 5 * time.Second})
	return r
}

func removeAll(root string) {
	filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	os.RemoveAll(root)
}

func TestSoak(t *testing.T) {
	length := 5 * time.Second
	if s := os.Getenv("CAIRN_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("CAIRN_SOAK: %v", err)
		}
		length = d
	}
	r := newRig(t)
	l, err := daemon.Listen(r.layout)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(context.WithoutCancel(t.Context()), l) }()
	r.clients(2*time.Second, 1) // whatever starts with the first use
	r.sandbox()
	before := r.settled(nil)
	var early, late uint64
	third := length / 3
	sessions := r.clients(third, 3)
	early = r.settled(before).heap
	sessions += r.clients(length-third, 3)
	after := r.settled(before)
	late = after.heap
	t.Logf("%d sessions in %v; before: %s; after: %s; memory in use after a third of the time: %d KiB, at the end: %d KiB, objects: %d",
		sessions, length, before, after, early>>10, late>>10, after.paths)
	if late > early+64<<20 {
		t.Errorf("memory in use grew from %d to %d MiB", early>>20, late>>20)
	}
	if text := r.bugs.String(); text != "" {
		t.Errorf("the daemon has bugs; what clients sent last is in the files of CAIRN_SOAK_KEEP:\n%s", text)
		r.keep()
	}
	r.server.Close()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	r.build.Close()
	if _, err := r.store.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("verify: %s: %v", p.Path, p.Err) }); err != nil {
		t.Error(err)
	}
	if err := r.store.Close(); err != nil {
		t.Error(err)
	}
}

// sandbox builds something in the sandbox, if there is one here: the process that starts builders then stays.
func (r *rig) sandbox() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	c, err := client.Dial(ctx, r.layout.SocketPath, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	drv := &derivation.Derivation{
		Name: "sandboxed", System: eval.System(), Builder: "/bin/sh", Args: []string{"-c", "echo > $out"},
		Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}},
		Env:     map[string]string{"name": "sandboxed", "out": derivation.Placeholder("out")},
	}
	d, err := c.AddToStore(ctx, "sandboxed.drv", store.Text, store.SHA256, nil, bytes.NewReader(drv.ATerm()))
	if err != nil {
		r.t.Fatal(err)
	}
	if results, err := c.Build(ctx, []protocol.Target{{Path: d.Path, Outputs: protocol.All()}}, client.Normal, nil); err != nil || !results[0].Status.OK() {
		r.t.Logf("no build in the sandbox: %v, %v", results, err)
	}
}

// keep saves what the attackers sent last.
func (r *rig) keep() {
	if dir := os.Getenv("CAIRN_SOAK_KEEP"); dir != "" {
		os.CopyFS(dir, os.DirFS(r.work))
	}
}

// clients runs attackers of both kinds and the client that behaves, and returns how many sessions there were.
func (r *rig) clients(length time.Duration, each int) (sessions int) {
	r.t.Helper()
	type run struct {
		cmd       *exec.Cmd
		out, errs bytes.Buffer
	}
	var runs []*run
	start := func(as, who string, uid uint32) {
		cmd := exec.Command("/proc/self/exe", r.layout.SocketPath, filepath.Join(r.work, fmt.Sprintf("%s-%s-%d", as, who, len(runs))), who, length.String())
		cmd.Env = append(os.Environ(), role+"="+as)
		if uid != 0 && os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
		x := &run{cmd: cmd}
		cmd.Stdout, cmd.Stderr = &x.out, &x.errs
		if err := cmd.Start(); err != nil {
			r.t.Fatal(err)
		}
		runs = append(runs, x)
	}
	for range each {
		start("attack", "trusted", 0)
		start("attack", "stranger", 65534)
	}
	start("behave", "trusted", 0)
	for _, x := range runs {
		if err := x.cmd.Wait(); err != nil {
			r.t.Errorf("%s: %v: %s", x.cmd.Args[2], err, x.errs.String())
		}
		n := 0
		fmt.Sscan(x.out.String(), &n)
		sessions += n
	}
	return sessions
}

// state is what must not grow.
type state struct {
	goroutines, files, leases, paths int
	heap                             uint64
}

func (s *state) String() string {
	return fmt.Sprintf("%d goroutines, %d open files, %d leases", s.goroutines, s.files, s.leases)
}

// settled waits until nothing is left of the clients, and returns what there is. With before, more than that is an error.
func (r *rig) settled(before *state) *state {
	r.t.Helper()
	var s *state
	for range 300 {
		s = r.state()
		if before == nil && s.leases == 0 || before != nil && s.goroutines <= before.goroutines && s.files <= before.files && s.leases <= before.leases {
			return s
		}
		time.Sleep(100 * time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	r.t.Errorf("left behind: %v, before %v; leases: %v\n%s", s, before, r.store.Leases(), stacks)
	return s
}

func (r *rig) state() *state {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	paths, _ := r.store.Count()
	return &state{runtime.NumGoroutine(), r.files(), len(r.store.Leases()), paths, m.HeapAlloc}
}

// files counts what this process has open, but for the database's own files and directories of the pool of links, of which a larger store
// has more.
func (r *rig) files() (n int) {
	open, _ := os.ReadDir("/proc/self/fd")
	for _, f := range open {
		target, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err == nil && !strings.HasPrefix(target, filepath.Join(r.layout.StateDir, "db")+"/") && !strings.HasPrefix(target, filepath.Join(r.layout.RealDir, ".links")+"/") {
			n++
		}
	}
	return n
}

// attack sends sessions for a time, and prints how many.
func attack(socket, last string, trusted bool, length string) error {
	d, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(time.Now().UnixNano())))
	var known []store.Path
	n := 0
	for end := time.Now().Add(d); time.Now().Before(end); n++ {
		if n%200 == 0 {
			if known, err = allPaths(socket); err != nil {
				return err
			}
		}
		b := session(rnd.Uint64(), known, trusted)
		if err := os.WriteFile(last, b, 0o644); err != nil {
			return err
		}
		if err := play(socket, b, rnd.IntN(8)); err != nil {
			return fmt.Errorf("session %d: %w", n, err)
		}
	}
	fmt.Println(n)
	return nil
}

// allPaths returns some paths that are there.
func allPaths(socket string) ([]store.Path, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, socket, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	paths, err := c.AllPaths(ctx)
	return paths[:min(len(paths), 100)], err
}

// patience is how long a session may take after everything was sent: builds have 20 seconds, and there are queues.
const patience = 3 * time.Minute

// play sends a session and reads what comes back until the daemon closes. Some leave without listening.
func play(socket string, b []byte, manner int) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if manner == 0 { // leaves at once
		c.Write(b)
		return nil
	}
	go func() {
		c.Write(b) // fails when the daemon has closed already
		c.(*net.UnixConn).CloseWrite()
	}()
	if manner == 1 { // leaves in the middle of the answer
		io.CopyN(io.Discard, c, 64)
		return nil
	}
	_, err = io.Copy(io.Discard, c)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return fmt.Errorf("the daemon has neither answered nor closed for %v: %w", patience, err)
	}
	return nil
}

// behave adds, asks and builds as a good client does, and must be served.
func behave(socket, length string) error {
	d, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		if err := behaveOnce(socket); err != nil {
			return err
		}
	}
	return nil
}

func behaveOnce(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Dial(ctx, socket, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	for range 20 {
		text := fmt.Sprint(rand.Uint64())
		info, err := c.AddToStore(ctx, "good", store.Text, store.SHA256, nil, strings.NewReader(text))
		if err != nil {
			return fmt.Errorf("add: %w", err)
		}
		if got, err := c.Info(ctx, info.Path); err != nil || got.NarHash != info.NarHash {
			return fmt.Errorf("query %s: %w", info.Path, err)
		}
		s := &script{Rand: rand.New(rand.NewPCG(rand.Uint64(), 1))}
		drv := s.recipe()
		drv.System, drv.Builder, drv.InputSrcs = "builtin", "builtin:tree", nil
		tree, _ := json.Marshal(map[string]any{"f": map[string]string{"text": text}})
		drv.Env["tree"] = string(tree)
		d, err := c.AddToStore(ctx, drv.Name+".drv", store.Text, store.SHA256, drv.References(), bytes.NewReader(drv.ATerm()))
		if err != nil {
			return fmt.Errorf("add derivation: %w", err)
		}
		results, err := c.Build(ctx, []protocol.Target{{Path: d.Path, Outputs: protocol.All()}}, client.Normal, nil)
		if err != nil || !results[0].Status.OK() {
			return fmt.Errorf("build %s: %v: %w", d.Path, results, err)
		}
	}
	return nil
}
