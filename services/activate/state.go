package activate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// State is what of this host is ours, and what was there before. It is
// /cairn/var/journal/state.json, replaced as the last step of a switch.
type State struct {
	Version  int                 `json:"version"`
	System   string              `json:"system,omitempty"`
	Files    map[string]Owned    `json:"files,omitempty"`    // by absolute path
	Dirs     []string            `json:"dirs,omitempty"`     // directories made for them
	Accounts map[string]*Account `json:"accounts,omitempty"` // by user name
	Units    map[string]bool     `json:"units,omitempty"`    // units of the host that ours replaced: were they active?
	HostName string              `json:"hostName,omitempty"` // the kernel's, before ours
}

// Owned is a path of ours.
type Owned struct {
	Now    Node `json:"now"`
	Before Node `json:"before"`
}

// Account is what is ours of an account.
type Account struct {
	Created  bool              `json:"created,omitempty"`
	Disabled *Login            `json:"disabled,omitempty"` // how it was when its removal disabled it
	Before   map[string]string `json:"before,omitempty"`   // of an adopted account: fields changed
	Groups   []string          `json:"groups,omitempty"`   // memberships made by us
}

// Login is what disabling an account changes.
type Login struct {
	Shell  string `json:"shell"`
	Expire string `json:"expire"` // field 8 of shadow
	Locked bool   `json:"locked"`
}

func emptyState() *State {
	return &State{Version: 1, Files: map[string]Owned{}, Accounts: map[string]*Account{}, Units: map[string]bool{}}
}

func readState(path string) (*State, error) {
	s := emptyState()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return parseState(data)
}

func parseState(data []byte) (*State, error) {
	s := emptyState()
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("parse state: %w", err)
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("parse state: version %d, this program knows 1", s.Version)
	}
	for name, a := range s.Accounts {
		if a == nil {
			delete(s.Accounts, name)
		}
	}
	if s.Files == nil || s.Accounts == nil || s.Units == nil {
		return nil, fmt.Errorf("parse state: a table is null")
	}
	return s, nil
}

func (s *State) encode() []byte {
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return append(data, '\n')
}

// clone copies s deeply, so that planning never changes what was read.
func (s *State) clone() *State {
	c, err := parseState(s.encode())
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return c
}
