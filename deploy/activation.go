package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cairn/services/activate"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/profile"
)

// activation is what the agent asks the `activate` program of a system to do. That program is the cairn of the system's
// own closure, so that each system is switched to, and undone, by the logic it was made with. It is asked with one JSON
// value, which it refuses unless it knows all of its fields, and answers with JSON replies, one per line, the last of which is done.
type activation struct {
	Op       string           `json:"op"` // plan, switch, confirm, status
	System   string           `json:"system"`
	ID       string           `json:"id,omitempty"`
	Within   int              `json:"within,omitempty"`
	Session  activate.Session `json:"session"`
	StateDir string           `json:"stateDir"`
	StoreDir string           `json:"storeDir"`
	Program  string           `json:"program"` // what the watchdog runs
}

// program returns what does it: the system's own, or the agent's when the system brings none.
func (c *activation) program(layout disk.Layout) string {
	own := filepath.Join(layout.RealDir, filepath.Base(c.System), "activate")
	if _, err := os.Stat(own); err == nil {
		return own
	}
	return c.Program
}

// delegate runs the program and passes its progress on.
func (c *activation) delegate(ctx context.Context, layout disk.Layout, event func(*Reply)) (*Reply, error) {
	question, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if c.Op == "switch" {
		return c.detached(ctx, layout, question, event)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, c.program(layout), "serve", "activate")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(question), &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Op, err)
	}
	reply, err := follow(out, event)
	if e := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w: %s", c.Op, err, errors.Join(e), bytes.TrimSpace(said.Bytes()))
	}
	return c.judge(reply)
}

// detached runs the program as a unit of its own: a session that ends, with the connection or with sshd,
// does not take it along. Progress comes over a socket; nobody listening there is no reason to stop.
func (c *activation) detached(ctx context.Context, layout disk.Layout, question []byte, event func(*Reply)) (*Reply, error) {
	dir, err := os.MkdirTemp("/run", "cairn-agent-")
	if err != nil {
		return nil, fmt.Errorf("switch: %w", err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "switch")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("switch: %w", err)
	}
	defer l.Close()
	unit := "cairn-switch-" + strings.ToLower(newToken()[:8])
	cmd := exec.CommandContext(ctx, "systemd-run", "--quiet", "--collect", "--unit="+unit, "--description=Switch to "+c.System,
		"--property=Type=exec", "--", c.program(layout), "serve", "activate", "--socket", socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("switch: start unit %s: %w: %s", unit, err, bytes.TrimSpace(out))
	}
	l.SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := l.Accept()
	if err != nil {
		return nil, fmt.Errorf("switch: unit %s does not call back: %w", unit, err)
	}
	defer conn.Close()
	if _, err := conn.Write(append(question, '\n')); err != nil {
		return nil, fmt.Errorf("switch: %w", err)
	}
	reply, err := follow(conn, event)
	if err != nil {
		return nil, fmt.Errorf("switch: unit %s ended without an answer: %w", unit, err)
	}
	return c.judge(reply)
}

// judge makes an error of a reply that is one.
func (c *activation) judge(r *Reply) (*Reply, error) {
	if r.Error != nil {
		return nil, &remoteError{*r.Error}
	}
	return r, nil
}

// follow reads replies up to the one that is done.
func follow(r io.Reader, event func(*Reply)) (*Reply, error) {
	d := json.NewDecoder(io.LimitReader(r, maxReply))
	for {
		p := new(Reply)
		if err := d.Decode(p); err != nil {
			return nil, err
		}
		if p.Done {
			p.Done = false
			return p, nil
		}
		event(p)
	}
}

// runActivation is the other end of delegate. Writing to somebody who has gone is no reason to stop.
func runActivation(ctx context.Context, rw io.ReadWriter) error {
	c := new(activation)
	err := decodeRequest(io.LimitReader(rw, maxRequest), c)
	var mu sync.Mutex // guards the output
	say := func(p *Reply) {
		mu.Lock()
		defer mu.Unlock()
		json.NewEncoder(rw).Encode(p)
	}
	var r *SwitchReply
	if err == nil {
		r, err = c.perform(ctx, say)
	}
	p := &Reply{Switch: r, Done: true}
	if err != nil {
		p.Error = newFailure(err)
	}
	say(p)
	return nil
}

