package activate_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/services/activate"
	"cairn/store/profile"
)

const journal = `{"event":"open","time":1,"version":1,"id":"20260101T000000-aa","from":"","system":"/cairn/store/x","bootID":"b"}
{"event":"begin","time":1,"seq":1,"step":{"kind":"start","unit":"a.service"}}
{"event":"begin","time":1,"seq":2,"step":{"kind":"daemon-reload"}}
`

func TestParseJournal(t *testing.T) {
	j, err := activate.ParseJournal(strings.NewReader(journal + `{"event":"await","deadline":7,"bootID":"b"}` + "\n" + `{"event":"conf`))
	if err != nil {
		t.Fatal(err)
	}
	if len(j.Steps) != 2 || !j.Awaiting || j.Deadline != 7 || j.Confirmed {
		t.Errorf("%+v", j)
	}
	for name, text := range map[string]string{
		"no open":      `{"event":"confirm"}` + "\n",
		"two opens":    journal + strings.SplitAfter(journal, "\n")[0],
		"version":      `{"event":"open","version":2,"id":"a"}` + "\n",
		"id":           `{"event":"open","version":1,"id":"../a"}` + "\n",
		"order":        journal + `{"event":"begin","seq":7,"step":{"kind":"x"}}` + "\n",
		"no step":      journal + `{"event":"begin","seq":3}` + "\n",
		"event":        journal + `{"event":"dance"}` + "\n",
		"torn earlier": `{"event":"op` + "\n" + journal,
	} {
		if _, err := activate.ParseJournal(strings.NewReader(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseJournal(f *testing.F) {
	f.Add([]byte(journal))
	f.Add([]byte(journal + `{"event":"close","outcome":"undone","errors":["x"]}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := activate.ParseJournal(bytes.NewReader(data))
		if err == nil && bytes.IndexByte(data, '\n') >= 0 && j.ID == "" {
			t.Fatal("a journal without a name")
		}
	})
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"version":1,"files":{"/etc/x":{"now":{"kind":"link","target":"y"},"before":{"kind":"absent"}}},"accounts":{"a":{"created":true},"b":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := activate.ParseState(data)
		if err != nil {
			return
		}
		again, err := activate.ParseState(activate.EncodeState(s))
		if err != nil || !bytes.Equal(activate.EncodeState(s), activate.EncodeState(again)) {
			t.Fatalf("not stable: %v", err)
		}
	})
}

func TestParseListeners(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	table := head +
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 123 1 0\n" +
		"   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 124 1 0\n" +
		"   2: 0100007F:1F91 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 125 1 0\n" +
		"garbage\n   3: zz:16 0 0A 0 0 0 0 0 1 1\n"
	got := activate.ParseListeners(strings.NewReader(table), "tcp")
	if len(got) != 2 {
		t.Fatalf("got %d listeners", len(got))
	}
	if p, a := got[0].Where(); p != 8080 || a != "127.0.0.1" {
		t.Errorf("first: %d %s", p, a)
	}
	if p, a := got[1].Where(); p != 22 || a != "0.0.0.0" {
		t.Errorf("second: %d %s", p, a)
	}
	six := "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1 0\n"
	got = activate.ParseListeners(strings.NewReader(six), "tcp")
	if p, a := got[0].Where(); p != 80 || a != "::1" {
		t.Errorf("ipv6: %d %s", p, a)
	}
}

func FuzzParseListeners(f *testing.F) {
	f.Add("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 123 1 0\n")
	f.Fuzz(func(t *testing.T, s string) { activate.ParseListeners(strings.NewReader(s), "tcp") })
}

func TestParseAccounts(t *testing.T) {
	a, err := activate.ParseAccounts(
		strings.NewReader("root:x:0:0:root:/root:/bin/bash\nbroken\nalice:x:1000:1000:,,,:/home/alice:/bin/sh\nbad:x:no:1:::\n"),
		strings.NewReader("root:x:0:\nsudo:x:27:alice,bob\n"),
		strings.NewReader("root:*:1:0:9:7:::\nalice:!$y$:1:0:9:7::1:\n"))
	if err != nil {
		t.Fatal(err)
	}
	if u := a.Users["alice"]; u.UID != 1000 || !u.Locked || u.Expire != "1" || u.Shell != "/bin/sh" {
		t.Errorf("alice: %+v", u)
	}
	if len(a.Users) != 2 || !slices.Equal(a.Groups["sudo"].Members, []string{"alice", "bob"}) {
		t.Errorf("%+v", a)
	}
}

func TestUnitText(t *testing.T) {
	text := "[Service]\nExecStart=-/bin/a \\\n  --flag \\\n# a comment\n  'two words'\n; ExecStart=/bin/no\nExecStart = !/bin/b\nType=oneshot\n"
	got := activate.Settings(text, "ExecStart")
	if len(got) != 2 || !strings.Contains(got[0], "two words") || got[1] != "!/bin/b" {
		t.Errorf("%q", got)
	}
	if p, optional := activate.ExecProgram(got[0]); p != "/bin/a" || !optional {
		t.Errorf("%s %v", p, optional)
	}
	if p, optional := activate.ExecProgram(got[1]); p != "/bin/b" || optional {
		t.Errorf("%s %v", p, optional)
	}
	if p, _ := activate.ExecProgram("/bin/%i x"); p != "" {
		t.Errorf("a specifier is not a path: %s", p)
	}
	if f := activate.SplitCommand(`/bin/x "a b" 'c d'e  f`); !slices.Equal(f, []string{"/bin/x", "a b", "c de", "f"}) {
		t.Errorf("%q", f)
	}
	if text := activate.RecoverText([]string{"/a b/c", "50%"}, "/cairn/var"); !strings.Contains(text, `ExecStart="/a b/c" "50%%" "--boot"`) {
		t.Errorf("%s", text)
	}
}

func TestSelectGenerations(t *testing.T) {
	now := time.Unix(1e9, 0)
	var list []profile.Generation
	for n := 1; n <= 5; n++ {
		list = append(list, profile.Generation{Number: n, Created: now.Add(-time.Duration(6-n) * 24 * time.Hour), Current: n == 5})
	}
	for pattern, want := range map[string][]int{
		"": {1, 2, 3, 4}, "2": {2}, "1,3..4": {1, 3, 4}, "4..": {4, 5}, "..2": {1, 2}, "3d": {1, 2}, "0d": {1, 2, 3, 4}, "1w": nil,
	} {
		got, err := activate.SelectGenerations(list, pattern, now)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", pattern, got, err, want)
		}
	}
	for _, pattern := range []string{"x", "1,,2", "..", "3x", "-1", "1..x", "99999999999999999999"} {
		if got, err := activate.SelectGenerations(list, pattern, now); err == nil {
			t.Errorf("%q: accepted as %v", pattern, got)
		}
	}
}
