package build_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/store"
)

// hurt changes a file behind the store's back.
func (r *rig) hurt(p store.Path, rest ...string) {
	r.Helper()
	name := filepath.Join(append([]string{r.store.RealPath(p)}, rest...)...)
	if err := os.Chmod(name, 0o644); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("hurt"), 0o644); err != nil {
		r.Fatal(err)
	}
}

// lose removes an object behind the store's back.
func (r *rig) lose(p store.Path) {
	r.Helper()
	if err := os.RemoveAll(r.store.RealPath(p)); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) verify(q protocol.VerifyRequest) (*protocol.VerifyResult, string) {
	r.Helper()
	var said strings.Builder
	res, err := r.build.Verify(r.ctx, &q, &build.Verification{Say: func(_ protocol.Verbosity, line string) { said.WriteString(line + "\n") }})
	if err != nil {
		r.Fatal(err)
	}
	return res, said.String()
}

// TestVerifyAndRebuild repairs by building again: what is damaged, what is gone, references first.
func TestVerifyAndRebuild(t *testing.T) {
	r := newRig(t, nil)
	low := r.add(drv{name: "low", script: "mkdir $out; echo low > $out/file"})
	top := r.add(drv{name: "top", script: "mkdir $out; echo @low@ > $out/a", inputs: map[string]store.Path{"low": low}})
	end := r.add(drv{name: "end", script: "mkdir $out; echo end > $out/a"})
	lowOut, topOut, endOut := r.realise(low), r.realise(top), r.realise(end)
	if res, said := r.verify(protocol.VerifyRequest{Contents: true}); res.Left != 0 || len(res.Findings) != 0 || !strings.Contains(said, "checking store hashes...") {
		t.Fatalf("clean store: %+v, said %s", res, said)
	}
	r.lose(lowOut)
	r.lose(endOut)
	r.hurt(topOut, "a")
	res, said := r.verify(protocol.VerifyRequest{Contents: true})
	for _, want := range []string{
		"path '" + lowOut.String() + "' disappeared, but it still has valid referrers!",
		"path '" + endOut.String() + "' disappeared, removing from database...",
		"path '" + topOut.String() + "' was modified! expected hash 'sha256:",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("does not say %q:\n%s", want, said)
		}
	}
	if res.Left != 2 || len(res.Findings) != 3 {
		t.Errorf("findings: %+v", res)
	}
	if _, err := r.store.Registered(endOut); err == nil {
		t.Error("what has disappeared is still in the database")
	}
	planned, _ := r.verify(protocol.VerifyRequest{Contents: true, Repair: true, DryRun: true})
	if planned.Left != 2 || r.store.IsValid(lowOut) || finding(t, planned, lowOut).How != "'"+low.String()+"'" {
		t.Errorf("dry run: %+v", planned)
	}
	if res, said := r.verify(protocol.VerifyRequest{Contents: true, Repair: true}); res.Left != 0 || r.read(lowOut, "file") != "low\n" {
		t.Errorf("repair: %+v\n%s", res, said)
	}
	if res, _ := r.verify(protocol.VerifyRequest{Contents: true}); res.Left != 0 || len(res.Findings) != 0 {
		t.Errorf("after the repair: %+v", res)
	}
	if err := os.WriteFile(filepath.Join(r.store.Layout().RealDir, "stray"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(r.store.Layout().RealDir, "stray"))
	if res, _ := r.verify(protocol.VerifyRequest{}); res.Left != 0 || len(res.Findings) != 1 || res.Findings[0].Path != "stray" {
		t.Errorf("with a stray file: %+v", res)
	}
}

// TestVerifyAndFetch repairs from caches, of which the first has something else.
func TestVerifyAndFetch(t *testing.T) {
	key := newKey(t, "k")
	c := newObject("c")
	a := newObject("a", c)
	good, bad := newDepot(t, key, a, c), newDepot(t, key, objectAt(c.info.Path).contains("something else"))
	bad.files["/nix-cache-info"] = []byte("StoreDir: /nix/store\nPriority: 1\n")
	r := cached(t, key, good.server.URL)
	if _, err := r.fetch(a); err != nil {
		t.Fatal(err)
	}
	s := r.build.Settings().Clone()
	s.Substituters = []string{bad.server.URL, good.server.URL}
	r.build = r.build.With(s)
	r.lose(c.info.Path)
	r.hurt(a.info.Path)
	res, said := r.verify(protocol.VerifyRequest{Contents: true, Repair: true, Paths: []store.Path{a.info.Path, c.info.Path}})
	if res.Left != 0 || len(res.Findings) != 2 || res.Findings[0].How != "'"+good.server.URL+"'" {
		t.Errorf("%+v\n%s", res, said)
	}
	r.hurt(c.info.Path)
	results, err := r.build.Build(r.ctx, objects(a), build.Repair, nil)
	if err != nil || results[0].Status != protocol.Built {
		t.Errorf("request to repair: %+v, %v", results, err)
	}
	if res, _ := r.verify(protocol.VerifyRequest{Contents: true}); res.Left != 0 {
		t.Errorf("after a request to repair: %+v", res)
	}
	// Without cache or derivation it stays, and the finding says why.
	s = r.build.Settings().Clone()
	s.Substituters = nil
	r.build = r.build.With(s)
	r.hurt(a.info.Path)
	if res, _ := r.verify(protocol.VerifyRequest{Contents: true, Repair: true}); res.Left != 1 || !strings.Contains(res.Findings[0].Error, "no derivation is known") {
		t.Errorf("nobody has it: %+v", res)
	}
	if err := r.store.Replace(r.ctx, a.info.Path, strings.NewReader(string(a.nar))); err != nil {
		t.Error(err)
	}
}
