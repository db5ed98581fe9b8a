package build_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/gc"
)

// TestKinds builds a graph of every kind of derivation.
func TestKinds(t *testing.T) {
	r := newRig(t, nil)
	text := r.addText("input.txt", "input\n")
	fixed := r.add(drv{name: "fixed", script: "echo hello > $out", hash: "sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=", method: store.Flat})
	leaf := r.add(drv{name: "leaf", script: "mkdir $out; cat @text@ @fixed@ > $out/file; echo @text@ > $out/ref; ln -s @text@ $out/link",
		inputs: map[string]store.Path{"text": text, "fixed": fixed}})
	floating := r.add(drv{name: "floating", kind: derivation.Floating, script: "mkdir $out; echo @leaf@ $out > $out/self", inputs: map[string]store.Path{"leaf": leaf}})
	deferred := r.add(drv{name: "deferred", script: "echo @floating@ > $out", inputs: map[string]store.Path{"floating": floating}})
	var rec recorder
	list, err := r.build.Build(t.Context(), all(deferred), build.Normal, &rec)
	if err != nil || list[0].Status != protocol.Built {
		t.Fatalf("%v %v", err, list)
	}
	out := list[0].Outputs["out"].OutPath
	ca := r.realise(floating)
	if got := r.read(out); got != ca.String()+"\n" {
		t.Errorf("deferred has %q, want %s", got, ca)
	}
	if got, want := r.read(ca, "self"), r.realise(leaf).String()+" "+ca.String()+"\n"; got != want {
		t.Errorf("floating has %q, want %q", got, want)
	}
	refs, _ := r.store.References(r.realise(leaf))
	if len(refs) != 1 || refs[0] != text {
		t.Errorf("references of leaf are %v", refs)
	}
	info, err := r.store.Info(t.Context(), ca)
	if err != nil || !info.SelfReferences() || info.CheckContentAddress() != nil {
		t.Errorf("%+v, %v, %v", info, err, info.CheckContentAddress())
	}
	if started, stopped := rec.count(build.Started), rec.count(build.Stopped); started != 4 || stopped != 4+0 && stopped != 6 {
		t.Errorf("%d builds started, %d stopped", started, stopped)
	}
	for _, d := range []store.Path{fixed, leaf, floating, deferred} {
		res := r.result(d)
		if res.Status != protocol.AlreadyValid {
			t.Errorf("second build of %s: %v", d, res.Status)
		}
		m, err := r.build.OutputMap(d)
		if err != nil || m["out"] != res.Outputs["out"].OutPath {
			t.Errorf("output map of %s is %v, %v", d, m, err)
		}
	}
	if m, err := r.store.Outputs(floating); err != nil || m["out"] != ca {
		t.Errorf("the store knows %v as outputs of floating, %v", m, err)
	}
}

// TestCutOff changes a derivation in a way that does not change its output: what depends on it is not built again.
func TestCutOff(t *testing.T) {
	r := newRig(t, nil)
	graph := func(comment string) (store.Path, store.Path) {
		base := r.add(drv{name: "base", kind: derivation.Floating, script: "echo same > $out # " + comment})
		top := r.add(drv{name: "top", kind: derivation.Floating, script: "cat @base@ > $out; date +%N%s >> $out", inputs: map[string]store.Path{"base": base}})
		return base, top
	}
	base1, top1 := graph("one")
	first := r.realise(top1)
	base2, top2 := graph("two")
	if base1 == base2 || top1 == top2 {
		t.Fatal("the derivations are the same")
	}
	var rec recorder
	list, err := r.build.Build(t.Context(), all(top2), build.Normal, &rec)
	if err != nil || list[0].Status != protocol.ResolvesToAlreadyValid || list[0].Outputs["out"].OutPath != first {
		t.Fatalf("%v %+v, want %s", err, list[0], first)
	}
	if n := rec.count(build.Started); n != 1 {
		t.Errorf("%d builders ran, want only that of the base", n)
	}
	if again := r.result(top2); again.Status != protocol.AlreadyValid {
		t.Errorf("third time: %v", again.Status)
	}
}

// TestSharedBuild lets two requests wait for one build, and one leave.
func TestSharedBuild(t *testing.T) {
	r := newRig(t, nil)
	d := r.add(drv{name: "slow", script: "echo started; sleep 1; date +%N > $out"})
	var one, two recorder
	ctx, cancel := context.WithCancelCause(t.Context())
	var wg sync.WaitGroup
	var firstErr, secondErr error
	var second []*protocol.BuildResult
	wg.Go(func() { _, firstErr = r.build.Build(ctx, all(d), build.Normal, &one) })
	wait(t, "the build starts", func() bool { return one.count(build.Line) > 0 })
	wg.Go(func() { second, secondErr = r.build.Build(t.Context(), all(d), build.Normal, &two) })
	wait(t, "the second joins", func() bool { return two.count(build.Started) > 0 })
	left := errors.New("client left")
	cancel(left)
	wg.Wait()
	if !errors.Is(firstErr, left) {
		t.Errorf("the first got %v", firstErr)
	}
	if secondErr != nil || second[0].Status != protocol.Built {
		t.Errorf("the second got %v, %v", secondErr, second)
	}
}

// TestSharedKill lets both leave: the builder is dead within a second and nothing is valid.
func TestSharedKill(t *testing.T) {
	r := newRig(t, nil)
	d := r.add(drv{name: "slower", script: "echo started; mkdir $out; trap '' TERM INT HUP; sleep 1000"})
	after := r.add(drv{name: "after", script: "cat @slow@ > $out", inputs: map[string]store.Path{"slow": d}})
	ctx, cancel := context.WithCancel(t.Context())
	var recs [2]recorder
	var wg sync.WaitGroup
	for i := range recs {
		wg.Go(func() { r.build.Build(ctx, all(after), build.Normal, &recs[i]) })
	}
	wait(t, "both wait for it", func() bool { return recs[0].count(build.Line) > 0 && recs[1].count(build.Started) > 0 })
	if n := recs[0].count(build.Started) + recs[1].count(build.Started); n != 2 {
		t.Errorf("%d starts were seen, want one by each", n)
	}
	start := time.Now()
	cancel()
	wg.Wait()
	r.build.Close()
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v to die", took)
	}
	for _, p := range []store.Path{d, after} {
		m, err := r.build.OutputMap(p)
		if err != nil || r.store.IsValid(m["out"]) {
			t.Errorf("output of %s is valid (%v)", p, err)
		}
	}
}

