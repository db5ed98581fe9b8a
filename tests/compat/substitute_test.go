package compat

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// stocked is a world with what nix has built in a cache, and in neither store.
type stocked struct {
	*world
	cache string // folder
	key   string // public
	opts  []string
	paths map[string]string // by attribute
}

func newStocked(t *testing.T, attrs ...string) *stocked {
	t.Helper()
	w := &stocked{world: newWorld(t), paths: map[string]string{}}
	w.file(t, "g.nix", graph())
	w.cache = filepath.Join(w.root, "cache")
	secret := filepath.Join(w.root, "key")
	w.key = w.theirs.run("sh", "-c", "nix key generate-secret --key-name k > "+secret+" && nix key convert-secret-to-public < "+secret)
	for _, a := range attrs {
		w.paths[a] = w.theirs.run("nix-build", "g.nix", "-A", a, "--no-out-link")
		w.theirs.run("nix", "copy", "--to", "file://"+w.cache+"?secret-key="+secret, w.paths[a])
	}
	w.theirs.run("nix-store", "--gc")
	w.opts = []string{"--option", "substituters", "file://" + w.cache, "--option", "trusted-public-keys", w.key}
	return w
}

func (w *stocked) with(argv ...string) []string { return append(argv, w.opts...) }

// forget takes paths away again on both sides.
func (w *stocked) forget(t *testing.T) {
	t.Helper()
	for _, s := range w.both() {
		s.run("nix-store", "--gc")
	}
}

// told is the part of standard error that both must have: what would be or is done, and whether that failed. Our errors say why.
func told(text string) string {
	var keep []string
	for _, l := range strings.Split(text, "\n") {
		if strings.HasPrefix(l, "these ") || strings.HasPrefix(l, "this ") || strings.HasPrefix(l, "  /") {
			keep = append(keep, l)
		} else if strings.HasPrefix(l, "error") {
			keep = append(keep, "error")
		}
	}
	return strings.Join(keep, "\n")
}

// alike runs a command on both sides and compares output, exit status, and what is told on the way.
func (w *world) alike(t *testing.T, argv ...string) output {
	t.Helper()
	a, b := w.theirs.try(nil, argv...), w.ours.try(nil, argv...)
	if a.out != b.out || a.code != b.code || told(a.err) != told(b.err) {
		t.Errorf("%s\nnix:   %d %s%s\ncairn: %d %s%s", strings.Join(argv, " "), a.code, a.out, a.err, b.code, b.out, b.err)
	}
	return b
}

func TestSubstitute(t *testing.T) {
	w := newStocked(t, "first", "fixed", "two", "onFirst")
	o := w.alike(t, w.with("nix-store", "-r", w.paths["first"], "--dry-run")...)
	if !strings.Contains(o.err, "will be fetched") {
		t.Errorf("dry run says %s", o.err)
	}
	w.alike(t, w.with("nix-store", "-r", w.paths["first"])...)
	w.samePathInfos(t, w.paths["first"])
	w.same(t, "cat", w.paths["first"])
	w.alike(t, w.with("nix-build", "g.nix", "-A", "two", "--no-out-link", "--dry-run")...)
	w.alike(t, w.with("nix-build", "g.nix", "-A", "two", "--no-out-link")...)
	w.alike(t, w.with("nix-build", "g.nix", "-A", "fixed", "--no-out-link")...)
	w.samePathInfos(t, w.paths["two"])
	w.alike(t, w.with("nix", "build", "-f", "g.nix", "onFirst", "--no-link", "--json")...)
	w.alike(t, w.with("nix-build", "g.nix", "-A", "onFloating", "--no-out-link", "--dry-run")...)
	w.forget(t)
	// Without caches, and with a key that is not trusted, everything is built, or nothing found.
	w.alike(t, w.with("nix-build", "g.nix", "-A", "fixed", "--no-out-link", "--dry-run", "--option", "substitute", "false")...)
	w.alike(t, append(w.with("nix-store", "-r", w.paths["first"]), "--option", "substitute", "false")...)
	// nix says that it will fetch what it then does not believe, and takes require-sigs from no client.
	for _, s := range w.both() {
		if o := s.try(nil, append(w.with("nix-store", "-r", w.paths["first"]), "--option", "trusted-public-keys", "")...); o.code != 1 || !strings.Contains(o.err, "not signed by any of the keys in 'trusted-public-keys'") {
			t.Errorf("%s: %d %s", s.name, o.code, o.err)
		}
	}
	w.ours.run(append(w.with("nix-store", "-r", w.paths["first"]), "--option", "trusted-public-keys", "", "--option", "require-sigs", "false")...)
	w.alike(t, w.with("nix-store", "-r", filepath.Join(w.dir, strings.Repeat("0", 32)+"-gone"))...)
	w.alike(t, w.with("nix", "path-info", "--store", "file://"+w.cache, w.paths["two"])...)
}

