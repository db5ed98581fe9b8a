package protocol

import (
	"errors"
	"fmt"

	"cairn/archive"
	"cairn/store"
)

// MessageKind is the tag of a message.
type MessageKind uint64

// The messages of a server during an operation.
const (
	KindNext   MessageKind = 0x6f6c6d67 // a line of log
	KindRead   MessageKind = 0x64617461 // the server wants bytes
	KindWrite  MessageKind = 0x64617416 // bytes for the client
	KindLast   MessageKind = 0x616c7473 // the operation succeeded; the reply follows
	KindError  MessageKind = 0x63787470 // the operation failed
	KindStart  MessageKind = 0x53545254 // an activity starts
	KindStop   MessageKind = 0x53544f50 // an activity stops
	KindResult MessageKind = 0x52534c54 // an activity has something to tell
)

// ActivityType says what an activity does.
type ActivityType uint64

// The activity types of Nix.
const (
	ActUnknown       ActivityType = 0
	ActCopyPath      ActivityType = 100
	ActFileTransfer  ActivityType = 101
	ActRealise       ActivityType = 102
	ActCopyPaths     ActivityType = 103
	ActBuilds        ActivityType = 104
	ActBuild         ActivityType = 105 // fields: drv, machine, round, rounds
	ActOptimise      ActivityType = 106
	ActVerifyPaths   ActivityType = 107
	ActSubstitute    ActivityType = 108 // fields: path, uri
	ActQueryPathInfo ActivityType = 109
	ActPostBuildHook ActivityType = 110
	ActBuildWaiting  ActivityType = 111
)

// ResultType says what an activity tells.
type ResultType uint64

// The result types of Nix.
const (
	ResFileLinked       ResultType = 100
	ResBuildLogLine     ResultType = 101 // line
	ResUntrustedPath    ResultType = 102
	ResCorruptedPath    ResultType = 103
	ResSetPhase         ResultType = 104 // name
	ResProgress         ResultType = 105 // done, expected, running, failed
	ResSetExpected      ResultType = 106 // type, number
	ResPostBuildLogLine ResultType = 107

	// ResHeartbeat is of no activity and says nothing but that the server lives; see FeatureHeartbeat.
	ResHeartbeat ResultType = 0x6361_0001
)

// Verbosity is the level of an error or activity.
type Verbosity uint64

// The levels.
const (
	LevelError Verbosity = iota
	LevelWarn
	LevelNotice
	LevelInfo
	LevelTalkative
	LevelChatty
	LevelDebug
	LevelVomit
)

// Field is a number or a text that belongs to an activity or result.
type Field struct {
	Text   string
	Number uint64
	IsText bool
}

// Number makes a field.
func Number(n uint64) Field { return Field{Number: n} }

// Text makes a field.
func Text(s string) Field { return Field{Text: s, IsText: true} }

// Message is one message of a server. Which fields count depends on the kind.
type Message struct {
	Kind     MessageKind
	Text     string       // Next: the line; Start: what is being done
	Data     []byte       // Write
	Size     uint64       // Read: how many bytes are wanted
	ID       uint64       // Start, Stop, Result: the activity, unique in the session
	Parent   uint64       // Start
	Level    Verbosity    // Start
	Activity ActivityType // Start
	Result   ResultType   // Result
	Fields   []Field      // Start, Result
	Err      *Error       // Error
}

// Error is how an operation fails.
type Error struct {
	Level  Verbosity
	Code   string // one of the codes below, or empty; only between cairns
	Text   string
	Status uint64   // exit status, before 1.26 only
	Traces []string // context, innermost first
}

func (e *Error) Error() string { return e.Text }

// codes give a sentinel a name on the wire; an Error with that code is the sentinel again.
var codes = []struct {
	name string
	err  error
}{
	{"not-valid", store.ErrNotValid},
	{"untrusted", store.ErrUntrusted},
	{"hash-mismatch", store.ErrHashMismatch},
	{"not-allowed", ErrNotAllowed},
	{"unauthorized", archive.ErrUnauthorized},
	{"corrupt", archive.ErrCorrupt},
}

// ErrNotAllowed says that the peer's rights do not suffice.
var ErrNotAllowed = errors.New("you are not allowed to do that")

// NewError makes the wire's error of err.
func NewError(err error) *Error {
	var e *Error
	if errors.As(err, &e) && e.Text == err.Error() {
		return e
	}
	e = &Error{Text: err.Error(), Status: 1}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			e.Code = c.name
			break
		}
	}
	return e
}

// Is makes an error that crossed the wire the sentinel that it was.
func (e *Error) Is(target error) bool {
	for _, c := range codes {
		if c.name == e.Code {
			return c.err == target
		}
	}
	return false
}

