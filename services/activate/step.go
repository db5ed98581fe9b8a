package activate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"cairn/store/profile"
)

// Step is one change of the host, as a journal holds it: data from which another process can undo it.
type Step struct {
	Kind string `json:"kind"`

	// units: "stop", "start", "restart", "reload"
	Unit   string `json:"unit,omitempty"`
	Active bool   `json:"active,omitempty"` // before

	// "file", and what "tmpfiles" and "sysusers" read
	Path string `json:"path,omitempty"`
	Was  *Node  `json:"was,omitempty"`
	Is   *Node  `json:"is,omitempty"`

	// "sysusers": what it adds
	Users  []string `json:"users,omitempty"`
	Groups []string `json:"groups,omitempty"`

	// "account"
	Account *AccountChange `json:"account,omitempty"`
	Argv    []string       `json:"argv,omitempty"`
	Login   *Login         `json:"login,omitempty"`

	// "generation": makes one; "switch": makes one current. Zero is none.
	Target string `json:"target,omitempty"`
	From   int    `json:"from,omitempty"` // of "generation": the highest number before
	To     int    `json:"to,omitempty"`

	// "hostname"
	FromName string `json:"fromName,omitempty"`
	ToName   string `json:"toName,omitempty"`
}

// isUnit reports whether the step is a job of systemd.
func (s *Step) isUnit() bool {
	return s.Kind == "stop" || s.Kind == "start" || s.Kind == "restart" || s.Kind == "reload"
}

func (s *Step) String() string {
	switch {
	case s.isUnit():
		return s.Kind + " " + s.Unit
	case s.Kind == "file" && s.Is.Kind == "absent":
		return "remove " + s.Path
	case s.Kind == "file":
		return "write " + s.Path
	case s.Kind == "account":
		return s.Account.String()
	case s.Kind == "switch":
		return fmt.Sprintf("switch to generation %d", s.To)
	case s.Kind == "generation":
		return "make a generation"
	case s.Kind == "hostname":
		return "set host name " + s.ToName
	}
	return s.Kind
}

// do has the effect of a step other than a unit's. It may be done twice.
func (e *Engine) do(ctx context.Context, s *Step) error {
	switch s.Kind {
	case "file":
		return e.putNode(s.Path, *s.Is)
	case "sysusers":
		return e.command(ctx, "systemd-sysusers", e.real(s.Path))
	case "account":
		return e.doAccount(ctx, s)
	case "generation":
		_, err := e.profile().New(s.Target)
		return err
	case "switch":
		return e.point(s.To)
	case "hostname":
		return e.setHostName(s.ToName)
	case "tmpfiles":
		return e.command(ctx, "systemd-tmpfiles", "--create", e.real(s.Path))
	case "daemon-reload":
		return e.systemd.Reload(ctx)
	}
	return fmt.Errorf("step of unknown kind %q", s.Kind)
}

// undo takes the effect of a step other than a unit's back, or finds that it never had one.
func (e *Engine) undo(ctx context.Context, s *Step) error {
	switch s.Kind {
	case "file":
		return e.putNode(s.Path, *s.Was)
	case "sysusers":
		return e.dropAccounts(ctx, s.Users, s.Groups)
	case "account":
		return e.undoAccount(ctx, s)
	case "generation":
		return e.dropGenerations(s.From)
	case "switch":
		return e.point(s.From)
	case "hostname":
		return e.setHostName(s.FromName)
	}
	return nil // tmpfiles: what it made stays; daemon-reload: is done again at the end
}

// putNode is put for paths of the host, with sources in the store.
func (e *Engine) putNode(path string, n Node) error {
	n.Sources = e.realAll(n.Sources)
	return put(e.host(path), n)
}

// command runs a program that changes the host; only the real root has one.
func (e *Engine) command(ctx context.Context, argv ...string) error {
	if e.opts.Root != "/" {
		return fmt.Errorf("run %s: only files can be changed below %s", argv[0], e.opts.Root)
	}
	_, err := e.run(ctx, argv...)
	return err
}

// point makes a generation current; 0 takes the link away.
func (e *Engine) point(number int) error {
	if number == 0 {
		return put(e.host(e.profileLink()), absent)
	}
	return e.profile().Switch(number)
}

// dropGenerations deletes the generations above last that no one switched to.
func (e *Engine) dropGenerations(last int) error {
	list, err := e.profile().List()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(g profile.Generation) bool { return g.Number <= last || g.Current })
	var numbers []int
	for _, g := range list {
		numbers = append(numbers, g.Number)
	}
	return e.profile().Delete(numbers...)
}

