package compat

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/store/disk"
)

// packagesNix is two versions of an application, with shared files.
const packagesNix = `let
  sh = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin"; args = [ "-c" script ]; };
  fill = "i=0; while [ $i -lt 2000 ]; do echo all of this is the same; i=$((i+1)); done";
in rec {
  lib = sh "lib-1.2" "mkdir -p $out/share; echo lib > $out/share/lib; (${fill}) > $out/same; : > $out/empty";
  lib2 = sh "lib-1.3" "mkdir -p $out/share; echo lib two > $out/share/lib; (${fill}; ${fill}) > $out/same; ln -s share/lib $out/link";
  mid = sh "mid-0.1" "mkdir -p $out/bin; echo ${lib}/share/lib > $out/bin/mid; chmod +x $out/bin/mid; echo me $out >> $out/bin/mid; (${fill}) > $out/same";
  app = sh "app-2.0" "mkdir -p $out/bin $out/etc; echo exec ${mid}/bin/mid ${lib} > $out/bin/app; echo same > $out/etc/same; ln -s ${mid}/bin/mid $out/etc/l";
  app2 = sh "app-2.1" "mkdir -p $out/bin; echo exec ${lib2}/share/lib > $out/bin/app; echo ${mid} > $out/x";
}
`

// shop is a world with the packages built on both sides.
type shop struct {
	*world
	lib, mid, app, app2 string
}

func newShop(t *testing.T) *shop {
	t.Helper()
	w := &shop{world: newWorld(t)}
	w.file(t, "p.nix", packagesNix)
	for attr, p := range map[string]*string{"lib": &w.lib, "mid": &w.mid, "app": &w.app, "app2": &w.app2} {
		*p = w.same(t, "nix-build", "p.nix", "-A", attr, "--no-out-link")
	}
	return w
}

// cairn runs a command of ours on the side of our daemon.
func (w *shop) cairn(args ...string) output {
	self, err := os.Executable()
	if err != nil {
		w.ours.t.Fatal(err)
	}
	return w.ours.try(nil, append([]string{"env", programVariable + "=1", self}, args...)...)
}

var colour = regexp.MustCompile("\x1b\\[[0-9;]*m")

// sayTheSame runs a command of nix on its own store and one of ours, and compares what they print.
func (w *shop) sayTheSame(t *testing.T, nix, ours []string) {
	t.Helper()
	a, b := w.theirs.try(nil, nix...), w.cairn(ours...)
	if clean := colour.ReplaceAllString(a.out, ""); strings.TrimSpace(clean) != strings.TrimSpace(b.out) || a.code != b.code {
		t.Errorf("%v: %d\n%s%s\ncairn %v: %d\n%s%s", nix, a.code, clean, a.err, ours, b.code, b.out, b.err)
	}
}

