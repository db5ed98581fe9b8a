package cli

import (
	"fmt"
	"strings"
	"sync"

	"cairn/daemon/protocol"
	"cairn/store"
)

// buildProgress shows what a daemon tells during a build.
type buildProgress struct {
	*progress
	mu     sync.Mutex // guards the rest
	names  map[uint64]string
	types  map[uint64]protocol.ActivityType // of running activities
	builds [4]uint64                        // done, expected, running, failed
	copies [4]uint64
	bytes  map[uint64]uint64 // of downloads, as far as they have come
	all    uint64            // that are expected
}

// Message is called by the connection, in order.
func (b *buildProgress) Message(m *protocol.Message) {
	switch m.Kind {
	case protocol.KindNext:
		b.line("%s", strings.TrimRight(m.Text, "\n"))
	case protocol.KindStart:
		b.started(m)
	case protocol.KindStop:
		b.finish(m.ID)
		b.forget(m.ID)
	case protocol.KindResult:
		b.result(m)
	}
}

// started shows builds and downloads. A download is three activities in one another, of which the middle one is shown.
func (b *buildProgress) started(m *protocol.Message) {
	who := fieldText(m.Fields, 0)
	if p, err := store.ParsePath(who); err == nil {
		who = strings.TrimSuffix(p.Name(), ".drv")
	}
	b.mu.Lock()
	b.names[m.ID], b.types[m.ID] = who, m.Activity
	b.mu.Unlock()
	title := ""
	switch m.Activity {
	case protocol.ActBuild:
		title = "building " + who
		if machine := fieldText(m.Fields, 1); machine != "" {
			title += " on " + machine
		}
	case protocol.ActCopyPath:
		title = "fetching " + who + " from " + fieldText(m.Fields, 1)
	default:
		return
	}
	b.start(m.ID, title)
	if w, _ := b.term.size(); w == 0 && !b.quiet {
		b.line("%s", title)
	}
}

func (b *buildProgress) result(m *protocol.Message) {
	switch m.Result {
	case protocol.ResBuildLogLine, protocol.ResPostBuildLogLine:
		b.mu.Lock()
		who := b.names[m.ID]
		b.mu.Unlock()
		b.log(m.ID, who, fieldText(m.Fields, 0))
	case protocol.ResProgress:
		if len(m.Fields) >= 4 {
			b.progressed(m.ID, [4]uint64{m.Fields[0].Number, m.Fields[1].Number, m.Fields[2].Number, m.Fields[3].Number})
		}
	case protocol.ResSetExpected:
		if len(m.Fields) >= 2 && protocol.ActivityType(m.Fields[0].Number) == protocol.ActCopyPath {
			b.mu.Lock()
			b.all = m.Fields[1].Number
			b.mu.Unlock()
		}
	}
}

// progressed takes the numbers of an activity.
func (b *buildProgress) progressed(id uint64, n [4]uint64) {
	b.mu.Lock()
	kind := b.types[id]
	switch kind {
	case protocol.ActBuilds:
		b.builds = n
	case protocol.ActCopyPaths:
		b.copies = n
	case protocol.ActCopyPath:
		b.bytes[id] = n[0]
	}
	text := b.summary()
	b.mu.Unlock()
	if kind == protocol.ActCopyPath && n[1] > 0 {
		b.latest(id, formatSize(int64(n[0]))+" of "+formatSize(int64(n[1])))
	}
	if text != "" {
		b.total("%s", text)
	}
}

// summary is the line below all. The caller holds mu.
func (b *buildProgress) summary() string {
	var parts []string
	if b.builds[1] > 0 {
		parts = append(parts, counts(b.builds, "done"))
	}
	if b.copies[1] > 0 {
		text := counts(b.copies, "fetched")
		if b.all > 0 {
			var come uint64
			for _, n := range b.bytes {
				come += n
			}
			text += fmt.Sprintf(", %s of %s", formatSize(int64(come)), formatSize(int64(b.all)))
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

func counts(n [4]uint64, what string) string {
	text := fmt.Sprintf("%d of %d %s, %d running", n[0], n[1], what, n[2])
	if n[3] > 0 {
		text += fmt.Sprintf(", %d failed", n[3])
	}
	return text
}

// forget drops what is known of an activity that has ended; its bytes stay.
func (b *buildProgress) forget(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.names, id)
	delete(b.types, id)
}

func fieldText(fields []protocol.Field, i int) string {
	if i < len(fields) && fields[i].IsText {
		return fields[i].Text
	}
	return ""
}

// buildObserver starts the display of a build; call close when it is over.
func (e *Env) buildObserver(quiet bool) *buildProgress {
	return &buildProgress{
		progress: newProgress(e.newTerminal(), quiet),
		names:    map[uint64]string{}, types: map[uint64]protocol.ActivityType{}, bytes: map[uint64]uint64{},
	}
}
