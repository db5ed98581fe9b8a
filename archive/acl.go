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

// Verb is something that a key may do.
type Verb string

// The verbs.
const (
	Import Verb = "import" // sign what is imported
)

var verbs = []Verb{Import}

// maxACL is the size limit of an ACL file.
const maxACL = 1 << 20

// ACL says which keys may do what. The zero value and a nil pointer allow nothing.
//
// As text it is a line per rule, "<public key> <verb>[,<verb>…]". Empty lines and lines that start with "#" are
// comments, which stay where they are when a rule is added. What follows "#" behind a rule is one, too.
// A key may have several rules; it may do what any of them says.
type ACL struct {
	lines []aclLine
}

// aclLine is a line of the file. A comment has no key.
type aclLine struct {
	text  string
	key   PublicKey
	verbs []Verb
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
		return line, fmt.Errorf("%d words, want a public key and its verbs", len(words))
	}
	var err error
	if line.key, err = ParsePublicKey(words[0]); err != nil {
		return line, err
	}
	for v := range strings.SplitSeq(words[1], ",") {
		if !slices.Contains(verbs, Verb(v)) {
			return line, fmt.Errorf("unknown verb %q; known is %s", clip(v), joinVerbs(verbs))
		}
		line.verbs = append(line.verbs, Verb(v))
	}
	return line, nil
}

func joinVerbs(vs []Verb) string {
	texts := make([]string, len(vs))
	for i, v := range vs {
		texts[i] = string(v)
	}
	return strings.Join(texts, ",")
}

// Bytes returns the text.
func (a *ACL) Bytes() []byte {
	var b strings.Builder
	for _, line := range a.lines {
		b.WriteString(line.text)
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// Allows reports whether key, name and bytes, may do what verb says.
func (a *ACL) Allows(key PublicKey, verb Verb) bool {
	return !key.IsZero() && slices.Contains(a.Keys(verb), key)
}

// Keys returns the keys that may do what verb says.
func (a *ACL) Keys(verb Verb) []PublicKey {
	if a == nil {
		return nil
	}
	var keys []PublicKey
	for _, line := range a.lines {
		if slices.Contains(line.verbs, verb) && !slices.Contains(keys, line.key) {
			keys = append(keys, line.key)
		}
	}
	return keys
}

// Check returns nil, or an error that is ErrUnauthorized and names the key.
func (a *ACL) Check(key PublicKey, verb Verb) error {
	if a.Allows(key, verb) {
		return nil
	}
	return fmt.Errorf("key %s may not %s: %w; authorize it with: cairn archive --authorize", key, verb, ErrUnauthorized)
}

// add appends a rule unless it is there.
func (a *ACL) add(key PublicKey, verb Verb) bool {
	if a.Allows(key, verb) {
		return false
	}
	a.lines = append(a.lines, aclLine{text: key.String() + " " + string(verb), key: key, verbs: []Verb{verb}})
	return true
}

// LoadACL reads an access list. A missing file allows nothing.
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

// Authorize lets key do what verb says, in the access list at path, which is made when it is missing.
// The file changes in one step and durably; comments stay. It reports whether anything changed.
func Authorize(path string, key PublicKey, verb Verb) (bool, error) {
	if !slices.Contains(verbs, verb) {
		return false, fmt.Errorf("authorize key %s: unknown verb %q; known is %s", key.Name(), verb, joinVerbs(verbs))
	}
	unlock, err := lockParent(path)
	if err != nil {
		return false, fmt.Errorf("authorize key %s: %w", key.Name(), err)
	}
	defer unlock()
	a, err := LoadACL(path)
	if err != nil || !a.add(key, verb) {
		return false, err
	}
	if err := replaceFile(path, a.Bytes(), 0o644); err != nil {
		return false, fmt.Errorf("authorize key %s: %w", key.Name(), err)
	}
	return true, nil
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
