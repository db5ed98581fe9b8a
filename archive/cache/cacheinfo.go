package cache

import (
	"fmt"
	"strconv"
	"strings"

	"cairn/store"
)

// InfoName is the name of the file that describes a cache.
const InfoName = "nix-cache-info"

// Info describes a cache.
type Info struct {
	StoreDir      store.Dir
	WantMassQuery bool // the cache bears being asked for many objects that it may not have
	Priority      int  // lower comes first; 0 when not given
}

// Text returns the file's text.
func (i *Info) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "StoreDir: %s\n", i.StoreDir)
	if i.WantMassQuery {
		b.WriteString("WantMassQuery: 1\n")
	}
	if i.Priority != 0 {
		fmt.Fprintf(&b, "Priority: %d\n", i.Priority)
	}
	return b.String()
}

// ParseInfo parses the description of a cache.
func ParseInfo(text string) (*Info, error) {
	i := &Info{}
	err := forEachLine(text, func(key, value string) (err error) {
		switch key {
		case "StoreDir":
			i.StoreDir, err = store.ParseDir(value)
		case "WantMassQuery":
			i.WantMassQuery = value == "1"
		case "Priority":
			if i.Priority, err = strconv.Atoi(value); err != nil {
				err = fmt.Errorf("%q is not a number: %w", clip(value), ErrFormat)
			}
		}
		return err
	})
	if err == nil && i.StoreDir == "" {
		err = fmt.Errorf("StoreDir is missing: %w", ErrFormat)
	}
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", InfoName, err)
	}
	return i, nil
}
