package archive

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Verbs is a set of things that somebody may do. The zero value is none.
type Verbs uint16

// The verbs, in the order in which they are written. See the package comment for what each allows.
const (
	Connect Verbs = 1 << iota
	Add
	Build
	Root
	GC
	Verify
	Export
	Inspect
	Pin
	Import
	Repair
	Override

	end

	// Ordinary is what Nix gives to its allowed users.
	Ordinary = Connect | Add | Build | Root | GC | Verify | Export
	// All is what Nix gives to its trusted users.
	All = end - 1
)

// verbs names the verbs, in the order of their bits.
var verbs = [...]struct{ name, doc string }{
	{"connect", "use the daemon: ask, read contents and logs, keep paths alive while connected"},
	{"add", "add objects that prove themselves: content-addressed, or signed by a key that may import; add signatures"},
	{"build", "build derivations and fetch from caches"},
	{"root", "make links that keep objects alive (indirect roots)"},
	{"gc", "delete what nothing keeps alive"},
	{"verify", "check all of the store, and optimise it"},
	{"export", "get archives that are signed with this machine's key"},
	{"inspect", "see what others do: their sessions, and roots that are processes"},
	{"pin", "have the daemon itself write a root's link, anywhere"},
	{"import", "keys: sign what others add; users: add objects, build results and logs without proof"},
	{"repair", "replace objects that are valid"},
	{"override", "change the daemon's restricted settings for one session"},
}

// sets are words for several verbs.
var sets = map[string]Verbs{"none": 0, "default": Ordinary, "all": All}

// ParseVerbs parses verbs that are separated by commas: "add,build", "default,inspect", "all", "none".
// Whoever may do anything may connect, too.
func ParseVerbs(s string) (Verbs, error) {
	var all Verbs
	for word := range strings.SplitSeq(s, ",") {
		v, err := parseVerb(word)
		if err != nil {
			return 0, err
		}
		if v == 0 && word != s {
			return 0, fmt.Errorf("%q stands alone", word)
		}
		all |= v
	}
	return all, nil
}

func parseVerb(word string) (Verbs, error) {
	if v, ok := sets[word]; ok {
		return v, nil
	}
	for i, v := range verbs {
		if v.name == word {
			return 1 << i, nil
		}
	}
	if near := nearVerb(word); near != "" {
		return 0, fmt.Errorf("unknown verb %q; did you mean %q?", clip(word), near)
	}
	return 0, fmt.Errorf("unknown verb %q; there are %s, all, default and none", clip(word), All.list())
}

// nearVerb returns the verb that has the same letters, or that begins like word for the longest, or "".
func nearVerb(word string) string {
	near, longest := "", 1
	for _, v := range verbs {
		n := 0
		for n < min(len(word), len(v.name)) && word[n] == v.name[n] {
			n++
		}
		if sorted(word) == sorted(v.name) {
			n = len(word)
		}
		if n > longest {
			near, longest = v.name, n
		}
	}
	return near
}

func sorted(word string) string { return string(slices.Sorted(slices.Values([]byte(word)))) }

// Has reports whether all of the verbs w, which are not none, are in v.
func (v Verbs) Has(w Verbs) bool { return w != 0 && v&w == w }

// Names returns the names of the verbs, in order.
func (v Verbs) Names() []string {
	names := make([]string, 0, bits.OnesCount16(uint16(v)))
	for i, verb := range verbs {
		if v&(1<<i) != 0 {
			names = append(names, verb.name)
		}
	}
	return names
}

// Doc returns what one verb allows, or "".
func (v Verbs) Doc() string {
	if bits.OnesCount16(uint16(v)) != 1 || v >= end {
		return ""
	}
	return verbs[bits.TrailingZeros16(uint16(v))].doc
}

// Each returns the verbs of the set one by one.
func (v Verbs) Each() []Verbs {
	var list []Verbs
	for one := Connect; one < end; one <<= 1 {
		if v&one != 0 {
			list = append(list, one)
		}
	}
	return list
}

func (v Verbs) list() string { return strings.Join(v.Names(), ",") }

// String returns the text that ParseVerbs reads.
func (v Verbs) String() string {
	switch v {
	case 0:
		return "none"
	case All:
		return "all"
	}
	return v.list()
}

// MarshalJSON gives the list of names.
func (v Verbs) MarshalJSON() ([]byte, error) { return json.Marshal(v.Names()) }

// UnmarshalJSON reads a list of names.
func (v *Verbs) UnmarshalJSON(b []byte) error {
	var names []string
	if err := json.Unmarshal(b, &names); err != nil || len(names) == 0 {
		*v = 0
		return err
	}
	all, err := ParseVerbs(strings.Join(names, ","))
	if err == nil {
		*v = all
	}
	return err
}
