package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
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