func TestKilledBuildCanBeRepeated(t *testing.T) {
	r := newRig(t, nil)
	d := r.add(drv{name: "again", script: "echo started; sleep 0.3; echo x > $out"})
	ctx, cancel := context.WithCancel(t.Context())
	var rec recorder
	go func() {
		for rec.count(build.Line) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := r.build.Build(ctx, all(d), build.Normal, &rec); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if res := r.result(d); res.Status != protocol.Built {
		t.Errorf("%v: %s", res.Status, res.Error)
	}
}

// TestFailures checks status and text of builds that cannot succeed.
func TestFailures(t *testing.T) {
	r := newRig(t, nil)
	bad := r.add(drv{name: "bad", script: "echo one; echo two >&2; exit 3"})
	limits := map[string]*settings.Settings{
		"timeout":   {MaxJobs: 4, Timeout: 2 * time.Second},
		"silence":   {MaxJobs: 4, MaxSilent: time.Second},
		"log limit": {MaxJobs: 4, MaxLog: 1 << 20},
	}
	for _, c := range []struct {
		name   string
		drv    drv
		status protocol.Status
		text   string
	}{
		{"exit code", drv{script: "echo one; echo two >&2; exit 3"}, protocol.PermanentFailure, "builder for '@' failed with exit code 3;\nlast 2 log lines:\n> one\n> two\n"},
		{"signal", drv{script: "kill -9 $$"}, protocol.PermanentFailure, "builder for '@' failed due to signal 9 (Killed)"},
		{"no output", drv{script: "true"}, protocol.OutputRejected, "failed to produce output path for output 'out'"},
		{"one of two outputs", drv{outputs: []string{"out", "dev"}, script: "touch $out"}, protocol.OutputRejected, "failed to produce output path for output 'dev'"},
		{"dependency", drv{script: "cat @bad@ > $out", inputs: map[string]store.Path{"bad": bad}}, protocol.DependencyFailed, "bad.drv' failed: builder for"},
		{"hash mismatch", drv{script: "echo other > $out", hash: "sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=", method: store.Flat}, protocol.OutputRejected,
			"hash mismatch in fixed-output derivation '@':\n  specified: sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=\n     got:    sha256-fk+i64x6wIlznV3vxEifrWihANkggso1xrQKRSSCH4c="},
		{"flat directory", drv{script: "mkdir $out", hash: "sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=", method: store.Flat}, protocol.OutputRejected, "should be a non-executable regular file"},
		{"platform", drv{script: "true", system: "sparc-linux"}, protocol.InputRejected, "a 'sparc-linux' with features {} is required to build '@', but I am a 'x86_64-linux' with features {"},
		{"builder missing", drv{builder: "/bin/nothing"}, protocol.PermanentFailure, "builder for '@' cannot be executed: /bin/nothing: no such file"},
		{"unknown built-in", drv{builder: "builtin:magic"}, protocol.InputRejected, "wants the builder 'builtin:magic'"},
		{"timeout", drv{script: "while :; do echo .; sleep 0.1; done"}, protocol.TimedOut, "building of '@' timed out after 2 seconds"},
		{"silence", drv{script: "sleep 10"}, protocol.TimedOut, "building of '@' timed out after 1 seconds of silence"},
		{"log limit", drv{script: "yes"}, protocol.LogLimitExceeded, "'@' killed after writing more than 1048576 bytes"},
		{"pipe in output", drv{script: "mkdir $out; mkfifo $out/p"}, protocol.OutputRejected, "is not admissible"},
		{"circle of outputs", drv{kind: derivation.Floating, outputs: []string{"out", "dev"}, script: "echo $dev > $out; echo $out > $dev"}, protocol.OutputRejected, "cycle detected in build of '@'"},
		{"flat self-reference", drv{kind: derivation.Floating, method: store.Flat, script: "echo $out > $out"}, protocol.OutputRejected, "refers to itself"},
		{"disallowed reference", drv{script: "echo @text@ > $out", inputs: map[string]store.Path{"text": r.addText("t", "t")}, env: map[string]string{"allowedReferences": ""}},
			protocol.OutputRejected, "is not allowed to refer to the following paths:\n  /nix/store/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.drv.name = strings.ReplaceAll(c.name, " ", "-")
			d := r.add(c.drv)
			list, err := r.build.With(cmp.Or(limits[c.name], settings.Defaults())).Build(t.Context(), all(d), build.Normal, nil)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(c.text, "@", d.String())
			if list[0].Status != c.status || !strings.Contains(list[0].Error, text) {
				t.Errorf("%d %v: %s\nwant %v: %s", list[0].Status, list[0].Status, list[0].Error, c.status, text)
			}
			if m, _ := r.build.OutputMap(d); !m["out"].IsZero() && r.store.IsValid(m["out"]) {
				t.Error("the output is valid")
			}
		})
	}
}

