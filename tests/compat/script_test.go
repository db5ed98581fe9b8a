package compat

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// prelude gives scripts x, which runs a command and prints it, its output, its exit status, and what it calls errors.
// u is x for output whose order means nothing, b is x for builds and deletions, whose errors have other words in each generation.
const prelude = `
say() { s=$?; echo "[$s]"; [ $s = 0 ] || grep -a -E '^ *error:' "$HOME/err" | sed 's/^ *//'; }
x() { echo "$ $*"; "$@" 2>"$HOME/err"; say; }
u() { echo "$ $*"; "$@" >"$HOME/out" 2>"$HOME/err"; say; sort "$HOME/out"; }
b() { echo "$ $*"; "$@" 2>"$HOME/err"; echo "[$?]"; }
new() { [ $COMPAT_NIX != 2.8 ]; }
`

// TestScripts runs each of testdata's scripts on both sides, with both generations, and compares what they print.
// COMPAT_SHOW=1 shows it.
// A line "# only 2.34" names the one generation that a script is for.
func TestScripts(t *testing.T) {
	names, err := filepath.Glob("testdata/*.sh")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		only := regexp.MustCompile(`(?m)^# only (\S+)$`).FindSubmatch(text)
		t.Run(strings.TrimSuffix(filepath.Base(name), ".sh"), func(t *testing.T) {
			generations(t, func(t *testing.T, w *world) {
				if only == nil || string(only[1]) == w.gen.name {
					w.script(t, string(text))
				}
			})
		})
	}
}

// script compares what a script prints on either side, which has the graph as g.nix and a secret key as sk.
func (w *world) script(t *testing.T, text string) {
	t.Helper()
	w.file(t, "g.nix", graph())
	key, err := os.ReadFile("../vectors/secret.key")
	if err != nil {
		t.Fatal(err)
	}
	w.file(t, "sk", string(key))
	var got []string
	for _, s := range w.both() {
		s.env = append(s.env, "COMPAT_NIX="+w.gen.name, "STATE="+s.state)
		o := s.try(nil, "sh", "-c", prelude+text)
		if o.code != 0 {
			t.Errorf("%s: exit status %d: %s", s.name, o.code, o.err)
		}
		got = append(got, s.neutral(o.out))
	}
	if got[0] != got[1] {
		t.Errorf("they differ\n%s", difference(t, got[0], got[1]))
	}
	if os.Getenv("COMPAT_SHOW") != "" {
		t.Log(got[0])
	}
}

// neutral takes out of a text what belongs to a side.
func (s *side) neutral(text string) string {
	base := filepath.Dir(s.work)
	return strings.NewReplacer(base, "BASE", s.dir, "STORE", s.conn, "SOCKET").Replace(text)
}

// difference is what diff says of two texts.
func difference(t *testing.T, a, b string) string {
	dir := t.TempDir()
	nix, cairn := filepath.Join(dir, "nix"), filepath.Join(dir, "cairn")
	for name, text := range map[string]string{nix: a, cairn: b} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := exec.Command("diff", "--show-function-line=^[$]", "-U0", nix, cairn).Output()
	return string(out)
}
