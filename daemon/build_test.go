package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/derivation"
	"cairn/store"
)

// needSandbox skips where nothing can be built.
func needSandbox(t *testing.T) {
	t.Helper()
	err := sandbox.Available()
	if err == nil {
		return
	}
	if os.Getenv("CAIRN_CI") == "1" {
		t.Fatal(err)
	}
	t.Skipf("no sandbox: %v; enable with: sudo make root", err)
}

// script adds a derivation that runs a shell script, and returns its path.
func script(t testing.TB, c *client.Conn, name, text string, floating bool, inputs ...store.Path) store.Path {
	t.Helper()
	system := map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH]
	d := &derivation.Derivation{
		Name: name, System: system, Builder: "/bin/sh", Args: []string{"-c", text},
		Outputs: map[string]derivation.Output{"out": {}}, InputSrcs: inputs, Env: map[string]string{},
	}
	if floating {
		d.Outputs["out"] = derivation.Output{Method: store.Recursive, Algo: store.SHA256}
	}
	if err := derivation.NewHashes(nil).FillOutputs(d, store.DefaultDir); err != nil {
		t.Fatal(err)
	}
	info, err := c.AddToStore(t.Context(), name+".drv", store.Text, store.SHA256, d.References(), bytes.NewReader(d.ATerm()))
	if err != nil {
		t.Fatal(err)
	}
	return info.Path
}

func all(drv store.Path) []protocol.Target {
	return []protocol.Target{{Path: drv, Outputs: protocol.All()}}
}

// ear remembers what it hears.
type ear struct {
	mu   sync.Mutex
	list []*protocol.Message
}

func (e *ear) Message(m *protocol.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, m)
}

func (e *ear) text() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b strings.Builder
	for _, m := range e.list {
		fmt.Fprintf(&b, "%x %s %v\n", uint64(m.Kind), m.Text, m.Fields)
	}
	return b.String()
}