func TestUnknownInputs(t *testing.T) {
	r := newRig(t, nil)
	gone, _ := r.layout.Dir.Path("00000000000000000000000000000000-gone")
	_, err := r.build.Build(t.Context(), []protocol.Target{{Path: gone}}, build.Normal, nil)
	if !errors.Is(err, store.ErrNotValid) || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("error is %v", err)
	}
	drvGone, _ := r.layout.Dir.Path("00000000000000000000000000000000-gone.drv")
	if _, err = r.build.Build(t.Context(), all(drvGone), build.Normal, nil); !errors.Is(err, store.ErrNotValid) {
		t.Errorf("error is %v", err)
	}
	d := r.add(drv{name: "x", script: "touch $out"})
	_, err = r.build.Build(t.Context(), []protocol.Target{{Path: d, Outputs: []string{"doc"}}}, build.Normal, nil)
	if err == nil || !strings.Contains(err.Error(), `has no output "doc"; it has out`) {
		t.Errorf("error is %v", err)
	}
	m, err := r.build.Missing(r.ctx, append(all(d, drvGone), protocol.Target{Path: gone}), nil)
	if err != nil || len(m.Build) != 1 || m.Build[0] != d || len(m.Unknown) != 2 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestKeepGoing(t *testing.T) {
	r := newRig(t, &build.Options{MaxJobs: 1})
	bad := r.add(drv{name: "bad", script: "exit 1"})
	good := r.add(drv{name: "good", script: "sleep 0.2; touch $out"})
	top := r.add(drv{name: "top", script: "cat @bad@ @good@", inputs: map[string]store.Path{"bad": bad, "good": good}})
	other := r.add(drv{name: "other", script: "touch $out"})
	list, err := r.build.With(&settings.Settings{MaxJobs: 4, KeepGoing: true}).Build(t.Context(), all(top, other), build.Normal, nil)
	if err != nil || list[0].Status != protocol.DependencyFailed || list[1].Status != protocol.Built {
		t.Fatalf("%v %+v %+v", err, list[0], list[1])
	}
	if res := r.result(good); res.Status != protocol.AlreadyValid {
		t.Errorf("good was not built: %v", res.Status)
	}
}

func TestCheckMode(t *testing.T) {
	r := newRig(t, nil)
	pure := r.add(drv{name: "pure", script: "echo x > $out"})
	random := r.add(drv{name: "random", script: "head -c 20 /dev/urandom > $out"})
	for _, d := range []store.Path{pure, random} {
		r.realise(d)
	}
	list, err := r.build.With(&settings.Settings{MaxJobs: 4, KeepGoing: true}).Build(t.Context(), all(pure, random), build.Check, nil)
	if err != nil {
		t.Fatal(err)
	}
	if list[0].Status != protocol.Built {
		t.Errorf("pure: %v %s", list[0].Status, list[0].Error)
	}
	if list[1].Status != protocol.NotDeterministic || !list[1].NonDeterministic || !strings.Contains(list[1].Error, "may not be deterministic") {
		t.Errorf("random: %v %s", list[1].Status, list[1].Error)
	}
}

// TestRepair damages outputs in every way and has them built again.
func TestRepair(t *testing.T) {
	r := newRig(t, nil)
	low := r.add(drv{name: "low", script: "mkdir $out; echo low > $out/file"})
	top := r.add(drv{name: "top", kind: derivation.Floating, script: "mkdir $out; echo @low@ > $out/a; echo b > $out/b; ln -s $out/a $out/l", inputs: map[string]store.Path{"low": low}})
	random := r.add(drv{name: "random", script: "head -c 20 /dev/urandom > $out"})
	paths := map[string]store.Path{"low": r.realise(low), "top": r.realise(top), "random": r.realise(random)}
	repair := func(d store.Path) *protocol.BuildResult {
		t.Helper()
		list, err := r.build.Build(t.Context(), all(d), build.Repair, nil)
		if err != nil {
			t.Fatal(err)
		}
		return list[0]
	}
	if res := repair(top); res.Status != protocol.AlreadyValid {
		t.Errorf("nothing to repair: %v %s", res.Status, res.Error)
	}
	for name, damage := range map[string]func(dir string) error{
		"contents of a dependency": func(string) error {
			os.Chmod(r.store.RealPath(paths["low"])+"/file", 0o644)
			return os.WriteFile(r.store.RealPath(paths["low"])+"/file", []byte("lof\n"), 0o644)
		},
		"file gone":  func(dir string) error { os.Chmod(dir, 0o755); return os.Remove(dir + "/b") },
		"file more":  func(dir string) error { os.Chmod(dir, 0o755); return os.WriteFile(dir+"/c", nil, 0o644) },
		"executable": func(dir string) error { return os.Chmod(dir+"/a", 0o555) },
		"another thing": func(dir string) error {
			return errors.Join(os.Chmod(dir, 0o755), os.RemoveAll(dir), os.WriteFile(dir, nil, 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := damage(r.store.RealPath(paths["top"])); err != nil {
				t.Fatal(err)
			}
			if res := repair(top); res.Status != protocol.Built {
				t.Errorf("%v %s", res.Status, res.Error)
			}
			if _, err := r.store.Verify(t.Context(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("%s: %v", p.Path, p.Err) }); err != nil {
				t.Error(err)
			}
		})
	}
	os.Remove(r.store.RealPath(paths["random"]))
	os.WriteFile(r.store.RealPath(paths["random"]), nil, 0o644)
	if res := repair(random); res.Status != protocol.NotDeterministic || !strings.Contains(res.Error, "cannot be repaired by building") {
		t.Errorf("random: %v %s", res.Status, res.Error)
	}
}

// TestCheckShows compares what an error says of two results with what differs.
func TestCheckShows(t *testing.T) {
	r := newRig(t, nil)
	// The build's number on this host is the time, which no two builds share.
	d := r.add(drv{name: "varies", script: `mkdir $out $out/d; cd $out
		t=$(cut -d ' ' -f 1 /proc/uptime); t=${t%.*}${t#*.}
		echo same > same; echo "stamp $t" > text; ln -s /to/$t link; touch only-$t
		[ $((t / 100 % 2)) = 0 ] && touch x-0 || touch x-1`})
	out := r.realise(d)
	time.Sleep(1100 * time.Millisecond)
	set := settings.Defaults()
	set.KeepFailed = true
	hook := filepath.Join(t.TempDir(), "hook")
	os.WriteFile(hook, []byte("#!/bin/sh\necho hook of $(id -u) compares $1 and $2 of $3\nexit 3\n"), 0o755)
	os.Chmod(filepath.Dir(hook), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(hook)), 0o755)
	set.RunDiffHook, set.DiffHook = true, hook
	var rec recorder
	list, err := r.build.With(set).Build(t.Context(), all(d), build.Check, &rec)
	if err != nil {
		t.Fatal(err)
	}
	kept := out.String() + ".check"
	defer os.RemoveAll(r.store.RealPath(out) + ".check")
	for _, want := range []string{
		fmt.Sprintf("derivation '%s' may not be deterministic: output '%s' differs from '%s'\n", d, out, kept),
		out.String() + "/link: points to \"/to/", out.String() + "/text: from byte ", ": only the first build has this file", ": only the second build has this file",
	} {
		if list[0].Status != protocol.NotDeterministic || !strings.Contains(list[0].Error, want) {
			t.Errorf("%v, lacks %q:\n%s", list[0].Status, want, list[0].Error)
		}
	}
	if strings.Contains(list[0].Error, "/same") {
		t.Errorf("says that the same differs: %s", list[0].Error)
	}
	if _, err := os.Stat(r.store.RealPath(out) + ".check/same"); err != nil {
		t.Error(err)
	}
	if text := rec.lines(); !strings.Contains(text, "compares "+r.store.RealPath(out)+" and "+r.store.RealPath(out)+".check of "+d.String()) || !strings.Contains(text, "failed with exit code 3") {
		t.Errorf("the hook's lines: %s", text)
	} else if os.Getuid() == 0 && strings.Contains(text, "hook of 0") {
		t.Error("the hook ran as root")
	}
	gone := r.add(drv{name: "gone", script: "touch $out"})
	if _, err := r.build.Build(t.Context(), all(gone), build.Check, nil); err == nil || !strings.Contains(err.Error(), "so checking is not possible") {
		t.Errorf("check of what is not there: %v", err)
	}
}

