package build

import (
	"cairn/daemon/protocol"
	"cairn/store"
)

// EventKind says what an Event tells.
type EventKind uint8

// The kinds of events.
const (
	Started     EventKind = iota + 1 // the build of Drv began
	Stopped                          // it ended with Status
	Line                             // it wrote Text, without the newline
	Phase                            // it entered the phase Text
	Message                          // it wrote a structured message, Text is its JSON
	Progress                         // the counts of the whole request changed
	HookStarted                      // the post-build hook Text runs
	HookLine                         // it wrote Text
	HookStopped                      // it ended
)

// Event is something that happened to a build that a request waits for.
type Event struct {
	Kind     EventKind
	Activity uint64 // the build's number, unique in this process
	Drv      store.Path
	Machine  string // of Started; empty: this one
	Mode     Mode   // of Started
	Text     string
	Status   protocol.Status // of Stopped
	Counts   Counts          // of Progress
}

// Counts say how far a request has come, in derivations.
type Counts struct{ Done, Expected, Running, Failed int }

// Observer is told of events, by several goroutines but never by two at the same time.
// It must neither block nor call the Builder. After Build has returned it hears nothing more.
type Observer interface{ Event(Event) }

// ObserverFunc is a function as an Observer.
type ObserverFunc func(Event)

// Event calls the function.
func (f ObserverFunc) Event(e Event) { f(e) }
