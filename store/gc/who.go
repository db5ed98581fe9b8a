package gc

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Who is behind a root. What cannot be found out is zero.
type Who struct {
	PID     int       `json:"pid,omitempty"`
	Command string    `json:"command,omitempty"`
	UID     int       `json:"uid"` // of the process, or of the link's owner; -1: unknown
	Since   time.Time `json:"since,omitzero"`
	Until   time.Time `json:"until,omitzero"` // zero: no expiry
}

// Who says who is behind a root: of a process or a client's temporary root, the process as it is now; of a link, the
// link's owner and when it was made; of a named root, whose it is.
func (r Root) Who() Who {
	w := Who{UID: -1, Until: r.Until}
	switch r.Kind {
	case KindProcess:
		pid, _, _ := strings.Cut(strings.TrimPrefix(r.Link, "/proc/"), "/")
		w.process(pid)
	case KindTemporary:
		w.process(filepath.Base(r.Link))
		w.since(r.Link)
	case KindNamed:
		w.since(r.Link)
		w.UID = r.UID
	case KindLink, KindProfile:
		w.since(r.Link)
		w.owner(r.Link)
	}
	return w
}

func (w *Who) process(pid string) {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return
	}
	w.PID = n
	w.owner("/proc/" + pid)
	if b, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil {
		w.Command = strings.TrimSpace(string(b))
	}
}

func (w *Who) owner(name string) {
	fi, err := os.Lstat(name)
	if err != nil {
		return
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		w.UID = int(st.Uid)
	}
}

func (w *Who) since(name string) {
	if fi, err := os.Lstat(name); err == nil {
		w.Since = fi.ModTime()
	}
}
