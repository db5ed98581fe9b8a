package build_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/storetest"
)

// addTree adds an object that no derivation builds, and says that one has.
func (r *rig) addTree(name, tag string, deriver store.Path, refs ...store.Path) store.Path {
	r.Helper()
	archive := storetest.Tree(tag)
	info := storetest.Source(r.store.Dir(), name, archive, refs...)
	info.Deriver = deriver
	if err := r.store.Add(r.ctx, info, bytes.NewReader(archive)); err != nil {
		r.Fatal(err)
	}
	return info.Path
}

// finding returns what a verification found about an object.
func finding(t testing.TB, res *protocol.VerifyResult, p store.Path) protocol.Finding {
	t.Helper()
	i := slices.IndexFunc(res.Findings, func(f protocol.Finding) bool { return f.Path == p.String() })
	if i < 0 {
		t.Fatalf("nothing is found about %s: %+v", p, res.Findings)
	}
	return res.Findings[i]
}

// TestPlanOfRepairs has an object for every remedy, and one for which there is none, and applies the plan.
func TestPlanOfRepairs(t *testing.T) {
	key := newKey(t, "k")
	cachedObject := newObject("cached")
	depot := newDepot(t, key, cachedObject)
	r := cached(t, key, depot.server.URL)
	if _, err := r.fetch(cachedObject); err != nil {
		t.Fatal(err)
	}
	built := r.add(drv{name: "built", script: "echo built > $out"})
	fixed := r.add(drv{name: "fixed", script: "echo fixed > $out", hash: store.SHA256.Sum([]byte("fixed\n")).SRI(), method: store.Flat,
		env: map[string]string{"url": "http://example.org/fixed"}})
	lost := r.addText("lost", "an input that will be gone\n")
	orphan := r.add(drv{name: "orphan", script: "echo @lost@ > $out; echo orphan > $out", inputs: map[string]store.Path{"lost": lost}})
	builtOut, fixedOut, orphanOut := r.realise(built), r.realise(fixed), r.realise(orphan)
	single := r.addTree("single", "single", store.Path{})
	user := r.addText("user", "user", single)
	copied, twin := r.addTree("copied", "equal", store.Path{}), r.addTree("twin", "equal", store.Path{})

	r.lose(lost)
	for _, p := range []store.Path{builtOut, fixedOut, orphanOut, cachedObject.info.Path} {
		r.hurt(p)
	}
	r.hurt(single, "bin", "run")
	if err := r.rend(copied, "bin", "run"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		r.addText("lost", "an input that will be gone\n")
		r.addTree("single", "single", store.Path{})
	}()

	check := func(t *testing.T, res *protocol.VerifyResult) {
		t.Helper()
		for p, want := range map[store.Path]protocol.Remedy{
			builtOut:               {Kind: protocol.BuildRemedy, From: built.String()},
			fixedOut:               {Kind: protocol.FetchRemedy, From: fixed.String(), URL: "http://example.org/fixed"},
			cachedObject.info.Path: {Kind: protocol.CacheRemedy, From: depot.server.URL},
			copied:                 {Kind: protocol.CopyRemedy, From: twin.String()},
		} {
			if f := finding(t, res, p); !slices.Equal(f.Remedies, []protocol.Remedy{want}) || f.How != "'"+want.From+"'" || f.Size == 0 || f.NeededBy != nil {
				t.Errorf("%s: %+v", p, f)
			}
		}
		if f := finding(t, res, single); len(f.Remedies) != 0 || !slices.Equal(f.NeededBy, []store.Path{user}) || !strings.Contains(f.Error, "no cache has it, and no derivation is known that builds it") {
			t.Errorf("what nothing mends: %+v", f)
		}
		if f := finding(t, res, orphanOut); len(f.Remedies) != 1 || !strings.Contains(f.Remedies[0].Unable, lost.String()) || f.How != "" {
			t.Errorf("whose inputs are gone: %+v", f)
		}
	}
	planned, _ := r.verify(protocol.VerifyRequest{Contents: true, Repair: true, DryRun: true})
	check(t, planned)
	var told protocol.VerifyResult
	done, err := r.build.Verify(r.ctx, &protocol.VerifyRequest{Contents: true, Repair: true}, &build.Verification{Plan: func(f protocol.Finding) { told.Findings = append(told.Findings, f) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("told", func(t *testing.T) { check(t, &told) })
	for _, p := range []store.Path{builtOut, fixedOut, copied, cachedObject.info.Path} {
		if f := finding(t, done, p); !f.Fixed || f.Error != "" {
			t.Errorf("not repaired: %+v", f)
		}
	}
	if f := finding(t, done, single); f.Fixed || f.Error == "" || f.How != "" || len(f.NeededBy) != 1 {
		t.Errorf("what nothing mends: %+v", f)
	}
}

// rend puts another file in the place of one, whose other links it leaves alone.
func (r *rig) rend(p store.Path, rest ...string) error {
	name := filepath.Join(append([]string{r.store.RealPath(p)}, rest...)...)
	if err := os.Chmod(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil {
		return err
	}
	return os.WriteFile(name, []byte("rent"), 0o555)
}

// TestBuildMendsWhatItNeeds builds with an input that is known to be damaged: it is mended first, or the error says what to do.
func TestBuildMendsWhatItNeeds(t *testing.T) {
	r := newRig(t, nil)
	low := r.add(drv{name: "low", script: "echo low > $out"})
	source := r.addTree("source", "source", store.Path{})
	lowOut := r.realise(low)
	top := r.add(drv{name: "top", script: "cat @low@ > $out", inputs: map[string]store.Path{"low": low}})
	both := r.add(drv{name: "both", script: "cat @source@/bin/run > $out", inputs: map[string]store.Path{"source": source}})

	r.hurt(lowOut)
	if r.verify(protocol.VerifyRequest{Contents: true}); r.store.Damage(lowOut) == nil {
		t.Fatal("it is not known to be damaged")
	}
	seen := &recorder{}
	list, err := r.build.Build(r.ctx, all(top), build.Normal, seen)
	if err != nil || list[0].Status != protocol.Built {
		t.Fatalf("%+v, %v", list, err)
	}
	if got := r.read(list[0].Outputs["out"].OutPath); got != "low\n" {
		t.Errorf("built with %q", got)
	}
	if got := seen.warnings(); !strings.Contains(got, lowOut.String()) || !strings.Contains(got, "has been repaired") {
		t.Errorf("warnings: %s", got)
	}

	// It is there, but damaged: that is not given back as valid either.
	r.hurt(lowOut)
	r.verify(protocol.VerifyRequest{Contents: true, Paths: []store.Path{lowOut}})
	if r.realise(low); r.read(lowOut) != "low\n" {
		t.Error("a damaged output was given back")
	}

	// Asking what a build would do repairs nothing.
	r.hurt(lowOut)
	r.verify(protocol.VerifyRequest{Contents: true, Paths: []store.Path{lowOut}})
	if _, err := r.build.Missing(r.ctx, all(top), nil); err != nil || r.store.Damage(lowOut) == nil {
		t.Errorf("missing: %v", err)
	}
	r.realise(low)

	r.hurt(source, "bin", "run")
	r.verify(protocol.VerifyRequest{Contents: true, Paths: []store.Path{source}})
	_, err = r.build.Build(r.ctx, all(both), build.Normal, nil)
	if _, damaged := errors.AsType[*disk.DamagedError](err); !damaged || !strings.Contains(err.Error(), "cairn store repair "+source.String()) {
		t.Errorf("with a damaged source: %v", err)
	}
	r.addTree("source", "source", store.Path{})
	r.realise(both)
}

// TestDamagedDerivation builds a derivation whose file is damaged: not what the file says now.
func TestDamagedDerivation(t *testing.T) {
	r := newRig(t, nil)
	d := r.add(drv{name: "d", script: "echo d > $out"})
	text := r.read(d)
	r.hurt(d)
	r.verify(protocol.VerifyRequest{Contents: true, Paths: []store.Path{d}})
	_, err := r.build.Build(r.ctx, all(d), build.Normal, nil)
	if _, damaged := errors.AsType[*disk.DamagedError](err); !damaged {
		t.Errorf("%v", err)
	}
	if again := r.addText("d.drv", text); again != d {
		t.Fatal(again)
	}
	r.realise(d)
}

// TestMendingNeedsItself has an object that is an input of what would build it.
func TestMendingNeedsItself(t *testing.T) {
	r := newRig(t, nil)
	egg := r.addTree("egg", "egg", store.Path{})
	hen := r.add(drv{name: "hen", script: "cp -r @egg@ $out", inputs: map[string]store.Path{"egg": egg}})
	if _, err := r.store.Delete(r.ctx, []store.Path{hen, egg}); err != nil {
		t.Fatal(err)
	}
	r.addTree("egg", "egg", hen)
	r.add(drv{name: "hen", script: "cp -r @egg@ $out", inputs: map[string]store.Path{"egg": egg}})
	r.hurt(egg, "bin", "run")
	res, _ := r.verify(protocol.VerifyRequest{Contents: true, Repair: true})
	if f := finding(t, res, egg); f.Fixed || !strings.Contains(f.Error, "is damaged") {
		t.Errorf("%+v", f)
	}
	r.addTree("egg", "egg", hen)
}
