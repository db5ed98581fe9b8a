package build_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	os.Exit(m.Run())
}

// lacks skips, or fails in CI, where something that a test needs is not there.
func lacks(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CAIRN_CI") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func busybox(t testing.TB) string {
	t.Helper()
	for _, p := range []string{"/usr/bin/busybox", "/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	lacks(t, "no static busybox: apt-get install busybox-static")
	return ""
}

// rig is a store below a temporary root and a builder for it.
type rig struct {
	testing.TB
	ctx    context.Context
	layout disk.Layout
	store  *disk.Store
	build  *build.Builder
	hashes *derivation.Hashes
}

func newRig(t testing.TB, opts *build.Options) *rig {
	t.Helper()
	if err := sandbox.Available(); err != nil {
		lacks(t, "%v; run the tests as root or enable user namespaces", err)
	}
	root := t.TempDir()
	layout, err := disk.NewLayout(root, func(name string) string {
		return map[string]string{"NIX_STORE_DIR": "/nix/store"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(layout); err != nil {
		t.Fatal(err)
	}
	s, err := disk.Open(t.Context(), layout, &disk.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if opts == nil {
		opts = &build.Options{}
	}
	if opts.SandboxPaths == nil {
		opts.SandboxPaths = map[string]string{"/bin/sh": busybox(t)}
	}
	if opts.MaxJobs == 0 {
		opts.MaxJobs = 4
	}
	r := &rig{TB: t, ctx: t.Context(), layout: layout, store: s, build: build.New(s, opts)}
	r.hashes = derivation.NewHashes(s.Derivation)
	t.Cleanup(func() {
		r.build.Close()
		r.noStrays()
		s.Close()
		filepath.WalkDir(root, func(p string, e os.DirEntry, _ error) error {
			if e != nil && e.IsDir() {
				os.Chmod(p, 0o755) // or an ordinary user could not delete it
			}
			return nil
		})
	})
	return r
}

// noStrays checks that no build left anything in the store directory.
func (r *rig) noStrays() {
	entries, err := os.ReadDir(r.layout.RealDir)
	if err != nil {
		r.Error(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".tmp") {
			r.Errorf("stray %s in the store", e.Name())
		}
		if !strings.HasPrefix(e.Name(), ".") {
			p, err := r.layout.Dir.Path(e.Name())
			if err != nil || !r.store.IsValid(p) {
				r.Errorf("%s is there and not valid", e.Name())
			}
		}
	}
}

func (r *rig) addText(name, text string, refs ...store.Path) store.Path {
	r.Helper()
	info, err := r.store.AddStream(r.ctx, name, store.Text, store.SHA256, refs, strings.NewReader(text))
	if err != nil {
		r.Fatal(err)
	}
	return info.Path
}

// drv is a derivation under construction. The script runs in /bin/sh, which is busybox; "@name@" in it is an input.
type drv struct {
	name    string
	script  string
	outputs []string // default: out
	kind    derivation.Kind
	hash    string // of a fixed one, SRI
	method  store.Method
	inputs  map[string]store.Path // by name; a derivation's output "out", or "name:output"
	env     map[string]string
	builder string
	system  string
}

// add completes a derivation and adds its file to the store.
func (r *rig) add(d drv) store.Path {
	r.Helper()
	full := r.make(d)
	info, err := r.store.AddStream(r.ctx, full.Name+".drv", store.Text, store.SHA256, full.References(), bytes.NewReader(full.ATerm()))
	if err != nil {
		r.Fatal(err)
	}
	return info.Path
}

func (r *rig) make(d drv) *derivation.Derivation {
	r.Helper()
	full := &derivation.Derivation{
		Name: d.name, System: "x86_64-linux", Builder: "/bin/sh", Args: []string{"-c", "set -e\n" + d.script},
		InputDrvs: map[store.Path][]string{},
		Outputs:   map[string]derivation.Output{}, Env: map[string]string{"name": d.name},
	}
	if d.builder != "" {
		full.Builder, full.Args = d.builder, nil
	}
	if d.system != "" {
		full.System = d.system
	}
	for k, v := range d.env {
		full.Env[k] = v
	}
	if d.outputs == nil {
		d.outputs = []string{"out"}
	}
	if d.method == 0 {
		d.method = store.Recursive
	}
	for _, o := range d.outputs {
		var out derivation.Output
		switch {
		case d.hash != "":
			h, err := store.ParseHash(d.hash, 0)
			if err != nil {
				r.Fatal(err)
			}
			out = derivation.Output{Method: d.method, Algo: h.Algorithm(), Hash: h}
			if out.Path, err = r.layout.Dir.FixedPath(d.name, store.ContentAddress{Method: d.method, Hash: h}, store.References{}); err != nil {
				r.Fatal(err)
			}
		case d.kind == derivation.Floating, d.kind == derivation.Impure:
			out = derivation.Output{Method: d.method, Algo: store.SHA256, Impure: d.kind == derivation.Impure}
		}
		full.Outputs[o] = out
	}
	for name, p := range d.inputs {
		text := p.String()
		output := "out"
		if _, o, ok := strings.Cut(name, ":"); ok {
			output = o
		}
		if p.IsDerivation() {
			full.InputDrvs[p] = append(full.InputDrvs[p], output)
			in, err := r.store.Derivation(p)
			if err != nil {
				r.Fatal(err)
			}
			if text = in.Outputs[output].Path.String(); text == "" {
				text = derivation.UpstreamPlaceholder(p, output)
			}
		} else {
			full.InputSrcs = append(full.InputSrcs, p)
		}
		for i := range full.Args {
			full.Args[i] = strings.ReplaceAll(full.Args[i], "@"+name+"@", text)
		}
		for k, v := range full.Env {
			full.Env[k] = strings.ReplaceAll(v, "@"+name+"@", text)
		}
	}
	full.InputSrcs = store.SortPaths(full.InputSrcs)
	if err := r.hashes.FillOutputs(full, r.layout.Dir); err != nil {
		r.Fatal(err)
	}
	return full
}

func all(drvs ...store.Path) []protocol.Target {
	var list []protocol.Target
	for _, d := range drvs {
		list = append(list, protocol.Target{Path: d, Outputs: protocol.All()})
	}
	return list
}

// realise builds and returns the path of the output "out".
func (r *rig) realise(d store.Path) store.Path {
	r.Helper()
	res := r.result(d)
	if !res.Status.OK() {
		r.Fatalf("build %s: %v: %s", d, res.Status, res.Error)
	}
	return res.Outputs["out"].OutPath
}

func (r *rig) result(d store.Path) *protocol.BuildResult {
	r.Helper()
	list, err := r.build.Build(r.ctx, all(d), build.Normal, nil)
	if err != nil {
		r.Fatal(err)
	}
	return list[0]
}

func (r *rig) read(p store.Path, rest ...string) string {
	r.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{r.store.RealPath(p)}, rest...)...))
	if err != nil {
		r.Fatal(err)
	}
	return string(b)
}

// recorder remembers events.
type recorder struct {
	mu     sync.Mutex
	events []build.Event
}

func (c *recorder) Event(e build.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
}

func (c *recorder) count(k build.EventKind) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Kind == k {
			n++
		}
	}
	return n
}

