package daemon

import (
	"cairn/daemon/build"
	"cairn/daemon/protocol"
)

// observer turns a request's build events into messages.
//
//	activity "builds" ◀── progress
//	  └─ activity "build", one for each ◀── log lines, phases
type observer struct {
	x      *session
	builds uint64
}

// observe starts the activity of a request that builds.
func (x *session) observe() *observer {
	o := &observer{x: x, builds: x.server.ids.Add(1)}
	x.tunnel.send(&protocol.Message{Kind: protocol.KindStart, ID: o.builds, Level: protocol.LevelDebug, Activity: protocol.ActBuilds})
	return o
}

func (o *observer) end() { o.x.tunnel.send(&protocol.Message{Kind: protocol.KindStop, ID: o.builds}) }

// id is the activity of a build. Builds have the upper half of the numbers, so that they meet no other activity's.
func (o *observer) id(e build.Event) uint64 { return 1<<62 | e.Activity }

// Event tells the client.
func (o *observer) Event(e build.Event) {
	m := &protocol.Message{Kind: protocol.KindResult, ID: o.id(e)}
	switch e.Kind {
	case build.Started:
		m.Kind, m.Level, m.Activity, m.Parent = protocol.KindStart, protocol.LevelInfo, protocol.ActBuild, o.builds
		m.Text = "building '" + e.Drv.String() + "'"
		if e.Machine != "" {
			m.Text += " on '" + e.Machine + "'"
		}
		m.Fields = []protocol.Field{protocol.Text(e.Drv.String()), protocol.Text(e.Machine), protocol.Number(1), protocol.Number(1)}
	case build.Stopped:
		m.Kind = protocol.KindStop
	case build.Line:
		if o.x.set.verbose {
			m = &protocol.Message{Kind: protocol.KindNext, Text: e.Text + "\n"}
			break
		}
		m.Result, m.Fields = protocol.ResBuildLogLine, []protocol.Field{protocol.Text(e.Text)}
	case build.Phase:
		m.Result, m.Fields = protocol.ResSetPhase, []protocol.Field{protocol.Text(e.Text)}
	case build.Progress:
		m.ID, m.Result = o.builds, protocol.ResProgress
		m.Fields = numbers(e.Counts.Done, e.Counts.Expected, e.Counts.Running, e.Counts.Failed)
	default:
		return
	}
	o.x.tunnel.send(m)
}

func numbers(list ...int) []protocol.Field {
	fields := make([]protocol.Field, len(list))
	for i, n := range list {
		fields[i] = protocol.Number(uint64(max(n, 0)))
	}
	return fields
}
