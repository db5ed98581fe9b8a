// Package system turns a folded service graph into the derivation of a system closure,
// and reads the manifest of a built one.
//
// A system object holds no program of its own, no time, no fact of a host and no random value:
//
//	etc/<path>       a symlink to the source of each file of /etc (the switch copies those with a mode)
//	etc/hostname     the host name, when there is one
//	units/<name>     unit files
//	sysusers         system accounts and groups, for systemd-sysusers
//	tmpfiles         for systemd-tmpfiles
//	packages         the union of the packages
//	activate         symlink to the cairn program that knows how to switch to this system
//	services.json    the manifest: the spec with real paths
//	provenance.json  where the system comes from
//
// services.json is the JSON of Manifest. It names its version; a reader refuses another version,
// unknown fields, more than MaxManifest bytes, and whatever Spec.Check refuses: no name in it can lead
// out of the directory it is meant for, and no value can break the line of the file it is written to.
// Definitions are compared by hashes computed from it when it is read, since the paths in it are
// known only after the build.
//
// The package is pure but for ReadManifest. It knows no service by name.
package system

import (
	"fmt"
	"slices"
	"strings"

	"cairn/derivation"
	"cairn/store"
)

// Entry is one entry of the tree that the builder "builtin:tree" makes. Exactly one field is set,
// apart from Executable.
type Entry struct {
	Symlink    string   `json:"symlink,omitempty"`
	File       string   `json:"file,omitempty"`
	Text       *string  `json:"text,omitempty"`
	Executable bool     `json:"executable,omitempty"`
	Tree       string   `json:"tree,omitempty"`
	Trees      []string `json:"trees,omitempty"` // a union of several
}

// AuthorizedKeysPath is where below /etc the keys of a user are, for sshd's AuthorizedKeysFile.
func AuthorizedKeysPath(user string) string { return "ssh/authorized_keys.d/" + user }

// Tree lays out the system object. The cairn program is the object or placeholder of the binary
// that switches to the system; empty leaves the link out.
func (s *Spec) Tree(cairn string) (map[string]Entry, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	t := map[string]Entry{
		"sysusers":        text(s.Sysusers()),
		"tmpfiles":        text(lines(s.Tmpfiles)),
		"services.json":   text(string((&Manifest{Version: ManifestVersion, Spec: *s}).JSON())),
		"provenance.json": text(string(encode(nonNil(s.Provenance)))),
	}
	for _, f := range s.Etc {
		t["etc/"+f.Path] = Entry{Symlink: f.Source}
	}
	if s.HostName != "" {
		t["etc/hostname"] = text(s.HostName + "\n")
	}
	for _, u := range s.Units {
		t["units/"+u.Name] = text(u.Text)
	}
	switch len(s.Packages) {
	case 0:
	case 1:
		t["packages"] = Entry{Tree: s.Packages[0]}
	default:
		t["packages"] = Entry{Trees: s.Packages}
	}
	if cairn != "" {
		t["activate"] = Entry{Symlink: cairn}
	}
	return t, nil
}

// Inputs finds what a text of the evaluation refers to: derivations with the outputs wanted, and sources.
type Inputs func(text string) (map[store.Path][]string, []store.Path, error)

// Derivation returns the recipe of the system closure: floating, content-addressed, called HOST-system.
// The platform is the derivation's, such as "x86_64-linux"; cairn is as for Tree.
func (s *Spec) Derivation(platform, cairn string, inputs Inputs) (*derivation.Derivation, error) {
	tree, err := s.Tree(cairn)
	if err != nil {
		return nil, err
	}
	text := string(encode(tree))
	drvs, srcs, err := inputs(text)
	if err != nil {
		return nil, fmt.Errorf("system: %w", err)
	}
	name := s.HostName
	if name == "" {
		name = "host"
	}
	return &derivation.Derivation{
		Name:      name + "-system",
		Outputs:   map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}},
		InputDrvs: drvs, InputSrcs: srcs,
		System: platform, Builder: "builtin:tree",
		Env: map[string]string{"builder": "builtin:tree", "name": name + "-system", "out": derivation.Placeholder("out"), "system": platform, "tree": text},
	}, nil
}

// Sysusers returns the system accounts and groups in the syntax of sysusers.d.
// People's accounts are not among them: systemd-sysusers would give them system numbers and no home.
func (s *Spec) Sysusers() string {
	var b strings.Builder
	for _, g := range s.Groups {
		fmt.Fprintf(&b, "g %s %s\n", g.Name, id(g.GID))
	}
	for i := range s.Users {
		if u := &s.Users[i]; u.System {
			u.sysusers(&b)
		}
	}
	return b.String()
}

func (u *User) sysusers(b *strings.Builder) {
	number := id(u.UID)
	if u.Group != "" && u.Group != u.Name {
		number += ":" + u.Group
	}
	fmt.Fprintf(b, "u %s %s %q %s %s\n", u.Name, number, strings.ReplaceAll(u.Comment, "%", "%%"), dash(u.Home), dash(u.Shell))
	for _, g := range slices.Sorted(slices.Values(u.Groups)) {
		fmt.Fprintf(b, "m %s %s\n", u.Name, g)
	}
}

func id(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return strings.ReplaceAll(s, "%", "%%")
}

func lines(ls []string) string {
	if len(ls) == 0 {
		return ""
	}
	return strings.Join(ls, "\n") + "\n"
}

func text(s string) Entry { return Entry{Text: &s} }

func nonNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
