package build_test

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// TestInside serves a builder: shows it objects while it runs, builds for it with its own place, and refuses what waits for it.
func TestInside(t *testing.T) {
	for _, kind := range []derivation.Kind{derivation.InputAddressed, derivation.Floating} {
		t.Run(kind.String(), func(t *testing.T) { testInside(t, kind) })
	}
}

func testInside(t *testing.T, kind derivation.Kind) {
	r := newRig(t, &build.Options{MaxJobs: 1})
	low := r.addText("low", "low\n")
	late := r.addText("late", "late "+low.String()+"\n", low)
	other := r.addText("other", "other\n")
	input := r.addText("input", "input\n")
	nested := r.add(drv{name: "nested", script: "cat @low@ > $out", inputs: map[string]store.Path{"low": low}})
	script := `echo ready
		while ! [ -e ` + late.String() + ` ] || ! [ -s ` + low.String() + ` ]; do sleep 0.05; done
		cat ` + late.String() + ` > $out
		if echo x > ` + late.String() + ` 2> /dev/null; then touch written; fi
		if [ -e ` + other.String() + ` ]; then echo "sees too much" >> $out; fi
		while ! [ -e /build/go ]; do sleep 0.05; done
		echo $(echo $NIX_REMOTE) >> $out; test -S /build/.nix-socket`
	if os.Getuid() != 0 {
		script = strings.ReplaceAll(script, "touch written", ":")
	}
	outer := r.add(drv{name: "outer", kind: kind, script: script + "; ! [ -e written ]", inputs: map[string]store.Path{"input": input, "self": input}, env: map[string]string{"requiredSystemFeatures": "recursive-nix"}})
	waits := r.add(drv{name: "waits", script: "cat @outer@ > $out", inputs: map[string]store.Path{"outer": outer}})
	b := r.build.With(experimental("recursive-nix"))
	ready, failed := make(chan struct{}), make(chan string, 10)
	b.ServeInside(func(ctx context.Context, l net.Listener, q *build.Restriction) {
		defer l.Close()
		<-ready
		if !q.Allows(input) || q.Allows(low) || q.Allows(late) || !slices.Equal(q.Paths(), []store.Path{input}) {
			failed <- "before: the restriction allows something else than the inputs"
		}
		if err := q.Add(late); err != nil {
			failed <- err.Error()
		}
		if !q.Allows(low) || !q.Allows(late) || q.Allows(other) {
			failed <- "after: the restriction does not allow what was added"
		}
		back := q.Lend(ctx)
		list, err := b.Build(q.Context(ctx), all(nested), build.Normal, nil)
		if err != nil || !list[0].Status.OK() {
			failed <- "nested: " + errorText(err)
		}
		if err := back(); err != nil {
			failed <- err.Error()
		}
		for _, d := range []store.Path{outer, waits} {
			if _, err := b.Build(q.Context(ctx), all(d), build.Normal, nil); err == nil || !strings.Contains(err.Error(), "which it waits for") {
				failed <- "circle: " + errorText(err)
			}
		}

		for _, dir := range r.workDirs() {
			os.WriteFile(dir+"/build/go", nil, 0o644)
		}
		<-ctx.Done()
	})
	seen := false
	obs := build.ObserverFunc(func(e build.Event) {
		if e.Kind == build.Line && e.Text == "ready" && !seen {
			seen = true
			close(ready)
		}
	})
	list, err := b.Build(t.Context(), all(outer), build.Normal, obs)
	if err != nil || !list[0].Status.OK() {
		t.Fatalf("%v %+v", err, list)
	}
	close(failed)
	for text := range failed {
		t.Error(text)
	}
	out := list[0].Outputs["out"].OutPath
	if text, want := r.read(out), "late "+low.String()+"\nunix:///build/.nix-socket\n"; text != want {
		t.Errorf("%q, want %q", text, want)
	}
	if refs, err := r.store.References(out); err != nil || !slices.Equal(refs, []store.Path{low}) {
		t.Errorf("it refers to %v, %v", refs, err)
	}
	if r.read(late) != "late "+low.String()+"\n" {
		t.Error("the builder has changed an object of the store")
	}
	if res := r.result(r.add(drv{name: "off", script: "touch $out", env: map[string]string{"requiredSystemFeatures": "recursive-nix"}})); res.Status != protocol.InputRejected || !strings.Contains(res.Error, "with features {recursive-nix} is required") {
		t.Errorf("without the feature: %v %s", res.Status, res.Error)
	}
}

func errorText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

// workDirs are the directories of running builds.
func (r *rig) workDirs() (list []string) {
	entries, _ := os.ReadDir(r.layout.RealDir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".tmp") {
			list = append(list, r.layout.RealDir+"/"+e.Name())
		}
	}
	return list
}
