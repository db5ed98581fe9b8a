package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// progress draws running work: permanent lines above, one line per running activity below.
// Where the output is no terminal only the permanent lines are written.
//
// Its methods may be called from any goroutine; mu guards everything and is held for one write.
type progress struct {
	term  *terminal
	quiet bool // no lines of logs, no "started" lines
	stop  chan struct{}
	done  sync.WaitGroup

	mu      sync.Mutex
	running []*activity
	summary string
	drawn   int  // lines on the screen below the permanent ones
	dirty   bool // something changed since the last frame
}

// activity is one running thing with a line of its own.
type activity struct {
	id    uint64
	title string
	last  string // latest log line or phase
	since time.Time
}

const frameEvery = 100 * time.Millisecond

// newProgress is the progress of a command that shows nothing at all when it is to be quiet.
func (e *Env) newProgress(quiet bool) *progress {
	t := e.newTerminal()
	if quiet {
		t = &terminal{w: io.Discard}
	}
	return newProgress(t, quiet)
}

// newProgress starts drawing; close ends it and clears the running lines.
func newProgress(t *terminal, quiet bool) *progress {
	p := &progress{term: t, quiet: quiet, stop: make(chan struct{})}
	if w, _ := t.size(); w > 0 {
		p.done.Go(p.draw)
	}
	return p
}

func (p *progress) draw() {
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			if p.dirty || len(p.running) > 0 {
				p.write("")
			}
			p.mu.Unlock()
		}
	}
}

func (p *progress) close() {
	close(p.stop)
	p.done.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.summary = nil, ""
	if p.drawn > 0 {
		p.write("")
	}
}

// line writes a permanent line.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write(stripEscapes(fmt.Sprintf(format, args...)) + "\n")
}

// aside runs a function that prints elsewhere, perhaps on the same screen, without the running lines there.
func (p *progress) aside(print func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn > 0 {
		fmt.Fprintf(p.term.w, "\x1b[%dA\r\x1b[J", p.drawn)
		p.drawn, p.dirty = 0, true
	}
	print()
}

// start adds a running activity, unless it is there already.
func (p *progress) start(id uint64, title string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.find(id) == nil {
		p.running = append(p.running, &activity{id: id, title: title, since: time.Now()})
		p.dirty = true
	}
}

// find returns a running activity, or nil. Callers hold mu.
func (p *progress) find(id uint64) *activity {
	for _, a := range p.running {
		if a.id == id {
			return a
		}
	}
	return nil
}

// latest sets what is shown behind an activity.
func (p *progress) latest(id uint64, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.find(id); a != nil {
		a.last, p.dirty = stripEscapes(text), true
	}
}

// log adds a line of an activity's output; who names it in the permanent line.
func (p *progress) log(id uint64, who, text string) {
	text = stripEscapes(strings.TrimRight(text, "\r\n"))
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.find(id); a != nil {
		a.last = text
	}
	if !p.quiet {
		p.write(who + "> " + text + "\n")
	}
	p.dirty = true
}

// finish removes an activity.
func (p *progress) finish(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, a := range p.running {
		if a.id == id {
			p.running = append(p.running[:i], p.running[i+1:]...)
			break
		}
	}
	p.dirty = true
}

// total sets the line below the running activities.
func (p *progress) total(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.summary, p.dirty = fmt.Sprintf(format, args...), true
}

// write replaces the running lines by permanent text and the current running lines, in one write
// that a terminal shows at once. Callers hold mu.
func (p *progress) write(permanent string) {
	width, height := p.term.size()
	if width == 0 {
		io.WriteString(p.term.w, permanent)
		return
	}
	var b bytes.Buffer
	b.WriteString("\x1b[?2026h")
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	b.WriteString("\r\x1b[J")
	b.WriteString(permanent)
	lines := p.lines(width, height-2)
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	b.WriteString("\x1b[?2026l")
	p.drawn, p.dirty = len(lines), false
	p.term.w.Write(b.Bytes())
}

func (p *progress) lines(width, height int) []string {
	var lines []string
	for _, a := range p.running {
		if len(lines) >= height-2 {
			lines = append(lines, fmt.Sprintf("  … and %d more", len(p.running)-len(lines)))
			break
		}
		text := fmt.Sprintf("  %s %s", a.title, time.Since(a.since).Round(100*time.Millisecond))
		if a.last != "" {
			text += "  " + a.last
		}
		lines = append(lines, fit(stripEscapes(text), width))
	}
	if p.summary != "" {
		lines = append(lines, fit(p.summary, width))
	}
	return lines
}
