package daemon

import (
	"fmt"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
)

// observer turns a request's build events into messages.
//
//	activity "realise" ◀── expected bytes
//	activity "builds" ◀── progress
//	activity "copy paths" ◀── progress
//	activity "build", one for each ◀── log lines, phases
//	  └─ activity "post-build hook" ◀── its lines
//	activity "substitute", one for each object
//	  └─ activity "copy path" ◀── bytes of the archive
//	       └─ activity "file transfer" ◀── bytes from the cache
//	activity "query path info", one for each question
type observer struct {
	x                       *session
	realise, builds, copies uint64
}

// observe starts the activities of a request that builds.
func (x *session) observe() *observer {
	o := &observer{x: x, realise: x.server.ids.Add(1), builds: x.server.ids.Add(1), copies: x.server.ids.Add(1)}
	x.tunnel.send(&protocol.Message{Kind: protocol.KindStart, ID: o.realise, Activity: protocol.ActRealise})
	x.tunnel.send(&protocol.Message{Kind: protocol.KindStart, ID: o.builds, Activity: protocol.ActBuilds})
	x.tunnel.send(&protocol.Message{Kind: protocol.KindStart, ID: o.copies, Activity: protocol.ActCopyPaths})
	return o
}

func (o *observer) end() {
	for _, id := range []uint64{o.copies, o.builds, o.realise} {
		o.x.tunnel.send(&protocol.Message{Kind: protocol.KindStop, ID: id})
	}
}

// id is the activity of a build. Builds have the upper half of the numbers, so that they meet no other activity's.
func (o *observer) id(e build.Event) uint64 { return 1<<62 | e.Activity }

// hook is the activity of a build's post-build hook.
func (o *observer) hook(e build.Event) uint64 { return 1<<61 | e.Activity }

// headlines say what a build does, by mode.
var headlines = [...]string{build.Normal: "building '%s'", build.Repair: "repairing outputs of '%s'", build.Check: "checking outputs of '%s'"}

// Event tells the client.
func (o *observer) Event(e build.Event) {
	m := &protocol.Message{Kind: protocol.KindResult, ID: o.id(e)}
	switch e.Kind {
	case build.Started:
		m.Kind, m.Level, m.Activity = protocol.KindStart, protocol.LevelInfo, protocol.ActBuild
		m.Text = fmt.Sprintf(headlines[e.Mode], e.Drv)
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
		o.counts(e.Counts)
		return
	case build.HookStarted:
		m.Kind, m.ID, m.Parent, m.Level, m.Activity = protocol.KindStart, o.hook(e), o.id(e), protocol.LevelInfo, protocol.ActPostBuildHook
		m.Text, m.Fields = fmt.Sprintf("running post-build-hook '%s'", e.Text), []protocol.Field{protocol.Text(e.Drv.String())}
	case build.HookLine:
		m.ID, m.Result, m.Fields = o.hook(e), protocol.ResPostBuildLogLine, []protocol.Field{protocol.Text(e.Text)}
	case build.HookStopped:
		m.Kind, m.ID = protocol.KindStop, o.hook(e)
	default:
		o.fetch(e)
		return
	}
	o.x.tunnel.send(m)
}

// counts tells how far the request is. Nix does not expect any more what has failed.
func (o *observer) counts(c build.Counts) {
	result := func(id uint64, t protocol.ResultType, list ...int) {
		o.x.tunnel.send(&protocol.Message{Kind: protocol.KindResult, ID: id, Result: t, Fields: numbers(list...)})
	}
	result(o.builds, protocol.ResProgress, c.Done, c.Expected-c.Failed, c.Running, c.Failed)
	result(o.copies, protocol.ResProgress, c.Fetch.Done, c.Fetch.Expected-c.Fetch.Failed, c.Fetch.Running, c.Fetch.Failed)
	result(o.realise, protocol.ResSetExpected, int(protocol.ActFileTransfer), int(c.Download))
	result(o.realise, protocol.ResSetExpected, int(protocol.ActCopyPath), int(c.Unpacked))
}

func numbers(list ...int) []protocol.Field {
	fields := make([]protocol.Field, len(list))
	for i, n := range list {
		fields[i] = protocol.Number(uint64(max(n, 0)))
	}
	return fields
}
