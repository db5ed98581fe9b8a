package cache

import (
	"fmt"
	"strconv"
	"strings"

	"cairn/store"
)

// InfoName is the name of the file that describes a cache.
const InfoName = "nix-cache-info"

// DefaultPriority is that of a cache which says none.
const DefaultPriority = 50

// Info describes a cache.
type Info struct {
	StoreDir      store.Dir // empty when not given
	WantMassQuery bool      // the cache bears being asked for many objects that it may not have
	Priority      int       // lower comes first; 0 when not given
}

// Text returns the file's text.
func (i *Info) Text() string {
	var b strings.Builder
	if i.StoreDir != "" {
		fmt.Fprintf(&b, "StoreDir: %s\n", i.StoreDir)
	}
	if i.WantMassQuery {
		b.WriteString("WantMassQuery: 1\n")
	}
	if i.Priority != 0 {
		fmt.Fprintf(&b, "Priority: %d\n", i.Priority)
	}
	return b.String()
}

// ParseInfo parses the description of a cache. As in Nix, lines that are not "key: value" are ignored, and nothing
// must be there; but a text that says something and nothing of what is known is not a description.
func ParseInfo(text string) (*Info, error) {
	if len(text) > maxInfo {
		return nil, fmt.Errorf("parse %s: text of %d bytes, the limit is %d: %w", InfoName, len(text), maxInfo, ErrFormat)
	}
	i := &Info{}
	known := strings.TrimSpace(text) == ""
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		found, err := i.set(key, strings.TrimSpace(value))
		if err != nil {
			return nil, fmt.Errorf("parse %s: %s: %w: %w", InfoName, key, err, ErrFormat)
		}
		known = known || found
	}
	if !known {
		return nil, fmt.Errorf("parse %s: it says nothing of a cache: %w", InfoName, ErrFormat)
	}
	return i, nil
}

func (i *Info) set(key, value string) (known bool, err error) {
	switch key {
	case "StoreDir":
		i.StoreDir, err = store.ParseDir(value)
	case "WantMassQuery":
		i.WantMassQuery = value == "1"
	case "Priority":
		if i.Priority, err = strconv.Atoi(value); err != nil {
			err = fmt.Errorf("%q is not a number", clip(value))
		}
	default:
		return false, nil
	}
	return true, err
}
