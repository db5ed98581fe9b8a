package compat

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store"
)

// likeOurs has nix build as we always do: in a sandbox with a static shell.
var likeOurs = []string{"--option", "sandbox", "true", "--option", "sandbox-paths", "/bin/sh=/usr/bin/busybox"}

// build is nix-build on both sides; it returns what theirs printed and what ours did.
func (w *world) build(args ...string) (theirs, ours output) {
	argv := append(append([]string{"nix-build", "--no-out-link"}, args...), likeOurs...)
	return w.theirs.try(nil, argv...), w.ours.try(nil, argv...)
}

// realise builds what must succeed on both sides, and compares the paths.
func (w *world) realise(t *testing.T, args ...string) string {
	t.Helper()
	a, b := w.build(args...)
	if a.code != 0 || b.code != 0 {
		t.Fatalf("nix-build %v\nnix: %d %s\ncairn: %d %s", args, a.code, a.err, b.code, b.err)
	}
	if a.out != b.out {
		t.Errorf("nix-build %v\nnix:   %s\ncairn: %s", args, a.out, b.out)
	}
	return strings.TrimSpace(a.out)
}

const attributesNix = `let
  sh = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" ("PATH=/bin; b() { /bin/sh -c \"$*\"; };" + script) ]; } // extra);
  low = sh "low" "echo low > $out" {};
  high = sh "high" "echo ${low} $out > $out" {};
in rec {
  inherit low high;
  env = sh "env" "export > $out; pwd >> $out; umask >> $out; id >> $out; for f in /build/* /build/.* /etc/* /dev/* /*; do echo $f; done >> $out" { a = "1"; "strange name" = "x y"; list = [ 1 "two" ]; t = true; f = false; n = null; quote = "it's \"q\" \$x \\ \n"; };
  files = sh "files" "for p in $aPath $bPath; do echo $p; while IFS= read -r l || [ -n \"$l\" ]; do printf '%s\\n' \"$l\"; done < $p; done > $out; echo $c >> $out" { passAsFile = [ "a" "b" ]; a = "first\nsecond"; b = ""; c = "not a file"; };
  graph = sh "graph" "while read -r l; do echo \"$l\"; done < closure > $out; while read -r l; do echo \"$l\"; done < two >> $out" { exportReferencesGraph = [ "closure" high "two" low ]; };
  drvGraph = sh "drv-graph" "while read -r l; do echo \"$l\"; done < closure > $out" { exportReferencesGraph = [ "closure" high.drvPath ]; };
  attrs = derivation {
    name = "attrs"; system = builtins.currentSystem; builder = "/bin/sh"; __structuredAttrs = true; outputs = [ "out" "dev" ];
    args = [ "-c" ''
      cd /build
      IFS= read -r json < .attrs.json
      rest=''${json#*'"outputs":{"dev":"'}; dev=''${rest%%'"'*}; rest=''${rest#*'"out":"'}; out=''${rest%%'"'*}
      echo dev > $dev
      { for f in .attrs.json .attrs.sh; do echo "== $f"; while IFS= read -r l || [ -n "$l" ]; do printf '%s\n' "$l"; done < $f; done; echo ==; export; } > $out
    '' ];
    str = "it's a \"string\" with \\ and \$x\ttab\nnewline é 😀"; int = -12; big = 2000000000; float = 1.5; floats = [ 0.1 1.0e20 1.0e-7 123456.789 100000.0 1.0e6 12345678.0 0.30000000000000004 0.0001 0.00001 1.0e15 1.0e16 ]; million = 1.0e6; minus = -2.0e6; flat = [ 1.0e6 "x" ]; half = { a = 0.5; }; whole = 2.0; yes = true; no = false; nothing = null;
    list = [ 1 "two" true null "x y" ]; empty = [ ]; nested = [ [ 1 ] [ 2 ] ]; set = { a = 1; "b c" = "it's"; d = false; }; emptySet = { }; deep = { a = { b = 1; }; };
    "not-a-name" = 1; _ok9 = "x"; path = low;
    exportReferencesGraph = { closure = [ high low ]; };
  };
}`

// TestBuilderSees has builders write down all that they see: variables, files, structured attributes.
func TestBuilderSees(t *testing.T) {
	w := newWorld(t)
	w.file(t, "a.nix", attributesNix)
	for _, attr := range []string{"env", "files", "graph", "drvGraph", "attrs"} {
		t.Run(attr, func(t *testing.T) {
			path := strings.Fields(w.realise(t, "a.nix", "-A", attr))[0]
			a, b := w.theirs.run("cat", path), w.ours.run("cat", path)
			if a != b && w.normal(a) != w.normal(b) {
				t.Errorf("nix:\n%s\ncairn:\n%s", w.normal(a), w.normal(b))
			}
		})
	}
}

// normal takes out of what a builder saw what may differ: without the sandbox nix 2.8 names files of the host in NIX_ATTRS_*,
// and it shows /dev/kvm also to those that do not require it.
func (w *world) normal(s string) string {
	s = regexp.MustCompile(`(NIX_ATTRS_(JSON|SH)_FILE=)'[^']*/`).ReplaceAllString(s, "$1'/build/")
	return strings.ReplaceAll(s, "/dev/kvm\n", "")
}