// Message writes one message. Peers before 1.20 know no activities: they get lines of log instead, for the start of
// what has a text, and for what a build prints.
func (e *Encoder) Message(m *Message) {
	if e.Version < Minor(20) {
		if m = m.line(); m == nil {
			return
		}
	}
	e.Uint64(uint64(m.Kind))
	switch m.Kind {
	case KindNext:
		e.Text(m.Text)
	case KindRead:
		e.Uint64(m.Size)
	case KindWrite:
		e.w.Bytes(m.Data)
	case KindLast:
	case KindError:
		e.error(m.Err)
	case KindStart:
		e.Uint64(m.ID)
		e.Uint64(uint64(m.Level))
		e.Uint64(uint64(m.Activity))
		e.Text(m.Text)
		e.fields(m.Fields)
		e.Uint64(m.Parent)
	case KindStop:
		e.Uint64(m.ID)
	case KindResult:
		e.Uint64(m.ID)
		e.Uint64(uint64(m.Result))
		e.fields(m.Fields)
	default:
		panic(fmt.Sprintf("BUG: message of kind %#x", uint64(m.Kind)))
	}
}

// line returns what a message is to a peer without activities, or nil.
func (m *Message) line() *Message {
	switch {
	case m.Kind == KindStart && m.Text != "":
		return &Message{Kind: KindNext, Text: m.Text + "...\n"}
	case m.Kind == KindResult && (m.Result == ResBuildLogLine || m.Result == ResPostBuildLogLine) && len(m.Fields) > 0:
		return &Message{Kind: KindNext, Text: m.Fields[0].Text + "\n"}
	case m.Kind == KindStart || m.Kind == KindStop || m.Kind == KindResult:
		return nil
	}
	return m
}

func (e *Encoder) fields(list []Field) {
	e.Uint64(uint64(len(list)))
	for _, f := range list {
		if f.IsText {
			e.Uint64(1)
			e.Text(f.Text)
			continue
		}
		e.Uint64(0)
		e.Uint64(f.Number)
	}
}

// error writes
//
//	≥1.26: "Error", level, code ("Error" for others than us), message, 0, n × (0, trace)
//	else:  message, exit status
func (e *Encoder) error(err *Error) {
	if e.Version < Minor(26) {
		e.Text(err.Text)
		e.Uint64(err.Status)
		return
	}
	e.Text("Error")
	e.Uint64(uint64(err.Level))
	if err.Code != "" && e.Has(FeatureCairn) {
		e.Text(err.Code)
	} else {
		e.Text("Error")
	}
	e.Text(err.Text)
	e.Uint64(0)
	e.Uint64(uint64(len(err.Traces)))
	for _, t := range err.Traces {
		e.Uint64(0)
		e.Text(t)
	}
}

// Message reads one message.
func (d *Decoder) Message() *Message {
	m := &Message{Kind: MessageKind(d.Uint64())}
	if d.broken != nil {
		return m
	}
	switch m.Kind {
	case KindNext:
		m.Text = d.Text(MaxValue)
	case KindRead:
		m.Size = d.Uint64()
	case KindWrite:
		m.Data = []byte(d.Text(MaxValue))
	case KindLast:
	case KindError:
		m.Err = d.error()
	case KindStart:
		m.ID = d.Uint64()
		m.Level = Verbosity(d.Uint64())
		m.Activity = ActivityType(d.Uint64())
		m.Text = d.Text(MaxText)
		m.Fields = d.fields()
		m.Parent = d.Uint64()
	case KindStop:
		m.ID = d.Uint64()
	case KindResult:
		m.ID = d.Uint64()
		m.Result = ResultType(d.Uint64())
		m.Fields = d.fields()
	default:
		d.fail(fmt.Errorf("message has the unknown kind %#x", uint64(m.Kind)))
	}
	return m
}

func (d *Decoder) fields() []Field {
	var list []Field
	for range d.Count() {
		var f Field
		switch tag := d.Uint64(); tag {
		case 0:
			f = Number(d.Uint64())
		case 1:
			f = Text(d.Text(MaxValue))
		default:
			d.fail(fmt.Errorf("field has the unknown tag %d", tag))
		}
		if !d.spend(elementCost) {
			return nil
		}
		list = append(list, f)
	}
	return list
}

func (d *Decoder) error() *Error {
	if d.Version < Minor(26) {
		return &Error{Text: d.Text(MaxValue), Status: d.Uint64()}
	}
	if kind := d.Text(MaxPath); kind != "Error" && d.broken == nil {
		d.fail(fmt.Errorf("error has the unknown kind %q", clip(kind)))
	}
	e := &Error{Level: Verbosity(d.Uint64()), Status: 1}
	if code := d.Text(MaxPath); code != "Error" && d.Has(FeatureCairn) {
		e.Code = code
	}
	e.Text = d.Text(MaxValue)
	d.position()
	for range d.Count() {
		d.position()
		t := d.Text(MaxValue)
		if d.broken != nil {
			break
		}
		e.Traces = append(e.Traces, t)
	}
	return e
}

// position reads the word that says there is no source position.
func (d *Decoder) position() {
	if n := d.Uint64(); n != 0 {
		d.fail(fmt.Errorf("error with a source position (%d)", n))
	}
}