func (c *activation) perform(ctx context.Context, say func(*Reply)) (*SwitchReply, error) {
	dir, err := store.ParseDir(c.StoreDir)
	if err != nil {
		return nil, err
	}
	sys, err := dir.ParsePath(c.System)
	if err != nil {
		return nil, err
	}
	e := activate.New(&activate.Options{
		StateDir: c.StateDir, StoreDir: dir, Session: c.Session, Program: []string{c.Program, "system", "recover"},
		Progress:  func(text string) { say(&Reply{Event: text}) },
		Journaled: func(r *activate.Record) { tellJournal(r, say) },
	})
	defer e.Close()
	switch c.Op {
	case "plan":
		p, err := e.Plan(ctx, sys)
		if err != nil {
			return nil, err
		}
		return planReply(p), nil
	case "switch":
		return switchReply(e.Switch(ctx, sys, &activate.SwitchOptions{ConfirmWithin: time.Duration(c.Within) * time.Second, Wait: true}))
	case "confirm":
		if err := e.Confirm(ctx, c.ID); err != nil && !errors.Is(err, activate.ErrNothingPending) {
			return nil, err
		}
		return c.status(e)
	case "status":
		return c.status(e)
	}
	return nil, fmt.Errorf("activate: unknown request %q", c.Op)
}

// tellJournal says the journal's name as soon as there is one: whoever loses the connection can ask for it.
func tellJournal(r *activate.Record, say func(*Reply)) {
	if r.Event == "open" {
		say(&Reply{Event: "journal " + r.ID, ID: r.ID})
	}
}

func planReply(p *activate.Plan) *SwitchReply {
	r := &SwitchReply{Outcome: "planned", System: p.System, From: p.From, Plan: p}
	switch {
	case len(p.Conflicts) > 0:
		refused := &activate.Refused{Conflicts: p.Conflicts}
		r.Outcome, r.Reason, r.Hint = "refused", refused.Error(), refused.Hint()
	case p.Empty():
		r.Outcome = "unchanged"
	}
	return r
}

// switchReply tells apart a switch that was refused or undone, which is a result, from one that could not be tried.
func switchReply(r *activate.Result, err error) (*SwitchReply, error) {
	var refused *activate.Refused
	var undone *activate.Undone
	if err != nil && !errors.As(err, &refused) && !errors.As(err, &undone) {
		return nil, err
	}
	reply := &SwitchReply{Outcome: r.Outcome, ID: r.ID, System: r.System, From: r.From, Generation: r.Generation, Left: r.UndoErrors, Plan: r.Plan}
	switch {
	case refused != nil:
		reply.Reason, reply.Hint = refused.Error(), refused.Hint()
	case undone != nil:
		reply.Reason, reply.Hint = undone.Cause.Error(), undone.Hint()
	}
	return reply, nil
}

// status reads the journal: of the named switch, or of the one that is pending.
func (c *activation) status(e *activate.Engine) (*SwitchReply, error) {
	j, err := e.Journal(c.ID)
	if err != nil {
		return nil, err
	}
	current := 0
	if g, err := profile.Open(c.StateDir + "/profiles/system").Current(); err == nil {
		current = g.Number
	}
	if j == nil {
		return &SwitchReply{Outcome: "none", Generation: current}, nil
	}
	r := &SwitchReply{Outcome: "running", ID: j.ID, System: j.System, From: j.From, Reason: j.Reason, Left: j.Errors, Generation: current}
	switch {
	case j.Closed:
		r.Outcome = j.Outcome
	case j.Awaiting && j.Undoing == "" && !j.Confirmed:
		r.Outcome = "awaiting"
	}
	return r, nil
}
