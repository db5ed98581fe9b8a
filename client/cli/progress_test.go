package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"cairn/daemon/protocol"
)

func TestProgressWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&terminal{w: &out}, false)
	p.start(1, "building hello")
	p.log(1, "hello", "\x1b[31mred\x1b[0m\r\n")
	p.line("done\x07")
	p.finish(1)
	p.close()
	if want := "hello> red\ndone\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestProgressLines(t *testing.T) {
	p := &progress{}
	for i := range 40 {
		p.start(uint64(i), "building "+strings.Repeat("ü", 60))
	}
	p.latest(3, "\x1b[2Jphase "+strings.Repeat("x", 100))
	p.total("3 of 40 done")
	lines := p.lines(70, 10)
	if len(lines) > 10 || lines[len(lines)-1] != "3 of 40 done" || !strings.Contains(lines[len(lines)-2], "and 32 more") {
		t.Errorf("lines are %q", lines)
	}
	for _, l := range lines {
		if utf8.RuneCountInString(l) > 70 || strings.ContainsFunc(l, isControl) {
			t.Errorf("line does not fit or has control characters: %q", l)
		}
	}
}

func TestPlainText(t *testing.T) {
	var out bytes.Buffer
	w := &plainText{w: &out}
	for _, b := range []string{"a\x1b[3", "1mb\nc", "d", "\n", "last"} {
		if _, err := w.Write([]byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil || out.String() != "ab\ncd\nlast" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// TestFetchProgress shows a download once, its bytes behind it, and what all have brought below.
func TestFetchProgress(t *testing.T) {
	b := (&Env{Stderr: &bytes.Buffer{}}).buildObserver(false)
	defer b.close()
	path := protocol.Text("/nix/store/" + strings.Repeat("0", 32) + "-hello")
	start := func(id uint64, a protocol.ActivityType, fields ...protocol.Field) {
		b.Message(&protocol.Message{Kind: protocol.KindStart, ID: id, Activity: a, Fields: fields})
	}
	result := func(id uint64, r protocol.ResultType, numbers ...uint64) {
		var fields []protocol.Field
		for _, n := range numbers {
			fields = append(fields, protocol.Number(n))
		}
		b.Message(&protocol.Message{Kind: protocol.KindResult, ID: id, Result: r, Fields: fields})
	}
	start(1, protocol.ActBuilds)
	start(2, protocol.ActCopyPaths)
	start(3, protocol.ActSubstitute, path, protocol.Text("https://c"))
	start(4, protocol.ActCopyPath, path, protocol.Text("https://c"), protocol.Text("daemon"))
	start(5, protocol.ActFileTransfer, protocol.Text("https://c/nar/x"))
	result(2, protocol.ResSetExpected, uint64(protocol.ActCopyPath), 4<<20)
	result(2, protocol.ResProgress, 1, 3, 1, 0)
	result(4, protocol.ResProgress, 1<<20, 2<<20, 0, 0)
	lines := b.lines(200, 10)
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "  fetching hello from https://c ") || !strings.HasSuffix(lines[0], "1.0 MiB of 2.0 MiB") {
		t.Errorf("lines are %q", lines)
	}
	if want := "1 of 3 fetched, 1 running, 1.0 MiB of 4.0 MiB"; lines[len(lines)-1] != want {
		t.Errorf("summary is %q, want %q", lines[len(lines)-1], want)
	}
	result(1, protocol.ResProgress, 0, 2, 1, 1)
	b.Message(&protocol.Message{Kind: protocol.KindStop, ID: 4})
	if lines = b.lines(200, 10); len(lines) != 1 || lines[0] != "0 of 2 done, 1 running, 1 failed; 1 of 3 fetched, 1 running, 1.0 MiB of 4.0 MiB" {
		t.Errorf("lines are %q", lines)
	}
}
