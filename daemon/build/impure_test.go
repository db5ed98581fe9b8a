package build_test

import (
	"strings"
	"testing"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
)

// experimental returns settings with features of Nix turned on.
func experimental(features ...string) *settings.Settings {
	s := settings.Defaults()
	s.ExperimentalOptions = features
	return s
}

// TestImpure builds impure derivations, and what may depend on them and what may not.
func TestImpure(t *testing.T) {
	r := newRig(t, nil)
	t.Setenv("GIVEN", "from the daemon")
	t.Setenv("SET", "not this")
	now := r.add(drv{name: "now", kind: derivation.Impure, outputs: []string{"out", "self"}, env: map[string]string{"impureEnvVars": "GIVEN SET"},
		script: `echo "$GIVEN, $SET, $NIX_OUTPUT_CHECKED" > $out; cat /proc/uptime /proc/sys/kernel/random/uuid >> $out; [ -e /etc/hosts ]; echo $self $out > $self`})
	copies := r.add(drv{name: "copies", kind: derivation.Impure, script: "cat @now@ > $out", inputs: map[string]store.Path{"now": now}})
	fixed := r.add(drv{name: "fixed", script: "cat @now@; echo hello > $out", hash: "sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=", method: store.Flat, inputs: map[string]store.Path{"now": now}})
	pure := r.add(drv{name: "pure", script: "cat @now@ > $out", inputs: map[string]store.Path{"now": now}})
	onFixed := r.add(drv{name: "on-fixed", script: "cat @fixed@ > $out", inputs: map[string]store.Path{"fixed": fixed}})
	set := experimental("impure-derivations", "ca-derivations")
	set.ImpureEnv = map[string]string{"SET": "from the setting"}
	b := r.build.With(set)
	run := func(drvs ...store.Path) []*protocol.BuildResult {
		t.Helper()
		list, err := b.Build(t.Context(), all(drvs...), build.Normal, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range list {
			if !res.Status.OK() {
				t.Fatalf("%v %s", res.Status, res.Error)
			}
		}
		return list
	}
	first, second := run(now)[0], run(now)[0]
	if !first.Impure || first.Status != protocol.Built || second.Status != protocol.Built || first.Outputs["out"].OutPath == second.Outputs["out"].OutPath {
		t.Errorf("%+v\n%+v", first, second)
	}
	out, self := first.Outputs["out"].OutPath, first.Outputs["self"].OutPath
	if text := r.read(out); !strings.HasPrefix(text, "from the daemon, from the setting, \n") {
		t.Errorf("out is %q", text)
	}
	if text := r.read(self); text != self.String()+" "+out.String()+"\n" {
		t.Errorf("self is %q", text)
	}
	info, err := r.store.Info(t.Context(), self)
	if err != nil || info.CheckContentAddress() != nil || info.CA.IsZero() {
		t.Errorf("%+v %v", info, err)
	}
	for _, d := range []store.Path{now, copies} {
		m, err := r.build.OutputMap(d)
		if err != nil || !m["out"].IsZero() {
			t.Errorf("outputs are remembered: %v %v", m, err)
		}
		for _, res := range []*protocol.BuildResult{first, second} {
			for o, known := range res.Outputs {
				if r, err := r.store.Realisation(known.ID); err == nil {
					t.Errorf("output %s is recorded: %+v", o, r)
				}
			}
		}
	}
	both := run(copies, now)
	if r.read(both[0].Outputs["out"].OutPath) != r.read(both[1].Outputs["out"].OutPath) {
		t.Error("two of one request saw different builds")
	}
	if res := run(fixed, onFixed); r.read(res[1].Outputs["out"].OutPath) != "hello\n" {
		t.Error("on-fixed")
	}
	if res := run(fixed)[0]; res.Status != protocol.AlreadyValid {
		t.Errorf("fixed again: %v", res.Status)
	}
	if _, err := b.Build(t.Context(), all(pure), build.Normal, nil); err == nil || !strings.Contains(err.Error(), "pure derivation '"+pure.String()+"' depends on impure derivation '"+now.String()+"'") {
		t.Errorf("pure: %v", err)
	}
	if res := r.result(now); res.Status != protocol.InputRejected || !strings.Contains(res.Error, "experimental Nix feature 'impure-derivations' is disabled") {
		t.Errorf("without the feature: %v %s", res.Status, res.Error)
	}
}

// TestDiscardedReferences has outputs forget what they refer to.
func TestDiscardedReferences(t *testing.T) {
	r := newRig(t, nil)
	in := r.addText("in", "in\n")
	for _, kind := range []derivation.Kind{derivation.InputAddressed, derivation.Floating} {
		d := r.add(drv{
			name: kind.String(), kind: kind, outputs: []string{"out", "kept"}, inputs: map[string]store.Path{"in": in},
			script: `read -r j < /build/.attrs.json || true; k=${j#*'"kept":"'}; kept=${k%%'"'*}; k=${k#*'"out":"'}; out=${k%%'"'*}
				echo @in@ > $out; echo @in@ > $kept`,
			env: map[string]string{"__json": `{"unsafeDiscardReferences":{"out":true}}`},
		})
		list, err := r.build.Build(t.Context(), all(d), build.Normal, nil)
		if err != nil || !list[0].Status.OK() {
			t.Fatalf("%v %+v", err, list[0])
		}
		for o, want := range map[string]int{"out": 0, "kept": 1} {
			refs, err := r.store.References(list[0].Outputs[o].OutPath)
			if err != nil || len(refs) != want {
				t.Errorf("%s: %s refers to %v, %v", kind, o, refs, err)
			}
		}
	}
}
