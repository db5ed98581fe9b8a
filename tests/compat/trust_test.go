package compat

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/archive"
)

// become makes the commands of both sides those of a user, with a home of its own.
func (w *world) become(t *testing.T, uid int, groups string) {
	t.Helper()
	for _, s := range w.both() {
		home := filepath.Join(w.root, s.name, fmt.Sprint("home-", uid))
		if err := os.MkdirAll(home, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{home, s.work} {
			if err := os.Chown(dir, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
		s.as = []string{"setpriv", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), groups}
		s.env = append(s.env, "HOME="+home, "XDG_CACHE_HOME="+home+"/cache")
	}
}

// warnings are those that a command prints about what it was told, sorted.
func warnings(o output) []string {
	var list []string
	for _, l := range lines(o.err) {
		if strings.HasPrefix(l, "warning: ignoring ") {
			list = append(list, l)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// judged runs a command on both sides, which must agree whether it may be done.
func (w *world) judged(t *testing.T, stdin []byte, may bool, argv ...string) (theirs, ours output) {
	t.Helper()
	theirs, ours = w.theirs.try(stdin, argv...), w.ours.try(stdin, argv...)
	if (theirs.code == 0) != may || (ours.code == 0) != may {
		t.Errorf("%s: wanted success: %v\nnix:   %d %s%s\ncairn: %d %s%s", strings.Join(argv, " "), may, theirs.code, theirs.out, theirs.err, ours.code, ours.out, ours.err)
	}
	return theirs, ours
}

// signer makes a key in a file that only root can read.
func signer(t *testing.T, name string) (file string, key archive.SecretKey) {
	t.Helper()
	key, err := archive.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), name)
	if err := key.WriteFile(file); err != nil {
		t.Fatal(err)
	}
	return file, key
}

// TestTrust compares what the daemons refuse and allow to a user whom neither trusts, and what they say to it.
func TestTrust(t *testing.T) {
	t.Parallel()
	for _, g := range []*generation{nix28, nix234} {
		t.Run("nix "+g.name, func(t *testing.T) {
			t.Parallel()
			trust(t, g)
		})
	}
}

func trust(t *testing.T, g *generation) {
	good, goodKey := signer(t, "good-1")
	bad, _ := signer(t, "bad-1")
	w := g.worldWith(t, "trusted-public-keys = "+goodKey.Public().String()+"\nsubstituters = file:///nowhere/cache\n")
	w.file(t, "g.nix", graph())
	cache := filepath.Join(w.root, "cache")
	var paths []string
	for n, attr := range []string{"first", "two", "onFirst", "onFloating"} {
		p := w.theirs.run("nix-build", "g.nix", "-A", attr, "--no-out-link", "--option", "substitute", "false")
		key := good
		if n == 1 {
			key = bad
		}
		w.theirs.run("nix", "copy", "--to", "file://"+cache+"?secret-key="+key, p)
		paths = append(paths, p)
	}
	stream := []byte(w.theirs.try(nil, "nix-store", "--export", paths[0]).out)
	for _, s := range w.both() {
		s.run("nix-store", "--gc")
	}
	w.become(t, 65534, "--clear-groups")
	from := "file://" + cache

	// What counts is who signed it, not who brings it.
	w.judged(t, stream, false, "nix-store", "--import")
	w.judged(t, nil, false, "nix", "copy", "--from", from, paths[1])
	w.judged(t, nil, false, "nix", "copy", "--no-check-sigs", "--from", from, paths[1])
	w.judged(t, nil, false, "nix-store", "-q", "--hash", paths[1])
	w.judged(t, nil, true, "nix", "copy", "--from", from, paths[0])
	w.judged(t, stream, false, "nix-store", "--import") // although it is there
	w.same(t, "nix-store", "-q", "--hash", paths[0])
	w.judged(t, nil, true, "nix", "copy", "--from", from, paths[2])

	// A build, and what is nobody's business but the client's.
	offline := []string{"--option", "substitute", "false"}
	w.judged(t, nil, true, append([]string{"nix-build", "g.nix", "-A", "onFloating", "--no-out-link", "--option", "timeout", "100", "--option", "cores", "1", "--option", "max-silent-time", "50"}, offline...)...)
	w.judged(t, nil, false, append([]string{"nix-build", "g.nix", "-A", "onFloating", "--no-out-link", "--repair"}, offline...)...)
	w.judged(t, nil, true, append([]string{"nix-build", "g.nix", "-A", "onFloating", "--no-out-link", "--check"}, offline...)...)
	w.judged(t, nil, true, append([]string{"nix-build", "g.nix", "-A", "two", "-o", "result"}, offline...)...)

	// The store is everybody's to look at and to sweep, but not to mend.
	w.judged(t, nil, true, "nix-store", "--verify")
	w.judged(t, nil, false, "nix-store", "--verify", "--repair")
	w.judged(t, nil, true, "nix-store", "--optimise")
	w.judged(t, nil, true, "nix-store", "--delete", paths[2])
	for _, o := range []output{w.theirs.try(nil, "nix-store", "--gc", "--print-roots"), w.ours.try(nil, "nix-store", "--gc", "--print-roots")} {
		if o.code != 0 || strings.Contains(o.out, "/proc/") {
			t.Errorf("roots: %d %s%s", o.code, o.out, o.err)
		}
	}
	w.judged(t, nil, true, "nix-store", "--gc")
}

// TestRestrictedSettings compares what the daemons say to settings of somebody whom they do not trust. Old ones say nothing about
// most of them.
func TestRestrictedSettings(t *testing.T) {
	generations(t, func(t *testing.T, w *world) {
		w.file(t, "g.nix", graph())
		w.become(t, 65534, "--clear-groups")
		for _, o := range [][]string{
			{"sandbox-paths", "/etc/shadow"}, {"post-build-hook", "/bin/evil"}, {"trusted-public-keys", "x"}, {"require-sigs", "false"}, {"secret-key-files", "/etc/passwd"},
			{"builders", "ssh://evil"}, {"builders", ""}, {"substituters", "file:///evil"}, {"extra-substituters", "file:///evil"},
			{"trusted-users", "nobody"}, {"allowed-users", "x"}, {"build-users-group", "x"}, {"system-features", "kvm"}, {"extra-platforms", "vax-vms"}, {"keep-outputs", "true"}, {"sandbox", "false"}, {"max-build-log-size", "0"},
			{"connect-timeout", "1"}, {"build-timeout", "9"}, {"max-silent-time", "70"}, {"cores", "1"}, {"max-jobs", "1"},
		} {
			theirs, ours := w.judged(t, nil, true, "nix-store", "--option", "substitute", "false", "--option", o[0], o[1], "--add", "g.nix")
			a, b := warnings(theirs), warnings(ours)
			if w.gen == nix28 && !strings.Contains(o[0], "substituters") {
				a = b
			}
			if !slices.EqualFunc(a, b, sameWarning) {
				t.Errorf("%s = %s\nnix:   %q\ncairn: %q", o[0], o[1], a, b)
			}
		}
	})
}

// sameWarning ignores the advice that may follow what is ignored.
func sameWarning(a, b string) bool {
	end := strings.LastIndex(a, "'") + 1
	return strings.Contains(a, "restricted") && a == b || end > 0 && strings.HasPrefix(b, a[:end])
}

// TestTrustedUsers compares users and groups of the settings: those of the database, those of the process, and the builders.
func TestTrustedUsers(t *testing.T) {
	w := nix28.worldWith(t, "trusted-users = root @games\nallowed-users = nobody @games\nbuild-users-group = daemon\n")
	w.file(t, "g.nix", graph())
	// With a group of build users nix's own builds need users in it, so that only things that build nothing are compared.
	local := "local?store=" + w.dir + "&real=" + filepath.Join(w.root, "other", "store") + "&state=" + filepath.Join(w.root, "other", "var") + "&log=" + filepath.Join(w.root, "other", "log")
	w.theirs.run("nix-store", "--store", local, "--add", "g.nix")
	stream := []byte(w.theirs.try(nil, "nix-store", "--store", local, "--export", w.theirs.run("nix-store", "--store", local, "--add", "g.nix")).out)
	for _, s := range w.both() {
		s.run("nix-store", "--verify")
	}
	games, nobody := 60, 65534
	for _, c := range []struct {
		name      string
		uid       int
		groups    string
		may, root bool
	}{
		{"allowed by name", nobody, "--clear-groups", true, false},
		{"trusted by a group of the database", 5, "--clear-groups", true, true}, // games, whose group it is
		{"neither", 33, "--clear-groups", false, false},
		{"a builder", 1, "--clear-groups", false, false}, // daemon
	} {
		w.become(t, c.uid, c.groups)
		if c.uid == 5 {
			for _, s := range w.both() {
				s.as = []string{"setpriv", "--reuid", "5", "--regid", fmt.Sprint(games), "--clear-groups"}
			}
		}
		w.judged(t, nil, c.may, "nix-store", "--add", "g.nix")
		w.judged(t, nil, c.root, "nix-store", "--verify", "--repair")
		w.judged(t, stream, c.root, "nix-store", "--import")
		for _, s := range w.both() {
			s.as = nil
		}
	}
	// Ours also knows the groups that the process has got by other means.
	w.become(t, 33, "--groups="+fmt.Sprint(games))
	if o := w.ours.try(nil, "nix-store", "--add", "g.nix"); o.code != 0 {
		t.Errorf("in a group of allowed-users for this process: %s", o.err)
	}
}

// TestSigning compares signatures: those of what is built, those that are added by hand, and those that are copied.
func TestSigning(t *testing.T) {
	t.Parallel()
	for _, g := range []*generation{nix28, nix234} {
		t.Run("nix "+g.name, func(t *testing.T) {
			t.Parallel()
			signing(t, g)
		})
	}
}

func signing(t *testing.T, g *generation) {
	first, _ := signer(t, "first-1")
	second, _ := signer(t, "second-1")
	w := g.worldWith(t, "secret-key-files = "+first+" "+second+"\n")
	w.file(t, "g.nix", graph())
	sigs := func(path string) {
		t.Helper()
		out := w.same(t, "nix", "path-info", "--sigs", path)
		if !strings.Contains(out, "ultimate") || !strings.Contains(out, "first-1:") || !strings.Contains(out, "second-1:") {
			t.Errorf("signatures of %s: %s", path, out)
		}
	}
	sigs(w.same(t, "nix-build", "g.nix", "-A", "first", "--no-out-link"))
	sigs(w.same(t, "nix-build", "g.nix", "-A", "onFirst", "--no-out-link"))
	w.same(t, "nix", "realisation", "info", "--json", "-f", "g.nix", "onFirst")

	third, key := signer(t, "third-1")
	added := w.same(t, "nix-store", "--add", "g.nix")
	w.same(t, "nix", "store", "sign", "--key-file", third, added)
	out := w.same(t, "nix", "path-info", "--sigs", added)
	if !strings.Contains(out, "third-1:") || strings.Contains(out, "first-1:") {
		t.Errorf("signatures of %s: %s", added, out)
	}
	w.same(t, "nix", "store", "verify", "--sigs-needed", "1", "--option", "trusted-public-keys", key.Public().String(), added)

	// What was built without a key gets the signatures of a cache.
	cache := "file://" + filepath.Join(w.root, "cache")
	w.theirs.run("nix", "copy", "--to", cache+"?secret-key="+third, added)
	for _, s := range w.both() {
		s.run("nix-store", "--delete", added)
	}
	w.same(t, "nix-store", "--add", "g.nix")
	w.same(t, "nix", "store", "copy-sigs", "-s", cache, added)
	if out := w.same(t, "nix", "path-info", "--sigs", added); !strings.Contains(out, "third-1:") {
		t.Errorf("signatures of %s: %s", added, out)
	}

	// Newer daemons let anybody attach a signature, and so does ours, whoever asks: it counts where somebody trusts the key.
	_, stranger := signer(t, "fourth-1")
	fourth := filepath.Join(w.root, "fourth-1")
	if err := os.WriteFile(fourth, []byte(stranger.Reveal()), 0o644); err != nil {
		t.Fatal(err)
	}
	w.become(t, 65534, "--clear-groups")
	sign := []string{"nix", "store", "sign", "--key-file", fourth, added}
	if g == nix28 {
		w.ours.run(sign...)
	} else {
		w.judged(t, nil, true, sign...)
	}
	if out := w.ours.run("nix", "path-info", "--sigs", added); !strings.Contains(out, "fourth-1:") {
		t.Errorf("signatures of %s: %s", added, out)
	}
}
