package cli

import (
	"strings"
	"testing"
	"time"
)

func TestStripEscapes(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "hello\tworld\n", "hello\tworld\n"},
		{"colour", "\x1b[1;31mred\x1b[0m", "red"},
		{"title", "\x1b]0;title\x07text", "text"},
		{"title with ST", "\x1b]0;title\x1b\\text", "text"},
		{"unfinished CSI", "a\x1b[12", "a"},
		{"unfinished string", "a\x1b]0;never ends", "a"},
		{"charset", "\x1b(Bx", "x"},
		{"bare escape", "a\x1b", "a"},
		{"carriage return", "one\n10%\r20%", "one\n20%"},
		{"CRLF", "a\r\nb", "a\nb"},
		{"C1 CSI", "a\u009b31mb", "a31mb"},
		{"bell and backspace", "a\x07\x08b", "ab"},
		{"bad UTF-8", "a\xffb", "a\ufffdb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := stripEscapes(c.in); got != c.want {
				t.Errorf("stripEscapes(%q) = %q, want %q", c.in, got, c.want)
			}
		})
	}
}

func FuzzStripEscapes(f *testing.F) {
	f.Add("\x1b[31mx\x1b]0;t\x07\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := stripEscapes(s)
		if strings.ContainsFunc(got, isControl) {
			t.Errorf("stripEscapes(%q) = %q keeps control characters", s, got)
		}
		if again := stripEscapes(got); again != got {
			t.Errorf("stripEscapes(%q) is not stable: %q then %q", s, got, again)
		}
	})
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "1500": 1500, "1K": 1024, "1KB": 1000, "1.5G": 3 << 29, "2 MiB": 2 << 20, "9999999P": 1<<63 - 1} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "K", "-1", "1X", "1MBs", "ten", "1e999", "NaN"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestParseAge(t *testing.T) {
	for in, want := range map[string]time.Duration{"30d": 720 * time.Hour, "2w": 336 * time.Hour, "90m": 90 * time.Minute, "0s": 0} {
		if got, err := parseAge(in); err != nil || got != want {
			t.Errorf("parseAge(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "d", "-1d", "x", "-5h", "99999999d"} {
		if got, err := parseAge(in); err == nil {
			t.Errorf("parseAge(%q) = %v, want an error", in, got)
		}
	}
}