// TestPostBuildHook runs a hook that says what it is told, one that fails, and one that never ends.
func TestPostBuildHook(t *testing.T) {
	r := newRig(t, nil)
	dir := t.TempDir()
	script := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	two := r.add(drv{name: "two", outputs: []string{"out", "dev"}, script: "touch $out $dev"})
	one := r.add(drv{name: "one", script: "touch $out"})
	hung := r.add(drv{name: "hung", script: "touch $out"})
	run := func(program string, d store.Path, rec *recorder) *protocol.BuildResult {
		t.Helper()
		set := settings.Defaults()
		set.PostBuildHook, set.Timeout = program, 2*time.Second
		list, err := r.build.With(set).Build(t.Context(), all(d), build.Normal, rec)
		if err != nil {
			t.Fatal(err)
		}
		return list[0]
	}
	var rec recorder
	res := run(script("good", "echo drv=$DRV_PATH; echo out=$OUT_PATHS >&2; printf 'no newline'"), two, &rec)
	m, _ := r.build.OutputMap(two)
	outs := store.SortPaths([]store.Path{m["out"], m["dev"]})
	want := []string{"drv=" + two.String(), fmt.Sprintf("out=%s %s", outs[0], outs[1]), "no newline"}
	if got := rec.texts(build.HookLine); res.Status != protocol.Built || !slices.Equal(got, want) {
		t.Errorf("%v %s\ngot  %q\nwant %q", res.Status, res.Error, got, want)
	}
	if rec.count(build.HookStarted) != 1 || rec.count(build.HookStopped) != 1 {
		t.Error("the hook's start and end are not told")
	}
	res = run(script("bad", "exit 7"), one, &rec)
	if res.Status != protocol.MiscFailure || !strings.Contains(res.Error, "bad' failed with exit code 7") {
		t.Errorf("%v %s", res.Status, res.Error)
	}
	if res = r.result(one); res.Status != protocol.AlreadyValid {
		t.Errorf("the outputs are not kept: %v", res.Status)
	}
	res = run(script("hangs", "sleep 60 & wait"), hung, &rec)
	if res.Status != protocol.TimedOut || !strings.Contains(res.Error, "timed out after 2 seconds") {
		t.Errorf("%v %s", res.Status, res.Error)
	}
}

// TestHostile lets builders try to leave something behind or to trick what reads their outputs.
func TestHostile(t *testing.T) {
	r := newRig(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("secret\n"), 0o600)
	input := r.addText("input", "clean\n")
	d := r.add(drv{name: "hostile", inputs: map[string]store.Path{"input": input}, script: `
mkdir $out $out/sub; echo a > $out/a; ln $out/a $out/b; ln -s ` + secret + ` $out/link; ln -s / $out/sub/root
chmod 4755 $out/a 2>/dev/null || true; chmod 777 $out/sub; touch -d '2001-01-01' $out/a; chmod 0 $out/b; mkdir -m 0 $out/locked
echo x > @input@ 2>/dev/null || true; rm -rf @input@ 2>/dev/null || true; mv @input@ /tmp/x 2>/dev/null || true
ls /nix/store | grep -v -e input -e hostile && exit 9 || true
cat ` + secret + ` 2>/dev/null && exit 10 || true
ls /proc/1/root/ 2>/dev/null && exit 11 || true
setsid sh -c 'while :; do echo evil > '$out'/a; done' >/dev/null 2>&1 &
sleep 0.1`})
	out := r.realise(d)
	if got := r.read(input); got != "clean\n" {
		t.Errorf("the input is %q", got)
	}
	before := r.read(out, "a")
	var names []string
	filepath.WalkDir(r.store.RealPath(out), func(p string, e os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s %v", strings.TrimPrefix(p, r.store.RealPath(out)), fi.Mode()))
		if fi.ModTime().Unix() != 1 {
			t.Errorf("%s has time %v", p, fi.ModTime())
		}
		return nil
	})
	want := []string{" dr-xr-xr-x", "/a -r--r--r--", "/b -r--r--r--", "/link Lrwxrwxrwx", "/locked dr-xr-xr-x", "/sub dr-xr-xr-x", "/sub/root Lrwxrwxrwx"}
	if strings.Join(names, "\n") != strings.Join(want, "\n") && !strings.Contains(names[1], "-r-xr-xr-x") {
		t.Errorf("the output is\n%s\nwant\n%s", strings.Join(names, "\n"), strings.Join(want, "\n"))
	}
	time.Sleep(50 * time.Millisecond)
	if after := r.read(out, "a"); after != before {
		t.Error("the output changed after it was registered")
	}
	a, _ := os.Stat(filepath.Join(r.store.RealPath(out), "a"))
	b, _ := os.Stat(filepath.Join(r.store.RealPath(out), "b"))
	if os.SameFile(a, b) {
		t.Error("a hard link of the builder is still one")
	}
}

