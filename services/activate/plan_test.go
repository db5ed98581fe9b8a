package activate_test

import (
	"strings"
	"testing"

	"cairn/services/activate"
	"cairn/services/system"
)

const store32 = "/cairn/store/00000000000000000000000000000000-"

func manifest(units ...system.Unit) *system.Manifest {
	return &system.Manifest{Version: 1, Spec: system.Spec{Units: units}}
}

func service(change func(*system.Unit)) system.Unit {
	u := system.Unit{Name: "web.service", Text: "[Service]\nExecStart=/bin/web\nExecReload=/bin/kill -HUP $MAINPID\n", WantedBy: []string{"multi-user.target"}, Start: true, ReloadTriggers: []string{store32 + "conf"}}
	if change != nil {
		change(&u)
	}
	return u
}

var (
	up     = activate.UnitStatus{LoadState: "loaded", ActiveState: "active", SubState: "running", FragmentPath: "/etc/systemd/system/web.service"}
	down   = activate.UnitStatus{LoadState: "loaded", ActiveState: "inactive", SubState: "dead", FragmentPath: "/etc/systemd/system/web.service"}
	failed = activate.UnitStatus{LoadState: "loaded", ActiveState: "failed", SubState: "failed", Result: "exit-code"}
	loops  = activate.UnitStatus{LoadState: "loaded", ActiveState: "activating", SubState: "auto-restart"}
	ran    = activate.UnitStatus{LoadState: "loaded", ActiveState: "inactive", SubState: "dead", Result: "success", Ran: true}
)

