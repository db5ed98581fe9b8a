package activate

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"cairn/services/system"
)

// Plan is what a switch would do, before it does anything. It prints, and it is JSON.
type Plan struct {
	From       string          `json:"from,omitempty"` // the current system
	System     string          `json:"system"`
	Units      []UnitChange    `json:"units"`
	Files      []FileChange    `json:"files"`
	Accounts   []AccountChange `json:"accounts"`
	HostName   *HostNameChange `json:"hostName,omitempty"`
	HostPaths  []string        `json:"hostPaths,omitempty"`
	Notes      []string        `json:"notes,omitempty"`
	Conflicts  []Conflict      `json:"conflicts,omitempty"`
	Connection string          `json:"connection,omitempty"` // whether the session that asks survives

	next *State
}

// Conflict is a reason not to begin.
type Conflict struct {
	Kind   string `json:"kind"` // "file", "unit", "port", "account", "check", "space", "host path", "way in", "host"
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

func (c Conflict) String() string { return fmt.Sprintf("%s %s: %s", c.Kind, c.Name, c.Reason) }

// UnitChange is what happens to a unit.
type UnitChange struct {
	Name   string `json:"name"`
	Action string `json:"action"` // "start", "stop", "restart", "reload", "keep"
	Reason string `json:"reason"`
	Active bool   `json:"active"` // before
	// StopFirst stops the unit before anything starts: somebody else takes its port, or it is removed.
	StopFirst bool `json:"stopFirst,omitempty"`
}

// HostNameChange is a change of the kernel's host name.
type HostNameChange struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Input is all that a plan depends on.
type Input struct {
	System  string           // the wanted system's path
	Current *system.Manifest // nil when there is none
	Wanted  *system.Manifest // empty to give the host back
	State   *State
	Claims  []Claim // of the wanted system
	Facts   *Facts
}

// NewPlan compares. It is a pure function of its input.
func NewPlan(in Input) *Plan {
	if in.Current == nil {
		in.Current = new(system.Manifest)
	}
	p := &Plan{From: in.State.System, System: in.System, HostPaths: in.Wanted.HostPaths, next: in.State.clone()}
	p.next.System = in.System
	p.planFiles(in)
	p.planAccounts(in)
	p.planHostName(in)
	p.planUnits(in)
	return p
}

// Empty reports whether the host is as the plan wants it.
func (p *Plan) Empty() bool {
	busy := slices.ContainsFunc(p.Units, func(u UnitChange) bool { return u.Action != "keep" }) ||
		slices.ContainsFunc(p.Files, FileChange.effective)
	return !busy && len(p.Accounts) == 0 && p.HostName == nil && p.From == p.System
}

func (p *Plan) conflict(kind, name, format string, args ...any) {
	p.Conflicts = append(p.Conflicts, Conflict{kind, name, fmt.Sprintf(format, args...)})
}

func (p *Plan) planHostName(in Input) {
	want := in.Wanted.HostName
	switch {
	case want != "":
		if p.next.HostName == "" {
			p.next.HostName = in.Facts.HostName
		}
	case in.State.HostName != "":
		want, p.next.HostName = in.State.HostName, ""
	}
	if want != "" && want != in.Facts.HostName {
		p.HostName = &HostNameChange{From: in.Facts.HostName, To: want}
	}
}

func (p *Plan) planUnits(in Input) {
	seen := map[string]bool{}
	for i := range in.Wanted.Units {
		w := &in.Wanted.Units[i]
		seen[w.Name] = true
		p.planWanted(in, w, in.Current.Unit(w.Name))
	}
	for i := range in.Current.Units {
		if c := &in.Current.Units[i]; !seen[c.Name] {
			p.planRemoved(in, c)
		}
	}
	p.planDropIns(in)
	p.planSockets(in)
	p.planPorts(in)
	sort.SliceStable(p.Units, func(i, j int) bool { return p.Units[i].Name < p.Units[j].Name })
}

// planWanted decides about a unit that the wanted system has, and about the instances of a template.
func (p *Plan) planWanted(in Input, w, c *system.Unit) {
	if w.Template() {
		for _, name := range in.Facts.Instances[w.Name] {
			if ch := decide(w, c, in.Facts.Units[name], in); ch.Action == "restart" || ch.Action == "reload" {
				ch.Name = name
				p.Units = append(p.Units, ch)
			}
		}
		return
	}
	st := in.Facts.Units[w.Name]
	if c == nil && st.hostOwned() {
		if _, known := p.next.Units[w.Name]; !known {
			p.next.Units[w.Name] = st.running()
		}
	}
	p.Units = append(p.Units, decide(w, c, st, in))
}

func decide(w, c *system.Unit, st UnitStatus, in Input) UnitChange {
	ch := UnitChange{Name: w.Name, Active: st.running()}
	ch.Action, ch.Reason = verdict(w, c, st, in)
	return ch
}

func verdict(w, c *system.Unit, st UnitStatus, in Input) (action, reason string) {
	if !st.running() {
		return idle(w, c, st, in)
	}
	if c == nil {
		if w.Type() == "target" || w.Type() == "slice" {
			return "keep", "runs already"
		}
		return "restart", "takes the place of the host's unit"
	}
	if st.looping() {
		return "restart", "keeps failing"
	}
	defined, reloads := w.Definition() == c.Definition(), w.Reloads() == c.Reloads()
	if defined && reloads {
		return "keep", "unchanged"
	}
	what := "its definition changed"
	if defined {
		what = "what it reads changed"
	}
	if w.OnChange == "keep" {
		return "keep", what + "; takes effect at its next start"
	}
	switch w.Type() {
	case "target", "slice":
		return "keep", what + "; nothing runs in it"
	case "mount", "swap", "automount":
		if sameMount(w.Text, c.Text) && w.Type() == "mount" {
			return "reload", what
		}
	}
	if (defined || w.OnChange == "reload") && canReload(w) {
		return "reload", what
	}
	return "restart", what
}

// idle decides about a unit that does not run.
func idle(w, c *system.Unit, st UnitStatus, in Input) (action, reason string) {
	if !w.Start {
		return "keep", "not started by a switch"
	}
	if trigger := triggeredBy(w, in.Wanted); trigger != "" {
		return "keep", "started by " + trigger
	}
	if w.Type() == "slice" {
		return "keep", "starts with what runs in it"
	}
	if c == nil {
		return "start", "new"
	}
	unchanged := w.Definition() == c.Definition() && w.Reloads() == c.Reloads()
	if unchanged && oneShot(w) && st.ActiveState == "inactive" && st.Result == "success" && st.Ran {
		return "keep", "has run"
	}
	if st.ActiveState == "failed" {
		return "start", "has failed"
	}
	if !unchanged {
		return "start", "not running, and its definition changed"
	}
	return "start", "not running"
}

// triggeredBy names the timer, socket or path unit that starts a unit which no target wants.
func triggeredBy(w *system.Unit, m *system.Manifest) string {
	if w.Type() != "service" || len(w.WantedBy)+len(w.RequiredBy) > 0 {
		return ""
	}
	stem := strings.TrimSuffix(w.Name, ".service")
	for _, t := range []string{".timer", ".socket", ".path"} {
		if m.Unit(stem+t) != nil {
			return stem + t
		}
	}
	for i := range m.Units {
		u := &m.Units[i]
		if slices.Contains([]string{"timer", "socket", "path"}, u.Type()) && slices.Contains(settings(u.Text, "Unit", "Service"), w.Name) {
			return u.Name
		}
	}
	return ""
}

func (p *Plan) planRemoved(in Input, c *system.Unit) {
	names := []string{c.Name}
	if c.Template() {
		names = in.Facts.Instances[c.Name]
	}
	for _, name := range names {
		st := in.Facts.Units[name]
		if was, theirs := in.State.Units[name]; theirs {
			delete(p.next.Units, name)
			if was {
				action := "restart"
				if !st.running() {
					action = "start"
				}
				p.Units = append(p.Units, UnitChange{Name: name, Action: action, Active: st.running(), Reason: "gives way to the host's own unit"})
				continue
			}
		}
		p.Units = append(p.Units, UnitChange{Name: name, Action: "stop", Active: st.running(), StopFirst: true, Reason: "no longer wanted"})
	}
}

// planDropIns restarts a running unit, ours or the host's, when a file in its UNIT.d directory changes.
func (p *Plan) planDropIns(in Input) {
	for _, f := range p.Files {
		unit := dropInUnit(f.Path)
		if unit == "" || f.Action == "keep" || f.To.Kind == "directory" || f.From.Kind == "directory" || !in.Facts.Units[unit].running() {
			continue
		}
		change := UnitChange{Name: unit, Action: "restart", Active: true, Reason: "its drop-in " + path.Base(f.Path) + " changed"}
		i := slices.IndexFunc(p.Units, func(u UnitChange) bool { return u.Name == unit })
		if i < 0 {
			p.Units = append(p.Units, change)
		} else if a := p.Units[i].Action; a == "keep" || a == "reload" {
			p.Units[i] = change
		}
	}
}

// dropInUnit returns the unit that a path below /etc/systemd/system/UNIT.d/ belongs to.
func dropInUnit(name string) string {
	dir, ok := strings.CutPrefix(path.Dir(name), unitDir+"/")
	unit, ok2 := strings.CutSuffix(dir, ".d")
	if !ok || !ok2 || strings.Contains(unit, "/") || !strings.Contains(unit, ".") {
		return ""
	}
	return unit
}

// planSockets stops the service of a socket that must be made anew: systemd refuses to start
// a socket whose service already runs.
func (p *Plan) planSockets(in Input) {
	for i := range p.Units {
		ch := &p.Units[i]
		if !strings.HasSuffix(ch.Name, ".socket") || ch.Action != "restart" {
			continue
		}
		ch.StopFirst = true
		service := strings.TrimSuffix(ch.Name, ".socket") + ".service"
		for j := range p.Units {
			if s := &p.Units[j]; s.Name == service && s.Active && s.Action != "stop" {
				s.Action, s.StopFirst, s.Reason = "restart", true, "its socket is made anew"
			}
		}
	}
}

// planPorts stops a unit first when another one gets its port.
func (p *Plan) planPorts(in Input) {
	for _, old := range in.Current.Ports {
		for _, now := range in.Wanted.Ports {
			if old.Unit == now.Unit || !old.Overlaps(now) {
				continue
			}
			for i := range p.Units {
				if ch := &p.Units[i]; ch.Name == old.Unit && ch.Action == "restart" {
					ch.StopFirst = true
					ch.Reason += fmt.Sprintf("; port %d goes to %s", old.Number, now.Unit)
				}
			}
		}
	}
}

func canReload(u *system.Unit) bool {
	return u.Type() == "service" && (len(settings(u.Text, "ExecReload")) > 0 || slices.Contains(settings(u.Text, "Type"), "notify-reload"))
}

func oneShot(u *system.Unit) bool {
	return slices.Contains(settings(u.Text, "Type"), "oneshot")
}

func sameMount(a, b string) bool {
	return slices.Equal(settings(a, "What", "Where", "Type"), settings(b, "What", "Where", "Type"))
}

// settings returns the values of keys in a unit file, in order, with continued lines joined.
func settings(text string, keys ...string) []string {
	var out []string
	var line strings.Builder
	for _, l := range strings.Split(text, "\n") {
		l = strings.TrimSpace(l)
		if line.Len() > 0 && (strings.HasPrefix(l, "#") || strings.HasPrefix(l, ";")) {
			continue
		}
		if head, more := strings.CutSuffix(l, "\\"); more {
			line.WriteString(head + " ")
			continue
		}
		line.WriteString(l)
		key, value, ok := strings.Cut(line.String(), "=")
		line.Reset()
		if ok && slices.Contains(keys, strings.TrimSpace(key)) {
			out = append(out, strings.TrimSpace(value))
		}
	}
	return out
}

// JSON returns the plan as JSON.
func (p *Plan) JSON() []byte {
	data, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return append(data, '\n')
}

// String prints the plan for people: what changes, each with its reason, then what stays.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "system %s\n", p.System)
	if p.From != "" && p.From != p.System {
		fmt.Fprintf(&b, "was    %s\n", p.From)
	}
	kept := 0
	for _, u := range p.Units {
		if u.Action == "keep" {
			kept++
			continue
		}
		fmt.Fprintf(&b, "  %-8s %s (%s)\n", u.Action, u.Name, u.Reason)
	}
	if kept > 0 {
		fmt.Fprintf(&b, "  keep     %d units\n", kept)
	}
	for _, f := range p.Files {
		if f.Action != "keep" {
			fmt.Fprintf(&b, "  %-8s %s%s\n", f.Action, f.Path, bracket(f.Reason))
		}
	}
	for _, a := range p.Accounts {
		fmt.Fprintf(&b, "  account  %s\n", a)
	}
	if p.HostName != nil {
		fmt.Fprintf(&b, "  name     %s → %s\n", p.HostName.From, p.HostName.To)
	}
	if len(p.HostPaths) > 0 {
		fmt.Fprintf(&b, "  uses     %s of the host\n", strings.Join(p.HostPaths, ", "))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "  note     %s\n", n)
	}
	for _, c := range p.Conflicts {
		fmt.Fprintf(&b, "  CONFLICT %s\n", c)
	}
	if p.Connection != "" {
		fmt.Fprintf(&b, "  session  %s\n", p.Connection)
	}
	if p.Empty() {
		b.WriteString("  nothing to do\n")
	}
	return b.String()
}

func bracket(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}