// TestHostileTop makes the output itself something else.
func TestHostileTop(t *testing.T) {
	r := newRig(t, nil)
	link := r.add(drv{name: "link", script: "ln -s /etc/passwd $out"})
	out := r.realise(link)
	if target, err := os.Readlink(r.store.RealPath(out)); err != nil || target != "/etc/passwd" {
		t.Errorf("%q, %v", target, err)
	}
	use := r.add(drv{name: "use", script: "test -L @link@; cat @link@ > $out", inputs: map[string]store.Path{"link": link}})
	if got := r.read(r.realise(use)); strings.Contains(got, "/root:") || !strings.Contains(got, "nixbld") {
		t.Errorf("a link to the host's file gave %q", got)
	}
}

func TestLog(t *testing.T) {
	r := newRig(t, nil)
	d := r.add(drv{name: "talks", script: `
echo first; echo '@nix {"action":"setPhase","phase":"buildPhase"}'; echo '@nix {"action":"msg","level":3,"msg":"from json"}'; echo '@nix no json'
sleep 0.5; printf 'last'; touch $out`})
	var rec recorder
	done := make(chan error, 1)
	go func() {
		_, err := r.build.Build(context.Background(), all(d), build.Normal, &rec)
		done <- err
	}()
	wait(t, "the first line is there", func() bool { return rec.count(build.Line) > 0 })
	wait(t, "the file of a running build has it", func() bool {
		b, _ := os.ReadFile(filepath.Join(r.layout.LogDir, "drvs", d.Base()[:2], d.Base()[2:]))
		return strings.HasPrefix(string(b), "first\n")
	})
	var live safeBuffer
	followed := make(chan error, 1)
	go func() { followed <- r.build.FollowLog(t.Context(), d, &live) }()
	wait(t, "the first line is followed", func() bool { return strings.Contains(live.String(), "first\n") })
	if strings.Contains(live.String(), "last") {
		t.Error("the log came only at the end")
	}
	if err := errors.Join(<-done, <-followed); err != nil {
		t.Fatal(err)
	}
	const want = "first\nfrom json\n@nix no json\nlast\n"
	var finished bytes.Buffer
	if err := r.build.FollowLog(t.Context(), d, &finished); err != nil {
		t.Fatal(err)
	}
	if live.String() != want || finished.String() != want || rec.lines()+"\n" != want {
		t.Errorf("live %q, finished %q, events %q, want %q", live.String(), finished.String(), rec.lines(), want)
	}
	if rec.count(build.Phase) != 1 {
		t.Errorf("%d phases", rec.count(build.Phase))
	}
	base := d.Base()
	if _, err := os.Stat(filepath.Join(r.layout.LogDir, "drvs", base[:2], base[2:])); err != nil {
		t.Error(err)
	}
	none, _ := r.layout.Dir.Path("00000000000000000000000000000000-none.drv")
	if err := r.build.FollowLog(t.Context(), none, &finished); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestHostShell runs a builder in the host's own shell with its libraries.
func TestHostShell(t *testing.T) {
	r := newRig(t, &build.Options{SandboxPaths: map[string]string{"/bin/sh": "/bin/dash"}})
	d := r.add(drv{name: "dash", script: "echo $0 > $out"})
	if got := r.read(r.realise(d)); got != "sh\n" {
		t.Errorf("got %q", got)
	}
	none := newRig(t, &build.Options{SandboxPaths: map[string]string{}})
	res := none.result(none.add(drv{name: "none", script: "touch $out"}))
	if res.Status != protocol.PermanentFailure || !strings.Contains(res.Error, "busybox-static") {
		t.Errorf("%v %s", res.Status, res.Error)
	}
}

func TestFetchURL(t *testing.T) {
	r := newRig(t, nil)
	tries := 0
	mux := http.NewServeMux()
	mux.HandleFunc("/file", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello\n") })
	mux.Handle("/moved", http.RedirectHandler("/file", http.StatusFound))
	mux.HandleFunc("/flaky", func(w http.ResponseWriter, _ *http.Request) {
		if tries++; tries < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "hello\n")
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	public := filepath.Join(t.TempDir(), "public")
	os.WriteFile(public, []byte("hello\n"), 0o644)
	private := filepath.Join(t.TempDir(), "private")
	os.WriteFile(private, []byte("hello\n"), 0o600)
	for p := filepath.Dir(public); p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		os.Chmod(p, 0o755)
	}
	const flat = "sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM="
	for _, c := range []struct {
		name, url, hash string
		method          store.Method
		env             map[string]string
		status          protocol.Status
		text            string
	}{
		{"plain", server.URL + "/file", flat, store.Flat, nil, protocol.Built, ""},
		{"redirect", server.URL + "/moved", flat, store.Flat, nil, protocol.Built, ""},
		{"flaky", server.URL + "/flaky", flat, store.Flat, nil, protocol.Built, ""},
		{"missing", server.URL + "/none", flat, store.Flat, nil, protocol.TransientFailure, "404 Not Found"},
		{"refused", "http://127.0.0.1:1/x", flat, store.Flat, nil, protocol.TransientFailure, "connection refused"},
		{"wrong hash", server.URL + "/file", "sha256-fk+i64x6wIlznV3vxEifrWihANkggso1xrQKRSSCH4c=", store.Flat, nil, protocol.OutputRejected, "hash mismatch in fixed-output derivation"},
		{"recursive", server.URL + "/file", "sha256-HDfQGvQL4ugGkd48w99EN3ppmvuxfGjwgJZLL9Bx/BM=", store.Recursive, nil, protocol.Built, ""},
		{"scheme", "ftp://x/y", flat, store.Flat, nil, protocol.TransientFailure, `scheme "ftp"`},
		{"file", "file://" + public, flat, store.Flat, nil, protocol.Built, ""},
		{"private file", "file://" + private, flat, store.Flat, nil, protocol.TransientFailure, ""},
	} {
		if c.name == "private file" && os.Getuid() != 0 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			env := map[string]string{"url": c.url}
			d := r.add(drv{name: strings.ReplaceAll(c.name, " ", "-"), builder: "builtin:fetchurl", system: "builtin", hash: c.hash, method: c.method, env: env})
			res := r.result(d)
			if res.Status != c.status || !strings.Contains(res.Error, c.text) {
				t.Errorf("%v: %s", res.Status, res.Error)
			}
		})
	}
}