func TestUnitVerdicts(t *testing.T) {
	plain := service(nil)
	as := func(name, text string) system.Unit {
		return service(func(u *system.Unit) { u.Name, u.Text, u.ReloadTriggers = name, text, nil })
	}
	for name, c := range map[string]struct {
		current, wanted []system.Unit
		status          activate.UnitStatus
		unit            string // default web.service
		action          string
		stopFirst       bool
	}{
		"new":                   {nil, []system.Unit{plain}, activate.UnitStatus{ActiveState: "inactive"}, "", "start", false},
		"new and not to start":  {nil, []system.Unit{service(func(u *system.Unit) { u.Start = false })}, down, "", "keep", false},
		"replaces the host's":   {nil, []system.Unit{plain}, up, "", "restart", false},
		"unchanged":             {[]system.Unit{plain}, []system.Unit{plain}, up, "", "keep", false},
		"unchanged but stopped": {[]system.Unit{plain}, []system.Unit{plain}, down, "", "start", false},
		"unchanged but failed":  {[]system.Unit{plain}, []system.Unit{plain}, failed, "", "start", false},
		"unchanged but looping": {[]system.Unit{plain}, []system.Unit{plain}, loops, "", "restart", false},
		"text changed":          {[]system.Unit{plain}, []system.Unit{service(func(u *system.Unit) { u.Text += "Nice=1\n" })}, up, "", "restart", false},
		"text changed, stopped": {[]system.Unit{plain}, []system.Unit{service(func(u *system.Unit) { u.Text += "Nice=1\n" })}, down, "", "start", false},
		"text changed, reloads": {[]system.Unit{plain}, []system.Unit{service(func(u *system.Unit) { u.Text += "Nice=1\n"; u.OnChange = "reload" })}, up, "", "reload", false},
		"text changed, keeps":   {[]system.Unit{plain}, []system.Unit{service(func(u *system.Unit) { u.Text += "Nice=1\n"; u.OnChange = "keep" })}, up, "", "keep", false},
		"restart trigger":       {[]system.Unit{plain}, []system.Unit{service(func(u *system.Unit) { u.RestartTriggers = []string{store32 + "x"} })}, up, "", "restart", false},
		"reload trigger":        {[]system.Unit{plain}, []system.Unit{service(func(u *system.Unit) { u.ReloadTriggers = []string{store32 + "x"} })}, up, "", "reload", false},
		"reload without ExecReload": {[]system.Unit{as("web.service", "[Service]\nExecStart=/bin/web\n")},
			[]system.Unit{service(func(u *system.Unit) { u.Text = "[Service]\nExecStart=/bin/web\n" })}, up, "", "restart", false},
		"reload by notify": {[]system.Unit{as("web.service", "[Service]\nType=notify-reload\nExecStart=/bin/web\n")},
			[]system.Unit{service(func(u *system.Unit) { u.Text = "[Service]\nType=notify-reload\nExecStart=/bin/web\n" })}, up, "", "reload", false},
		"removed":                {[]system.Unit{plain}, nil, up, "", "stop", true},
		"one-shot that has run":  {[]system.Unit{as("web.service", "[Service]\nType=oneshot\nExecStart=/bin/x\n")}, []system.Unit{as("web.service", "[Service]\nType=oneshot\nExecStart=/bin/x\n")}, ran, "", "keep", false},
		"changed one-shot":       {[]system.Unit{as("web.service", "[Service]\nType=oneshot\nExecStart=/bin/x\n")}, []system.Unit{as("web.service", "[Service]\nType=oneshot\nExecStart=/bin/y\n")}, ran, "", "start", false},
		"started by its timer":   {nil, []system.Unit{service(func(u *system.Unit) { u.WantedBy = nil }), as("web.timer", "[Timer]\nOnCalendar=daily\n")}, down, "", "keep", false},
		"started by a path":      {nil, []system.Unit{service(func(u *system.Unit) { u.WantedBy = nil }), as("other.path", "[Path]\nUnit=web.service\nPathExists=/x\n")}, down, "", "keep", false},
		"changed timer":          {[]system.Unit{as("web.timer", "[Timer]\nOnCalendar=daily\n")}, []system.Unit{as("web.timer", "[Timer]\nOnCalendar=weekly\n")}, up, "web.timer", "restart", false},
		"changed target":         {[]system.Unit{as("web.target", "[Unit]\n")}, []system.Unit{as("web.target", "[Unit]\nWants=x.service\n")}, up, "web.target", "keep", false},
		"changed mount options":  {[]system.Unit{as("srv.mount", "[Mount]\nWhat=/dev/x\nWhere=/srv\nOptions=ro\n")}, []system.Unit{as("srv.mount", "[Mount]\nWhat=/dev/x\nWhere=/srv\nOptions=rw\n")}, up, "srv.mount", "reload", false},
		"changed mount source":   {[]system.Unit{as("srv.mount", "[Mount]\nWhat=/dev/x\nWhere=/srv\n")}, []system.Unit{as("srv.mount", "[Mount]\nWhat=/dev/y\nWhere=/srv\n")}, up, "srv.mount", "restart", false},
		"changed socket":         {[]system.Unit{as("web.socket", "[Socket]\nListenStream=1\n"), plain}, []system.Unit{as("web.socket", "[Socket]\nListenStream=2\n"), plain}, up, "web.socket", "restart", true},
		"service of that socket": {[]system.Unit{as("web.socket", "[Socket]\nListenStream=1\n"), plain}, []system.Unit{as("web.socket", "[Socket]\nListenStream=2\n"), plain}, up, "web.service", "restart", true},
	} {
		t.Run(name, func(t *testing.T) {
			unit := c.unit
			if unit == "" {
				unit = "web.service"
			}
			facts := &activate.Facts{Units: map[string]activate.UnitStatus{}}
			for _, u := range append(c.current, c.wanted...) {
				facts.Units[u.Name] = c.status
			}
			p := activate.NewPlan(activate.Input{Current: manifest(c.current...), Wanted: manifest(c.wanted...), State: &activate.State{Version: 1}, Facts: facts})
			for _, u := range p.Units {
				if u.Name == unit {
					if u.Action != c.action || u.StopFirst != c.stopFirst {
						t.Errorf("%s %s (%s), stop first %v; want %s, %v", u.Action, u.Name, u.Reason, u.StopFirst, c.action, c.stopFirst)
					}
					return
				}
			}
			t.Errorf("nothing is planned for %s: %s", unit, p)
		})
	}
}

