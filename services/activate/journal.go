package activate

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Record is one line of a journal.
type Record struct {
	Event string `json:"event"` // "open", "begin", "await", "confirm", "undo", "close"
	Time  int64  `json:"time"`

	// of "open"
	Version int    `json:"version,omitempty"`
	ID      string `json:"id,omitempty"`
	From    string `json:"from,omitempty"`   // the system before, empty when there was none
	System  string `json:"system,omitempty"` // the system to be
	BootID  string `json:"bootID,omitempty"` // also of "await"

	// of "begin": written and flushed before the step has any effect
	Seq  int   `json:"seq,omitempty"`
	Step *Step `json:"step,omitempty"`

	// of "await"
	Deadline int64 `json:"deadline,omitempty"` // seconds since boot

	// of "undo" and "close"
	Reason  string   `json:"reason,omitempty"`
	Outcome string   `json:"outcome,omitempty"` // "switched", "undone", "incomplete"
	Errors  []string `json:"errors,omitempty"`
}

const (
	journalVersion = 1
	maxJournal     = 64 << 20
	keptJournals   = 50
)

// Journal is a parsed journal: what a switch began and how far it came.
type Journal struct {
	ID, From, System string
	BootID           string
	Steps            []Step // begun, in order
	Awaiting         bool
	AwaitBoot        string
	Deadline         int64 // seconds since boot
	Confirmed        bool
	Undoing          string // the reason, when an undo has begun
	Closed           bool
	Outcome          string
	Reason           string
	Errors           []string
	Opened           time.Time
}

// ParseJournal reads a journal. A last line that is torn never had an effect, and is left out.
func ParseJournal(r io.Reader) (*Journal, error) {
	j := new(Journal)
	b := bufio.NewReader(io.LimitReader(r, maxJournal))
	for n := 1; ; n++ {
		line, err := b.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("parse journal line %d: %w", n, err)
		}
		if err := j.apply(&rec); err != nil {
			return nil, fmt.Errorf("parse journal line %d: %w", n, err)
		}
	}
	return j, nil
}

func (j *Journal) apply(r *Record) error {
	if (r.Event == "open") != (j.ID == "") {
		return fmt.Errorf("event %q out of order", r.Event)
	}
	switch r.Event {
	case "open":
		if r.Version != journalVersion {
			return fmt.Errorf("version %d, this program knows %d", r.Version, journalVersion)
		}
		if !validID(r.ID) {
			return fmt.Errorf("journal id %q", r.ID)
		}
		j.ID, j.From, j.System, j.BootID, j.Opened = r.ID, r.From, r.System, r.BootID, time.Unix(r.Time, 0)
	case "begin":
		if r.Step == nil || r.Seq != len(j.Steps)+1 {
			return fmt.Errorf("step %d out of order", r.Seq)
		}
		j.Steps = append(j.Steps, *r.Step)
	case "await":
		j.Awaiting, j.AwaitBoot, j.Deadline = true, r.BootID, r.Deadline
	case "confirm":
		j.Confirmed = true
	case "undo":
		j.Undoing = r.Reason
	case "close":
		j.Closed, j.Outcome, j.Errors = true, r.Outcome, r.Errors
	default:
		return fmt.Errorf("unknown event %q", r.Event)
	}
	if r.Reason != "" {
		j.Reason = r.Reason
	}
	return nil
}

// journalWriter appends to a journal. Every record is on disk when write returns.
type journalWriter struct {
	f    *os.File
	id   string
	dir  string
	seq  int
	seen func(*Record) // after the flush
}

func newID(now time.Time) string {
	var b [4]byte
	rand.Read(b[:])
	return now.UTC().Format("20060102T150405") + "-" + hex.EncodeToString(b[:])
}

func validID(id string) bool {
	return id != "" && len(id) <= 64 && !strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-')
	})
}

func journalName(id string) string { return "switch-" + id + ".jsonl" }

// createJournal opens a new journal and makes it the pending one.
func createJournal(dir string, open Record, seen func(*Record)) (*journalWriter, error) {
	f, err := os.OpenFile(filepath.Join(dir, journalName(open.ID)), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	w := &journalWriter{f: f, id: open.ID, dir: dir, seen: seen}
	open.Event, open.Version = "open", journalVersion
	if err := w.write(open); err != nil {
		f.Close()
		return nil, err
	}
	if err := put(filepath.Join(dir, "pending"), linkNode(journalName(open.ID))); err != nil {
		f.Close()
		return nil, fmt.Errorf("create journal: %w", err)
	}
	return w, nil
}

// reopenJournal continues a journal; a torn last line is cut off first.
func reopenJournal(dir string, j *Journal, seen func(*Record)) (*journalWriter, error) {
	path := filepath.Join(dir, journalName(j.ID))
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := f.Truncate(int64(bytes.LastIndexByte(data, '\n') + 1)); err != nil {
		f.Close()
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &journalWriter{f: f, id: j.ID, dir: dir, seq: len(j.Steps), seen: seen}, nil
}

func (w *journalWriter) write(r Record) error {
	r.Time = time.Now().Unix()
	line, err := json.Marshal(&r)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	if _, err := w.f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if w.seen != nil {
		w.seen(&r)
	}
	return nil
}

func (w *journalWriter) begin(s Step) error {
	w.seq++
	return w.write(Record{Event: "begin", Seq: w.seq, Step: &s})
}

// close ends the journal and takes the pending mark away.
func (w *journalWriter) close(outcome, reason string, errs []string) error {
	err := w.write(Record{Event: "close", Outcome: outcome, Reason: reason, Errors: errs})
	w.f.Close()
	if err != nil {
		return err
	}
	return clearPending(w.dir)
}

func clearPending(dir string) error { return put(filepath.Join(dir, "pending"), absent) }

// readJournal reads the journal called id.
func readJournal(dir, id string) (*Journal, error) {
	if !validID(id) {
		return nil, fmt.Errorf("journal %q: not the name of a switch", id)
	}
	f, err := os.Open(filepath.Join(dir, journalName(id)))
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	return ParseJournal(f)
}

// pendingJournal returns the journal that is not closed, or nil.
func pendingJournal(dir string) (*Journal, error) {
	name, err := os.Readlink(filepath.Join(dir, "pending"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pending journal: %w", err)
	}
	j, err := readJournal(dir, strings.TrimSuffix(strings.TrimPrefix(name, "switch-"), ".jsonl"))
	if err != nil {
		return nil, err
	}
	return j, nil
}

// pruneJournals removes all but the newest journals.
func pruneJournals(dir string) {
	names, _ := filepath.Glob(filepath.Join(dir, "switch-*.jsonl"))
	slices.Sort(names)
	for len(names) > keptJournals {
		os.Remove(names[0])
		names = names[1:]
	}
}
