package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/client"
	"cairn/client/peer"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/remote"
	"cairn/daemon/sandbox"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	os.Exit(m.Run())
}

// machine is a store with its daemon at a socket.
type machine struct {
	t      *testing.T
	layout disk.Layout
	store  *disk.Store
	build  *build.Builder
	server *daemon.Server
	conn   *client.Conn
}

func newMachine(t *testing.T, set *settings.Settings, opts *remote.Options) *machine {
	t.Helper()
	if err := sandbox.Available(); err != nil {
		if os.Getenv("CAIRN_CI") == "1" {
			t.Fatal(err)
		}
		t.Skipf("no sandbox: %v; enable with: sudo make root", err)
	}
	root, err := os.MkdirTemp("", "remote")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t}
	if m.layout, err = disk.NewLayout(root, nil); err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(m.layout); err != nil {
		t.Fatal(err)
	}
	if m.store, err = disk.Open(t.Context(), m.layout, &disk.Options{NoSync: true}); err != nil {
		t.Fatal(err)
	}
	pool := remote.New(m.store, opts)
	m.build = build.New(m.store, &build.Options{Settings: set, Machines: pool})
	m.server = daemon.New(m.store, m.build, &daemon.Options{Settings: set})
	l, err := daemon.Listen(m.layout)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- m.server.Serve(context.Background(), l) }()
	m.conn, err = client.Dial(t.Context(), m.layout.SocketPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.conn.Close()
		if err := errors.Join(m.server.Close(), <-served, m.build.Close(), pool.Close()); err != nil {
			t.Error(err)
		}
		if _, err := m.store.Verify(context.Background(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("verify: %s: %v", p.Path, p.Err) }); err != nil {
			t.Errorf("verify: %v", err)
		}
		m.store.Close()
		filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
		os.RemoveAll(root)
	})
	return m
}

// plain are the settings of a machine that builds.
func plain() *settings.Settings {
	s := settings.Defaults()
	s.MaxJobs, s.Substituters = 2, nil
	return s
}

// with are settings that send builds away.
func with(jobs int, builders ...string) *settings.Settings {
	s := plain()
	s.MaxJobs, s.Builders = jobs, strings.Join(builders, "\n")
	return s
}

func (m *machine) uri() string { return "unix://" + m.layout.SocketPath }

// drv is a derivation under construction.
type drv struct {
	name, script, system string
	floating             bool
	env                  map[string]string
	inputs               []store.Path
}

func native() string {
	return map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH]
}

func (m *machine) add(d drv) store.Path {
	m.t.Helper()
	full := &derivation.Derivation{
		Name: d.name, System: native(), Builder: "/bin/sh", Args: []string{"-c", d.script},
		Outputs: map[string]derivation.Output{"out": {}}, Env: map[string]string{}, InputDrvs: map[store.Path][]string{},
	}
	if d.system != "" {
		full.System = d.system
	}
	for k, v := range d.env {
		full.Env[k] = v
	}
	if d.floating {
		full.Outputs["out"] = derivation.Output{Method: store.Recursive, Algo: store.SHA256}
	}
	for _, p := range d.inputs {
		text := p.String()
		if p.IsDerivation() {
			full.InputDrvs[p] = []string{"out"}
			in, err := m.store.Derivation(p)
			if err != nil {
				m.t.Fatal(err)
			}
			if text = in.Outputs["out"].Path.String(); text == "" {
				text = derivation.UpstreamPlaceholder(p, "out")
			}
		} else {
			full.InputSrcs = append(full.InputSrcs, p)
		}
		full.Args[1] = strings.ReplaceAll(full.Args[1], "@"+p.Name()+"@", text)
	}
	full.InputSrcs = store.SortPaths(full.InputSrcs)
	if err := derivation.NewHashes(m.store.Derivation).FillOutputs(full, store.DefaultDir); err != nil {
		m.t.Fatal(err)
	}
	info, err := m.store.AddStream(m.t.Context(), d.name+".drv", store.Text, store.SHA256, full.References(), bytes.NewReader(full.ATerm()))
	if err != nil {
		m.t.Fatal(err)
	}
	return info.Path
}

// messages remembers what a daemon tells.
type messages struct {
	mu   sync.Mutex
	list []*protocol.Message
}

func (o *messages) Message(m *protocol.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, m)
}

