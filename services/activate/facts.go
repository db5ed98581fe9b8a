package activate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"cairn/services/system"
)

// Facts are what a plan needs to know of the host. They are gathered once, before anything changes.
type Facts struct {
	HostName     string
	TimezoneFile bool                  // the host keeps /etc/timezone
	Files        map[string]Node       // by absolute path
	Units        map[string]UnitStatus // by name
	Instances    map[string][]string   // loaded instances of templates
	Accounts     Accounts
	Session      Session
}

// Session is who asks.
type Session struct {
	User string // the login behind sudo, or the user itself
	SSH  bool   // over ssh
}

// CurrentSession reads the environment of this process.
func CurrentSession(getenv func(string) string) Session {
	s := Session{User: getenv("SUDO_USER"), SSH: getenv("SSH_CONNECTION") != ""}
	if s.User == "" {
		s.User = getenv("USER")
	}
	return s
}

func (e *Engine) facts(ctx context.Context, current, wanted *system.Manifest, state *State) (*Facts, error) {
	f := &Facts{Files: map[string]Node{}, Instances: map[string][]string{}, Session: e.opts.Session}
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	f.HostName = name
	_, err = os.Lstat(e.host("/etc/timezone"))
	f.TimezoneFile = err == nil
	if f.Accounts, err = e.accounts(); err != nil {
		return nil, err
	}
	return f, e.unitFacts(ctx, f, current, wanted)
}

func (e *Engine) unitFacts(ctx context.Context, f *Facts, manifests ...*system.Manifest) error {
	var names []string
	for _, m := range manifests {
		for _, file := range m.Etc {
			if unit := dropInUnit("/etc/" + file.Path); unit != "" {
				names = append(names, unit)
			}
		}
		for i := range m.Units {
			u := &m.Units[i]
			if !u.Template() {
				names = append(names, u.Name)
				continue
			}
			instances, err := e.systemd.Loaded(ctx, strings.Replace(u.Name, "@.", "@*.", 1))
			if err != nil {
				return err
			}
			f.Instances[u.Name] = instances
			names = append(names, instances...)
		}
	}
	slices.Sort(names)
	var err error
	f.Units, err = e.systemd.Status(ctx, slices.Compact(names)...)
	return err
}

// fileFacts looks at all paths that a plan may touch, and at their directories.
func (e *Engine) fileFacts(f *Facts, cs []Claim, state *State) error {
	paths := slices.Clone(state.Dirs)
	for _, c := range cs {
		paths = append(paths, c.Path)
	}
	paths = append(paths, sortedKeys(state.Files)...)
	for _, p := range paths {
		for ; p != "/" && p != "/etc" && p != "."; p = path.Dir(p) {
			if _, done := f.Files[p]; done {
				continue
			}
			n, err := observe(e.host(p))
			if err != nil {
				return err
			}
			f.Files[p] = n
		}
	}
	return nil
}

func (e *Engine) accounts() (Accounts, error) {
	var texts [3][]byte
	for i, name := range []string{"/etc/passwd", "/etc/group", "/etc/shadow"} {
		b, err := os.ReadFile(e.host(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Accounts{}, fmt.Errorf("read accounts: %w", err)
		}
		texts[i] = b
	}
	return parseAccounts(bytes.NewReader(texts[0]), bytes.NewReader(texts[1]), bytes.NewReader(texts[2]))
}

// bootID names this boot of the kernel. A container's boots are told apart by the start of its first process.
func (e *Engine) bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	stat, err := os.ReadFile("/proc/1/stat")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("read boot id: %q", stat)
	}
	return strings.TrimSpace(string(b)) + "-" + fields[19], nil
}
