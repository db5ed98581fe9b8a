package daemon

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"cairn/archive"
	"cairn/daemon/protocol"
)

// replyJSON replies a value as JSON.
func replyJSON(v any) (reply, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.Text(string(b))
		return nil
	}, nil
}

func (x *session) status(context.Context, struct{}) (reply, error) {
	return replyJSON(x.statusFor())
}

func (x *session) statusFor() *protocol.DaemonStatus {
	st := x.server.Status(x.may(archive.Inspect))
	st.You = protocol.You{Person: x.peer.person(), Trusted: x.rights == archive.All, Rights: x.rights}
	return st
}

// Status returns what the server is and does. Who the others are and what they do is told only with all.
func (s *Server) Status(all bool) *protocol.DaemonStatus {
	paths, _ := s.store.Count()
	st := &protocol.DaemonStatus{
		Version: s.opts.Version, PID: os.Getpid(), StoreDir: s.store.Dir().String(), Protocol: protocol.Newest.String(),
		Paths: paths, Durable: s.store.Durable(), Uptime: time.Since(s.began).Seconds(), Sessions: []protocol.Busy{},
	}
	if free, err := s.store.Space(); err == nil {
		st.Space = protocol.Space(free)
		if free.TotalInodes == 0 {
			st.Space.Inodes = 0
		}
	}
	st.Automatic = s.low.status()
	st.Scrub = s.scrubStatus()
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Draining, st.Connections = s.draining, len(s.sessions)
	if !all {
		return st
	}
	for x := range s.sessions {
		st.Sessions = append(st.Sessions, x.activity())
	}
	return st
}

func (x *session) activity() protocol.Busy {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := protocol.Busy{UID: x.peer.UID, PID: x.peer.PID, Trusted: x.rights == archive.All, Operation: x.busy}
	if x.busy != "" {
		b.Seconds = time.Since(x.since).Seconds()
	}
	return b
}