// machines are where builds ran, in order.
func (o *messages) machines() (list []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range o.list {
		if m.Kind == protocol.KindStart && m.Activity == protocol.ActBuild {
			list = append(list, m.Fields[1].Text)
		}
	}
	return list
}

func (o *messages) lines() (list []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range o.list {
		if m.Kind == protocol.KindResult && m.Result == protocol.ResBuildLogLine {
			list = append(list, m.Fields[0].Text)
		}
	}
	return list
}

func (m *machine) realise(ctx context.Context, drv store.Path, obs client.Observer) *protocol.BuildResult {
	m.t.Helper()
	list, err := m.conn.Build(ctx, []protocol.Target{{Path: drv, Outputs: protocol.All()}}, client.Normal, obs)
	if err != nil {
		m.t.Fatal(err)
	}
	return list[0]
}

func (m *machine) read(p store.Path) string {
	m.t.Helper()
	b, err := os.ReadFile(m.store.RealPath(p))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// TestElsewhere builds a chain of both kinds of derivations on another machine, nothing here.
func TestElsewhere(t *testing.T) {
	there := newMachine(t, plain(), nil)
	here := newMachine(t, with(0, there.uri()+" - - 2"), nil)
	src, err := here.conn.AddToStore(t.Context(), "src", store.Flat, store.SHA256, nil, strings.NewReader("source"))
	if err != nil {
		t.Fatal(err)
	}
	first := here.add(drv{name: "first", script: "echo working; read x < @src@; echo $x one > $out", inputs: []store.Path{src.Path}})
	second := here.add(drv{name: "second", floating: true, script: "read x < @first.drv@; echo $x two @src@ > $out", inputs: []store.Path{first, src.Path}})
	third := here.add(drv{name: "third", script: "read x < @second.drv@; echo $x three > $out", inputs: []store.Path{second}})
	var seen messages
	r := here.realise(t.Context(), third, &seen)
	if !r.Status.OK() {
		t.Fatalf("%v: %s", r.Status, r.Error)
	}
	out := r.Outputs["out"].OutPath
	if got, want := here.read(out), "source one two "+src.Path.String()+" three\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := seen.machines(); len(got) != 3 || got[0] != there.uri() || got[2] != there.uri() {
		t.Errorf("built on %q", got)
	}
	if got := seen.lines(); len(got) != 1 || got[0] != "working" {
		t.Errorf("lines %q", got)
	}
	info, err := here.conn.Info(t.Context(), out)
	if err != nil || info.Ultimate || !there.store.IsValid(out) || len(info.References) != 1 {
		t.Errorf("info %+v, %v; there %v", info, err, there.store.IsValid(out))
	}
	var log bytes.Buffer
	if err := here.conn.FollowLog(t.Context(), first, &log); err != nil || log.String() != "working\n" {
		t.Errorf("log %q, %v", log.String(), err)
	}
}

// TestWho checks which machine gets what, and what is said when none may have it.
func TestWho(t *testing.T) {
	there := newMachine(t, plain(), nil)
	here := newMachine(t, with(1,
		there.uri()+" "+native()+",riscv64-linux - 1 1 kvm,big",
		"unix:///nowhere/special "+native()+" - 1 9 - special",
	), nil)
	for _, c := range []struct {
		drv  drv
		on   string
		text string // of the error
	}{
		{drv{name: "any", script: "echo > $out"}, there.uri(), ""},
		{drv{name: "local", script: "echo > $out", env: map[string]string{"preferLocalBuild": "1"}}, "", ""},
		{drv{name: "feature", script: "echo > $out", env: map[string]string{"requiredSystemFeatures": "big"}}, "", "has not the required feature 'big'"},
		{drv{name: "alien", script: "echo > $out", system: "sparc-linux"}, "", "it builds for " + native() + ", riscv64-linux"},
		{drv{name: "mandatory", script: "echo > $out", env: map[string]string{"requiredSystemFeatures": "special"}}, "", "it failed: connect to unix:///nowhere/special"},
	} {
		t.Run(c.drv.name, func(t *testing.T) {
			var seen messages
			r := here.realise(t.Context(), here.add(c.drv), &seen)
			switch {
			case c.drv.name == "feature": // the machine is said to have it, and says itself that it has not
				if r.Status.OK() || !strings.Contains(r.Error, "a '"+native()+"' with features {big} is required") {
					t.Errorf("%v: %s", r.Status, r.Error)
				}
			case c.text != "":
				if r.Status.OK() || !strings.Contains(r.Error, c.text) || !strings.Contains(r.Error, "'unix:///nowhere/special': ") {
					t.Errorf("%v: %s", r.Status, r.Error)
				}
			case !r.Status.OK():
				t.Errorf("%v: %s", r.Status, r.Error)
			default:
				if got := seen.machines(); len(got) != 1 || got[0] != c.on {
					t.Errorf("built on %q, want %q", got, c.on)
				}
			}
		})
	}
}

