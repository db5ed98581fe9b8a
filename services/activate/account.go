package activate

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"cairn/services/system"
)

// Person is a line of passwd, with what shadow says of the way in.
type Person struct {
	UID, GID             int
	Comment, Home, Shell string
	Expire               string // shadow's field 8
	Locked               bool   // the password field starts with "!"
}

// Circle is a line of group.
type Circle struct {
	GID     int
	Members []string
}

// Accounts are the accounts of a host.
type Accounts struct {
	Users  map[string]Person
	Groups map[string]Circle
}

// AccountChange is a change of one account.
type AccountChange struct {
	Name   string `json:"name"`
	Action string `json:"action"` // "add", "add group", "set", "join", "leave", "disable", "enable"
	Field  string `json:"field,omitempty"`
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`

	argv     []string // of "add" for people
	bySystem bool     // systemd-sysusers adds it
	login    *Login   // of "disable" and "enable"
}

func (a AccountChange) String() string {
	switch a.Action {
	case "set":
		return fmt.Sprintf("%s: %s %q → %q", a.Name, a.Field, a.From, a.To)
	case "join", "leave":
		return fmt.Sprintf("%s %ss group %s", a.Name, a.Action, a.To)
	}
	return a.Action + " " + a.Name
}

// noLogin is the shell of an account that is disabled.
const noLogin = "/usr/sbin/nologin"

func (p *Plan) planAccounts(in Input) {
	for _, g := range in.Wanted.Groups {
		have, ok := in.Facts.Accounts.Groups[g.Name]
		if !ok {
			p.account(AccountChange{Name: g.Name, Action: "add group", bySystem: true})
		} else if g.GID != nil && *g.GID != have.GID {
			p.conflict("account", g.Name, "group has number %d on the host, %d is wanted", have.GID, *g.GID)
		}
	}
	for i := range in.Wanted.Users {
		p.planUser(in, &in.Wanted.Users[i])
	}
	for _, name := range sortedKeys(in.State.Accounts) {
		if in.Wanted.User(name) == nil {
			p.planGone(in, name, p.next.Accounts[name])
		}
	}
}

func (p *Plan) account(c AccountChange) { p.Accounts = append(p.Accounts, c) }

func (p *Plan) planUser(in Input, u *system.User) {
	have, exists := in.Facts.Accounts.Users[u.Name]
	ours := p.next.Accounts[u.Name]
	if ours == nil {
		ours = &Account{Created: !exists, Before: map[string]string{}}
		p.next.Accounts[u.Name] = ours
	}
	if ours.Before == nil {
		ours.Before = map[string]string{}
	}
	if !exists {
		p.account(AccountChange{Name: u.Name, Action: "add", argv: userAdd(in, u), bySystem: u.System})
		ours.Created, ours.Disabled = true, nil
		p.planGroups(in, u, ours, !u.System)
		return
	}
	if u.UID != nil && *u.UID != have.UID {
		p.conflict("account", u.Name, "user has number %d on the host, %d is wanted", have.UID, *u.UID)
		return
	}
	if ours.Disabled != nil {
		p.account(AccountChange{Name: u.Name, Action: "enable", login: ours.Disabled})
		have.Shell, ours.Disabled = ours.Disabled.Shell, nil
	}
	p.planFields(in, u, have, ours)
	p.planGroups(in, u, ours, true)
}

// planFields changes what differs and was asked for. Of an account that the host had, the old value is remembered.
func (p *Plan) planFields(in Input, u *system.User, have Person, ours *Account) {
	group := ""
	for name, g := range in.Facts.Accounts.Groups {
		if g.GID == have.GID {
			group = name
		}
	}
	for _, f := range []struct{ field, from, to string }{
		{"comment", have.Comment, u.Comment}, {"home", have.Home, u.Home}, {"shell", have.Shell, u.Shell}, {"group", group, u.Group},
	} {
		if f.to == "" || f.to == f.from {
			continue
		}
		p.account(AccountChange{Name: u.Name, Action: "set", Field: f.field, From: f.from, To: f.to})
		if _, known := ours.Before[f.field]; !known && !ours.Created {
			ours.Before[f.field] = f.from
		}
	}
}

// planGroups joins and leaves groups; memberships that the host gave are left alone.
// A new system account joins its groups through systemd-sysusers.
func (p *Plan) planGroups(in Input, u *system.User, ours *Account, join bool) {
	for _, g := range u.Groups {
		member := slices.Contains(in.Facts.Accounts.Groups[g].Members, u.Name)
		if member {
			continue
		}
		if join {
			p.account(AccountChange{Name: u.Name, Action: "join", To: g})
		}
		if !slices.Contains(ours.Groups, g) {
			ours.Groups = append(ours.Groups, g)
		}
	}
	for _, g := range slices.Clone(ours.Groups) {
		if slices.Contains(u.Groups, g) {
			continue
		}
		if slices.Contains(in.Facts.Accounts.Groups[g].Members, u.Name) {
			p.account(AccountChange{Name: u.Name, Action: "leave", To: g})
			if u.Name == in.Facts.Session.User && slices.Contains([]string{"sudo", "wheel", "admin"}, g) {
				p.conflict("way in", u.Name, "the plan would take the user whose session this is out of group %s", g)
			}
		}
		ours.Groups = slices.DeleteFunc(ours.Groups, func(h string) bool { return h == g })
	}
}

// planGone disables an account that we made, and gives one back that we only changed.
func (p *Plan) planGone(in Input, name string, ours *Account) {
	have, exists := in.Facts.Accounts.Users[name]
	if !exists {
		delete(p.next.Accounts, name)
		return
	}
	if ours.Disabled != nil {
		return
	}
	for _, g := range ours.Groups {
		if slices.Contains(in.Facts.Accounts.Groups[g].Members, name) {
			p.account(AccountChange{Name: name, Action: "leave", To: g})
		}
	}
	ours.Groups = nil
	if !ours.Created {
		p.giveBack(name, have, ours)
		delete(p.next.Accounts, name)
		return
	}
	if name == in.Facts.Session.User {
		p.conflict("way in", name, "the plan would disable the user whose session this is")
	}
	login := &Login{Shell: have.Shell, Expire: have.Expire, Locked: have.Locked}
	ours.Disabled = login
	p.account(AccountChange{Name: name, Action: "disable", login: login})
}

func (p *Plan) giveBack(name string, have Person, ours *Account) {
	now := map[string]string{"comment": have.Comment, "home": have.Home, "shell": have.Shell}
	for _, field := range sortedKeys(ours.Before) {
		if from := now[field]; from != ours.Before[field] {
			p.account(AccountChange{Name: name, Action: "set", Field: field, From: from, To: ours.Before[field]})
		}
	}
}

// userAdd makes the command for a person's account; system accounts are made by systemd-sysusers.
func userAdd(in Input, u *system.User) []string {
	argv := []string{"useradd"}
	if u.CreateHome || !u.System {
		argv = append(argv, "--create-home")
	}
	if u.UID != nil {
		argv = append(argv, "--uid", strconv.Itoa(*u.UID))
	}
	add := func(flag, value string) {
		if value != "" {
			argv = append(argv, flag, value)
		}
	}
	add("--comment", u.Comment)
	add("--home-dir", u.Home)
	if u.Shell == "" {
		add("--shell", "/bin/bash")
	} else {
		add("--shell", u.Shell)
	}
	_, taken := in.Facts.Accounts.Groups[u.Name]
	declared := slices.ContainsFunc(in.Wanted.Groups, func(g system.Group) bool { return g.Name == u.Name })
	switch {
	case u.Group != "":
		argv = append(argv, "--gid", u.Group)
	case taken || declared:
		argv = append(argv, "--gid", u.Name)
	default:
		argv = append(argv, "--user-group")
	}
	return append(argv, "--", u.Name)
}

// parseAccounts reads passwd, group and shadow. Lines that are none are skipped, as the C library does.
func parseAccounts(passwd, group, shadow io.Reader) (Accounts, error) {
	a := Accounts{Users: map[string]Person{}, Groups: map[string]Circle{}}
	err := eachLine(passwd, 7, func(f []string) {
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if _, again := a.Users[f[0]]; err1 == nil && err2 == nil && !again {
			a.Users[f[0]] = Person{UID: uid, GID: gid, Comment: f[4], Home: f[5], Shell: f[6]}
		}
	})
	if err != nil {
		return a, fmt.Errorf("read passwd: %w", err)
	}
	err = eachLine(group, 4, func(f []string) {
		gid, err := strconv.Atoi(f[2])
		if _, again := a.Groups[f[0]]; err == nil && !again {
			a.Groups[f[0]] = Circle{GID: gid, Members: strings.FieldsFunc(f[3], func(r rune) bool { return r == ',' })}
		}
	})
	if err != nil {
		return a, fmt.Errorf("read group: %w", err)
	}
	err = eachLine(shadow, 9, func(f []string) {
		if p, ok := a.Users[f[0]]; ok {
			p.Locked, p.Expire = strings.HasPrefix(f[1], "!"), f[7]
			a.Users[f[0]] = p
		}
	})
	if err != nil {
		return a, fmt.Errorf("read shadow: %w", err)
	}
	return a, nil
}

func eachLine(r io.Reader, fields int, fn func([]string)) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if f := strings.Split(s.Text(), ":"); len(f) == fields && f[0] != "" {
			fn(f)
		}
	}
	return s.Err()
}
