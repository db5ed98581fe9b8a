package archive

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// kind says what a subject is.
type kind uint8

const (
	noSubject kind = iota
	everybody
	keySubject
	userSubject
	uidSubject
	groupSubject
	gidSubject
)

// prefixes of the kinds that have one.
var prefixes = map[kind]string{userSubject: "user:", uidSubject: "uid:", groupSubject: "group:", gidSubject: "gid:"}

// Everybody is the subject "*": every user.
var Everybody = Subject{kind: everybody}

// Subject is whom a rule is about. It is comparable; the zero value is nobody.
//
//	name:base64     a public key
//	user:NAME       a user, by name
//	uid:N           a user, by number
//	group:NAME      the members of a group; also @NAME
//	gid:N           the members of a group, by number
//	*               every user
type Subject struct {
	kind kind
	name string
	id   uint32
	key  PublicKey
}

// maxSubject is the length limit of a name.
const maxSubject = 64

// ParseSubject parses the text form.
func ParseSubject(s string) (Subject, error) {
	if s == "*" {
		return Everybody, nil
	}
	key, err := ParsePublicKey(s)
	if err == nil {
		return KeySubject(key), nil
	}
	if name, ok := strings.CutPrefix(s, "@"); ok {
		return named(groupSubject, name)
	}
	for kind, prefix := range prefixes {
		rest, ok := strings.CutPrefix(s, prefix)
		switch {
		case !ok:
		case kind == uidSubject || kind == gidSubject:
			n, err := strconv.ParseUint(rest, 10, 32)
			if err != nil || strconv.FormatUint(n, 10) != rest {
				return Subject{}, fmt.Errorf("subject %q: %q is no number", clip(s), clip(rest))
			}
			return Subject{kind: kind, id: uint32(n)}, nil
		default:
			return named(kind, rest)
		}
	}
	if !strings.Contains(s, ":") {
		return Subject{}, fmt.Errorf("subject %q: want a public key, user:NAME, uid:N, @GROUP, gid:N or *", clip(s))
	}
	return Subject{}, err
}

func named(k kind, name string) (Subject, error) {
	if name == "" || len(name) > maxSubject || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(":,#*", c) }) {
		return Subject{}, fmt.Errorf("subject: %q is no name", clip(name))
	}
	return Subject{kind: k, name: name}, nil
}

// KeySubject is a key as a subject.
func KeySubject(k PublicKey) Subject { return Subject{kind: keySubject, key: k} }

// Key returns the subject's key, if it is one.
func (s Subject) Key() (PublicKey, bool) { return s.key, s.kind == keySubject }

// IsZero reports whether s is nobody.
func (s Subject) IsZero() bool { return s.kind == noSubject }

func (s Subject) String() string {
	switch s.kind {
	case noSubject:
		return ""
	case everybody:
		return "*"
	case keySubject:
		return s.key.String()
	case uidSubject, gidSubject:
		return prefixes[s.kind] + strconv.FormatUint(uint64(s.id), 10)
	}
	return prefixes[s.kind] + s.name
}

// MarshalText gives the text form.
func (s Subject) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses the text form.
func (s *Subject) UnmarshalText(b []byte) error {
	parsed, err := ParseSubject(string(b))
	if err == nil {
		*s = parsed
	}
	return err
}

// Person is a user who asks, with everything that a rule may know of them.
type Person struct {
	UID    int      `json:"uid"`
	Name   string   `json:"name,omitempty"` // empty when the number has none
	GIDs   []int    `json:"gids"`
	Groups []string `json:"groups,omitempty"`
}

// Is reports whether a rule about s is about the person.
func (p Person) Is(s Subject) bool {
	switch s.kind {
	case everybody:
		return true
	case userSubject:
		return p.Name == s.name
	case uidSubject:
		return p.UID == int(s.id)
	case groupSubject:
		return slices.Contains(p.Groups, s.name)
	case gidSubject:
		return slices.Contains(p.GIDs, int(s.id))
	}
	return false
}
