package cli

import (
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// terminal is where progress is drawn; width is 0 when the output is no terminal.
type terminal struct {
	w    io.Writer
	file *os.File
}

// newTerminal finds out whether standard error is a terminal that understands cursor movement.
func (e *Env) newTerminal() *terminal {
	t := &terminal{w: e.Stderr}
	f, ok := e.Stderr.(*os.File)
	if ok && term.IsTerminal(int(f.Fd())) && e.Getenv("TERM") != "dumb" && e.Getenv("TERM") != "" && e.Getenv("CI") == "" {
		t.file = f
	}
	return t
}

// size returns columns and lines, or zeros when the output is no terminal.
func (t *terminal) size() (width, height int) {
	if t.file == nil {
		return 0, 0
	}
	width, height, err := term.GetSize(int(t.file.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// stripEscapes removes terminal escape sequences and control characters other than newline and tab.
// A carriage return in the middle of a line starts the line anew, as a terminal would show it.
func stripEscapes(s string) string {
	if !strings.ContainsFunc(s, isControl) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	line := 0 // length of b where the current line starts
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == 0x1b:
			n = escapeLen(s[i:])
		case r == '\r' && i+1 < len(s) && s[i+1] != '\n':
			keep := b.String()[:line]
			b.Reset()
			b.WriteString(keep)
		case isControl(r):
		case r == utf8.RuneError && n == 1:
			b.WriteRune(utf8.RuneError)
		default:
			b.WriteRune(r)
			if r == '\n' {
				line = b.Len()
			}
		}
		i += n
	}
	return b.String()
}

func isControl(r rune) bool {
	return r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0
}

// escapeLen returns the length of the escape sequence that s starts with.
func escapeLen(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch s[1] {
	case '[': // CSI: up to a final byte
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']', 'P', '^', '_', 'X': // strings: up to BEL or ST
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
				return i + 2
			}
		}
		return len(s)
	case '(', ')', '*', '+', '#', '%', ' ':
		return min(3, len(s))
	}
	return 2
}

// fit cuts s to width columns, counting a rune as one.
func fit(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	runes := []rune(s)
	return string(runes[:max(0, width-1)]) + "…"
}