func TestBuildTellsItsLog(t *testing.T) {
	needSandbox(t)
	r := start(t, nil)
	c := r.dial()
	drv := script(t, c, "talk", "echo first; echo second; echo x > $out", true)
	var heard ear
	results, err := c.Build(t.Context(), all(drv), client.Normal, &heard)
	if err != nil || len(results) != 1 || !results[0].Status.OK() {
		t.Fatalf("build: %+v, %v", results, err)
	}
	if got := heard.text(); !strings.Contains(got, "building '"+drv.String()) || strings.Index(got, "{first") > strings.Index(got, "{second") || !strings.Contains(got, "{second") {
		t.Errorf("heard %s", got)
	}
	out := results[0].Outputs["out"]
	if valid, err := c.IsValid(t.Context(), out.OutPath); err != nil || !valid {
		t.Errorf("output: %v, %v", valid, err)
	}
	if real, ok, err := c.Realisation(t.Context(), out.ID); err != nil || !ok || real.OutPath != out.OutPath {
		t.Errorf("realisation: %+v, %v, %v", real, ok, err)
	}
	var log bytes.Buffer
	if err := c.FollowLog(t.Context(), drv, &log); err != nil || log.String() != "first\nsecond\n" {
		t.Errorf("log: %q, %v", log.String(), err)
	}
	if m, err := c.OutputMap(t.Context(), drv); err != nil || m["out"] != out.OutPath {
		t.Errorf("outputs: %v, %v", m, err)
	}
	again, err := c.Build(t.Context(), all(drv), client.Normal, nil)
	if err != nil || again[0].Status != protocol.AlreadyValid && again[0].Status != protocol.ResolvesToAlreadyValid {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestAddBuildLog(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	drv := script(t, c, "elsewhere", "true", true)
	if err := r.stranger().AddBuildLog(t.Context(), drv, strings.NewReader("lies\n")); !errors.Is(err, protocol.ErrNotAllowed) {
		t.Errorf("stranger: %v", err)
	}
	if err := c.AddBuildLog(t.Context(), drv, strings.NewReader("done elsewhere\n")); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if err := c.FollowLog(t.Context(), drv, &log); err != nil || log.String() != "done elsewhere\n" {
		t.Errorf("log: %q, %v", log.String(), err)
	}
}

func TestVerboseBuildIsLinesOfLog(t *testing.T) {
	needSandbox(t)
	r := start(t, nil)
	c := r.dial()
	if err := c.SetOptions(t.Context(), &protocol.Options{VerboseBuild: true, MaxJobs: 1}); err != nil {
		t.Fatal(err)
	}
	var heard ear
	if _, err := c.Build(t.Context(), all(script(t, c, "talk", "echo spoken; echo x > $out", false)), client.Normal, &heard); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%x spoken\n", uint64(protocol.KindNext)); !strings.Contains(heard.text(), want) {
		t.Errorf("heard %s", heard.text())
	}
}

func TestFailedBuildIsAResult(t *testing.T) {
	needSandbox(t)
	r := start(t, nil)
	c := r.dial()
	results, err := c.Build(t.Context(), all(script(t, c, "bad", "echo why; exit 7", false)), client.Normal, nil)
	if err != nil || len(results) != 1 || results[0].Status != protocol.PermanentFailure || !strings.Contains(results[0].Error, "7") {
		t.Errorf("build: %+v, %v", results, err)
	}
	if err := c.SetOptions(t.Context(), &protocol.Options{MaxJobs: 1, Overrides: map[string]string{"timeout": "1"}}); err != nil {
		t.Fatal(err)
	}
	results, err = c.Build(t.Context(), all(script(t, c, "long", "while :; do :; done", false)), client.Normal, nil)
	if err != nil || results[0].Status != protocol.TimedOut {
		t.Errorf("build: %+v, %v", results, err)
	}
}

// TestHangupCancelsTheBuild leaves a build that never ends.
func TestHangupCancelsTheBuild(t *testing.T) {
	needSandbox(t)
	r := start(t, &daemon.Options{MaxStall: 200 * time.Millisecond})
	c := r.dial()
	drv := script(t, c, "forever", "echo started; while :; do :; done", false)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Build(ctx, all(drv), client.Normal, client.ObserverFunc(func(m *protocol.Message) {
		if m.Kind == protocol.KindResult && m.Result == protocol.ResBuildLogLine {
			time.AfterFunc(time.Second, cancel)
		}
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("build: %v", err)
	}
	waitFor(t, func() bool { return r.server.Status(true).Connections == 0 })
	began := time.Now()
	r.build.Close()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the build was still there for %v", d)
	}
}

func TestUntrustedBuildDerivation(t *testing.T) {
	needSandbox(t)
	r := start(t, nil)
	c := r.stranger()
	p, err := store.DefaultDir.Path(baseB + ".drv")
	if err != nil {
		t.Fatal(err)
	}
	addressed := &derivation.Derivation{Name: "b", System: "x86_64-linux", Builder: "/bin/sh", Args: []string{"-c", "echo x > $out"}, Env: map[string]string{}}
	out, _ := store.DefaultDir.Path(baseA)
	addressed.Outputs = map[string]derivation.Output{"out": {Path: out}}
	if _, err := c.BuildDerivation(t.Context(), p, addressed, client.Normal, nil); !errors.Is(err, protocol.ErrNotAllowed) {
		t.Errorf("input-addressed: %v", err)
	}
	if valid, _ := c.IsValid(t.Context(), out); valid {
		t.Error("it was built nevertheless")
	}
}

// TestManyBuilders has fifty clients add, query and build at once, partly the same things.
func TestManyBuilders(t *testing.T) {
	needSandbox(t)
	r := start(t, nil)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			c, err := client.Dial(t.Context(), r.socket, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			src := addText(t, c, "src", fmt.Sprint(i%10))
			drv := script(t, c, fmt.Sprint("n", i%10), "read x < "+src.Path.String()+"; echo $x > $out", i%2 == 0, src.Path)
			results, err := c.Build(t.Context(), all(drv), client.Normal, nil)
			if err != nil || !results[0].Status.OK() {
				t.Errorf("build: %+v, %v", results, err)
				return
			}
			p := results[0].Outputs["out"].OutPath
			if info, err := c.Info(t.Context(), p); err != nil || info.NarSize == 0 {
				t.Errorf("info: %+v, %v", info, err)
			}
			if _, err := c.Closure(t.Context(), []store.Path{p}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// drvOutput returns the hash form of a derivation's output.
func drvOutput(t testing.TB, r *rig, drv store.Path) store.DrvOutput {
	t.Helper()
	b, err := os.ReadFile(r.store.RealPath(drv))
	if err != nil {
		t.Fatal(err)
	}
	d, err := derivation.ParseAt(drv, b)
	if err != nil {
		t.Fatal(err)
	}
	id, err := derivation.NewHashes(nil).DrvOutput(d, "out")
	if err != nil {
		t.Fatal(err)
	}
	return id
}
