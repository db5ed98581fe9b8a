package daemon

import (
	"fmt"

	"cairn/daemon/build"
	"cairn/daemon/protocol"
)

// The activities of a download and of a question are told apart from those of builds by their upper bits.
const (
	fetchBit    = 1 << 60
	copyBit     = 1 << 59
	transferBit = 1 << 58
	askBit      = 1 << 57
)

// fetch tells the client of caches.
func (o *observer) fetch(e build.Event) {
	send := o.x.tunnel.send
	stop := func(bit uint64) { send(&protocol.Message{Kind: protocol.KindStop, ID: bit | e.Activity}) }
	path := protocol.Text(e.Path.String())
	switch e.Kind {
	case build.Warning:
		o.x.warn("%s", e.Text)
	case build.Asking:
		send(&protocol.Message{
			Kind: protocol.KindStart, ID: askBit | e.Activity, Level: protocol.LevelTalkative, Activity: protocol.ActQueryPathInfo,
			Text: fmt.Sprintf("querying info about '%s' on '%s'", e.Path, e.Text), Fields: []protocol.Field{path, protocol.Text(e.Text)},
		})
	case build.Answered:
		stop(askBit)
	case build.Fetching:
		send(&protocol.Message{
			Kind: protocol.KindStart, ID: fetchBit | e.Activity, Activity: protocol.ActSubstitute, Fields: []protocol.Field{path, protocol.Text(e.Text)},
		})
		send(&protocol.Message{
			Kind: protocol.KindStart, ID: copyBit | e.Activity, Parent: fetchBit | e.Activity, Level: protocol.LevelInfo, Activity: protocol.ActCopyPath,
			Text: fmt.Sprintf("copying path '%s' from '%s'", e.Path, e.Text), Fields: []protocol.Field{path, protocol.Text(e.Text), protocol.Text("daemon")},
		})
		if e.Fetch.URL != "" {
			send(&protocol.Message{
				Kind: protocol.KindStart, ID: transferBit | e.Activity, Parent: copyBit | e.Activity, Level: protocol.LevelTalkative, Activity: protocol.ActFileTransfer,
				Text: fmt.Sprintf("downloading '%s/%s'", e.Text, e.Fetch.URL), Fields: []protocol.Field{protocol.Text(e.Text + "/" + e.Fetch.URL)},
			})
		}
	case build.FetchProgress:
		o.progress(copyBit|e.Activity, e.Fetch.Done, e.Fetch.Size)
		if e.Fetch.PackedDone > 0 {
			o.progress(transferBit|e.Activity, e.Fetch.PackedDone, e.Fetch.Packed)
		}
	case build.Fetched:
		if e.Fetch.URL != "" {
			stop(transferBit)
		}
		stop(copyBit)
		stop(fetchBit)
	}
}

// progress tells how many bytes of how many there are.
func (o *observer) progress(id uint64, done, expected int64) {
	o.x.tunnel.send(&protocol.Message{Kind: protocol.KindResult, ID: id, Result: protocol.ResProgress, Fields: numbers(int(done), int(expected), 0, 0)})
}