func (c *recorder) lines() string { return strings.Join(c.texts(build.Line), "\n") }

func (c *recorder) texts(k build.EventKind) (list []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Kind == k {
			list = append(list, e.Text)
		}
	}
	return list
}

// wait waits until cond holds.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// TestOrdinaryUser runs the other tests again as nobody.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the tests run as an ordinary user already")
	}
	dir, err := os.MkdirTemp("", "build-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	vectors := filepath.Join(dir, "vectors") // a copy: root's home, where the clone may be, is closed to nobody
	if err := os.CopyFS(vectors, os.DirFS("../../tests/vectors")); err != nil {
		t.Fatal(err)
	}
	os.Chown(dir, 65534, 65534)
	cmd := exec.Command("/proc/self/exe", "-test.run=^Test(Vectors|Kinds|CutOff|Shared|Killed|Hostile|Failures|Log|Inside|Repair)", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir, "CAIRN_TEST_VECTORS="+vectors)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "--- SKIP") {
		t.Errorf("%v\n%s", err, out)
	}
}

func vectorsDir() string {
	if d := os.Getenv("CAIRN_TEST_VECTORS"); d != "" {
		return d
	}
	return "../../tests/vectors"
}

type vectors struct {
	Derivations map[string]struct{ DrvPath, File string }
	Built       map[string]struct {
		Build []struct {
			DrvPath string
			Outputs map[string]string
		}
		Realisation []json.RawMessage
		Infos       []struct {
			Path, NarHash, Deriver string
			NarSize                int64
			CA                     *string
			References             []string
		}
	}
}

func readVectors(t testing.TB) *vectors {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(vectorsDir(), "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	v := &vectors{}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
	return v
}
