package daemon

import (
	"context"
	"fmt"
	"time"

	"cairn/daemon/protocol"
	"cairn/store/disk"
)

// scrub starts, pauses or resumes the verification in the background, and says how far it is.
func (x *session) scrub(ctx context.Context, q *protocol.ScrubRequest) (reply, error) {
	s := x.server.store
	err := error(nil)
	switch q.Action {
	case protocol.ScrubNothing:
	case protocol.ScrubStart:
		err = s.StartScrub()
	case protocol.ScrubPause:
		err = s.PauseScrub()
	case protocol.ScrubResume:
		err = s.ResumeScrub()
	default:
		err = fmt.Errorf("unknown action %q", q.Action)
	}
	if err == nil && q.Wait {
		err = s.WaitScrub(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("scrub: %w", err)
	}
	return replyJSON(x.server.scrubStatus())
}

// maxDamaged is how many damaged objects a status has; verifying lists all.
const maxDamaged = 100

func (s *Server) scrubStatus() *protocol.Scrub {
	now := s.store.Scrub()
	r := &protocol.Scrub{
		State: stateOf(now), Began: now.Began, Finished: now.Finished, Paths: now.Paths, Bytes: now.Bytes, Position: now.Position,
		LeftPaths: now.LeftPaths, LeftBytes: now.LeftBytes, Speed: now.Speed, Limit: now.Rate, Interval: now.Interval.Seconds(),
		Damaged: []protocol.ScrubFinding{},
	}
	if now.Speed > 0 {
		r.ToGo = float64(now.LeftBytes) / now.Speed
	}
	if now.Interval > 0 && !now.Paused && !now.Finished.IsZero() {
		r.Next = now.Finished.Add(now.Interval)
	}
	for _, f := range now.Findings[:min(len(now.Findings), maxDamaged)] {
		r.Damaged = append(r.Damaged, protocol.ScrubFinding{Path: f.Path, Kind: string(f.Kind), Text: f.Text, Found: f.Found.Truncate(time.Second)})
	}
	if len(now.Findings) > maxDamaged {
		r.DamagedCount = len(now.Findings)
	}
	return r
}

func stateOf(now disk.ScrubStatus) protocol.ScrubState {
	switch {
	case now.Running:
		return protocol.ScrubRunning
	case now.Paused:
		return protocol.ScrubPaused
	case now.Finished.IsZero():
		return protocol.ScrubWaiting
	case now.Paths == 0:
		return protocol.ScrubNone
	}
	return protocol.ScrubFinished
}