// TestBuildErrors compares the texts and exit statuses of builds that fail.
func TestBuildErrors(t *testing.T) {
	w := newWorld(t)
	w.file(t, "f.nix", `let
  sh = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; } // extra);
  low = sh "low" "echo low > $out" {};
  high = sh "high" "echo ${low} > $out" {};
  checks = c: { __structuredAttrs = true; outputChecks.out = c; };
  attrs = ''IFS= read -r j < /build/.attrs.json; r=''${j#*'"outputs":{"out":"'}; out=''${r%%'"'*}; '';
in {
  code = sh "code" "echo said; exit 3" {};
  noOutput = sh "no-output" "true" {};
  features = sh "features" "true" { requiredSystemFeatures = [ "zeta" "alpha" ]; };
  system = sh "system" "true" { system = "riscv64-linux"; };
  noChroot = sh "no-chroot" "echo > $out" { __noChroot = true; };
  hostDeps = sh "host-deps" "echo > $out" { __impureHostDeps = [ "/etc/hostname" ]; };
  hash = sh "hash" "echo hi > $out" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000"; };
  flatDir = sh "flat-dir" "/bin/sh -c 'mkdir $out' || cd / && echo > $out/x" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000"; };
  allowed = sh "allowed" "echo ${high} > $out" { allowedReferences = [ ]; };
  illegal = sh "illegal" "echo ${low} > $out" { allowedReferences = [ "bogus" ]; };
  allowedRequisites = sh "requisites" "echo ${high} > $out" { allowedRequisites = [ high ]; };
  disallowed = sh "disallowed" "echo ${low} > $out" { disallowedReferences = [ low ]; };
  disallowedRequisites = sh "disallowed-requisites" "echo ${high} > $out" { disallowedRequisites = [ low ]; };
  selfRef = sh "self" "echo $out > $out" { allowedReferences = [ ]; };
  maxSize = sh "max-size" (attrs + "echo 0123456789 > $out") (checks { maxSize = 10; });
  maxClosureSize = sh "max-closure" (attrs + "echo ${high} > $out") (checks { maxClosureSize = 300; });
  structuredAllowed = sh "structured-allowed" (attrs + "echo ${low} > $out") (checks { allowedReferences = [ ]; });
  structuredSelf = sh "structured-self" (attrs + "echo $out > $out") (checks { allowedReferences = [ ]; ignoreSelfRefs = true; });
  graph = sh "graph" "true" { exportReferencesGraph = [ "x" ]; };
  graphPath = sh "graph-path" "true" { exportReferencesGraph = [ "x" "/nowhere" ]; };
  needs = sh "needs" "echo ${sh "code" "echo said; exit 3" {}} > $out" {};
}`)
	text := func(o output) string {
		i := strings.Index(o.err, "error: ")
		if i < 0 {
			return ""
		}
		line, _, _ := strings.Cut(o.err[i:], ";\n")
		return strings.ReplaceAll(strings.TrimSpace(line), w.theirs.dir+"/", "")
	}
	for _, c := range []struct{ attr, same string }{
		{"code", ""}, {"noOutput", "failed to produce output path for output 'out' at "}, {"features", ""}, {"system", ""},
		{"noChroot", "has '__noChroot' set, but that's not allowed when 'sandbox' is 'true'"},
		{"hostDeps", "requested impure path '/etc/hostname', but it was not in allowed-impure-host-deps"},
		{"hash", ""}, {"allowed", ""}, {"illegal", ""}, {"allowedRequisites", ""}, {"disallowed", ""}, {"disallowedRequisites", ""}, {"selfRef", ""},
		{"maxSize", ""}, {"maxClosureSize", ""}, {"structuredAllowed", ""}, {"structuredSelf", ""}, {"graph", ""}, {"graphPath", ""}, {"needs", "1 dependencies of derivation "},
	} {
		t.Run(c.attr, func(t *testing.T) {
			a, b := w.build("f.nix", "-A", c.attr)
			if (a.code == 0) != (b.code == 0) {
				t.Errorf("exit status: nix %d, cairn %d: %s%s", a.code, b.code, a.err, b.err)
			}
			x, y := text(a), text(b)
			if c.same != "" && strings.Contains(a.err, c.same) && strings.Contains(b.err, c.same) {
				return
			}
			if x != y {
				t.Errorf("\nnix:   %s\ncairn: %s", x, y)
			}
		})
	}
}

