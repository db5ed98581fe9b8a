package system

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.(service|socket|target|timer|path|mount|automount|swap|slice)$`)
	userName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*\$?$`)
	label    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)
)

// Lengths are not in the expressions: with them compiling takes longer than all else that a program does at its start.

func isUserName(s string) bool {
	return len(strings.TrimSuffix(s, "$")) <= 31 && userName.MatchString(s)
}

func isHostName(s string) bool {
	for l := range strings.SplitSeq(s, ".") {
		if len(l) > 63 || !label.MatchString(l) {
			return false
		}
	}
	return len(s) <= 64
}

// reservedEtc are files that programs of the host rewrite, or that the spec has a field for.
// A system that owned them would lock people out or fight with the host.
var reservedEtc = []string{"passwd", "shadow", "group", "gshadow", "subuid", "subgid", "machine-id", "mtab", "hostname", "localtime"}

// Check reports the first thing in s that no host could take, naming it.
// It does not look at the host, so it gives the same answer everywhere.
func (s *Spec) Check() error {
	for _, check := range []func() error{
		s.checkHost, s.checkEtc, s.checkUnits, s.checkAccounts, s.checkLines, s.checkPrograms, s.checkHealth, s.checkPorts,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spec) checkHost() error {
	if s.HostName != "" && !isHostName(s.HostName) {
		return fmt.Errorf("host name %q: want letters, digits and hyphens, 64 at most", clip(s.HostName))
	}
	if s.Timezone != "" && (!cleanRelative(s.Timezone)) {
		return fmt.Errorf("time zone %q: want a name such as Europe/Paris", clip(s.Timezone))
	}
	return nil
}

func (s *Spec) checkEtc() error {
	seen := map[string]bool{}
	for _, f := range s.Etc {
		if err := f.check(); err != nil {
			return fmt.Errorf("file /etc/%s: %w", clip(f.Path), err)
		}
		if seen[f.Path] {
			return fmt.Errorf("file /etc/%s: declared twice", f.Path)
		}
		seen[f.Path] = true
	}
	for _, u := range s.Users {
		p := AuthorizedKeysPath(u.Name)
		if len(u.AuthorizedKeys) > 0 && seen[p] {
			return fmt.Errorf("file /etc/%s: declared twice, once by the keys of user %s", p, u.Name)
		}
	}
	for p := range seen {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			if seen[d] {
				return fmt.Errorf("file /etc/%s: lies below /etc/%s, which is declared too", p, d)
			}
		}
	}
	return nil
}

func (f *EtcFile) check() error {
	if !cleanRelative(f.Path) {
		return fmt.Errorf("want a clean path relative to /etc")
	}
	if slices.Contains(reservedEtc, f.Path) {
		return fmt.Errorf("belongs to the host; use the fields for accounts, host name or time zone")
	}
	if err := absolute("source", f.Source); err != nil {
		return err
	}
	if f.Mode == "" {
		if f.User != "" || f.Group != "" {
			return fmt.Errorf("has an owner but no mode; only copies (with a mode) have owners")
		}
		return nil
	}
	if _, err := ParseMode(f.Mode); err != nil {
		return err
	}
	for _, n := range []string{f.User, f.Group} {
		if n != "" && !isUserName(n) {
			return fmt.Errorf("owner %q is not an account name", clip(n))
		}
	}
	return nil
}

// ParseMode parses the octal mode of a copied file: permission bits only.
func ParseMode(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 {
		return 0, fmt.Errorf("mode %q: want an octal number up to 777", clip(s))
	}
	return uint32(n), nil
}

func (s *Spec) checkUnits() error {
	seen := map[string]bool{}
	for i := range s.Units {
		u := &s.Units[i]
		if err := u.check(); err != nil {
			return fmt.Errorf("unit %s: %w", clip(u.Name), err)
		}
		if seen[u.Name] {
			return fmt.Errorf("unit %s: declared twice", u.Name)
		}
		seen[u.Name] = true
	}
	return nil
}

func (u *Unit) check() error {
	if len(u.Name) > 255 || !unitName.MatchString(u.Name) || strings.HasPrefix(u.Name, ".") {
		return fmt.Errorf("want a unit name such as web.service")
	}
	if strings.TrimSpace(u.Text) == "" || strings.ContainsRune(u.Text, 0) {
		return fmt.Errorf("text is empty or not text")
	}
	if !slices.Contains([]string{"", "restart", "reload", "keep"}, u.OnChange) {
		return fmt.Errorf("on change %q: want restart, reload or keep", clip(u.OnChange))
	}
	for _, w := range slices.Concat(u.WantedBy, u.RequiredBy) {
		if len(w) > 255 || !unitName.MatchString(w) || strings.Contains(w, "@.") {
			return fmt.Errorf("wanted or required by %q, which is not a unit", clip(w))
		}
		if u.Template() {
			return fmt.Errorf("is a template and cannot be wanted by %s; declare the instance", w)
		}
	}
	return absolutes("trigger", slices.Concat(u.ReloadTriggers, u.RestartTriggers))
}

// Template reports whether the unit is a template, name@.type, of which only instances run.
func (u *Unit) Template() bool { return strings.Contains(u.Name, "@.") }

// Type returns what stands after the last dot of the name: service, socket, …
func (u *Unit) Type() string { return u.Name[strings.LastIndexByte(u.Name, '.')+1:] }

