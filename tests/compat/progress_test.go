package compat

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

const phases = `let
  sh = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; };
in rec {
  first = sh "first" "echo '@nix {\"action\":\"setPhase\",\"phase\":\"onePhase\"}'; echo hello; echo '@nix {\"action\":\"setPhase\",\"phase\":\"twoPhase\"}'; echo world; echo > $out";
  second = sh "second" "read x < ${first}; echo on $x; echo > $out";
  all = sh "all" "read x < ${second}; read x < ${broken}; echo > $out";
  slow = sh "slow" "read x < ${second'}; echo '@nix {\"action\":\"setPhase\",\"phase\":\"slowPhase\"}'; echo working; i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo > $out";
  second' = sh "second" "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo > $out";
  broken = sh "broken" "echo bad news; exit 3";
}
`

// event is a line of --log-format internal-json.
type event struct {
	Action string `json:"action"`
	ID     uint64 `json:"id"`
	Parent uint64 `json:"parent"`
	Type   int    `json:"type"`
	Level  int    `json:"level"`
	Text   string `json:"text"`
	Msg    string `json:"msg"`
	Fields []any  `json:"fields"`
}

func events(t *testing.T, text string) []string {
	t.Helper()
	names := map[uint64]string{0: "-"}
	var list []string
	for line := range strings.Lines(text) {
		line, ok := strings.CutPrefix(line, "@nix ")
		if !ok {
			continue
		}
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch e.Action {
		case "start":
			names[e.ID] = fmt.Sprintf("%d%v", e.Type, e.Fields)
			list = append(list, fmt.Sprintf("start %s in %s level %d %q", names[e.ID], names[e.Parent], e.Level, e.Text))
		case "stop":
			list = append(list, "stop "+names[e.ID])
		case "result":
			list = append(list, fmt.Sprintf("result %d %v of %s", e.Type, e.Fields, names[e.ID]))
		case "msg":
			list = append(list, fmt.Sprintf("msg %d %s", e.Level, colours.ReplaceAllString(e.Msg, "")))
		}
	}
	return list
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*[mK]")

// settled leaves out how Nix finds out, step by step, how much there is to do: what comes before the first build starts. It
// leaves out errors, too: Nix logs that of a dependency when it fails, cairn puts it into the error of what needs it.
func settled(list []string) []string {
	var rest []string
	building := false
	for _, e := range list {
		building = building || strings.HasPrefix(e, "start 105")
		if !building && (strings.HasPrefix(e, "result ") || strings.Contains(e, " 0[]")) || strings.HasPrefix(e, "msg 4 evaluating") || strings.HasPrefix(e, "msg 0 ") {
			continue
		}
		rest = append(rest, e)
	}
	return rest
}

// TestProgress compares what the client is told of a build, event by event.
func TestProgress(t *testing.T) {
	w := newWorld(t)
	w.file(t, "p.nix", phases)
	for _, attr := range []string{"second", "broken", "all"} {
		got := map[string]string{}
		for _, s := range w.both() {
			o := s.try(nil, "nix", "build", "-f", "p.nix", attr, "--no-link", "-v", "--keep-going", "-j1", "--log-format", "internal-json")
			list := settled(events(t, o.err))
			if len(list) < 10 {
				t.Fatalf("%s: %s: few events: %s", s.name, attr, o.err)
			}
			if attr != "second" && !strings.Contains(o.err, "failed with exit code 3") {
				t.Errorf("%s: %s: why is not told: %s", s.name, attr, o.err)
			}
			got[s.name] = strings.Join(list, "\n")
		}
		if got["nix"] != got["cairn"] {
			t.Errorf("%s: nix tells\n%s\ncairn tells\n%s", attr, got["nix"], got["cairn"])
		}
	}
}

// TestBar looks at what a terminal shows: the bar with counts, the phase and the last line of the build.
func TestBar(t *testing.T) {
	w := newWorld(t)
	w.file(t, "p.nix", phases)
	for _, s := range w.both() {
		o := s.try(nil, "script", "-qec", "stty cols 200; TERM=xterm nix build -f p.nix slow --no-link", "/dev/null")
		if o.code != 0 {
			t.Fatalf("%s: %s%s", s.name, o.out, o.err)
		}
		shown := colours.ReplaceAllString(o.out, "")
		for _, want := range []string{"[1/0/2 built", "[1/1/2 built", "building slow (slowPhase): working", "building second"} {
			if !strings.Contains(shown, want) {
				t.Errorf("%s: the bar never shows %q:\n%q", s.name, want, shown)
			}
		}
	}
}