func TestTree(t *testing.T) {
	r := newRig(t, nil)
	one := r.add(drv{name: "one", script: "mkdir -p $out/bin $out/share; echo 1 > $out/bin/one; ln -s one $out/bin/link; echo x > $out/share/common; chmod +x $out/bin/one"})
	two := r.add(drv{name: "two", script: "mkdir -p $out/bin; echo 2 > $out/bin/two; ln -s @one@/share/common $out/common", inputs: map[string]store.Path{"one": one}})
	clash := r.add(drv{name: "clash", script: "mkdir -p $out/bin; echo 3 > $out/bin/one"})
	inputs := map[string]store.Path{"one": one, "two": two, "clash": clash}
	for _, c := range []struct{ name, spec, want string }{
		{"empty", `{}`, ""},
		{"entries", `{"etc/hosts": {"text": "127.0.0.1 localhost\n"}, "run": {"text": "#!/bin/sh\n", "executable": true}, "etc/link": {"symlink": "/nowhere"}, "copy": {"file": "@one@/bin/link"}, "via": {"file": "@two@/common"}}`,
			"copy -r-xr-xr-x 1\netc/hosts -r--r--r-- 127.0.0.1 localhost\netc/link -> /nowhere\nrun -r-xr-xr-x #!/bin/sh\nvia -r--r--r-- x\n"},
		{"union", `{"profile": {"tree": "@one@"}, "profile/.": {"text": ""}}`, "error: is not a clean relative path"},
		{"union of two", `{"p": {"tree": "@one@"}, "p/bin": {"tree": "@two@/bin"}, "p/extra": {"text": "e"}}`,
			"p/bin/link -> @one@/bin/link\np/bin/one -> @one@/bin/one\np/bin/two -> @two@/bin/two\np/extra -r--r--r-- e\np/share/common -> @one@/share/common\n"},
		{"clash", `{"p": {"tree": "@one@"}, "p/bin": {"tree": "@clash@/bin"}}`, `error: entry "p/bin/one" is wanted by @one@/bin/one and by @clash@/bin/one`},
		{"file as parent", `{"a": {"text": ""}, "a/b": {"text": ""}}`, `error: entry "a" is a file for a text and a directory for a text`},
		{"union of a list", `{"p": {"trees": ["@one@/bin", "@two@/bin"]}, "q": {"trees": []}}`, "p/link -> @one@/bin/link\np/one -> @one@/bin/one\np/two -> @two@/bin/two\n"},
		{"union as a whole", `{"": {"tree": "@one@/bin"}, "x": {"text": "x"}}`, "link -> @one@/bin/link\none -> @one@/bin/one\nx -r--r--r-- x\n"},
		{"file as a whole", `{"": {"file": "@one@/bin/one"}}`, " -r-xr-xr-x 1\n"},
		{"file and more", `{"": {"text": ""}, "a": {"text": ""}}`, `error: entry "." is a file for a text and a directory for a text`},
		{"dots", `{"../a": {"text": ""}}`, "error: is not a clean relative path"},
		{"absolute", `{"/a": {"text": ""}}`, "error: is not a clean relative path"},
		{"two kinds", `{"a": {"text": "", "symlink": "x"}}`, "error: it needs one"},
		{"not an input", `{"a": {"file": "/nix/store/00000000000000000000000000000000-x/y"}}`, "error: is not among the inputs"},
		{"outside", `{"a": {"file": "/etc/passwd"}}`, "error: is not below the store"},
		{"unknown field", `{"a": {"txt": "x"}}`, "error: unknown field"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := r.add(drv{name: strings.ReplaceAll(c.name, " ", "-"), kind: derivation.Floating, builder: "builtin:tree", system: "builtin", env: map[string]string{"tree": c.spec}, inputs: inputs})
			res := r.result(d)
			for name, p := range inputs {
				m, _ := r.build.OutputMap(p)
				c.want = strings.ReplaceAll(c.want, "@"+name+"@", m["out"].String())
			}
			if text, ok := strings.CutPrefix(c.want, "error: "); ok {
				if res.Status.OK() || !strings.Contains(res.Error, text) {
					t.Errorf("%v: %s; want %s", res.Status, res.Error, text)
				}
				return
			}
			if !res.Status.OK() {
				t.Fatal(res.Error)
			}
			if got := r.list(res.Outputs["out"].OutPath); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// list prints the leaves of a tree.
func (r *rig) list(p store.Path) string {
	var b strings.Builder
	top := r.store.RealPath(p)
	filepath.WalkDir(top, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			r.Fatal(err)
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(path, top), "/")
		switch {
		case e.Type()&os.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			fmt.Fprintf(&b, "%s -> %s\n", rel, target)
		case !e.IsDir():
			fi, _ := e.Info()
			data, _ := os.ReadFile(path)
			fmt.Fprintf(&b, "%s %v %s\n", rel, fi.Mode(), strings.TrimSuffix(string(data), "\n"))
		}
		return nil
	})
	return b.String()
}

// TestThroughput builds many derivations that do nothing.
func TestThroughput(t *testing.T) {
	r := newRig(t, nil)
	for _, n := range []int{50, 200} {
		inputs := map[string]store.Path{}
		for i := range n {
			inputs[fmt.Sprint("d", i)] = r.add(drv{name: fmt.Sprintf("d-%d-%d", n, i), script: "echo x > $out"})
		}
		top := r.add(drv{name: "top", builder: "builtin:tree", system: "builtin", env: map[string]string{"tree": "{}"}, inputs: inputs})
		start := time.Now()
		r.realise(top)
		took := time.Since(start)
		t.Logf("%d builds in %v: %v each", n, took.Round(time.Millisecond), (took / time.Duration(n)).Round(10*time.Microsecond))
	}
}

// TestCollection collects garbage while a build that has no root waits for one of its inputs.
func TestCollection(t *testing.T) {
	r := newRig(t, nil)
	old := r.add(drv{name: "old", kind: derivation.Floating, script: "echo old > $out"})
	r.realise(old)
	quick := r.add(drv{name: "quick", script: "echo quick > $out"})
	slow := r.add(drv{name: "slow", script: "echo started; sleep 1; echo slow > $out"})
	garbage := r.realise(r.add(drv{name: "garbage", script: "echo garbage > $out"}))
	top := r.add(drv{name: "top", script: "cat @old@ @quick@ @slow@ > $out", inputs: map[string]store.Path{"old": old, "quick": quick, "slow": slow}})
	var rec recorder
	lease := r.store.Lease("test", 0)
	defer lease.Release()
	done := make(chan *protocol.BuildResult, 1)
	go func() {
		list, err := r.build.Build(disk.WithLease(context.Background(), lease), all(top), build.Normal, &rec)
		if err != nil {
			t.Error(err)
		}
		done <- list[0]
	}()
	m, _ := r.build.OutputMap(quick)
	wait(t, "the quick one is built and the slow one is not", func() bool { return r.store.IsValid(m["out"]) && rec.count(build.Line) > 0 })
	collect := func() {
		if _, err := gc.Collect(t.Context(), r.store, gc.Options{Action: gc.DeleteDead, DropDerivations: true}); err != nil {
			t.Error(err)
		}
	}
	collect()
	if r.store.IsValid(garbage) {
		t.Error("the collection did not collect")
	}
	res := <-done
	if res.Status != protocol.Built {
		t.Fatalf("%v: %s", res.Status, res.Error)
	}
	collect()
	if !r.store.IsValid(res.Outputs["out"].OutPath) || r.store.IsValid(m["out"]) {
		t.Errorf("after the build the output alone should be there: %v, %v; leases %v", r.store.IsValid(res.Outputs["out"].OutPath), r.store.IsValid(m["out"]), r.store.Leases())
	}
}

func TestKeepFailed(t *testing.T) {
	r := newRig(t, nil)
	d := r.add(drv{name: "fails", script: "echo precious > file; exit 1"})
	var rec recorder
	list, err := r.build.With(&settings.Settings{MaxJobs: 4, KeepFailed: true}).Build(t.Context(), all(d), build.Normal, &rec)
	if err != nil || list[0].Status != protocol.PermanentFailure {
		t.Fatalf("%v %v", err, list)
	}
	kept, _ := filepath.Glob(filepath.Join(r.layout.StateDir, "builds", "nix-build-*-0", "file"))
	if len(kept) != 1 || !strings.Contains(rec.lines(), filepath.Dir(kept[0])) {
		t.Errorf("kept %v; the log says %q", kept, rec.lines())
	}
}

// TestKeepFailedElsewhere keeps a directory on another file system than the store's.
func TestKeepFailedElsewhere(t *testing.T) {
	r := newRig(t, nil)
	shm, err := os.MkdirTemp("/dev/shm", "kept-")
	if err != nil {
		lacks(t, "no other file system: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	if err := os.Symlink(shm, filepath.Join(r.layout.StateDir, "builds")); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		d := r.add(drv{name: "fails", script: fmt.Sprintf("mkdir d; echo %d > d/file; exit 1", n)})
		if list, err := r.build.With(&settings.Settings{MaxJobs: 4, KeepFailed: true}).Build(t.Context(), all(d), build.Normal, nil); err != nil || list[0].Status != protocol.PermanentFailure {
			t.Fatalf("%v %v", err, list)
		}
		if data, err := os.ReadFile(filepath.Join(shm, fmt.Sprintf("nix-build-fails.drv-%d/d/file", n))); err != nil || string(data) != fmt.Sprintln(n) {
			t.Errorf("%q, %v", data, err)
		}
	}
}

// BenchmarkRequest builds many derivations of a built-in builder in one request.
func BenchmarkRequest(b *testing.B) {
	for _, n := range []int{100, 500, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, nil)
			round := 0
			for b.Loop() {
				b.StopTimer()
				round++
				var drvs []store.Path
				for i := range n {
					drvs = append(drvs, r.add(drv{name: fmt.Sprintf("r%d-%d", round, i), kind: derivation.Floating, builder: "builtin:tree", system: "builtin",
						env: map[string]string{"tree": fmt.Sprintf(`{"a": {"text": "%d-%d"}}`, round, i)}}))
				}
				b.StartTimer()
				list, err := r.build.Build(b.Context(), all(drvs...), build.Normal, nil)
				if err != nil || !list[n-1].Status.OK() {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n), "µs/build")
		})
	}
}