// TestSharing fills the places of all machines at once.
func TestSharing(t *testing.T) {
	a, b := newMachine(t, plain(), nil), newMachine(t, plain(), nil)
	here := newMachine(t, with(1, a.uri()+" - - 2 1; "+b.uri()+" - - 1 4"), nil)
	var targets []protocol.Target
	for _, n := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		targets = append(targets, protocol.Target{Path: here.add(drv{name: "n" + n, script: "sleep 1; echo > $out"}), Outputs: protocol.All()})
	}
	var seen messages
	list, err := here.conn.Build(t.Context(), targets, client.Normal, &seen)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if !r.Status.OK() {
			t.Errorf("%v: %s", r.Status, r.Error)
		}
	}
	count := map[string]int{}
	for _, m := range seen.machines() {
		count[m]++
	}
	if len(seen.machines()) != 8 || count[a.uri()] < 2 || count[b.uri()] < 1 || count[""] < 1 {
		t.Errorf("builds by machine: %v", count)
	}
	if first := seen.machines()[0]; first != b.uri() {
		t.Errorf("the first went to %s, want the fastest", first)
	}
}

// frozen is a way to a daemon that stops passing anything on.
type frozen struct {
	path string
	stop chan struct{}
	cut  chan struct{}
}

func freezer(t *testing.T, socket string) *frozen {
	t.Helper()
	f := &frozen{path: filepath.Join(t.TempDir(), "s"), stop: make(chan struct{}), cut: make(chan struct{})}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("unix", socket)
			if err != nil {
				t.Error(err)
				return
			}
			wg.Go(func() { f.pass(up, c); up.Close() })
			wg.Go(func() { f.pass(c, up); c.Close() })
			wg.Go(func() {
				select {
				case <-f.cut:
					c.Close()
					up.Close()
				case <-t.Context().Done():
					c.Close()
					up.Close()
				}
			})
		}
	})
	return f
}

func (f *frozen) pass(to, from net.Conn) {
	b := make([]byte, 1<<16)
	for {
		n, err := from.Read(b)
		select {
		case <-f.stop:
			n = 0
		default:
		}
		if err != nil {
			return
		}
		to.Write(b[:n])
	}
}

