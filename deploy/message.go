package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"cairn/archive/wire"
	"cairn/services/activate"
	"cairn/store"
)

// The protocol between coordinator and agent.
//
//	agent        banner                                 what the login shell says before it is skipped
//	coordinator  request                                one at a time, each a JSON object in a wire string
//	             "import" is followed by frames: the bundle
//	agent        reply, reply, …                        those with an event are progress; the last has a result or an error
//
// Reply sizes and request sizes are bounded. The protocol's number is part of the banner; both ends are the same binary
// as a rule (the coordinator brings its own), so a number that differs is an error and not negotiated.
// After an import that failed the agent ends: it does not read the rest of the bundle. So it does after a request that it did not understand.
//
// A request with a field that the receiver does not know is refused, here and by the `activate` program of a system (activation.go), which may be
// much older: without that field something else would be done than is asked for. Hence a field that is not set is not sent.
// In replies such fields are passed over.
const (
	banner     = "\ncairn-agent 1\n"
	maxNoise   = 64 << 10 // what may precede the banner
	maxRequest = 32 << 20
	maxReply   = 64 << 20
)

// Request is one question to the agent. Which fields matter depends on Op.
type Request struct {
	Op      string   `json:"op"`
	Token   string   `json:"token,omitempty"`   // of the lease
	Owner   string   `json:"owner,omitempty"`   // lease
	Purpose string   `json:"purpose,omitempty"` // lease
	Key     string   `json:"key,omitempty"`     // authorize
	Paths   []string `json:"paths,omitempty"`   // missing
	System  string   `json:"system,omitempty"`  // plan, switch, confirm
	Within  int      `json:"within,omitempty"`  // switch: seconds to confirm in
	ID      string   `json:"id,omitempty"`      // confirm, status: of the journal
}

// Reply is progress or an answer.
type Reply struct {
	Event  string       `json:"event,omitempty"` // progress, for people
	ID     string       `json:"id,omitempty"`    // with an event: the journal that was opened
	Error  *Failure     `json:"error,omitempty"`
	Done   bool         `json:"done,omitempty"` // the last reply
	Facts  *Facts       `json:"facts,omitempty"`
	Paths  []string     `json:"paths,omitempty"`  // missing, import
	Did    bool         `json:"did,omitempty"`    // authorize: the ACL changed
	Switch *SwitchReply `json:"switch,omitempty"` // plan, switch, confirm, status
}

// Failure is an error that crossed the wire.
type Failure struct {
	Kind string `json:"kind,omitempty"` // a key of failureKinds
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// SwitchReply is what became of a switch, or will.
type SwitchReply struct {
	Outcome    string         `json:"outcome"` // activate.Result's, and "running", "none"
	ID         string         `json:"id,omitempty"`
	System     string         `json:"system,omitempty"`
	From       string         `json:"from,omitempty"`
	Generation int            `json:"generation,omitempty"`
	Reason     string         `json:"reason,omitempty"` // why it was undone or refused
	Hint       string         `json:"hint,omitempty"`   // the next step then
	Left       []string       `json:"left,omitempty"`   // what an incomplete undo left
	Plan       *activate.Plan `json:"plan,omitempty"`
}

// failureKinds are errors that keep their identity across the wire.
var failureKinds = map[string]error{
	"leased":    ErrLeased,
	"no daemon": ErrNoDaemon,
	"busy":      activate.ErrBusy,
	"pending":   activate.ErrUnconfirmed,
	"not valid": store.ErrNotValid,
}

func newFailure(err error) *Failure {
	f := &Failure{Text: err.Error()}
	for kind, target := range failureKinds {
		if errors.Is(err, target) {
			f.Kind = kind
		}
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		f.Hint = h.Hint()
	}
	return f
}

// remoteError is a Failure on this side.
type remoteError struct{ Failure }

func (e *remoteError) Error() string { return e.Text }
func (e *remoteError) Unwrap() error { return failureKinds[e.Kind] }
func (e *remoteError) Hint() string  { return e.Failure.Hint }

// writeMessage writes a value as JSON in a wire string.
func writeMessage(w *wire.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	w.Bytes(b)
	return w.Flush()
}

// ReadRequest reads one request. Its error is ErrNotUnderstood when there was one that is none, or of another cairn.
func ReadRequest(r *wire.Reader) (*Request, error) {
	b, err := r.Bytes(maxRequest)
	if err != nil {
		return nil, err
	}
	q := new(Request)
	return q, decodeRequest(bytes.NewReader(b), q)
}

// ErrNotUnderstood says that nothing was done of a request.
var ErrNotUnderstood = errors.New("the cairn that is asked does not understand all of the request, and does nothing; is it older than the one that asks?")

func decodeRequest(r io.Reader, q any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return fmt.Errorf("%w: %w", ErrNotUnderstood, err)
	}
	return nil
}

// ReadReply reads one reply.
func ReadReply(r *wire.Reader) (*Reply, error) {
	b, err := r.Bytes(maxReply)
	if err != nil {
		return nil, err
	}
	p := new(Reply)
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("decode reply: %w", err)
	}
	return p, nil
}

// skipNoise reads up to and including the banner: login shells may say things first.
func skipNoise(r io.ByteReader) error {
	matched := 1 // the newline before it may be missing at the very start
	for n := 0; matched < len(banner); n++ {
		c, err := r.ReadByte()
		if err != nil {
			return err
		}
		switch {
		case c == banner[matched]:
			matched++
		case c == banner[0]:
			matched = 1
		default:
			matched = 0
		}
		if n > maxNoise {
			return errors.New("the agent's greeting did not come; does a login script write to standard output?")
		}
	}
	return nil
}