// TestText builds files that are addressed as texts: with references, and a derivation that is built in its turn. What is hashed
// as a git tree and what depends on outputs of outputs is refused by name.
func TestText(t *testing.T) {
	r := newRig(t, nil)
	in := r.addText("in", "in\n")
	text := r.realise(r.add(drv{name: "text", kind: derivation.Floating, method: store.Text, script: "echo @in@ > $out", inputs: map[string]store.Path{"in": in}}))
	info, err := r.store.Info(t.Context(), text)
	if want := r.addText("text", in.String()+"\n", in); err != nil || text != want || info.CA.Method != store.Text {
		t.Errorf("%s, want %s; %+v %v", text, want, info, err)
	}
	two := r.add(drv{name: "two", kind: derivation.Floating, method: store.Text, outputs: []string{"out", "ref"}, script: "echo text > $out; echo $out > $ref"})
	list, err := r.build.Build(t.Context(), all(two), build.Normal, nil)
	if err != nil || !list[0].Status.OK() {
		t.Fatalf("%v %+v", err, list[0])
	}
	ref, out := list[0].Outputs["ref"].OutPath, list[0].Outputs["out"].OutPath
	if info, err := r.store.Info(t.Context(), ref); err != nil || r.read(ref) != out.String()+"\n" || info.CheckContentAddress() != nil || ref != r.addText("two-ref", out.String()+"\n", out) {
		t.Errorf("%+v %v: %q", info, err, r.read(ref))
	}
	inner := r.make(drv{name: "inner", script: "echo inner > $out"})
	made := r.realise(r.add(drv{name: "inner.drv", kind: derivation.Floating, method: store.Text, env: map[string]string{"passAsFile": "aterm", "aterm": string(inner.ATerm())}, script: "cat $atermPath > $out"}))
	if res := r.result(made); res.Status != protocol.Built || r.read(res.Outputs["out"].OutPath) != "inner\n" {
		t.Errorf("%v %s", res.Status, res.Error)
	}
	claims := r.make(drv{name: "claims", script: "echo claims > $out"})
	claims.Outputs["out"] = derivation.Output{Path: inner.Outputs["out"].Path}
	res := r.result(r.add(drv{name: "claims.drv", kind: derivation.Floating, method: store.Text, env: map[string]string{"passAsFile": "aterm", "aterm": string(claims.ATerm())}, script: "cat $atermPath > $out"}))
	if res.Status.OK() || !strings.Contains(res.Error, derivation.ErrOutput.Error()) {
		t.Errorf("a derivation that claims another's output: %v %s", res.Status, res.Error)
	}
	for text, want := range map[string]string{
		`DrvWithVersion("xp-dyn-drv",[("out","","","")],[],[],"s","b",[],[])`: "dynamic derivations are not supported",
		`Derive([("out","","git:sha256","")],[],[],"s","b",[],[])`:            "addressed by their git hash are not supported",
	} {
		if _, err := r.store.AddStream(t.Context(), "x.drv", store.Text, store.SHA256, nil, strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := protocol.ParseTarget(r.layout.Dir, made.String()+"!out!bin"); err == nil || !strings.Contains(err.Error(), "dynamic derivations) are not supported") {
		t.Errorf("outputs of outputs: %v", err)
	}
}

// TestSandboxPaths shows builders files of the host and of the store.
func TestSandboxPaths(t *testing.T) {
	r := newRig(t, nil)
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, []byte("of the host\n"), 0o644)
	for dir := filepath.Dir(file); dir != "/" && dir != "/tmp"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	low := r.addText("low", "low\n")
	tool := r.realise(r.add(drv{name: "tool", script: "mkdir $out; echo @low@ > $out/ref", inputs: map[string]store.Path{"low": low}}))
	script := "cat /host /tools/ref > $out; cat $(cat /tools/ref) >> $out; cat " + tool.String() + "/ref; echo x > /host && exit 1; [ ! -e /none ]"
	set := settings.Defaults()
	set.SandboxPaths = []string{"/host=" + file, "/tools=" + tool.String(), "/none=/no/such/file?", "/none2=" + strings.Replace(low.String(), "low", "gone", 1) + "?"}
	d := r.add(drv{name: "sees", script: script})
	list, err := r.build.With(set).Build(t.Context(), all(d), build.Normal, nil)
	if err != nil || !list[0].Status.OK() {
		t.Fatalf("%v %+v", err, list[0])
	}
	out := list[0].Outputs["out"].OutPath
	if got, want := r.read(out), "of the host\n"+low.String()+"\nlow\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if refs, err := r.store.References(out); err != nil || len(refs) != 0 {
		t.Errorf("sandbox paths are references: %v %v", refs, err)
	}
	for word, want := range map[string]string{"/x=/no/such/file": "no such file", "relative": "not an absolute clean path", "/x=" + strings.Replace(low.String(), "low", "gone", 1): "not valid", "/": "not an absolute clean path"} {
		set := settings.Defaults()
		set.SandboxPaths = []string{word}
		d := r.add(drv{name: "refused", script: "touch $out"})
		list, err := r.build.With(set).Build(t.Context(), all(d), build.Normal, nil)
		if err != nil || list[0].Status.OK() || !strings.Contains(list[0].Error, want) {
			t.Errorf("%s: %v %+v", word, err, list[0])
		}
	}
}