func (s *Spec) checkAccounts() error {
	users, groups := map[string]bool{}, map[string]bool{}
	for _, g := range s.Groups {
		if !isUserName(g.Name) {
			return fmt.Errorf("group %q: not an account name", clip(g.Name))
		}
		if groups[g.Name] {
			return fmt.Errorf("group %s: declared twice", g.Name)
		}
		if err := checkID(g.GID); err != nil {
			return fmt.Errorf("group %s: %w", g.Name, err)
		}
		groups[g.Name] = true
	}
	for i := range s.Users {
		u := &s.Users[i]
		if users[u.Name] {
			return fmt.Errorf("user %s: declared twice", u.Name)
		}
		if err := u.check(); err != nil {
			return fmt.Errorf("user %s: %w", clip(u.Name), err)
		}
		users[u.Name] = true
	}
	return nil
}

func (u *User) check() error {
	if !isUserName(u.Name) {
		return fmt.Errorf("not an account name")
	}
	if err := checkID(u.UID); err != nil {
		return err
	}
	if strings.ContainsAny(u.Comment, ":\"\\\n\r\x00") {
		return fmt.Errorf("comment contains a colon, a quote, a backslash or a line end")
	}
	for _, p := range []string{u.Home, u.Shell} {
		if p == "" {
			continue
		}
		if err := absolute("home or shell", p); err != nil {
			return err
		}
		if strings.ContainsAny(p, ": \t") {
			return fmt.Errorf("home or shell %q contains a colon or a space", clip(p))
		}
	}
	for _, g := range u.Groups {
		if !isUserName(g) {
			return fmt.Errorf("group %q is not an account name", clip(g))
		}
	}
	if u.Group != "" && !isUserName(u.Group) {
		return fmt.Errorf("group %q is not an account name", clip(u.Group))
	}
	return absolutes("authorized keys", u.AuthorizedKeys)
}

func checkID(id *int) error {
	if id != nil && (*id < 0 || *id >= 1<<32-1 || *id == 1<<16-1) {
		return fmt.Errorf("id %d is out of range", *id)
	}
	return nil
}

func (s *Spec) checkLines() error {
	for _, l := range s.Tmpfiles {
		if strings.ContainsAny(l, "\n\r\x00") {
			return fmt.Errorf("tmpfiles line %q: has a line end in it", clip(l))
		}
	}
	return nil
}

func (s *Spec) checkPrograms() error {
	for _, c := range s.Checks {
		if err := checkArgv(c.Argv); err != nil {
			return fmt.Errorf("check %s: %w", clip(c.Name), err)
		}
	}
	if err := absolutes("host path", s.HostPaths); err != nil {
		return err
	}
	return absolutes("package", s.Packages)
}

func (s *Spec) checkHealth() error {
	for i := range s.Health {
		if err := s.Health[i].check(); err != nil {
			return fmt.Errorf("health check %s: %w", clip(s.Health[i].Name), err)
		}
	}
	return nil
}

const maxSeconds = 3600

func (h *Health) check() error {
	if h.TimeoutSeconds < 0 || h.TimeoutSeconds > maxSeconds || h.SettleSeconds < 0 || h.SettleSeconds > maxSeconds {
		return fmt.Errorf("time is below 0 or above %d seconds", maxSeconds)
	}
	if h.Unit != "" && !unitName.MatchString(h.Unit) {
		return fmt.Errorf("unit %q is not a unit name", clip(h.Unit))
	}
	switch h.Kind {
	case "unit":
		if h.Unit == "" {
			return fmt.Errorf("names no unit")
		}
	case "tcp":
		if h.Port < 1 || h.Port > 65535 {
			return fmt.Errorf("port %d is out of range", h.Port)
		}
	case "http":
		if !strings.HasPrefix(h.URL, "http://") && !strings.HasPrefix(h.URL, "https://") {
			return fmt.Errorf("url %q starts neither with http:// nor with https://", clip(h.URL))
		}
	case "command":
		return checkArgv(h.Argv)
	default:
		return fmt.Errorf("kind %q: want unit, tcp, http or command", clip(h.Kind))
	}
	return nil
}

func (s *Spec) checkPorts() error {
	for i, p := range s.Ports {
		if p.Number < 1 || p.Number > 65535 {
			return fmt.Errorf("port %d of %s: out of range", p.Number, clip(p.Unit))
		}
		if p.Protocol != "" && p.Protocol != "tcp" && p.Protocol != "udp" {
			return fmt.Errorf("port %d of %s: protocol %q: want tcp or udp", p.Number, clip(p.Unit), clip(p.Protocol))
		}
		for _, q := range s.Ports[:i] {
			if q.Unit != p.Unit && q.Overlaps(p) {
				return fmt.Errorf("port %d: wanted by %s and by %s", p.Number, clip(q.Unit), clip(p.Unit))
			}
		}
	}
	return nil
}

// Overlaps reports whether two listeners could not both have their port.
func (p Port) Overlaps(q Port) bool {
	if p.Number != q.Number || (p.Protocol == "udp") != (q.Protocol == "udp") {
		return false
	}
	return anyAddress(p.Address) || anyAddress(q.Address) || p.Address == q.Address
}

func anyAddress(a string) bool {
	return a == "" || a == "*" || a == "0.0.0.0" || a == "::" || a == "[::]"
}

func checkArgv(argv []string) error {
	if len(argv) == 0 {
		return fmt.Errorf("has no command")
	}
	if slices.ContainsFunc(argv, func(a string) bool { return strings.ContainsRune(a, 0) }) {
		return fmt.Errorf("command contains a zero byte")
	}
	return absolute("program", argv[0])
}

func absolutes(what string, ps []string) error {
	for _, p := range ps {
		if err := absolute(what, p); err != nil {
			return err
		}
	}
	return nil
}

func absolute(what, p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsAny(p, "\n\r\x00") {
		return fmt.Errorf("%s %q is not an absolute clean path", what, clip(p))
	}
	return nil
}

func cleanRelative(p string) bool {
	return p != "" && p != "." && !path.IsAbs(p) && path.Clean(p) == p && p != ".." && !strings.HasPrefix(p, "../") &&
		!strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