func TestTemplateInstances(t *testing.T) {
	tmpl := func(text string) system.Unit { return system.Unit{Name: "job@.service", Text: text, Start: true} }
	facts := &activate.Facts{Units: map[string]activate.UnitStatus{"job@a.service": up, "job@b.service": down}, Instances: map[string][]string{"job@.service": {"job@a.service", "job@b.service"}}}
	p := activate.NewPlan(activate.Input{Current: manifest(tmpl("[Service]\nExecStart=/bin/a\n")), Wanted: manifest(tmpl("[Service]\nExecStart=/bin/b\n")), State: &activate.State{Version: 1}, Facts: facts})
	if len(p.Units) != 1 || p.Units[0].Name != "job@a.service" || p.Units[0].Action != "restart" {
		t.Errorf("want only the running instance restarted: %s", p)
	}
	p = activate.NewPlan(activate.Input{Current: manifest(tmpl("[Service]\nExecStart=/bin/a\n")), Wanted: manifest(), State: &activate.State{Version: 1}, Facts: facts})
	for _, u := range p.Units {
		if u.Action != "stop" {
			t.Errorf("%s %s", u.Action, u.Name)
		}
	}
}

func TestPortHandover(t *testing.T) {
	unit := func(name, text string) system.Unit { return system.Unit{Name: name, Text: text, Start: true} }
	current := manifest(unit("a.service", "[Service]\nExecStart=/bin/a 80\n"), unit("b.service", "[Service]\nExecStart=/bin/b 81\n"))
	current.Ports = []system.Port{{Number: 80, Unit: "a.service"}, {Number: 81, Unit: "b.service"}}
	wanted := manifest(unit("a.service", "[Service]\nExecStart=/bin/a 81\n"), unit("b.service", "[Service]\nExecStart=/bin/b 80\n"))
	wanted.Ports = []system.Port{{Number: 81, Unit: "a.service"}, {Number: 80, Unit: "b.service"}}
	p := activate.NewPlan(activate.Input{Current: current, Wanted: wanted, State: &activate.State{Version: 1},
		Facts: &activate.Facts{Units: map[string]activate.UnitStatus{"a.service": up, "b.service": up}}})
	for _, u := range p.Units {
		if !u.StopFirst || u.Action != "restart" {
			t.Errorf("%s must stop before the other starts: %+v", u.Name, u)
		}
	}
}

func TestFileVerdicts(t *testing.T) {
	link := activate.Node{Kind: "link", Target: "/cairn/var/profiles/system/etc/x"}
	mine := activate.Node{Kind: "file", Sum: "aa", Mode: 0o644}
	none := activate.Node{Kind: "absent"}
	for name, c := range map[string]struct {
		there   activate.Node
		owned   *activate.Owned
		claimed bool
		replace bool
		action  string // or conflict
		want    string
	}{
		"new":                             {none, nil, true, false, "create", ""},
		"of the host":                     {mine, nil, true, false, "", "not ours"},
		"of the host, replaced":           {mine, nil, true, true, "replace", ""},
		"a directory, replaced":           {activate.Node{Kind: "directory"}, nil, true, true, "", "not ours"},
		"there already":                   {link, nil, true, false, "keep", ""},
		"ours":                            {link, &activate.Owned{Now: link, Before: none}, true, false, "keep", ""},
		"ours, removed on the host":       {none, &activate.Owned{Now: link, Before: none}, true, false, "create", "removed on the host"},
		"ours, changed on the host":       {mine, &activate.Owned{Now: link, Before: none}, true, false, "", "changed on the host"},
		"ours, changed on the host, ok":   {mine, &activate.Owned{Now: link, Before: none}, true, true, "replace", "changed on the host"},
		"ours, another":                   {mine, &activate.Owned{Now: mine, Before: none}, true, false, "update", ""},
		"disowned":                        {link, &activate.Owned{Now: link, Before: none}, false, false, "remove", ""},
		"disowned, was the host's":        {link, &activate.Owned{Now: link, Before: mine}, false, false, "restore", "the host had"},
		"disowned, changed on the host":   {mine, &activate.Owned{Now: link, Before: none}, false, false, "", "stays"},
		"disowned, removed on the host":   {none, &activate.Owned{Now: link, Before: none}, false, false, "", ""},
		"disowned, removed, was the host": {none, &activate.Owned{Now: link, Before: mine}, false, false, "restore", ""},
	} {
		t.Run(name, func(t *testing.T) {
			state := &activate.State{Version: 1, Files: map[string]activate.Owned{}}
			if c.owned != nil {
				state.Files["/etc/x"] = *c.owned
			}
			var claims []activate.Claim
			if c.claimed {
				claims = []activate.Claim{{Path: "/etc/x", Node: link, Replace: c.replace}}
			}
			p := activate.NewPlan(activate.Input{Wanted: manifest(), State: state, Claims: claims, Facts: &activate.Facts{Files: map[string]activate.Node{"/etc/x": c.there}}})
			got := ""
			for _, f := range p.Files {
				got = f.Action
			}
			if got != c.action || !strings.Contains(p.String(), c.want) {
				t.Errorf("got %q, want %q with %q:\n%s", got, c.action, c.want, p)
			}
		})
	}
}