// Files of outputs are links to equal ones, those of other outputs and those of sources.
func TestOutputsShareFiles(t *testing.T) {
	r := newRig(t, nil)
	source, err := r.store.AddStream(t.Context(), "source", store.Flat, store.SHA256, nil, strings.NewReader(strings.Repeat("0", 100_000)))
	if err != nil {
		t.Fatal(err)
	}
	const script = "mkdir $out; printf %05000d 0 > $out/small; printf %05000d 0 > $out/again; printf %0100000d 0 > $out/large; echo $name > $out/own; echo tiny > $out/tiny"
	plain := r.realise(r.add(drv{name: "plain", script: script}))
	floating := r.realise(r.add(drv{name: "floating", script: script, kind: derivation.Floating}))
	for file, want := range map[string]uint64{
		filepath.Join(r.store.RealPath(plain), "small"):    5, // the entry of the pool is one of them
		filepath.Join(r.store.RealPath(floating), "again"): 5,
		filepath.Join(r.store.RealPath(plain), "large"):    4,
		r.store.RealPath(source.Path):                      4,
		filepath.Join(r.store.RealPath(plain), "tiny"):     1,
	} {
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := uint64(fi.Sys().(*syscall.Stat_t).Nlink); n != want {
			t.Errorf("%s has %d links, want %d", file, n, want)
		}
	}
	report := func(p disk.Problem) { t.Errorf("%s: %v", p.Path, p.Err) }
	if _, err := r.store.Verify(t.Context(), &disk.VerifyOptions{Contents: true}, report); err != nil {
		t.Error(err)
	}
}
