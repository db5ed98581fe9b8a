package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxACL is the size limit of an ACL file.
const maxACL = 1 << 20

// ACL says who may do what. The zero value and a nil pointer allow nothing.
//
// As text it is a line per rule, "<subject> <verb>[,<verb>…]". Empty lines and lines that start with "#" are
// comments, which stay where they are when a rule is added. What follows "#" behind a rule is one, too.
// A subject may have several rules; it may do what any of them says. A key can only import.
type ACL struct {
	lines []aclLine
}

// Rule is what a subject may do.
type Rule struct {
	Subject Subject `json:"subject"`
	Verbs   Verbs   `json:"verbs"`
}

// aclLine is a line of the file. A comment has no subject.
type aclLine struct {
	text string
	Rule
}

// ParseACL parses an access list. Errors name the line.
func ParseACL(data []byte) (*ACL, error) {
	if len(data) > maxACL {
		return nil, fmt.Errorf("access list of %d bytes, the limit is %d", len(data), maxACL)
	}
	a := &ACL{}
	text := strings.TrimSuffix(string(data), "\n")
	if text == "" {
		return a, nil
	}
	for n, s := range strings.Split(text, "\n") {
		line, err := parseACLLine(s)
		if err != nil {
			return nil, fmt.Errorf("access list: line %d: %w", n+1, err)
		}
		a.lines = append(a.lines, line)
	}
	return a, nil
}

func parseACLLine(s string) (aclLine, error) {
	line := aclLine{text: s}
	rule, _, _ := strings.Cut(s, "#")
	words := strings.Fields(rule)
	if len(words) == 0 {
		return line, nil
	}
	if len(words) != 2 {
		return line, fmt.Errorf("%d words, want a subject and its verbs, which commas separate", len(words))
	}
	var err error
	if line.Subject, err = ParseSubject(words[0]); err != nil {
		return line, err
	}
	if line.Verbs, err = ParseVerbs(words[1]); err != nil {
		return line, err
	}
	return line, line.check()
}

// check refuses rules that cannot mean anything.
func (r Rule) check() error {
	if r.Subject.IsZero() {
		return errors.New("rule without a subject")
	}
	if key, ok := r.Subject.Key(); ok && r.Verbs != Import {
		return fmt.Errorf("key %s: a key can only import; %s is for users", key.Name(), r.Verbs)
	}
	return nil
}

func (r Rule) String() string { return r.Subject.String() + " " + r.Verbs.String() }