// TestCheck builds again what is reproducible and what is not.
func TestCheck(t *testing.T) {
	w := newWorld(t)
	w.file(t, "c.nix", `let sh = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; };
in {
  same = sh "same" "echo same > $out";
  other = sh "other" "read x < /proc/uptime; echo $x > $out";
  fails = sh "fails" "echo precious > kept; echo said; exit 1";
  never = sh "never" "echo never > $out";
}`)
	w.realise(t, "c.nix", "-A", "same", "-A", "other")
	w.realise(t, "c.nix", "-A", "same", "--check")
	path := w.theirs.dir
	for _, args := range [][]string{{"--check"}, {"--check", "-K"}} {
		a, b := w.build(append([]string{"c.nix", "-A", "other"}, args...)...)
		for _, want := range []string{"checking outputs of '" + path, "may not be deterministic: output '" + path} {
			if a.code == 0 || b.code == 0 || !strings.Contains(a.err, want) || !strings.Contains(b.err, want) {
				t.Errorf("%v: want %q\nnix:   %d %s\ncairn: %d %s", args, want, a.code, a.err, b.code, b.err)
			}
		}
		if kept := strings.Contains(a.err, ".check'"); kept != strings.Contains(b.err, ".check'") {
			t.Errorf("%v\nnix:   %s\ncairn: %s", args, a.err, b.err)
		}
		if !strings.Contains(b.err, ": from byte ") {
			t.Errorf("%v: what differs is not shown: %s", args, b.err)
		}
	}
	for _, s := range w.both() {
		kept, _ := filepath.Glob(filepath.Join(s.real, "*-other.check"))
		if len(kept) != 1 {
			t.Errorf("%s: the other result was not kept", s.name)
			continue
		}
		os.Remove(kept[0])
	}
	a, b := w.build("c.nix", "-A", "never", "--check")
	for _, o := range []output{a, b} {
		if o.code == 0 || !strings.Contains(o.err, "some outputs of '") || !strings.Contains(o.err, "are not valid, so checking is not possible") {
			t.Errorf("check of what is not there: %d %s", o.code, o.err)
		}
	}
	a, b = w.build("c.nix", "-A", "fails", "-K")
	for _, o := range []output{a, b} {
		m := regexp.MustCompile(`note: keeping build directory '(.*/nix-build-fails\.drv-0)'`).FindStringSubmatch(o.err)
		if m == nil {
			t.Errorf("the build directory is not named: %s", o.err)
			continue
		}
		if data, err := os.ReadFile(filepath.Join(m[1], "kept")); err != nil || string(data) != "precious\n" {
			t.Errorf("%q, %v", data, err)
		}
		os.RemoveAll(m[1])
	}
}

// TestRepairByRebuilding damages outputs behind the stores' backs. With CA derivations on, nix 2.8 repairs nothing.
func TestRepairByRebuilding(t *testing.T) { generations(t, testRepairByRebuilding) }

