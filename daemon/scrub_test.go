package daemon_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/store"
)

// TestDamagedIsNotSent has an object that a scrub has found to be damaged: who asks for it is refused, in a session that goes on.
func TestDamagedIsNotSent(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	info := addText(t, c, "damaged", "right")
	user := addText(t, c, "user", "user", info.Path).Path
	name := r.store.RealPath(info.Path)
	if err := errors.Join(os.Chmod(name, 0o644), os.WriteFile(name, []byte("wrong"), 0o644)); err != nil {
		t.Fatal(err)
	}
	key, err := archive.GenerateKey("k-1")
	if err == nil {
		err = key.WriteFile(filepath.Join(r.layout.ConfDir, "signing-key.sec"))
	}
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.Scrub(t.Context(), &protocol.ScrubRequest{Action: protocol.ScrubStart, Wait: true})
	if err != nil || st.State != protocol.ScrubFinished || len(st.Damaged) != 1 || st.Damaged[0].Path != info.Path {
		t.Fatalf("scrub: %+v, %v", st, err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "cairn store repair "+info.Path.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	both := []store.Path{user, info.Path}
	refused("NAR", c.NAR(t.Context(), info.Path, io.Discard))
	refused("NARs", c.NARs(t.Context(), both, func(store.Path) (io.Writer, error) { return io.Discard, nil }))
	refused("bundle", c.ExportBundle(t.Context(), []store.Path{user}, true, io.Discard))
	refused("EnsurePath", c.Ensure(t.Context(), user))
	if i, err := c.Info(t.Context(), info.Path); err != nil || i.NarHash != info.NarHash {
		t.Errorf("info: %v, %v", i, err)
	}
	if valid, err := c.IsValid(t.Context(), info.Path); err != nil || !valid {
		t.Errorf("valid: %v, %v", valid, err)
	}
	if have, err := c.ValidPaths(t.Context(), both); err != nil || len(have) != 1 || have[0] != user {
		t.Errorf("what need not be sent: %v, %v", have, err)
	}
	if status, err := c.Status(t.Context()); err != nil || len(status.Scrub.Damaged) != 1 {
		t.Errorf("status: %+v, %v", status, err)
	}
	addText(t, c, "damaged", "right")
	if err := c.NAR(t.Context(), info.Path, io.Discard); err != nil {
		t.Errorf("when it has been added again: %v", err)
	}
}

// TestScrubIsPaused pauses and resumes over the wire.
func TestScrubIsPaused(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	addText(t, c, "a", "a")
	do := func(a protocol.ScrubAction, wait bool) *protocol.Scrub {
		t.Helper()
		st, err := c.Scrub(t.Context(), &protocol.ScrubRequest{Action: a, Wait: wait})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := do(protocol.ScrubNothing, false); st.State != protocol.ScrubNone {
		t.Errorf("at first: %+v", st)
	}
	if st := do(protocol.ScrubPause, false); st.State != protocol.ScrubPaused {
		t.Errorf("paused: %+v", st)
	}
	if st := do(protocol.ScrubResume, false); st.State != protocol.ScrubNone {
		t.Errorf("resumed: %+v", st)
	}
	if st := do(protocol.ScrubStart, true); st.State != protocol.ScrubFinished || st.Paths != 1 || st.LeftPaths != 0 {
		t.Errorf("at the end: %+v", st)
	}
	if _, err := c.Scrub(t.Context(), &protocol.ScrubRequest{Action: "sing"}); err == nil {
		t.Error("an unknown action is none")
	}
}
