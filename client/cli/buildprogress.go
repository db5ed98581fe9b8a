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
	mu    sync.Mutex        // guards names
	names map[uint64]string // of running builds
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
		b.name(m.ID, "", true)
	case protocol.KindResult:
		b.result(m)
	}
}

func (b *buildProgress) started(m *protocol.Message) {
	switch m.Activity {
	case protocol.ActBuild, protocol.ActSubstitute, protocol.ActCopyPath, protocol.ActFileTransfer:
	default:
		return
	}
	who := fieldText(m.Fields, 0)
	if p, err := store.ParsePath(who); err == nil {
		who = strings.TrimSuffix(p.Name(), ".drv")
	}
	title := m.Text
	if m.Activity == protocol.ActBuild {
		title = "building " + who
	}
	b.name(m.ID, who, false)
	b.start(m.ID, title)
	if w, _ := b.term.size(); w == 0 && !b.quiet {
		b.line("%s", title)
	}
}

func (b *buildProgress) result(m *protocol.Message) {
	switch m.Result {
	case protocol.ResBuildLogLine, protocol.ResPostBuildLogLine:
		b.log(m.ID, b.name(m.ID, "", false), fieldText(m.Fields, 0))
	case protocol.ResProgress:
		if len(m.Fields) >= 4 && m.Fields[1].Number > 0 {
			text := fmt.Sprintf("%d of %d done, %d running", m.Fields[0].Number, m.Fields[1].Number, m.Fields[2].Number)
			if n := m.Fields[3].Number; n > 0 {
				text += fmt.Sprintf(", %d failed", n)
			}
			b.total("%s", text)
		}
	}
}

// name remembers or returns the name of an activity.
func (b *buildProgress) name(id uint64, name string, forget bool) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name != "" {
		b.names[id] = name
	}
	old := b.names[id]
	if forget {
		delete(b.names, id)
	}
	return old
}

func fieldText(fields []protocol.Field, i int) string {
	if i < len(fields) && fields[i].IsText {
		return fields[i].Text
	}
	return ""
}

// buildObserver starts the display of a build; call close when it is over.
func (e *Env) buildObserver(quiet bool) *buildProgress {
	return &buildProgress{progress: newProgress(e.newTerminal(), quiet), names: map[uint64]string{}}
}