// TestSubstituteBadCache has nix's own daemon beside ours with a cache in front that refuses connections.
func TestSubstituteBadCache(t *testing.T) {
	w := newStocked(t, "first", "two")
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	files := httptest.NewServer(http.FileServer(http.Dir(w.cache)))
	defer files.Close()
	w.opts[2] = dead.URL + " " + files.URL
	o := w.alike(t, w.with("nix-store", "-r", w.paths["first"])...)
	if o.code != 0 || !strings.Contains(o.err, "warning: cache '"+dead.URL+"' is not used for 60 seconds") {
		t.Errorf("%d %s", o.code, o.err)
	}
	// An archive that is damaged: nix fails without --fallback, this daemon builds.
	narinfos, _ := filepath.Glob(filepath.Join(w.cache, "nar", "*"))
	for _, n := range narinfos {
		if err := os.WriteFile(n, []byte("rubbish"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.same(t, w.with("nix-build", "g.nix", "-A", "two", "--no-out-link", "--fallback")...)
	w.forget(t)
	if got := w.ours.run(w.with("nix-build", "g.nix", "-A", "two", "--no-out-link")...); got != w.paths["two"] {
		t.Errorf("built %s", got)
	}
}

// TestSubstituteProgress looks at the messages from which nix makes its bars.
func TestSubstituteProgress(t *testing.T) {
	w := newStocked(t, "onFirst")
	types := map[string]string{}
	for _, s := range w.both() {
		o := s.try(nil, w.with("nix", "build", w.paths["onFirst"], "--no-link", "--log-format", "internal-json", "-v")...)
		if o.code != 0 {
			t.Fatalf("%s: %s", s.name, o.err)
		}
		seen := map[string]bool{}
		for _, m := range regexp.MustCompile(`"action":"start".*"type":(\d+)`).FindAllStringSubmatch(o.err, -1) {
			seen[m[1]] = true
		}
		var list []string
		for _, want := range []string{"100", "103", "108", "109"} {
			if seen[want] {
				list = append(list, want)
			}
		}
		types[s.name] = strings.Join(list, " ")
		if !strings.Contains(o.err, "copying path '"+w.paths["onFirst"]+"' from 'file://"+w.cache+"'") {
			t.Errorf("%s: %s", s.name, o.err)
		}
	}
	if types["nix"] != types["cairn"] {
		t.Errorf("activities %v", types)
	}
}

// TestSubstituteFloating finds an output by its realisation, which nix writes without a signature. nix's dry run does not know of them; ours does.
func TestSubstituteFloating(t *testing.T) {
	w := newStocked(t)
	w.theirs.run("nix", "build", "-f", "g.nix", "floating", "--no-link")
	w.theirs.run("nix", "copy", "-f", "g.nix", "floating", "--to", "file://"+w.cache)
	w.theirs.run("nix-store", "--gc")
	w.opts[2], w.opts[5] = "file://"+w.cache, ""
	// nix takes it even so.
	if o := w.ours.try(nil, w.with("nix-build", "g.nix", "-A", "floating", "--no-out-link")...); o.code != 0 || !strings.Contains(o.err, "-floating.drv'...") {
		t.Errorf("a realisation without signature was believed: %d %s", o.code, o.err)
	}
	w.forget(t)
	w.opts[2] += "?trusted=true"
	if o := w.ours.try(nil, w.with("nix-build", "g.nix", "-A", "floating", "--no-out-link", "--dry-run")...); !strings.Contains(o.err, "these 2 paths will be fetched") {
		t.Errorf("dry run says %s", o.err)
	}
	path := w.same(t, w.with("nix-build", "g.nix", "-A", "floating", "--no-out-link")...)
	w.samePathInfos(t, path)
	w.same(t, "nix", "path-info", "-f", "g.nix", "floating")
	w.same(t, "nix", "realisation", "info", "--json", "-f", "g.nix", "floating")
}

// TestSubstituteFromStores fetches from nix's own programs, over both protocols, as over ssh.
func TestSubstituteFromStores(t *testing.T) {
	w := newWorld(t)
	w.file(t, "g.nix", graph())
	env := ""
	for _, e := range w.theirs.env {
		if !strings.HasPrefix(e, "NIX_REMOTE=") {
			env += " '" + e + "'"
		}
	}
	for attr, program := range map[string][2]string{"first": {"ssh-ng", "nix-daemon"}, "two": {"ssh", "nix-store"}} {
		path := w.theirs.run("nix-build", "g.nix", "-A", attr, "--no-out-link")
		script := filepath.Join(w.root, program[1])
		if err := os.WriteFile(script, []byte("#!/bin/sh\nexec env -i"+env+" "+program[1]+" \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		uri := program[0] + "://localhost?trusted=true&remote-program=" + script
		o := w.ours.try(nil, "nix-store", "-r", path, "--option", "substituters", uri)
		if o.code != 0 || !strings.Contains(o.err, "copying path '"+path+"' from '"+program[0]+"://localhost'") {
			t.Errorf("%s: %d %s%s", uri, o.code, o.out, o.err)
			continue
		}
		w.same(t, "nix-store", "-q", "--hash", path)
		w.same(t, "nix-store", "-qR", path)
		w.same(t, "nix-store", "-q", "--deriver", path)
	}
}