// TestDeath lets machines freeze, break and hang up in the middle of a build, which must end elsewhere in bounded time.
func TestDeath(t *testing.T) {
	there := newMachine(t, plain(), nil)
	for name, hurt := range map[string]func(*frozen){
		"frozen":  func(f *frozen) { close(f.stop) },
		"cut off": func(f *frozen) { close(f.cut) },
	} {
		t.Run(name, func(t *testing.T) {
			f := freezer(t, there.layout.SocketPath)
			opts := &remote.Options{Peer: peer.Options{Silence: 2 * protocol.HeartbeatTime}}
			here := newMachine(t, with(1, "unix://"+f.path), opts)
			d := here.add(drv{name: "slow-" + name[:3], script: "echo begun; sleep 3; echo done > $out"})
			hurtOnce := sync.OnceFunc(func() { hurt(f) })
			var seen messages
			obs := client.ObserverFunc(func(m *protocol.Message) {
				seen.Message(m)
				if m.Kind == protocol.KindResult && m.Result == protocol.ResBuildLogLine && m.Fields[0].Text == "begun" {
					hurtOnce()
				}
			})
			began := time.Now()
			r := here.realise(t.Context(), d, obs)
			if !r.Status.OK() || here.read(r.Outputs["out"].OutPath) != "done\n" {
				t.Errorf("%v: %s", r.Status, r.Error)
			}
			if got := seen.machines(); len(got) != 2 || got[0] != "unix://"+f.path || got[1] != "" {
				t.Errorf("built on %q", got)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestHeartbeat holds that a silent builder on a machine of ours is no dead machine.
func TestHeartbeat(t *testing.T) {
	there := newMachine(t, plain(), nil)
	here := newMachine(t, with(0, there.uri()), &remote.Options{Peer: peer.Options{Silence: 2 * protocol.HeartbeatTime}})
	d := here.add(drv{name: "silent", script: "sleep 13; echo > $out"})
	if r := here.realise(t.Context(), d, nil); !r.Status.OK() {
		t.Errorf("%v: %s", r.Status, r.Error)
	}
}

// TestCancel holds that a build that nobody waits for any more ends at the machine, too.
func TestCancel(t *testing.T) {
	there := newMachine(t, plain(), nil)
	here := newMachine(t, with(0, there.uri()), nil)
	d := here.add(drv{name: "endless", script: "echo begun; sleep 1000"})
	ctx, cancel := context.WithCancel(t.Context())
	obs := client.ObserverFunc(func(m *protocol.Message) {
		if m.Kind == protocol.KindResult && m.Result == protocol.ResBuildLogLine {
			cancel()
		}
	})
	if _, err := here.conn.Build(ctx, []protocol.Target{{Path: d, Outputs: protocol.All()}}, client.Normal, obs); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := there.conn.FollowLog(t.Context(), d, io.Discard); err != nil { // to the end of the build
		t.Errorf("follow log: %v", err)
	}
}

// TestFailure holds that a builder's failure is the build's, and is not tried elsewhere.
func TestFailure(t *testing.T) {
	there := newMachine(t, plain(), nil)
	here := newMachine(t, with(1, there.uri()), nil)
	var seen messages
	r := here.realise(t.Context(), here.add(drv{name: "bad", script: "echo oh; exit 3"}), &seen)
	if r.Status != protocol.PermanentFailure || !strings.Contains(r.Error, "failed with exit code 3") || !strings.Contains(r.Error, "> oh") {
		t.Errorf("%v: %s", r.Status, r.Error)
	}
	if got := seen.machines(); len(got) != 1 {
		t.Errorf("built on %q", got)
	}
}

// TestUntrusting builds on a machine that does not take our word: the derivation goes there with its closure.
func TestUntrusting(t *testing.T) {
	there := newMachine(t, plain(), nil)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { there.server.ServeConn(context.Background(), c, daemon.Peer{UID: 1234, GID: 1234}) })
		}
	})
	here := newMachine(t, with(0, "unix://"+socket), nil)
	first := here.add(drv{name: "first", floating: true, script: "echo one > $out"})
	second := here.add(drv{name: "second", script: "read x < @first.drv@; echo $x two > $out", inputs: []store.Path{first}})
	r := here.realise(t.Context(), second, nil)
	if !r.Status.OK() || here.read(r.Outputs["out"].OutPath) != "one two\n" {
		t.Errorf("%v: %s", r.Status, r.Error)
	}
}

// TestCachesFirst lets a machine fetch an input from its cache, which it knows by a signature that only the cache has.
func TestCachesFirst(t *testing.T) {
	folder := t.TempDir()
	set := plain()
	set.Substituters = []string{"file://" + folder + "?trusted=1"}
	there := newMachine(t, set, nil)
	here := newMachine(t, with(0, there.uri()), nil)
	key, err := archive.GenerateKey("cache-1")
	if err != nil {
		t.Fatal(err)
	}
	src, err := here.conn.AddToStore(t.Context(), "src", store.Flat, store.SHA256, nil, strings.NewReader("source"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := cache.OpenWriter("file://"+folder, store.DefaultDir, &cache.Options{Keys: []archive.SecretKey{key}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := cache.Push(t.Context(), w, []*store.Info{src}, here.store, &cache.PushOptions{Jobs: 1}); err != nil {
		t.Fatal(err)
	}
	d := here.add(drv{name: "d", script: "read x < @src@; echo $x > $out", inputs: []store.Path{src.Path}})
	if r := here.realise(t.Context(), d, nil); !r.Status.OK() {
		t.Fatalf("%v: %s", r.Status, r.Error)
	}
	info, err := there.conn.Info(t.Context(), src.Path)
	if err != nil || len(info.Signatures) != 1 || !strings.HasPrefix(info.Signatures[0], "cache-1:") {
		t.Errorf("the input there: %+v, %v; want it from the cache", info, err)
	}
}