func (e *Engine) setHostName(name string) error {
	if e.opts.Root != "/" {
		return nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name %s: %w", name, err)
	}
	return nil
}

// fieldFlags are usermod's flags for the fields of an account.
var fieldFlags = map[string]string{"comment": "--comment", "home": "--home", "shell": "--shell", "group": "--gid"}

func (e *Engine) doAccount(ctx context.Context, s *Step) error {
	c := s.Account
	have, err := e.accounts()
	if err != nil {
		return err
	}
	_, exists := have.Users[c.Name]
	switch c.Action {
	case "add":
		if exists {
			return nil
		}
		return e.command(ctx, s.Argv...)
	case "set":
		return e.command(ctx, "usermod", fieldFlags[c.Field], c.To, "--", c.Name)
	case "join":
		return e.join(ctx, have, c.Name, c.To)
	case "leave":
		return e.leave(ctx, have, c.Name, c.To)
	case "disable":
		return e.command(ctx, "usermod", "--lock", "--expiredate", "1", "--shell", noLogin, "--", c.Name)
	case "enable":
		return e.enable(ctx, c.Name, s.Login)
	}
	return fmt.Errorf("account change of unknown kind %q", c.Action)
}

func (e *Engine) undoAccount(ctx context.Context, s *Step) error {
	c := s.Account
	have, err := e.accounts()
	if err != nil {
		return err
	}
	if _, exists := have.Users[c.Name]; !exists {
		return nil
	}
	switch c.Action {
	case "add":
		return e.dropAccounts(ctx, []string{c.Name}, nil)
	case "set":
		return e.command(ctx, "usermod", fieldFlags[c.Field], c.From, "--", c.Name)
	case "join":
		return e.leave(ctx, have, c.Name, c.To)
	case "leave":
		return e.join(ctx, have, c.Name, c.To)
	case "disable":
		return e.enable(ctx, c.Name, s.Login)
	case "enable":
		return e.command(ctx, "usermod", "--lock", "--expiredate", "1", "--shell", noLogin, "--", c.Name)
	}
	return nil
}

func (e *Engine) join(ctx context.Context, have Accounts, user, group string) error {
	if slices.Contains(have.Groups[group].Members, user) {
		return nil
	}
	return e.command(ctx, "gpasswd", "--add", user, group)
}

func (e *Engine) leave(ctx context.Context, have Accounts, user, group string) error {
	if !slices.Contains(have.Groups[group].Members, user) {
		return nil
	}
	return e.command(ctx, "gpasswd", "--delete", user, group)
}

func (e *Engine) enable(ctx context.Context, name string, l *Login) error {
	if err := e.command(ctx, "usermod", "--shell", l.Shell, "--expiredate", l.Expire, "--", name); err != nil {
		return err
	}
	if l.Locked {
		return nil
	}
	return e.command(ctx, "usermod", "--unlock", "--", name)
}

// dropAccounts deletes accounts that this very switch made. Homes stay.
func (e *Engine) dropAccounts(ctx context.Context, users, groups []string) error {
	have, err := e.accounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range users {
		if _, exists := have.Users[name]; exists {
			errs = append(errs, e.dropUser(ctx, name))
		}
	}
	if have, err = e.accounts(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, name := range groups {
		if _, exists := have.Groups[name]; exists {
			errs = append(errs, e.command(ctx, "groupdel", "--", name))
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) dropUser(ctx context.Context, name string) error {
	err := e.command(ctx, "userdel", "--", name)
	if err == nil {
		return nil
	}
	disable := e.command(ctx, "usermod", "--lock", "--expiredate", "1", "--shell", noLogin, "--", name)
	return errors.Join(fmt.Errorf("account %s is in use, and was disabled instead of deleted: %w", name, err), disable)
}

// fileStep turns a planned change into a step, keeping a copy of what is there.
func (e *Engine) fileStep(id string, n int, f FileChange) (Step, error) {
	was := f.From
	if was.Kind == "file" {
		if _, err := os.Lstat(e.host(f.Path)); err == nil {
			if err := backUp(e.host(f.Path), e.host(e.backup(id, n))); err != nil {
				return Step{}, err
			}
			was.Sources = []string{e.backup(id, n)}
		}
	}
	is := f.To
	return Step{Kind: "file", Path: f.Path, Was: &was, Is: &is}, nil
}