func TestAccountVerdicts(t *testing.T) {
	host := activate.Accounts{
		Users:  map[string]activate.Person{"alice": {UID: 1000, GID: 1000, Shell: "/bin/sh", Home: "/home/alice"}},
		Groups: map[string]activate.Circle{"alice": {GID: 1000}, "docker": {GID: 5, Members: []string{"alice"}}, "sudo": {GID: 27, Members: []string{"carol"}}},
	}
	id := 1001
	for name, c := range map[string]struct {
		user    *system.User
		account *activate.Account
		want    string
	}{
		"unchanged":               {&system.User{Name: "alice", Shell: "/bin/sh"}, nil, ""},
		"new":                     {&system.User{Name: "bob"}, nil, "add bob"},
		"new in a group":          {&system.User{Name: "bob", Groups: []string{"sudo"}}, nil, "add bob|bob joins group sudo"},
		"new system account":      {&system.User{Name: "web", System: true, Groups: []string{"sudo"}}, nil, "add web"},
		"shell":                   {&system.User{Name: "alice", Shell: "/bin/bash"}, nil, `alice: shell "/bin/sh" → "/bin/bash"`},
		"joins":                   {&system.User{Name: "alice", Groups: []string{"sudo"}}, nil, "alice joins group sudo"},
		"leaves what was ours":    {&system.User{Name: "alice"}, &activate.Account{Groups: []string{"docker"}}, "alice leaves group docker"},
		"number":                  {&system.User{Name: "alice", UID: &id}, nil, "account alice: user has number 1000"},
		"removed, ours":           {nil, &activate.Account{Created: true}, "disable alice"},
		"removed, the host's":     {nil, &activate.Account{}, ""},
		"removed, given back":     {nil, &activate.Account{Before: map[string]string{"shell": "/bin/zsh"}}, `alice: shell "/bin/sh" → "/bin/zsh"`},
		"removed, already":        {nil, &activate.Account{Created: true, Disabled: &activate.Login{}}, ""},
		"comes back":              {&system.User{Name: "alice"}, &activate.Account{Created: true, Disabled: &activate.Login{Shell: "/bin/sh"}}, "enable alice"},
		"out of sudo, my session": {&system.User{Name: "carol"}, nil, "out of group sudo"},
		"removed in my session":   {nil, &activate.Account{Created: true}, "way in alice"},
	} {
		t.Run(name, func(t *testing.T) {
			state := &activate.State{Version: 1, Accounts: map[string]*activate.Account{}}
			if c.account != nil {
				state.Accounts["alice"] = c.account
			}
			wanted := manifest()
			if c.user != nil {
				wanted.Users = []system.User{*c.user}
			}
			facts := &activate.Facts{Accounts: host}
			switch name {
			case "removed in my session":
				facts.Session.User = "alice"
			case "out of sudo, my session":
				facts.Session.User = "carol"
				host.Users["carol"] = activate.Person{UID: 1002, GID: 1002}
				state.Accounts["carol"] = &activate.Account{Created: true, Groups: []string{"sudo"}}
			}
			p := activate.NewPlan(activate.Input{Wanted: wanted, State: state, Facts: facts})
			var got []string
			for _, a := range p.Accounts {
				got = append(got, a.String())
			}
			for _, x := range p.Conflicts {
				got = append(got, x.String())
			}
			if text := strings.Join(got, "|"); c.want == "" && text != "" || !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}