// hurt damages a file on both sides.
func (w *shop) hurt(t *testing.T, path, rest string) {
	t.Helper()
	for _, s := range w.both() {
		name := filepath.Join(s.real, filepath.Base(path), rest)
		if err := os.Chmod(name, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("hurt\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// lose removes an object on both sides.
func (w *shop) lose(t *testing.T, path string) {
	t.Helper()
	for _, s := range w.both() {
		if err := os.RemoveAll(filepath.Join(s.real, filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
	}
}

// sameErrors runs a command on both sides and compares exit status, output and the lines of standard error, in any order.
func (w *shop) sameErrors(t *testing.T, argv ...string) output {
	t.Helper()
	a, b := w.theirs.try(nil, argv...), w.ours.try(nil, argv...)
	set := func(s string) []string {
		return slices.Sorted(slices.Values(lines(strings.TrimSpace(colour.ReplaceAllString(s, "")))))
	}
	if a.code != b.code || a.out != b.out || !slices.Equal(set(a.err), set(b.err)) {
		t.Errorf("%v\nnix: %d\n%s%s\ncairn: %d\n%s%s", argv, a.code, a.out, a.err, b.code, b.out, b.err)
	}
	return b
}

func TestVerify(t *testing.T) {
	w := newShop(t)
	verify := []string{"nix-store", "--verify", "--check-contents"}
	w.sameErrors(t, verify...)
	w.sameErrors(t, "nix-store", "--verify")
	w.hurt(t, w.lib, "share/lib")
	w.sameErrors(t, verify...)
	w.sameErrors(t, "nix-store", "--verify")
	w.sameErrors(t, "nix-store", "--verify-path", w.lib)
	w.sameErrors(t, "nix-store", "--verify-path", w.mid, w.app)
	w.sameErrors(t, "nix", "store", "verify", "--no-trust", w.lib)
	w.sameErrors(t, "nix", "store", "verify", "-r", "--no-trust", w.app)
	w.sameErrors(t, "nix", "store", "verify", "-r", "--no-contents", "--sigs-needed", "1", w.mid)
	if o := w.cairn("store", "verify", w.lib); o.code != 1 || !strings.Contains(o.out, "was modified! expected hash 'sha256:") {
		t.Errorf("cairn store verify: %d %s%s", o.code, o.out, o.err)
	}
	w.lose(t, w.app2)
	w.sameErrors(t, verify...) // forgotten: nothing refers to it
	w.lose(t, w.mid)
	o := w.sameErrors(t, "nix-store", "--verify")
	if o.code != 1 || !strings.Contains(o.err, "but it still has valid referrers!") {
		t.Errorf("mid is lost: %d %s", o.code, o.err)
	}
	// Nix 2.8 says that it repairs, and does not: exit status 0, and the damage is still there. Ours does.
	b := w.ours.try(nil, append(slices.Clone(verify), "--repair")...)
	if b.code != 0 {
		t.Errorf("repair: %d %s", b.code, b.err)
	}
	if o := w.ours.try(nil, verify...); o.code != 0 || strings.Contains(o.err, "modified") {
		t.Errorf("after the repair: %d %s", o.code, o.err)
	}
	if text := w.ours.run("cat", filepath.Join(w.lib, "share/lib")); text != "lib" {
		t.Errorf("repaired file has %q", text)
	}
	if text := w.ours.run("cat", filepath.Join(w.mid, "bin/mid")); !strings.Contains(text, w.mid) {
		t.Errorf("built again: %q", text)
	}
}

// TestRepairFromCache repairs what this store cannot build.
func TestRepairFromCache(t *testing.T) {
	st := newStocked(t, "first", "two")
	w := &shop{world: st.world}
	for _, s := range w.both() {
		s.run(st.with("nix-store", "-r", st.paths["first"], st.paths["two"])...)
	}
	w.hurt(t, st.paths["first"], "")
	w.hurt(t, st.paths["two"], "")
	for _, s := range w.both() {
		if o := s.try(nil, st.with("nix-store", "--verify", "--check-contents", "--repair")...); o.code != 0 {
			t.Errorf("%s: %d %s", s.name, o.code, o.err)
		}
	}
	w.sameErrors(t, "nix-store", "--verify", "--check-contents")
	w.same(t, "cat", st.paths["first"], st.paths["two"])
	w.hurt(t, st.paths["first"], "")
	for _, s := range w.both() {
		if o := s.try(nil, st.with("nix-store", "-r", "--repair", st.paths["first"])...); o.code != 0 {
			t.Errorf("%s: -r --repair: %d %s", s.name, o.code, o.err)
		}
	}
	w.sameErrors(t, "nix-store", "--verify", "--check-contents")
}

func TestOptimise(t *testing.T) {
	w := newShop(t)
	hashes := w.same(t, "nix-store", "-q", "--hash", w.lib, w.mid, w.app, w.app2)
	a, b := w.theirs.try(nil, "nix-store", "--optimise"), w.ours.try(nil, "nix-store", "--optimise")
	freed := regexp.MustCompile(`(?m)^\d+\.\d\d MiB freed by hard-linking \d+ files$`)
	if a.code != 0 || b.code != 0 || !freed.MatchString(a.err) || !freed.MatchString(b.err) {
		t.Fatalf("nix: %d %s\ncairn: %d %s", a.code, a.err, b.code, b.err)
	}
	links := func(s *side, p string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(s.real, filepath.Base(p), "same"), &st); err != nil {
			t.Fatal(err)
		}
		return uint64(st.Nlink)
	}
	for _, p := range []string{w.lib, w.mid} {
		if n, m := links(w.theirs, p), links(w.ours, p); n != m || n != 3 {
			t.Errorf("%s has %d links with nix, %d with cairn", p, n, m)
		}
	}
	w.sameErrors(t, "nix-store", "--verify", "--check-contents")
	if again := w.same(t, "nix-store", "-q", "--hash", w.lib, w.mid, w.app, w.app2); again != hashes {
		t.Error("hashes have changed")
	}
	w.same(t, "sha256sum", filepath.Join(w.lib, "same"), filepath.Join(w.mid, "same"))
	if o := w.ours.try(nil, "nix", "store", "optimise"); o.code != 0 || !strings.Contains(o.err, "0.00 MiB freed by hard-linking 0 files") {
		t.Errorf("again: %d %s", o.code, o.err)
	}
	w.ours.run("nix-store", "--gc")
	if left, _ := filepath.Glob(filepath.Join(w.ours.real, ".links", "*", "*")); len(left) > 0 {
		t.Errorf("the pool has %v after everything was collected", left)
	}
}

func TestLook(t *testing.T) {
	w := newShop(t)
	for _, args := range [][]string{
		{w.app}, {"-R", w.app}, {"-l", w.app}, {"-lR", w.app}, {"-l", w.app + "/etc"}, {"-d", "-l", w.app + "/etc"}, {w.app + "/etc/same"}, {"-l", w.app + "/etc/l"},
		{"--json", w.app}, {"--json", "-R", w.app}, {"--json", "-R", w.app + "/bin"}, {"-lR", w.lib}, {"-R", "--json", w.mid},
	} {
		w.same(t, append([]string{"nix", "store", "ls"}, args...)...)
		w.sayTheSame(t, append([]string{"nix", "store", "ls"}, args...), append([]string{"store", "ls"}, args...))
	}
	for _, file := range []string{w.app + "/bin/app", w.mid + "/bin/mid"} {
		w.same(t, "nix", "store", "cat", file)
		w.sayTheSame(t, []string{"nix", "store", "cat", file}, []string{"store", "cat", file})
	}
	for _, wrong := range []string{w.app + "/etc", w.app + "/etc/l", w.app + "/nothing"} {
		w.sameErrors(t, "nix", "store", "cat", wrong)
		w.sayTheSame(t, []string{"nix", "store", "cat", wrong}, []string{"store", "cat", wrong})
	}
	w.sayTheSame(t, []string{"nix", "store", "ls", w.app + "/nothing"}, []string{"store", "ls", w.app + "/nothing"})
}

func TestWhyDepends(t *testing.T) {
	w := newShop(t)
	for _, flags := range [][]string{{}, {"--all"}, {"--precise"}, {"--all", "--precise"}} {
		for _, ends := range [][]string{{w.app, w.lib}, {w.app, w.mid}, {w.app2, w.lib}, {w.mid, w.mid}, {w.app, w.app}} {
			args := append(slices.Clone(flags), ends...)
			w.same(t, append([]string{"nix", "why-depends"}, args...)...)
			w.sayTheSame(t, append([]string{"nix", "why-depends"}, args...), append([]string{"store", "why-depends"}, args...))
		}
	}
	w.sayTheSame(t, []string{"nix", "why-depends", w.lib, w.app}, []string{"store", "why-depends", w.lib, w.app})
}

func TestDiffClosures(t *testing.T) {
	w := newShop(t)
	for _, ends := range [][]string{{w.app, w.app2}, {w.app2, w.app}, {w.lib, w.app2}, {w.app, w.app}} {
		w.same(t, append([]string{"nix", "store", "diff-closures"}, ends...)...)
		w.sayTheSame(t, append([]string{"nix", "store", "diff-closures"}, ends...), append([]string{"store", "diff-closures"}, ends...))
	}
}

func TestMakeContentAddressed(t *testing.T) {
	w := newShop(t)
	nix := w.theirs.run("nix", "store", "make-content-addressed", "--json", "-r", w.app)
	ours := w.cairn("store", "make-content-addressed", "--offsets", "--json", w.app)
	if ours.code != 0 {
		t.Fatal(ours.err)
	}
	var a, b struct{ Rewrites map[string]string }
	if err := json.Unmarshal([]byte(nix), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(ours.out), &b); err != nil {
		t.Fatal(err)
	}
	if len(a.Rewrites) != 3 || fmt.Sprint(a.Rewrites) != fmt.Sprint(b.Rewrites) {
		t.Errorf("nix:   %v\ncairn: %v", a.Rewrites, b.Rewrites)
	}
	w.samePathInfos(t, a.Rewrites[w.app])
	w.same(t, "nix-store", "--dump", a.Rewrites[w.mid])
	// Nix's client does the same through our daemon, and finds it there.
	if again := w.ours.run("nix", "store", "make-content-addressed", "--json", "-r", w.app); again != nix {
		t.Errorf("nix through cairn: %s", again)
	}
	// What the other form gives is content-addressed as well.
	if o := w.cairn("store", "make-content-addressed", w.app); o.code != 0 {
		t.Errorf("%d %s", o.code, o.err)
	}
	if _, err := w.ours.store.Verify(t.Context(), &disk.VerifyOptions{Contents: true}, func(p disk.Problem) { t.Errorf("%s: %v", p.Path, p.Err) }); err != nil {
		t.Error(err)
	}
}

func TestStoreQueries(t *testing.T) {
	w := newShop(t)
	drv := w.same(t, "nix-store", "-q", "--deriver", w.app)
	ask := func(question, flag string, paths ...string) {
		t.Helper()
		sorted := func(s string) string { l := lines(strings.TrimSpace(s)); slices.Sort(l); return strings.Join(l, "\n") }
		a, b := w.theirs.try(nil, append([]string{"nix-store", "-q", flag}, paths...)...), w.cairn(append([]string{"store", "query", question}, paths...)...)
		if sorted(a.out) != sorted(b.out) || a.code != b.code {
			t.Errorf("%s\nnix:   %d %s%s\ncairn: %d %s%s", question, a.code, a.out, a.err, b.code, b.out, b.err)
		}
	}
	ask("references", "--references", w.app)
	ask("referrers", "--referrers", w.lib)
	ask("closure", "--requisites", w.app, w.app2)
	ask("requisites", "--requisites", drv)
	ask("referrers-closure", "--referrers-closure", w.lib)
	ask("deriver", "--deriver", w.app, drv)
	ask("outputs", "--outputs", drv)
	ask("hash", "--hash", w.app, w.mid)
	ask("size", "--size", w.app, drv)
	w.sayTheSame(t, []string{"nix-store", "-q", "--tree", w.mid}, []string{"store", "tree", w.mid})
	w.sayTheSame(t, []string{"nix-store", "-q", "--tree", w.app}, []string{"store", "tree", w.app})
	w.sayTheSame(t, []string{"nix-store", "--dump-db", w.mid}, []string{"store", "dump-db", w.mid})
	for _, s := range w.both() {
		s.run("nix-store", "--add-root", filepath.Join(s.work, "root"), "-r", w.app)
	}
	if o := w.cairn("store", "query", "roots", w.lib); o.code != 0 || !strings.Contains(o.out, filepath.Join(w.ours.work, "root")+" -> "+w.app) {
		t.Errorf("roots: %d %s%s", o.code, o.out, o.err)
	}
	// The shape of path-info --json.
	a := w.theirs.run("nix", "path-info", "--json", w.mid)
	b := w.cairn("store", "path-info", "--json", w.mid)
	clean := func(text string) string {
		var list []map[string]any
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		for _, i := range list {
			delete(i, "registrationTime")
		}
		out, _ := json.Marshal(list)
		return string(out)
	}
	if clean(a) != clean(b.out) {
		t.Errorf("path-info --json\nnix:   %s\ncairn: %s", clean(a), clean(b.out))
	}
}
