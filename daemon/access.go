package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
)

// SettingRule is a rule that a setting makes.
type SettingRule struct {
	archive.Rule
	Setting string
}

// SettingRules returns the rules that the settings are, beside a list. problems are words that mean nothing.
func SettingRules(acl *archive.ACL, set *settings.Settings) (rules []SettingRule, problems []error) {
	for _, row := range []struct {
		setting string
		words   []string
		verbs   archive.Verbs
		parse   func(string) (archive.Subject, error)
	}{
		{"allowed-users", set.AllowedUsers, archive.Ordinary, userSubject},
		{"trusted-users", set.TrustedUsers, archive.All, userSubject},
		{"trusted-public-keys", set.TrustedPublicKeys, archive.Import, keySubject},
	} {
		for _, w := range row.words {
			s, err := row.parse(w)
			switch {
			case err != nil:
				problems = append(problems, fmt.Errorf("setting '%s': %w", row.setting, err))
			case s == archive.Everybody && row.verbs == archive.Ordinary && acl.Names(s):
			default:
				rules = append(rules, SettingRule{archive.Rule{Subject: s, Verbs: row.verbs}, row.setting})
			}
		}
	}
	return rules, problems
}

// AccessList returns who may do what: the list with the rules of the settings.
func AccessList(acl *archive.ACL, set *settings.Settings) (*archive.ACL, []error) {
	found, problems := SettingRules(acl, set)
	rules := make([]archive.Rule, len(found))
	for i, r := range found {
		rules[i] = r.Rule
	}
	return acl.With(rules...), problems
}

// userSubject parses a word of allowed-users: a name, a number, @group or *.
func userSubject(word string) (archive.Subject, error) {
	if word == "*" {
		return archive.Everybody, nil
	}
	kind, name := "user:", word
	if group, ok := strings.CutPrefix(word, "@"); ok {
		kind, name = "group:", group
	}
	if _, err := strconv.ParseUint(name, 10, 32); err == nil {
		kind = map[string]string{"user:": "uid:", "group:": "gid:"}[kind]
	}
	return archive.ParseSubject(kind + name)
}

func keySubject(word string) (archive.Subject, error) {
	key, err := archive.ParsePublicKey(word)
	return archive.KeySubject(key), err
}

// access is the access list of a server, read again when its file is another one.
type access struct {
	file     string
	settings *settings.Settings
	log      *slog.Logger

	mu    sync.Mutex // guards what follows
	read  bool
	stamp stamp
	own   *archive.ACL // the file
	list  *archive.ACL // with the settings
	err   error
}

// stamp tells versions of a file apart. The zero value is no file.
type stamp struct {
	inode, size    uint64
	changed, wrote syscall.Timespec
}

// settled is how old a file's change must be until its stamp is believed: two changes within one tick of the
// file system's clock look the same.
const settled = 2 * time.Second

func stampOf(file string) (stamp, error) {
	fi, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return stamp{}, nil
	}
	if err != nil {
		return stamp{}, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	return stamp{inode: st.Ino, size: uint64(st.Size), changed: st.Ctim, wrote: st.Mtim}, nil
}

// users returns who may do what. When the file is wrong nobody may do anything, and the error says why.
func (a *access) users() (*archive.ACL, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refresh()
	return a.list, a.err
}

// keys is users without the settings: which keys they trust is for sessions to say.
func (a *access) keys() (*archive.ACL, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refresh()
	return a.own, a.err
}

// refresh is called with mu held.
func (a *access) refresh() {
	now, err := stampOf(a.file)
	if err == nil && a.read && now == a.stamp && (now == stamp{} || time.Since(time.Unix(now.changed.Unix())) > settled) {
		return
	}
	first := !a.read || now != a.stamp
	a.read, a.stamp, a.own, a.list, a.err = true, now, nil, nil, err
	if err == nil {
		a.load(first)
	}
	if a.err != nil && first {
		a.log.Error("access list: nobody but root may do anything until it is mended", "file", a.file, "error", a.err)
	}
}

func (a *access) load(first bool) {
	own, err := archive.LoadACL(a.file)
	if err != nil {
		a.err = err
		return
	}
	var problems []error
	a.own = own
	a.list, problems = AccessList(own, a.settings)
	for _, p := range problems {
		if first {
			a.log.Warn("ignore what means nothing", "error", p)
		}
	}
}

// rightsOf returns what a peer may do, or why it may not even connect.
func (s *Server) rightsOf(p Peer) (archive.Verbs, error) {
	rights, err := s.grantedTo(p)
	if err != nil {
		return 0, err
	}
	if p.Limit != 0 {
		rights &= p.Limit | archive.Connect
	}
	return rights, nil
}

func (s *Server) grantedTo(p Peer) (archive.Verbs, error) {
	switch group := s.settings.BuildUsers; {
	case p.inside != nil:
		return insideRights, nil
	case s.opts.Rights != 0:
		return s.opts.Rights | archive.Connect, nil
	case p.Trusted || p.UID == 0 || p.UID == os.Geteuid():
		return archive.All, nil
	case group != "" && p.processIn(group):
		return 0, fmt.Errorf("%w: user %d is of the group %s, whose members only build", protocol.ErrNotAllowed, p.UID, group)
	}
	acl, err := s.access.users()
	if err != nil {
		return 0, fmt.Errorf("%w: the daemon's access list is wrong, so that only root may connect; 'cairn acl list' says where", protocol.ErrNotAllowed)
	}
	rights := acl.Rights(p.person())
	if !rights.Has(archive.Connect) {
		return 0, fmt.Errorf("%w: user %d is not allowed to connect to the daemon", protocol.ErrNotAllowed, p.UID)
	}
	return rights, nil
}

// may reports whether the session has the right.
func (x *session) may(verb archive.Verbs) bool { return x.rights.Has(verb) }

// need returns nil, or an error that says which right the session lacks for what.
func (x *session) need(verb archive.Verbs, what string) error {
	if x.may(verb) {
		return nil
	}
	return fmt.Errorf("%s: %w: user %d lacks the right %q", what, protocol.ErrNotAllowed, x.peer.UID, verb&^x.rights)
}
