package compat

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) { generations(t, testBuild) }

func testBuild(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	for _, attr := range []string{"first", "fixed", "floating", "self", "onFloating", "two", "two.dev"} {
		w.same(t, "nix-instantiate", "g.nix", "-A", attr)
		path := w.same(t, "nix-build", "g.nix", "-A", attr, "-o", "result-"+attr)
		w.same(t, "cat", path)
		w.same(t, "nix-store", "-qR", path)
		w.same(t, "nix-store", "-q", "--references", path)
		w.same(t, "nix-store", "-q", "--referrers", path)
		w.same(t, "nix-store", "-q", "--hash", path)
		w.same(t, "nix-store", "-q", "--size", path)
		// With ca-derivations on, nix builds fixed and deferred outputs from resolved derivations of its own taste.
		if attr != "fixed" && attr != "onFloating" {
			w.same(t, "nix-store", "-q", "--deriver", path)
		}
		if attr != "two.dev" {
			w.same(t, "readlink", "result-"+attr)
		}
	}
	drv := w.same(t, "nix-instantiate", "g.nix", "-A", "floating")
	w.same(t, "nix-store", "-q", "--outputs", w.same(t, "nix-instantiate", "g.nix", "-A", "two"))
	w.same(t, "nix-store", "-qR", "--include-outputs", w.same(t, "nix-instantiate", "g.nix", "-A", "first"))
	w.same(t, "nix", "show-derivation", "-r", drv)
}

func TestNixBuildCommand(t *testing.T) { generations(t, testNixBuildCommand) }

func testNixBuildCommand(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	for _, attr := range []string{"first", "floating", "onFloating"} {
		for _, s := range w.both() {
			var built []struct {
				DrvPath string
				Outputs map[string]string
			}
			if err := json.Unmarshal([]byte(s.run("nix", "build", "-f", "g.nix", attr, "--no-link", "--json")), &built); err != nil {
				t.Fatal(err)
			}
			if want := w.theirs.run("nix", "path-info", "-f", "g.nix", attr); len(built) != 1 || built[0].Outputs["out"] != want {
				t.Errorf("%s: built %v, wanted %s", s.name, built, want)
			}
		}
		w.same(t, "nix", "path-info", "-f", "g.nix", attr)
	}
}