// Bytes returns the text.
func (a *ACL) Bytes() []byte {
	var b strings.Builder
	for _, line := range a.lines {
		b.WriteString(line.text)
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// Rules returns the rules, in their order.
func (a *ACL) Rules() []Rule {
	if a == nil {
		return nil
	}
	var rules []Rule
	for _, line := range a.lines {
		if !line.Subject.IsZero() {
			rules = append(rules, line.Rule)
		}
	}
	return rules
}

// With returns a list that also says what the rules say.
func (a *ACL) With(rules ...Rule) *ACL {
	both := &ACL{}
	if a != nil {
		both.lines = slices.Clone(a.lines)
	}
	for _, r := range rules {
		both.lines = append(both.lines, aclLine{text: r.String(), Rule: r})
	}
	return both
}

// Names reports whether a rule is about the subject.
func (a *ACL) Names(s Subject) bool {
	return slices.ContainsFunc(a.Rules(), func(r Rule) bool { return r.Subject == s })
}

// Rights returns what a person may do. Whoever may do anything may connect.
func (a *ACL) Rights(p Person) Verbs {
	var all Verbs
	for _, r := range a.Rules() {
		if p.Is(r.Subject) {
			all |= r.Verbs
		}
	}
	if all != 0 {
		all |= Connect
	}
	return all
}

// Allows reports whether key, name and bytes, may do what verb says.
func (a *ACL) Allows(key PublicKey, verb Verbs) bool {
	return !key.IsZero() && slices.Contains(a.Keys(verb), key)
}

// Keys returns the keys that may do what verb says.
func (a *ACL) Keys(verb Verbs) []PublicKey {
	var keys []PublicKey
	for _, r := range a.Rules() {
		if key, ok := r.Subject.Key(); ok && r.Verbs.Has(verb) && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// Check returns nil, or an error that is ErrUnauthorized and names the key.
func (a *ACL) Check(key PublicKey, verb Verbs) error {
	if a.Allows(key, verb) {
		return nil
	}
	return fmt.Errorf("key %s may not %s: %w; authorize it with: cairn acl allow %[1]s %[2]s", key, verb, ErrUnauthorized)
}

// verbsOf returns what the rules about a subject say.
func (a *ACL) verbsOf(s Subject) Verbs {
	var all Verbs
	for _, r := range a.Rules() {
		if r.Subject == s {
			all |= r.Verbs
		}
	}
	return all
}

// allow adds what is missing of a rule. The first rule about everybody takes the place of the daemon's
// own, so that it begins with that.
func (a *ACL) allow(r Rule) bool {
	missing := r.Verbs &^ a.verbsOf(r.Subject)
	switch {
	case r.Subject == Everybody && !a.Names(Everybody):
		missing = r.Verbs | Ordinary
		if missing == Ordinary {
			return false
		}
	case missing == 0 && a.Names(r.Subject):
		return false
	}
	*a = *a.With(Rule{r.Subject, missing})
	return true
}

// revoke takes verbs away from all rules about a subject. A rule without verbs goes, but not the last one about everybody,
// without which the daemon's own would hold again.
func (a *ACL) revoke(r Rule) bool {
	if r.Subject == Everybody && !a.Names(Everybody) && Ordinary&r.Verbs != 0 {
		*a = *a.With(Rule{Everybody, Ordinary})
	}
	changed := false
	var kept []aclLine
	for i, line := range a.lines {
		if line.Subject != r.Subject || line.Verbs&r.Verbs == 0 {
			kept = append(kept, line)
			continue
		}
		changed = true
		line.Verbs &^= r.Verbs
		others := &ACL{lines: slices.Concat(kept, a.lines[i+1:])}
		if line.Verbs == 0 && (r.Subject != Everybody || others.Names(Everybody)) {
			continue
		}
		_, comment, ok := strings.Cut(line.text, "#")
		if line.text = line.Rule.String(); ok {
			line.text += " #" + comment
		}
		kept = append(kept, line)
	}
	a.lines = kept
	return changed
}

// Allowing returns what the list becomes by Allow, and whether that is something else.
func (a *ACL) Allowing(r Rule) (*ACL, bool) {
	b := a.With()
	changed := b.allow(r)
	return b, changed
}

// Revoking returns what the list becomes by Revoke, and whether that is something else.
func (a *ACL) Revoking(r Rule) (*ACL, bool) {
	b := a.With()
	changed := b.revoke(r)
	return b, changed
}

// LoadACL reads an access list. A missing file allows nothing. Errors name file and line.
func LoadACL(path string) (*ACL, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &ACL{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read access list: %w", err)
	}
	a, err := ParseACL(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return a, nil
}

// Authorize lets key do what verb says, in the access list at path; see Allow.
func Authorize(path string, key PublicKey, verb Verbs) (bool, error) {
	return Allow(path, Rule{KeySubject(key), verb})
}

// Allow adds what a rule says to the access list at path, which is made when it is missing.
// The file changes in one step and durably; comments stay. It reports whether anything changed.
// A rule about everybody adds to Ordinary.
func Allow(path string, r Rule) (bool, error) {
	changed, err := changeACL(path, r, (*ACL).Allowing)
	if err != nil {
		return false, fmt.Errorf("allow %s: %w", r.Subject, err)
	}
	return changed, nil
}

// Revoke takes what a rule says away from its subject, as Allow adds it. Rights that come from elsewhere, as from a group, stay.
func Revoke(path string, r Rule) (bool, error) {
	changed, err := changeACL(path, r, (*ACL).Revoking)
	if err != nil {
		return false, fmt.Errorf("revoke from %s: %w", r.Subject, err)
	}
	return changed, nil
}

func changeACL(path string, r Rule, change func(*ACL, Rule) (*ACL, bool)) (bool, error) {
	if err := r.check(); err != nil {
		return false, err
	}
	unlock, err := lockParent(path)
	if err != nil {
		return false, err
	}
	defer unlock()
	a, err := LoadACL(path)
	if err != nil {
		return false, err
	}
	a, changed := change(a, r)
	if !changed {
		return false, nil
	}
	if len(a.Bytes()) > maxACL {
		return false, fmt.Errorf("access list would have %d bytes, the limit is %d", len(a.Bytes()), maxACL)
	}
	return true, replaceFile(path, a.Bytes(), 0o644)
}

// lockParent makes writers of files in the parent directory take turns.
func lockParent(path string) (unlock func(), err error) {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", d.Name(), err)
	}
	return func() { d.Close() }, nil
}

// replaceFile puts a file with other contents in the place of path, durably.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncParent(path)
}

// syncParent makes the names in the parent directory durable.
func syncParent(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