func testRepairByRebuilding(t *testing.T, w *world) {
	w.local()
	w.file(t, "r.nix", `let sh = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; };
in rec { low = sh "low" "echo low > $out"; high = sh "high" "echo ${low} > $out"; }`)
	plain := []string{"--option", "experimental-features", "nix-command"}
	high := w.realise(t, append([]string{"r.nix", "-A", "high"}, plain...)...)
	low := w.realise(t, append([]string{"r.nix", "-A", "low"}, plain...)...)
	for _, s := range w.both() {
		for _, p := range []string{low, high} {
			real := filepath.Join(s.real, filepath.Base(p))
			os.Chmod(real, 0o644)
			if err := os.WriteFile(real, []byte("damaged"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, b := w.build(append([]string{"--repair", "r.nix", "-A", "high"}, plain...)...)
	for _, o := range []output{a, b} {
		if o.code != 0 || !strings.Contains(o.err, "repairing outputs of '"+w.theirs.dir) {
			t.Errorf("%d %s", o.code, o.err)
		}
	}
	w.realise(t, append([]string{"--repair", "r.nix", "-A", "low"}, plain...)...)
	w.same(t, "cat", low)
	w.same(t, "cat", high)
	w.same(t, "nix-store", "--verify", "--check-contents")
}

// TestBuildLimits compares what ends builds that never would.
func TestBuildLimits(t *testing.T) {
	w := newWorld(t)
	w.file(t, "l.nix", `let sh = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; };
in { silent = sh "silent" "echo x; read x < /dev/zero"; loud = sh "loud" "while :; do echo 0123456789012345678901234567890123456789; done"; }`)
	for _, c := range []struct {
		attr string
		args []string
		want string
	}{
		{"silent", []string{"--timeout", "1"}, "timed out after 1 seconds"},
		{"silent", []string{"--max-silent-time", "1"}, "timed out after 1 seconds of silence"},
		{"loud", []string{"--option", "max-build-log-size", "10000"}, "killed after writing more than 10000 bytes of log output"},
	} {
		a, b := w.build(append([]string{"l.nix", "-A", c.attr}, c.args...)...)
		if a.code == 0 || b.code == 0 || !strings.Contains(a.err, c.want) || !strings.Contains(b.err, c.want) {
			t.Errorf("%v: want %q\nnix:   %d %s\ncairn: %d %s", c.args, c.want, a.code, a.err, b.code, b.err)
		}
	}
}

// TestHooks runs post-build and diff hooks that say what they see.
func TestHooks(t *testing.T) {
	w := newWorld(t)
	w.file(t, "h.nix", `{ n, x ? 1 }: derivation { name = "h${toString n}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo built; read x < /proc/uptime; echo $x > $out" ]; }`)
	hook := filepath.Join(w.root, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho drv $DRV_PATH\n[ -z \"$OUT_PATHS\" ] || echo out $OUT_PATHS >&2\necho args $# \"$1\" \"$2\" \"$3\"\n[ ! -e "+hook+".fail ] || exit 5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := func(n string, option ...string) (a, b output) {
		return w.build(append([]string{"h.nix", "--arg", "n", n}, option...)...)
	}
	a, b := build("1", "--option", "post-build-hook", hook)
	drv := regexp.MustCompile(`/[^ ']*-h1\.drv`).FindString(a.err)
	for i, want := range []string{"running post-build-hook '" + hook + "'", "post-build-hook: drv " + drv + "\n", "post-build-hook: args 0", "post-build-hook: out " + strings.TrimSpace(b.out)} {
		// nix 2.8 forgets OUT_PATHS with CA derivations on.
		if i < 3 && !strings.Contains(a.err, want) || !strings.Contains(b.err, want) {
			t.Errorf("want %q\nnix:   %d %s\ncairn: %d %s", want, a.code, a.err, b.code, b.err)
		}
	}
	a, b = build("1", "--check", "--option", "run-diff-hook", "true", "--option", "diff-hook", hook)
	if a.code == 0 || b.code == 0 || !strings.Contains(a.err, "args 4 ") {
		t.Errorf("diff hook\nnix:   %d %s\ncairn: %d %s", a.code, a.err, b.code, b.err)
	}
	if err := os.WriteFile(hook+".fail", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	a, b = build("2", "--option", "post-build-hook", hook)
	if want := "program '" + hook + "' failed with exit code 5"; a.code == 0 || b.code == 0 || !strings.Contains(a.err, want) || !strings.Contains(b.err, want) {
		t.Errorf("want %q\nnix:   %d %s\ncairn: %d %s", want, a.code, a.err, b.code, b.err)
	}
	os.Remove(hook + ".fail")
	a, b = build("2", "--option", "post-build-hook", hook)
	if a.code != 0 || b.code != 0 || strings.Contains(b.err, "building '") {
		t.Errorf("the output of a build whose hook failed is lost: %s", b.err)
	}
}

// packageTrees adds packages that have what an environment can meet: links to nothing, shared directories, propagated
// packages, collisions. p.nix names them.
func (w *world) packageTrees(t *testing.T) {
	t.Helper()
	trees := map[string][]string{
		"a":     {"bin/a=a", "share/doc/x/f=a", "lib/l=a", "broken -> /nowhere", "sbin -> bin", ".hidden=a", "info/dir=a", "propagated-build-inputs=a", "log/x=a", "etc -> share/doc"},
		"b":     {"bin/b=b", "share/doc/x/g=b", "share/info/dir=b", "sbin/s=b", "etc/own=b", "manifest.json=b"},
		"c":     {"bin/c=c", "x=c"},
		"d":     {"bin/d=d", "bin/a=d"},
		"clash": {"bin/a=clash"},
		"file":  {"bin=file"},
	}
	for _, s := range w.both() {
		for name, tree := range trees {
			dir := filepath.Join(s.work, name)
			for _, e := range tree {
				file, text, _ := strings.Cut(e, "=")
				link, target, isLink := strings.Cut(e, " -> ")
				if isLink {
					file = link
				}
				file = filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if isLink {
					os.Symlink(target, file)
				} else {
					os.WriteFile(file, []byte(text), 0o644)
				}
			}
		}
	}
	// The busybox that is the builders' shell has cp and chmod built in.
	w.file(t, "p.nix", `let
  pkg = name: src: more: extra: derivation { name = "${name}-1.0"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "cp -r ${src} $out; chmod -R u+w $out; ${more}" ]; } // extra;
  users = list: "mkdir -p $out/nix-support; printf '%s ' ${toString list} > $out/nix-support/propagated-user-env-packages";
  low = { meta.priority = 10; };
in rec {
  a = pkg "a" ./a "" { };
  b = pkg "b" ./b (users [ c ]) { };
  c = pkg "c" ./c (users [ d a ]) { };
  d = pkg "d" ./d "" { };
  clash = pkg "clash" ./clash "" { };
  clashLow = pkg "clash-low" ./clash "" low;
  file = pkg "file" ./file "" { };
}`)
}

// TestEnvironment installs packages with nix-env and compares the environments.
func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	w.packageTrees(t)
	profile := func(s *side) string { return filepath.Join(s.work, "profile") }
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-iA", "a"}, ""},
		{[]string{"-iA", "b"}, ""},
		{[]string{"-iA", "clash"}, "have the same priority 5; use 'nix-env --set-flag priority NUMBER INSTALLED_PKGNAME'"},
		{[]string{"-iA", "clashLow"}, ""},
		{[]string{"-iA", "file"}, "/bin'"}, // which collision it is depends on the order of the paths
		{[]string{"--set-flag", "priority", "20", "a"}, ""},
		{[]string{"-e", "b"}, ""},
		{[]string{"--set-flag", "active", "false", "a"}, ""},
		{[]string{"--rollback"}, ""},
		{[]string{"-iA", "c", "d", "--remove-all"}, ""},
	} {
		var results []output
		for _, s := range w.both() {
			o := s.try(nil, slices.Concat([]string{"nix-env", "-f", "p.nix", "-p", profile(s)}, c.args, likeOurs)...)
			if (o.code == 0) != (c.want == "") || !strings.Contains(o.err, c.want) {
				t.Errorf("%s: nix-env %v: %d %s", s.name, c.args, o.code, o.err)
			}
			results = append(results, o)
		}
		if c.want != "" {
			line, _, _ := strings.Cut(results[0].err[strings.Index(results[0].err, "error: "):], "\n")
			if !strings.Contains(results[1].err, strings.TrimPrefix(line, "error: ")) {
				t.Errorf("nix-env %v\nnix:   %s\ncairn: %s", c.args, line, results[1].err)
			}
			continue
		}
		var texts []string
		for _, s := range w.both() {
			target := s.run("readlink", "-f", profile(s))
			texts = append(texts, target+"\n"+s.run("find", target, "-printf", "%P %y %m %l\n")+"\n"+s.run("nix-store", "-q", "--references", target)+"\n"+s.run("nix-env", "-p", profile(s), "-q", "--out-path"))
		}
		if sortedText(texts[0]) != sortedText(texts[1]) {
			t.Errorf("nix-env %v\nnix:\n%s\ncairn:\n%s", c.args, texts[0], texts[1])
		}
		warnings := func(o output) string {
			return strings.Join(regexp.MustCompile(`warning: skipping.*|warning: not including.*`).FindAllString(o.err, -1), "\n")
		}
		if x, y := warnings(results[0]), warnings(results[1]); x != y {
			t.Errorf("nix-env %v\nnix:   %s\ncairn: %s", c.args, x, y)
		}
	}
}

func sortedText(s string) string { return strings.Join(slices.Sorted(slices.Values(lines(s))), "\n") }

// TestChannel subscribes to channels in several packings on a server of ours.
func TestChannel(t *testing.T) { generations(t, testChannel) }

func testChannel(t *testing.T, w *world) {
	var plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	for _, h := range []*tar.Header{
		{Name: "./nixexprs-1.0/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "nixexprs-1.0/default.nix", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3},
		{Name: "nixexprs-1.0/lib/run", Typeflag: tar.TypeReg, Mode: 0o755, Size: 3},
		{Name: "nixexprs-1.0/link", Typeflag: tar.TypeSymlink, Linkname: "lib/run"},
		{Name: "nixexprs-1.0/hard", Typeflag: tar.TypeLink, Linkname: "nixexprs-1.0/lib/run"},
	} {
		tw.WriteHeader(h)
		if h.Size > 0 {
			tw.Write([]byte("{}\n"))
		}
	}
	tw.Close()
	var zipped bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	gz.Write(plain.Bytes())
	gz.Close()
	var two bytes.Buffer
	tw = tar.NewWriter(&two)
	tw.WriteHeader(&tar.Header{Name: "one", Typeflag: tar.TypeReg, Mode: 0o644})
	tw.WriteHeader(&tar.Header{Name: "two", Typeflag: tar.TypeReg, Mode: 0o644})
	tw.Close()
	files := map[string][]byte{"/plain": nil, "/zipped": nil, "/two": nil, "/plain/nixexprs.tar.xz": plain.Bytes(), "/zipped/nixexprs.tar.xz": zipped.Bytes(), "/two/nixexprs.tar.xz": two.Bytes()}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if data, ok := files[r.URL.Path]; ok {
			http.ServeContent(rw, r, "", timeZero, bytes.NewReader(data))
			return
		}
		http.NotFound(rw, r)
	}))
	defer server.Close()
	for _, name := range []string{"plain", "zipped"} {
		for _, s := range w.both() {
			s.run("nix-channel", "--add", server.URL+"/"+name, "ch-"+name)
			s.run("nix-channel", "--update")
		}
	}
	var trees []string
	for _, s := range w.both() {
		channels := s.run("sh", "-c", "readlink -f "+s.state+"/profiles/per-user/root/channels")
		trees = append(trees, channels+"\n"+s.run("find", "-L", channels, "-type", "f", "-printf", "%P %m %s\n"))
	}
	if a, b := sortedText(trees[0]), sortedText(trees[1]); a != b {
		t.Errorf("nix:\n%s\ncairn:\n%s", a, b)
	}
	for _, s := range w.both() {
		s.run("nix-channel", "--add", server.URL+"/two", "two")
		if o := s.try(nil, "nix-channel", "--update"); o.code == 0 || !strings.Contains(o.err, "contains more than one file") {
			t.Errorf("%s: %d %s", s.name, o.code, o.err)
		}
	}
}

var timeZero time.Time

// serve starts a second daemon of ours on the same store with other settings, and returns the side that uses it.
func (w *world) serve(t *testing.T, conf map[string]string) *side {
	t.Helper()
	set := settings.Defaults()
	for name, value := range conf {
		if err := set.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	layout := w.ours.store.Layout()
	layout.SocketPath = filepath.Join(w.root, fmt.Sprintf("s%d", time.Now().UnixNano()))
	b := build.New(w.ours.store, &build.Options{Settings: set})
	server := daemon.New(w.ours.store, b, &daemon.Options{Settings: set})
	l, err := daemon.Listen(layout)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		b.Close()
	})
	s := *w.ours
	s.t, s.conn = t, layout.SocketPath
	s.env = append(slices.DeleteFunc(slices.Clone(s.env), func(v string) bool { return strings.HasPrefix(v, "NIX_DAEMON_SOCKET_PATH=") }), "NIX_DAEMON_SOCKET_PATH="+layout.SocketPath)
	return &s
}

// features are what some tests need of both sides.
const features = "nix-command ca-derivations impure-derivations recursive-nix"

// TestRecursive runs the real client in a build, which adds, evaluates, builds and asks.
func TestRecursive(t *testing.T) {
	w := newWorld(t)
	secret := w.theirs.run("nix-instantiate", "--eval", "--json", "-E", `builtins.toFile "secret" "not for the build"`)
	w.ours.run("nix-instantiate", "--eval", "--json", "-E", `builtins.toFile "secret" "not for the build"`)
	w.file(t, "rec.nix", `{ secret }: let
  sh = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-ec" script ]; } // extra);
  input = sh "input" "echo input > $out" {};
in sh "recursive" ''
    export PATH=/usr/bin:/bin HOME=/build NIX_STATE_DIR=/build/var NIX_CONF_DIR=/build/conf NIX_STORE_DIR=$NIX_STORE NIX_PATH= NIX_CONFIG="experimental-features = nix-command ca-derivations"
    mkdir -p /build/conf $out
    echo hello > file
    added=$(nix-store --add file)
    cat $added > $out/added
    cat > inner.nix <<EOF
    let sh = name: script: derivation { inherit name; system = "$system"; builder = "/bin/sh"; args = [ "-ec" script ]; };
        low = sh "inner-low" "echo low > \\\$out";
    in sh "inner" "echo \''${low} > \\\$out; echo $added >> \\\$out"
EOF
    inner=$(nix-build inner.nix --no-out-link)
    cat $inner > $out/inner
    while read -r p; do cat $p > /dev/null; done < $inner
    echo $inner > $out/ref
    nix-store -qR $inner > $out/closure
    nix-store -q --references $inner > $out/references
    nix path-info --json $inner | sed 's/.*"narHash":"\([^"]*\)".*/\1/' > $out/hash
    nix-store -q --hash ${input} > $out/input
    if nix-store -q --hash ${secret} 2> err; then echo "sees the secret"; exit 1; fi
    if nix-store -r ${secret} 2> err; then echo "gets the secret"; exit 1; fi
    if [ -e ${secret} ]; then echo "the secret is there"; exit 1; fi
    nix-store --gc 2> err
    cat $inner > /dev/null
    echo done > $out/end
  '' { requiredSystemFeatures = [ "recursive-nix" ]; inherit input; }`)
	tools := []string{"/bin/sh=/usr/bin/busybox"}
	for _, name := range []string{"nix-store", "nix-build", "nix", "nix-instantiate"} {
		tools = append(tools, "/usr/bin/"+name+"=/usr/bin/nix")
	}
	for _, name := range []string{"mkdir", "cat", "sed"} {
		tools = append(tools, "/usr/bin/"+name+"=/usr/bin/busybox")
	}
	ours := w.serve(t, map[string]string{"experimental-features": features, "sandbox-paths": strings.Join(tools, " "), "max-jobs": "1"})
	theirTools := append(slices.Clone(tools), "/lib", "/lib64", "/usr/lib")
	args := []string{"nix-build", "rec.nix", "--no-out-link", "--argstr", "secret", strings.Trim(secret, `"`)}
	theirs := *w.theirs // without the daemon, whose features these are not
	theirs.env = append(slices.Clone(theirs.env), "NIX_REMOTE=local")
	a := theirs.try(nil, append(args, "--option", "sandbox", "true", "--option", "sandbox-paths", strings.Join(theirTools, " "),
		"--option", "experimental-features", features, "--option", "system-features", "recursive-nix", "--max-jobs", "2")...)
	b := ours.try(nil, args...)
	if b.code != 0 {
		t.Fatalf("cairn: %d %s\nnix: %d %s", b.code, b.err, a.code, a.err)
	}
	path := strings.TrimSpace(b.out)
	if a.code != 0 {
		t.Errorf("nix: %d %s", a.code, a.err)
	} else if a.out != b.out {
		t.Errorf("nix: %s cairn: %s", a.out, b.out)
	}
	for _, s := range []*side{w.theirs, ours} {
		if a.code != 0 && s == w.theirs {
			continue
		}
		t.Logf("%s: %s", s.name, s.run("sh", "-c", "cd "+path+" && for f in *; do echo $f: $(cat $f); done"))
	}
	if a.code == 0 {
		w.same(t, "sh", "-c", "cd "+path+" && for f in *; do echo $f: $(cat $f); done")
		w.same(t, "nix-store", "-q", "--references", path)
		w.same(t, "nix-store", "-qR", path)
	}
}

// TestImpure builds impure derivations and what may depend on them.
func TestImpure(t *testing.T) { generations(t, testImpure) }

func testImpure(t *testing.T, w *world) {
	w.file(t, "i.nix", `let sh = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-ec" script ]; } // extra);
in rec {
  now = sh "now" "read x < /proc/uptime; echo $x > $out; echo $out >> $out; echo said" { __impure = true; };
  on = sh "on" "while read -r l; do echo \"$l\"; done < ${now} > $out" { __impure = true; };
  fixed = sh "fixed" "read x < ${now}; echo hi > $out" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "sha256-mOpuTyFvL7S2n/+bOkSELDhobKaF8/VdxIxdP7EQe+Q="; };
  pure = sh "pure" "read x < ${now}; echo $x > $out" { };
  onFixed = sh "on-fixed" "read x < ${fixed}; echo $x > $out" { };
}`)
	ours := w.serve(t, map[string]string{"experimental-features": features})
	theirs := *w.theirs
	theirs.env = append(slices.Clone(theirs.env), "NIX_REMOTE=local")
	run := func(s *side, attr string) output {
		return s.try(nil, append([]string{"nix", "build", "--json", "--no-link", "-f", "i.nix", attr, "--option", "experimental-features", features}, likeOurs...)...)
	}
	path := regexp.MustCompile(`"out":"([^"]*)"`)
	for _, s := range []*side{&theirs, ours} {
		seen := map[string]bool{}
		for _, attr := range []string{"now", "now", "on"} {
			o := run(s, attr)
			m := path.FindStringSubmatch(o.out)
			if o.code != 0 || m == nil || seen[m[1]] {
				t.Fatalf("%s: %s: %d %s%s", s.name, attr, o.code, o.out, o.err)
			}
			seen[m[1]] = true
			if text := s.run("cat", m[1]); attr == "now" && !strings.HasSuffix(text, m[1]) {
				t.Errorf("%s: it does not refer to itself: %s", s.name, text)
			}
		}
		o := run(s, "pure")
		if o.code == 0 || !regexp.MustCompile(`pure derivation '[^']*-pure.drv' depends on impure derivation '[^']*-now.drv'`).MatchString(o.err) {
			t.Errorf("%s: pure: %d %s", s.name, o.code, o.err)
		}
	}
	for _, attr := range []string{"fixed", "onFixed"} {
		if a, b := run(&theirs, attr), run(ours, attr); a.code != 0 || b.code != 0 || path.FindString(a.out) != path.FindString(b.out) {
			t.Errorf("%s\nnix:   %s%s\ncairn: %s%s", attr, a.out, a.err, b.out, b.err)
		}
	}
	if o := run(w.ours, "now"); o.code == 0 || !strings.Contains(o.err, "experimental Nix feature 'impure-derivations' is disabled") {
		t.Errorf("a daemon without the feature: %d %s", o.code, o.err)
	}
}

// TestFloating compares content-addressed outputs that refer to themselves and to each other, in files, links and names.
func TestFloating(t *testing.T) {
	w := newWorld(t)
	w.file(t, "c.nix", `let ca = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-ec" script ]; __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } // extra);
in rec {
  self = ca "self" "mkdir -p $out/d; echo $out $out > $out/a; ln -s $out/a $out/link; ln -s d/x $out/d/x; mkdir $out/n; echo x > $out/n/\${out##*/}; printf '%s' $out > $out/d/end" { };
  multi = ca "multi" "mkdir $out $dev $lib; echo $lib > $out/l; ln -s $dev/x $out/dev; echo lib $lib > $lib/self; echo dev $lib > $dev/l" { outputs = [ "out" "dev" "lib" ]; };
  same = ca "same" "echo same > $out; echo same > $dev" { outputs = [ "out" "dev" ]; };
  flat = ca "flat" "echo flat > $out" { outputHashMode = "flat"; };
  sha512 = ca "sha512" "echo sha512 > $out" { outputHashAlgo = "sha512"; };
  on = ca "on" "echo ${multi} ${multi.dev} ${self}/d > $out" { };
  again = ca "on" "echo ${multi} ${multi.dev} ${self}/d > $out; : other" { };
}`)
	for _, attr := range []string{"self", "multi", "multi.dev", "multi.lib", "same", "flat", "sha512", "on", "again"} {
		path := w.realise(t, "c.nix", "-A", attr)
		for _, p := range lines(path) {
			w.same(t, "nix-store", "-q", "--references", p)
			w.same(t, "nix-store", "--dump", p)
			w.samePathInfos(t, p)
		}
	}
}

// TestFetchURL compares nix's own expression for downloads, with mirrors, and archives that are unpacked.
func TestFetchURL(t *testing.T) { generations(t, testFetchURL) }

func testFetchURL(t *testing.T, w *world) {
	w.file(t, "tool", "#!/bin/sh\n")
	w.theirs.run("sh", "-c", "nix-store --dump tool > archive")
	archive, err := os.ReadFile(filepath.Join(w.theirs.work, "archive"))
	if err != nil {
		t.Fatal(err)
	}
	zipped, err := exec.Command("sh", "-c", "xz -c "+filepath.Join(w.theirs.work, "archive")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var asked sync.Map
	flat := strings.TrimSpace(w.same(t, "nix-hash", "--type", "sha256", "--flat", "tool"))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path, true)
		files := map[string][]byte{"/tool": []byte("#!/bin/sh\n"), "/archive.nar": archive, "/archive.nar.xz": zipped, "/mirror/sha256/" + flat: []byte("#!/bin/sh\n")}
		if user, password, _ := r.BasicAuth(); r.URL.Path == "/private" && user == "me" && password == "secret" {
			files["/private"] = []byte("#!/bin/sh\n")
		}
		if data, ok := files[r.URL.Path]; ok {
			http.ServeContent(rw, r, "", timeZero, bytes.NewReader(data))
			return
		}
		http.NotFound(rw, r)
	}))
	defer server.Close()
	host, _, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	for _, s := range w.both() {
		if err := os.WriteFile(filepath.Join(s.work, "netrc"), []byte("machine "+host+" login me password secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recursive := strings.TrimSpace(w.same(t, "nix-hash", "--type", "sha256", "tool"))
	for _, s := range w.both() {
		s.run("chmod", "+x", "tool")
	}
	executable := strings.TrimSpace(w.same(t, "nix-hash", "--type", "sha256", "tool"))
	for name, c := range map[string]struct{ args, want string }{
		"plain":      {`{ url = "URL/tool"; sha256 = "` + flat + `"; }`, ""},
		"executable": {`{ url = "URL/tool"; sha256 = "` + executable + `"; executable = true; name = "tool-x"; }`, ""},
		"unpack":     {`{ url = "URL/archive.nar"; sha256 = "` + recursive + `"; unpack = true; }`, ""},
		"unpack xz":  {`{ url = "URL/archive.nar.xz"; sha256 = "` + recursive + `"; unpack = true; name = "xz"; }`, ""},
		"private":    {`{ url = "URL/private"; sha256 = "` + flat + `"; name = "private"; }`, ""},
		"wrong":      {`{ url = "URL/tool"; sha256 = "` + strings.Repeat("0", 64) + `"; name = "wrong"; }`, "hash mismatch in fixed-output derivation '"},
		"missing":    {`{ url = "URL/none"; sha256 = "` + flat + `"; name = "none"; }`, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			expr := "import <nix/fetchurl.nix> " + strings.ReplaceAll(c.args, "URL", server.URL)
			var outs []output
			for _, s := range w.both() {
				outs = append(outs, s.try(nil, "nix-build", "--no-out-link", "-E", expr, "--option", "netrc-file", filepath.Join(s.work, "netrc")))
			}
			a, b := outs[0], outs[1]
			if a.code != 0 != (b.code != 0) || a.out != b.out || !strings.Contains(a.err, c.want) || !strings.Contains(b.err, c.want) {
				t.Errorf("nix:   %d %s%s\ncairn: %d %s%s", a.code, a.out, a.err, b.code, b.out, b.err)
			}
			if a.code == 0 && b.code == 0 {
				w.same(t, "nix-store", "--dump", strings.TrimSpace(a.out))
			}
		})
	}
	asked.Clear()
	a, b := w.build("-E", `import <nix/fetchurl.nix> { url = "`+server.URL+`/gone"; sha256 = "`+flat+`"; name = "mirrored"; }`, "--option", "hashed-mirrors", server.URL+"/mirror")
	if _, ok := asked.Load("/gone"); a.code != 0 || b.code != 0 || a.out != b.out || ok {
		t.Errorf("mirror: nix: %d %s cairn: %d %s", a.code, a.err, b.code, b.err)
	}
}

// TestBuildResults compares the results of builds as they come over the wire from the two daemons.
func TestBuildResults(t *testing.T) {
	w := newWorld(t)
	w.file(t, "r.nix", `let sh = name: script: extra: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; } // extra);
in rec {
  good = sh "good" "echo good > $out; echo dev > $dev" { outputs = [ "out" "dev" ]; };
  code = sh "code" "exit 3" { };
  none = sh "none" "true" { };
  hash = sh "hash" "echo hi > $out" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000"; };
  fixedCode = sh "fixed-code" "exit 4" { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000"; };
  refs = sh "refs" "echo ${good} > $out" { allowedReferences = [ ]; };
  slow = sh "slow" "read x < /dev/zero" { };
  random = sh "random" "read x < /proc/uptime; echo $x > $out" { };
  needs = sh "needs" "echo ${code} > $out" { };
  needsNeeds = sh "needs-needs" "echo ${needs} > $out" { };
  floating = sh "floating" "echo floating > $out" { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
}`)
	type result struct {
		status  protocol.Status
		times   uint64
		outputs string
	}
	ask := func(s *side, attr string, mode client.Mode, timeout string) (result, string) {
		t.Helper()
		d := s.run("nix-instantiate", "r.nix", "-A", attr)
		p, err := store.Dir(w.theirs.dir).ParsePath(d)
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.Dial(t.Context(), s.conn, &client.Options{Dir: store.Dir(w.theirs.dir)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		o := &protocol.Options{MaxJobs: 2, UseSubstitutes: true, Overrides: map[string]string{"sandbox": "true", "sandbox-paths": "/bin/sh=/usr/bin/busybox", "timeout": timeout}}
		if err := c.SetOptions(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		list, err := c.Build(t.Context(), []protocol.Target{{Path: p, Outputs: protocol.All()}}, mode, nil)
		if err != nil {
			t.Fatalf("%s: %s: %v", s.name, attr, err)
		}
		r := list[0]
		var outs []string
		for name, o := range r.Outputs {
			outs = append(outs, name+"="+o.OutPath.String())
		}
		slices.Sort(outs)
		if r.Status == protocol.Built && (r.Start == 0 || r.Stop < r.Start) {
			t.Errorf("%s: %s: started %d, stopped %d", s.name, attr, r.Start, r.Stop)
		}
		return result{r.Status, r.TimesBuilt, strings.Join(outs, " ")}, r.Error
	}
	for _, c := range []struct {
		attr    string
		mode    client.Mode
		timeout string
	}{
		{"good", client.Normal, "0"}, {"good", client.Normal, "0"}, {"good", client.Check, "0"}, {"code", client.Normal, "0"}, {"none", client.Normal, "0"},
		{"hash", client.Normal, "0"}, {"fixedCode", client.Normal, "0"}, {"refs", client.Normal, "0"}, {"slow", client.Normal, "1"}, {"random", client.Normal, "0"}, {"random", client.Check, "0"},
		{"needs", client.Normal, "0"}, {"needsNeeds", client.Normal, "0"}, {"floating", client.Normal, "0"}, {"floating", client.Normal, "0"},
	} {
		a, x := ask(w.theirs, c.attr, c.mode, c.timeout)
		b, y := ask(w.ours, c.attr, c.mode, c.timeout)
		if a != b {
			t.Errorf("%s, mode %d\nnix:   %+v %s\ncairn: %+v %s", c.attr, c.mode, a, x, b, y)
		}
	}
}