// pathInfos returns what nix says of a closure, without what may differ.
func pathInfos(t *testing.T, s *side, paths ...string) any {
	t.Helper()
	text := s.run(append([]string{"nix", "path-info", "--json", "-r"}, paths...)...)
	var infos []map[string]any
	var byPath map[string]map[string]any // of newer nix
	if err := json.Unmarshal([]byte(text), &infos); err != nil {
		if err := json.Unmarshal([]byte(text), &byPath); err != nil {
			t.Fatalf("%s: %v: %s", s.name, err, text)
		}
	}
	for path, i := range byPath {
		i["path"] = path
		infos = append(infos, i)
	}
	for _, i := range infos {
		delete(i, "registrationTime")
		if refs, ok := i["references"].([]any); ok {
			slices.SortFunc(refs, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		}
	}
	slices.SortFunc(infos, func(a, b map[string]any) int { return strings.Compare(a["path"].(string), b["path"].(string)) })
	b, _ := json.MarshalIndent(infos, "", " ")
	return string(b)
}

func (w *world) samePathInfos(t *testing.T, paths ...string) {
	t.Helper()
	if a, b := pathInfos(t, w.theirs, paths...), pathInfos(t, w.ours, paths...); a != b {
		t.Errorf("path-info of %v\nnix:   %s\ncairn: %s", paths, a, b)
	}
}

func TestPathInfo(t *testing.T) { generations(t, testPathInfo) }

func testPathInfo(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	path := w.same(t, "nix-build", "g.nix", "-A", "floating", "--no-out-link")
	w.same(t, "nix-build", "g.nix", "-A", "self", "--no-out-link")
	w.samePathInfos(t, path)
	w.samePathInfos(t, w.same(t, "nix-build", "g.nix", "-A", "two", "--no-out-link"))
}

func TestAdd(t *testing.T) { generations(t, testAdd) }

func testAdd(t *testing.T, w *world) {
	w.file(t, "file", "contents\n")
	for _, s := range w.both() {
		for _, d := range []string{"tree/sub", "tree/empty"} {
			if err := os.MkdirAll(filepath.Join(s.work, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(s.work, "tree/sub/x"), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("sub/x", filepath.Join(s.work, "tree/link")); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"--add", "file"}, {"--add", "tree"},
		{"--add-fixed", "sha256", "file"}, {"--add-fixed", "sha1", "file"}, {"--add-fixed", "md5", "file"}, {"--add-fixed", "sha512", "file"},
		{"--add-fixed", "sha256", "--recursive", "tree"}, {"--add-fixed", "sha1", "--recursive", "tree"}, {"--add-fixed", "sha512", "--recursive", "file"},
	} {
		path := w.same(t, append([]string{"nix-store"}, args...)...)
		w.same(t, "nix-store", "-q", "--hash", path)
		w.samePathInfos(t, path)
	}
	w.same(t, "nix", "store", "add-file", "./file")
	w.same(t, "nix", "store", "add-path", "./tree")
	w.same(t, "nix-instantiate", "--eval", "-E", `builtins.toFile "x" "y"`)
	w.same(t, "nix-store", "--verify", "--check-contents")
	w.same(t, "nix-store", "--verify-path", w.same(t, "nix-store", "--add", "file"))
	w.same(t, "nix-store", "--dump", w.same(t, "nix-store", "--add", "tree"))
}

// directions runs a test with each generation, from their store to ours and back.
func directions(t *testing.T, f func(t *testing.T, w *world, from, to *side)) {
	t.Run("nix to cairn", func(t *testing.T) {
		generations(t, func(t *testing.T, w *world) { f(t, w, w.theirs, w.ours) })
	})
	t.Run("cairn to nix", func(t *testing.T) {
		generations(t, func(t *testing.T, w *world) { f(t, w, w.ours, w.theirs) })
	})
}

func TestExportImport(t *testing.T) { directions(t, testExportImport) }

func testExportImport(t *testing.T, w *world, from, to *side) {
	w.file(t, "g.nix", graph())
	path := from.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link")
	closure := lines(from.run("nix-store", "-qR", path))
	stream := from.try(nil, append([]string{"nix-store", "--export"}, closure...)...)
	if stream.code != 0 {
		t.Fatal(stream.err)
	}
	got := lines(to.feed([]byte(stream.out), "nix-store", "--import"))
	if !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(closure))) {
		t.Errorf("imported %v, exported %v", got, closure)
	}
	w.same(t, "nix-store", "-qR", path)
	w.same(t, "nix-store", "-q", "--hash", path)
	again := to.try(nil, append([]string{"nix-store", "--export"}, closure...)...)
	if again.out != stream.out {
		t.Error("the export of what was imported is another one")
	}
}

func TestCopy(t *testing.T) { directions(t, testCopy) }

func testCopy(t *testing.T, w *world, from, to *side) {
	w.file(t, "g.nix", graph())
	path := from.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link")
	cache := "file://" + filepath.Join(w.root, "cache")
	from.run("nix", "copy", "--to", cache, path)
	to.run("nix", "copy", "--no-check-sigs", "--from", cache, path)
	w.same(t, "nix-store", "-qR", path)
	w.same(t, "nix-store", "-q", "--hash", path)
	a, b := pathInfos(t, from, path), pathInfos(t, to, path)
	strip := strings.NewReplacer(`  "ultimate": true,`+"\n", "", `  "ultimate": false,`+"\n", "", ",\n  \"ultimate\": true", "", ",\n  \"ultimate\": false", "")
	if strip.Replace(a.(string)) != strip.Replace(b.(string)) {
		t.Errorf("path-info\n%s: %s\n%s: %s", from.name, a, to.name, b)
	}
	if o := to.try(nil, "nix", "copy", "--from", cache, from.run("nix-build", "g.nix", "-A", "first", "--no-out-link")); o.code != 0 {
		t.Errorf("copy of what is there: %s", o.err)
	}
}

// TestCopyStraight copies from one daemon's store to the other without a cache between.
func TestCopyStraight(t *testing.T) { generations(t, testCopyStraight) }

func testCopyStraight(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	path := w.ours.run("nix-build", "g.nix", "-A", "floating", "--no-out-link")
	local := filepath.Join(w.root, "other")
	chroot := "local?store=" + w.dir + "&real=" + filepath.Join(local, "store") + "&state=" + filepath.Join(local, "var") + "&log=" + filepath.Join(local, "log")
	w.ours.run("nix", "copy", "--no-check-sigs", "--to", chroot, path)
	out := w.ours.run("nix", "path-info", "--store", chroot, "-r", path)
	if want := w.ours.run("nix-store", "-qR", path); !slices.Equal(slices.Sorted(slices.Values(lines(out))), slices.Sorted(slices.Values(lines(want)))) {
		t.Errorf("copied %s, wanted %s", out, want)
	}
	w.theirs.run("nix-build", "g.nix", "-A", "two", "--no-out-link")
}

func TestUnsignedCopyIsRefused(t *testing.T) { generations(t, testUnsignedCopyIsRefused) }

func testUnsignedCopyIsRefused(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	path := w.theirs.run("nix-build", "g.nix", "-A", "first", "--no-out-link")
	cache := "file://" + filepath.Join(w.root, "cache")
	w.theirs.run("nix", "copy", "--to", cache, path)
	o := w.ours.try(nil, "nix", "copy", "--from", cache, path)
	if o.code == 0 || !strings.Contains(o.err, "lacks a signature by a trusted key") {
		t.Errorf("exit status %d: %s", o.code, o.err)
	}
	if o := w.ours.try(nil, "nix-store", "-q", "--hash", path); o.code == 0 {
		t.Error("it is valid nevertheless")
	}
}

func TestGarbage(t *testing.T) { generations(t, testGarbage) }

func testGarbage(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	kept := w.same(t, "nix-build", "g.nix", "-A", "onFirst", "-o", "keep")
	lost := w.same(t, "nix-build", "g.nix", "-A", "two", "--no-out-link")
	for _, s := range w.both() {
		roots := s.run("nix-store", "--gc", "--print-roots")
		if want := filepath.Join(s.work, "keep") + " -> " + kept; !strings.Contains(strings.ReplaceAll(roots, `"`, ""), want) {
			t.Errorf("%s: roots lack %q:\n%s", s.name, want, roots)
		}
	}
	// The links' own names differ, so that only what follows from them is compared.
	w.sameSet(t, "nix-store", "--gc", "--print-live")
	w.sameSet(t, "nix-store", "--gc", "--print-dead")
	if o := w.ours.try(nil, "nix-store", "--delete", kept); o.code == 0 {
		t.Error("a rooted path was deleted")
	}
	for _, s := range w.both() {
		s.run("nix-store", "--delete", lost)
	}
	w.sameSet(t, "nix-store", "--gc", "--print-dead")
	for _, s := range w.both() {
		s.run("nix-store", "--gc")
	}
	w.sameSet(t, "nix-store", "--gc", "--print-live")
	if dead := w.same(t, "nix-store", "--gc", "--print-dead"); dead != "" {
		t.Errorf("dead after a collection: %s", dead)
	}
	w.same(t, "cat", kept)
	for _, s := range w.both() {
		os.Remove(filepath.Join(s.work, "keep"))
		s.run("nix-store", "--gc")
	}
	if live := w.same(t, "nix-store", "--gc", "--print-live"); live != "" {
		t.Errorf("live without roots: %s", live)
	}
}

// sameSet compares without order.
func (w *world) sameSet(t *testing.T, argv ...string) {
	t.Helper()
	a, b := lines(w.theirs.run(argv...)), lines(w.ours.run(argv...))
	slices.Sort(a)
	slices.Sort(b)
	if !slices.Equal(a, b) {
		t.Errorf("%s\nnix:   %q\ncairn: %q", strings.Join(argv, " "), a, b)
	}
}

func TestFailures(t *testing.T) { generations(t, testFailures) }

func testFailures(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	for attr, want := range map[string]string{"broken": "about to fail", "wrong": "hash mismatch in fixed-output derivation", "needsBroken": "broken.drv"} {
		for _, s := range w.both() {
			if o := s.try(nil, "nix-build", "g.nix", "-A", attr, "--no-out-link"); o.code == 0 || !strings.Contains(o.err, want) {
				t.Errorf("%s: %s: exit status %d, %s", s.name, attr, o.code, o.err)
			}
			if o := s.try(nil, "nix", "build", "-f", "g.nix", attr, "--no-link"); o.code == 0 || !strings.Contains(o.err, strings.TrimSuffix(want, "broken.drv")) {
				t.Errorf("%s: nix build: %s: exit status %d, %s", s.name, attr, o.code, o.err)
			}
		}
	}
	missing := w.dir + "/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a"
	for _, s := range w.both() {
		o := s.try(nil, "nix-store", "-q", "--hash", missing)
		if o.code == 0 || !strings.Contains(o.err, "is not valid") {
			t.Errorf("%s: exit status %d, %s", s.name, o.code, o.err)
		}
		if o := s.try(nil, "nix-store", "-r", missing); o.code == 0 {
			t.Errorf("%s: realised what nobody has", s.name)
		}
	}
}

func TestLogs(t *testing.T) { generations(t, testLogs) }

func testLogs(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	for _, s := range w.both() {
		o := s.try(nil, "nix-build", "g.nix", "-A", "first", "--no-out-link")
		if o.code != 0 || !strings.Contains(o.err, "building first") {
			t.Errorf("%s: the log is not shown: %s", s.name, o.err)
		}
	}
	o := w.ours.try(nil, "nix", "store", "ping")
	if o.code != 0 {
		t.Errorf("ping: %s", o.err)
	}
	t.Logf("ping: %s%s", o.out, o.err)
}

// TestStranger builds as a user whom the daemon does not trust.
func TestStranger(t *testing.T) { generations(t, testStranger) }

func testStranger(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	want := w.theirs.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link")
	signed := w.theirs.run("nix-build", "g.nix", "-A", "first", "--no-out-link")
	stream := w.theirs.try(nil, "nix-store", "--export", signed)
	s := w.ours
	s.as = []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	s.env = append(s.env, "HOME="+w.root+"/nobody")
	if err := os.Mkdir(filepath.Join(w.root, "nobody"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(w.root, "nobody"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "XDG_CACHE_HOME="+w.root+"/nobody/cache")
	if o := s.try([]byte(stream.out), "nix-store", "--import"); o.code == 0 || !strings.Contains(o.err, "lacks a signature") {
		t.Errorf("import of an unsigned path: %d, %s", o.code, o.err)
	}
	if o := s.try(nil, "nix-store", "-q", "--hash", signed); o.code == 0 {
		t.Error("it is valid nevertheless")
	}
	if got := s.run("nix-build", "g.nix", "-A", "onFloating", "--no-out-link", "--option", "timeout", "100"); got != want {
		t.Errorf("built %s, nix built %s", got, want)
	}
	if o := s.try(nil, "nix-store", "--verify", "--repair"); o.code == 0 {
		t.Error("a stranger may repair")
	}
	if o := s.try(nil, "nix-build", "g.nix", "-A", "onFloating", "--no-out-link", "--repair"); o.code == 0 {
		t.Error("a stranger may rebuild")
	}
	if roots := s.run("nix-store", "--gc", "--print-roots"); strings.Contains(roots, "/proc/") {
		t.Errorf("a stranger sees what runs: %s", roots)
	}
}

// TestRemote uses the daemon as an ssh-ng store, where nix sees no files.
func TestRemote(t *testing.T) { generations(t, testRemote) }

func testRemote(t *testing.T, w *world) {
	w.file(t, "g.nix", graph())
	bin := filepath.Join(w.root, "bin")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	// nix waits for the first line when it starts a master or asks for it with echo.
	ssh := "#!/bin/sh\nfor a; do case $a in *echo*started*) echo started;; check) exit 255;; esac; done\nexec env " + proxyVariable + "=" + w.ours.conn + " " + self + "\n"
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(ssh), 0o755); err != nil {
		t.Fatal(err)
	}
	s := w.theirs
	for i, v := range s.env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			s.env[i] = "PATH=" + bin + ":" + path
		}
	}
	path := s.run("nix-build", "g.nix", "-A", "floating", "--no-out-link")
	s.run("nix", "copy", "--no-check-sigs", "--to", "ssh-ng://somewhere", path)
	if got := w.ours.run("nix-store", "-qR", path); got != s.run("nix-store", "-qR", path) {
		t.Errorf("closure: %s", got)
	}
	s.run("nix", "path-info", "--store", "ssh-ng://somewhere", "-r", path)
	if got := s.run("nix", "store", "cat", "--store", "ssh-ng://somewhere", path); got != s.run("cat", path) {
		t.Errorf("cat: %s", got)
	}
	two := w.ours.run("nix-build", "g.nix", "-A", "two", "--no-out-link")
	s.run("nix", "copy", "--no-check-sigs", "--from", "ssh-ng://somewhere", two)
	w.same(t, "nix-store", "-q", "--hash", two)
	built := s.run("nix-build", "g.nix", "-A", "onFirst", "--no-out-link", "--store", "ssh-ng://somewhere")
	if got := w.ours.run("nix-build", "g.nix", "-A", "onFirst", "--no-out-link"); got != built {
		t.Errorf("built %s, %s", built, got)
	}
}
