package activate

import (
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"cairn/services/system"
)

// Claim is a path that a system wants to own.
type Claim struct {
	Path    string `json:"path"`
	Node    Node   `json:"node"`
	Replace bool   `json:"replace,omitempty"`
	Source  string `json:"source,omitempty"` // what a link through the profile leads to, for the plan
}

// throughProfile reports whether the claim is a link whose meaning changes with the profile.
func (c Claim) throughProfile() bool { return c.Node.Kind == "link" && c.Source != "" }

// FileChange is what happens to a path.
type FileChange struct {
	Path   string `json:"path"`
	Action string `json:"action"` // "create", "replace", "update", "remove", "restore", "changes" (only what a link leads to), "keep"
	Reason string `json:"reason,omitempty"`
	From   Node   `json:"from"`
	To     Node   `json:"to"`
}

// effective reports whether something must be done at the path itself.
func (f FileChange) effective() bool { return f.Action != "keep" && f.Action != "changes" }

// unitDir is where unit files of the administrator are, and ours.
const unitDir = "/etc/systemd/system"

// claims lists what a system wants to own, sorted by path. The profile is the link that says which
// system is current; sum gives hash and size of copied files.
func claims(m *system.Manifest, profile string, facts *Facts, sum func([]string) (string, int64, error)) ([]Claim, error) {
	var out []Claim
	for _, f := range m.Etc {
		c := Claim{Path: "/etc/" + f.Path, Node: linkNode(profile + "/etc/" + f.Path), Replace: f.Replace, Source: f.Source}
		if f.Mode != "" {
			n, err := copyNode([]string{f.Source}, f.Mode, f.User, f.Group, sum)
			if err != nil {
				return nil, fmt.Errorf("file %s: %w", c.Path, err)
			}
			c.Node = n
		}
		out = append(out, c)
	}
	for _, u := range m.Users {
		if len(u.AuthorizedKeys) == 0 {
			continue
		}
		c := Claim{Path: "/etc/" + system.AuthorizedKeysPath(u.Name)}
		n, err := copyNode(u.AuthorizedKeys, "644", "", "", sum)
		if err != nil {
			return nil, fmt.Errorf("file %s: %w", c.Path, err)
		}
		c.Node = n
		out = append(out, c)
	}
	for i := range m.Units {
		out = append(out, unitClaims(&m.Units[i], profile)...)
	}
	if len(m.Tmpfiles) > 0 {
		out = append(out, Claim{Path: "/etc/tmpfiles.d/cairn.conf", Node: linkNode(profile + "/tmpfiles"), Source: digestOf(m.Tmpfiles)})
	}
	if m.HostName != "" {
		out = append(out, Claim{Path: "/etc/hostname", Node: textNode(m.HostName+"\n", 0o644), Replace: true})
	}
	if m.Timezone != "" {
		out = append(out, Claim{Path: "/etc/localtime", Node: linkNode("../usr/share/zoneinfo/" + m.Timezone), Replace: true})
		if facts.TimezoneFile {
			out = append(out, Claim{Path: "/etc/timezone", Node: textNode(m.Timezone+"\n", 0o644), Replace: true})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	for i := 1; i < len(out); i++ {
		if out[i].Path == out[i-1].Path {
			return nil, fmt.Errorf("file %s: two parts of the system claim it", out[i].Path)
		}
	}
	return out, nil
}

func unitClaims(u *system.Unit, profile string) []Claim {
	out := []Claim{{
		Path: unitDir + "/" + u.Name, Node: linkNode(profile + "/units/" + u.Name),
		Replace: u.Replace, Source: u.Definition() + u.Reloads(),
	}}
	for suffix, targets := range map[string][]string{".wants/": u.WantedBy, ".requires/": u.RequiredBy} {
		for _, t := range slices.Compact(slices.Sorted(slices.Values(targets))) {
			out = append(out, Claim{Path: unitDir + "/" + t + suffix + u.Name, Node: linkNode("../" + u.Name), Replace: u.Replace})
		}
	}
	return out
}

func digestOf(lines []string) string { return strings.Join(lines, "\n") }

func copyNode(sources []string, mode, owner, group string, sum func([]string) (string, int64, error)) (Node, error) {
	bits, err := system.ParseMode(mode)
	if err != nil {
		return Node{}, err
	}
	digest, size, err := sum(sources)
	if err != nil {
		return Node{}, err
	}
	return Node{Kind: "file", Sources: sources, Sum: digest, Size: size, Mode: bits, User: owner, Group: group}, nil
}

// planFiles compares what is claimed, what is ours and what is there.
func (p *Plan) planFiles(in Input) {
	wanted := map[string]bool{}
	for _, c := range in.Claims {
		wanted[c.Path] = true
		p.planClaim(in, c)
	}
	for _, name := range sortedKeys(in.State.Files) {
		if !wanted[name] {
			p.planDisowned(in, name, in.State.Files[name])
		}
	}
	p.planDirs(in, wanted)
}

func (p *Plan) planClaim(in Input, c Claim) {
	there := in.Facts.Files[c.Path]
	ours, owned := in.State.Files[c.Path]
	ch := FileChange{Path: c.Path, Action: "keep", From: there, To: c.Node}
	before := there
	if owned {
		before = ours.Before
	}
	switch {
	case there.Kind == "directory" || there.Kind == "other":
		p.conflict("file", c.Path, "is %s that is not ours; move it away", there)
		return
	case there.Same(c.Node) && !in.wrongOwner(there, c.Node, ours.Now, owned):
		if owned && changedBehind(in, c) {
			ch.Action = "changes"
		}
		if !owned && c.throughProfile() {
			before = absent // only we make such links
		}
	case there.Kind == "absent":
		ch.Action = "create"
		if owned {
			ch.Reason = "was removed on the host"
		}
	case owned && there.Same(ours.Now):
		ch.Action = "update"
		if there.Same(c.Node) {
			ch.Reason = "owner"
		}
	case c.Replace:
		ch.Action, ch.Reason = "replace", "a copy of the host's is kept"
		if owned {
			ch.Reason = "was changed on the host"
		}
	case owned:
		p.conflict("file", c.Path, "was changed on the host since the last switch: is %s; move it away, or set replace", there)
		return
	case there.Target == "/dev/null" && strings.HasPrefix(c.Path, unitDir+"/"):
		p.conflict("unit", path.Base(c.Path), "is masked on the host (%s links to /dev/null); unmask it, or set replace", c.Path)
		return
	default:
		p.conflict("file", c.Path, "is %s that is not ours; move it away, or set replace", there)
		return
	}
	p.Files = append(p.Files, ch)
	p.next.Files[c.Path] = Owned{Now: c.Node, Before: before}
}

// wrongOwner reports whether a copy belongs to somebody else than it should.
func (in Input) wrongOwner(there, want, ours Node, owned bool) bool {
	if owned && (want.User != ours.User || want.Group != ours.Group) {
		return true
	}
	if u, ok := in.Facts.Accounts.Users[want.User]; want.User != "" && (!ok || u.UID != there.UID) {
		return true
	}
	g, ok := in.Facts.Accounts.Groups[want.Group]
	return want.Group != "" && (!ok || g.GID != there.GID)
}

// changedBehind reports whether a link through the profile leads to something else than before.
func changedBehind(in Input, c Claim) bool {
	if c.Source == "" || in.State.System == in.System {
		return false
	}
	for _, f := range in.Current.Etc {
		if "/etc/"+f.Path == c.Path {
			return f.Source != c.Source
		}
	}
	if u := in.Current.Unit(path.Base(c.Path)); u != nil && strings.HasPrefix(c.Path, unitDir+"/") {
		return u.Definition()+u.Reloads() != c.Source
	}
	return path.Base(c.Path) == "cairn.conf" && digestOf(in.Current.Tmpfiles) != c.Source
}

// planDisowned gives a path back that no longer is wanted.
func (p *Plan) planDisowned(in Input, name string, ours Owned) {
	there := in.Facts.Files[name]
	delete(p.next.Files, name)
	ch := FileChange{Path: name, Action: "remove", From: there, To: ours.Before}
	if ours.Before.Kind != "absent" {
		ch.Action, ch.Reason = "restore", "the host had "+ours.Before.String()
	}
	if !there.Same(ours.Now) && there.Kind != "absent" {
		p.Notes = append(p.Notes, fmt.Sprintf("%s stays: it was changed on the host since the last switch", name))
		return
	}
	if there.Same(ch.To) {
		return
	}
	p.Files = append(p.Files, ch)
}

// planDirs makes the directories that are missing, and drops those that only we needed.
func (p *Plan) planDirs(in Input, wanted map[string]bool) {
	needed := map[string]bool{}
	var made []FileChange
	for name := range wanted {
		for d := path.Dir(name); d != "/" && d != "/etc"; d = path.Dir(d) {
			needed[d] = true
		}
	}
	for _, d := range sortedKeys(needed) {
		switch there := in.Facts.Files[d]; there.Kind {
		case "directory":
		case "absent":
			made = append(made, FileChange{Path: d, Action: "create", From: absent, To: Node{Kind: "directory", Mode: 0o755}})
			if !slices.Contains(p.next.Dirs, d) {
				p.next.Dirs = append(p.next.Dirs, d)
			}
		default:
			p.conflict("file", d, "is %s where a directory is needed", there)
		}
	}
	p.Files = append(made, p.Files...)
	gone := slices.DeleteFunc(slices.Sorted(slices.Values(in.State.Dirs)), func(d string) bool { return needed[d] })
	slices.Reverse(gone)
	for _, d := range gone {
		p.next.Dirs = slices.DeleteFunc(p.next.Dirs, func(e string) bool { return e == d })
		if there := in.Facts.Files[d]; there.Kind == "directory" {
			p.Files = append(p.Files, FileChange{Path: d, Action: "remove", Reason: "when empty", From: there, To: absent})
		}
	}
	slices.Sort(p.next.Dirs)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
