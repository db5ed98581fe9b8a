package compat

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const talkers = `let
  say = name: n: derivation {
    inherit name; system = builtins.currentSystem; builder = "/bin/sh";
    args = [ "-c" "i=0; while [ $i -lt ${toString n} ]; do echo line $i of ${name}; i=$((i+1)); done; echo > $out" ];
  };
in { silent = say "silent" 0; short = say "short" 5; long = say "long" 5000; }
`

// TestLogsOnDisk has Nix's programs read our logs, which they do by themselves, below NIX_LOG_DIR.
func TestLogsOnDisk(t *testing.T) {
	w := newWorld(t)
	w.file(t, "t.nix", talkers)
	for _, attr := range []string{"silent", "short", "long"} {
		drv := w.same(t, "nix-instantiate", "t.nix", "-A", attr)
		out := w.same(t, "nix-store", "-r", drv)
		for _, argv := range [][]string{{"nix-store", "-l", drv}, {"nix-store", "--read-log", out}, {"nix", "log", drv}, {"nix", "log", "-f", "t.nix", attr}} {
			got := w.same(t, argv...)
			if attr == "long" && strings.Count(got, "\n") != 4999 {
				t.Errorf("%v: %d lines", argv, strings.Count(got, "\n"))
			}
		}
	}
	none := w.same(t, "nix-store", "--add", "t.nix")
	for _, s := range w.both() {
		if o := s.try(nil, "nix-store", "-l", none); o.code != 1 || !strings.Contains(o.err, "is not available") {
			t.Errorf("%s: log of what has none: %d %s", s.name, o.code, o.err)
		}
	}
}

// TestRootsOnDisk compares the links that keep objects alive.
func TestRootsOnDisk(t *testing.T) {
	w := newWorld(t)
	w.file(t, "t.nix", talkers)
	for _, s := range w.both() {
		s.run("nix-build", "t.nix", "-A", "short", "-o", "result")
		s.run("nix-store", "--add-root", filepath.Join(s.work, "second"), "-r", filepath.Join(s.work, "result"))
		s.run("nix-env", "-p", filepath.Join(s.state, "profiles", "some"), "--set", s.run("nix-build", "t.nix", "-A", "silent", "--no-out-link"))
	}
	got := map[string][]string{}
	for _, s := range w.both() {
		for _, dir := range []string{"gcroots", "gcroots/auto", "gcroots/per-user", "profiles", "profiles/per-user"} {
			list, err := os.ReadDir(filepath.Join(s.state, dir))
			if err != nil {
				t.Errorf("%s: %v", s.name, err)
				continue
			}
			for _, e := range list {
				if dir == "gcroots" && e.Name() == "profiles" {
					continue // Nix's collector finds profiles through it, ours by itself
				}
				target, _ := os.Readlink(filepath.Join(s.state, dir, e.Name()))
				target = strings.ReplaceAll(strings.ReplaceAll(target, s.work, "WORK"), s.state, "STATE")
				if strings.HasPrefix(target, "/tmp/nix-build-") {
					target = "TEMPORARY"
				}
				name := e.Name()
				if dir == "gcroots/auto" {
					name = "HASH"
				}
				got[s.name] = append(got[s.name], dir+"/"+name+" "+e.Type().String()+" -> "+target)
			}
		}
	}
	if a, b := strings.Join(slices.Sorted(slices.Values(got["nix"])), "\n"), strings.Join(slices.Sorted(slices.Values(got["cairn"])), "\n"); a != b {
		t.Errorf("nix has\n%s\ncairn has\n%s", a, b)
	}
	for _, s := range w.both() {
		s.run("nix-collect-garbage")
		if o := s.try(nil, "nix-store", "--check-validity", s.run("readlink", "-f", filepath.Join(s.work, "second"))); o.code != 0 {
			t.Errorf("%s: root was collected: %s", s.name, o.err)
		}
	}
}
