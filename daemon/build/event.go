package build

import (
	"cairn/daemon/protocol"
	"cairn/store"
)

// EventKind says what an Event tells.
type EventKind uint8

// The kinds of events.
const (
	Started       EventKind = iota + 1 // the build of Drv began
	Stopped                            // it ended with Status
	Line                               // it wrote Text, without the newline
	Phase                              // it entered the phase Text
	Message                            // it wrote a structured message, Text is its JSON
	Progress                           // the counts of the whole request changed
	HookStarted                        // the post-build hook Text runs
	HookLine                           // it wrote Text
	HookStopped                        // it ended
	Asking                             // the cache Text is asked for Path
	Answered                           // it has answered
	Fetching                           // the download of Path from the cache Text began
	FetchProgress                      // Fetch has changed
	Fetched                            // the download ended with Status
	Warning                            // Text is something that the user should know
)

// Event is something that happened to a build that a request waits for.
type Event struct {
	Kind     EventKind
	Activity uint64 // the build's number, unique in this process
	Drv      store.Path
	Machine  string     // of Started; empty: this one
	Mode     Mode       // of Started
	Path     store.Path // of what is fetched
	Text     string
	Status   protocol.Status // of Stopped and Fetched
	Counts   Counts          // of Progress
	Fetch    Fetch
}

// Fetch says what is downloaded and how far that is, in bytes.
type Fetch struct {
	URL                string // relative to the cache
	Size, Done         int64  // of the archive
	Packed, PackedDone int64  // of what is downloaded; 0: not known
}

// Count says how far a request has come.
type Count struct{ Done, Expected, Running, Failed int }

// Counts say how far a request has come, in derivations, and in objects that are fetched.
type Counts struct {
	Count
	Fetch              Count
	Download, Unpacked int64 // bytes that all fetches are expected to bring
}

// Observer is told of events, by several goroutines but never by two at the same time.
// It must neither block nor call the Builder. After Build has returned it hears nothing more.
type Observer interface{ Event(Event) }

// ObserverFunc is a function as an Observer.
type ObserverFunc func(Event)

// Event calls the function.
func (f ObserverFunc) Event(e Event) { f(e) }
