package protocol

import (
	"time"

	"cairn/store"
)

// ScrubRequest is the request of OpScrub.
type ScrubRequest struct {
	Action ScrubAction `json:"action,omitempty"`
	Wait   bool        `json:"wait,omitempty"` // answer when no scrub is under way any more
}

// ScrubAction is what is to be done about the verification in the background.
type ScrubAction string

// The actions.
const (
	ScrubNothing ScrubAction = "" // only ask
	ScrubStart   ScrubAction = "start"
	ScrubPause   ScrubAction = "pause"
	ScrubResume  ScrubAction = "resume"
)

// Scrub is the verification of all objects in the background, or the last one.
type Scrub struct {
	State    ScrubState `json:"state"`
	Began    time.Time  `json:"began,omitzero"`
	Finished time.Time  `json:"finished,omitzero"`
	Paths    int        `json:"paths"` // read
	Bytes    int64      `json:"bytes"`
	Position string     `json:"position,omitempty"` // digest of the last object; they are read in this order

	LeftPaths int     `json:"leftPaths"` // to be read, while it is under way
	LeftBytes int64   `json:"leftBytes"`
	Speed     float64 `json:"bytesPerSecond,omitempty"` // since it runs
	ToGo      float64 `json:"secondsToGo,omitempty"`    // if that is known
	Limit     int64   `json:"limit,omitempty"`          // bytes per second; 0: none

	Interval float64   `json:"intervalSeconds"` // from one to the next; 0: only by hand
	Next     time.Time `json:"next,omitzero"`   // when the next begins by itself

	Damaged      []ScrubFinding `json:"damaged"`                // what is known to be damaged, whoever has found it; by path
	DamagedCount int            `json:"damagedCount,omitempty"` // if there are more
}

// ScrubState is what a scrub does.
type ScrubState string

// The states.
const (
	ScrubNone     ScrubState = "none"     // none yet
	ScrubRunning  ScrubState = "running"  // it reads
	ScrubPaused   ScrubState = "paused"   // until somebody resumes it
	ScrubWaiting  ScrubState = "waiting"  // it has not ended, and begins again when the daemon may, or has had an error
	ScrubFinished ScrubState = "finished" // the last has ended
)

// ScrubFinding is an object that is damaged.
type ScrubFinding struct {
	Path  store.Path `json:"path"`
	Kind  string     `json:"kind"` // as that of Finding
	Text  string     `json:"text"`
	Found time.Time  `json:"found"`
}
