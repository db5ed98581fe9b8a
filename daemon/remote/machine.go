package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"cairn/client/peer"
)

// Machine is a computer that may build for this one.
type Machine struct {
	Name      string // its URI as it was written
	Address   peer.Address
	Systems   []string
	MaxJobs   int
	Speed     float64  // relative to the others
	Features  []string // that it has
	Mandatory []string // of those, what a derivation must require to be built there
}

// Bounds of what the setting may say.
const (
	maxMachines = 1000
	maxIncludes = 16
	maxJobs     = 10_000
)

// ParseMachines parses the setting "builders": machines in lines, or separated by semicolons.
//
//	machine = uri [systems [ssh-key [max-jobs [speed-factor [features [mandatory-features [host-key]]]]]]]
//
// Lists are separated by commas; "-" stands for what is not said: systems is then system, max-jobs and speed-factor 1.
// "#" begins a comment. "@FILE" stands for what is in the file, which is read by the given function and
// may be missing. A URI without a scheme is ssh://.
func ParseMachines(text, system string, read func(string) ([]byte, error)) ([]Machine, error) {
	p := &machineParser{system: system, read: read}
	if err := p.parse(text, 0); err != nil {
		return nil, fmt.Errorf("setting 'builders': %w", err)
	}
	return p.list, nil
}

type machineParser struct {
	system string
	read   func(string) ([]byte, error)
	list   []Machine
}

func (p *machineParser) parse(text string, depth int) error {
	if depth > maxIncludes {
		return errors.New("files name each other in a circle")
	}
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		for entry := range strings.SplitSeq(line, ";") {
			if err := p.entry(strings.TrimSpace(entry), depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *machineParser) entry(entry string, depth int) error {
	if file, ok := strings.CutPrefix(entry, "@"); ok {
		b, err := p.read(strings.TrimSpace(file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = p.parse(string(b), depth+1)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		return nil
	}
	if entry == "" {
		return nil
	}
	m, err := parseMachine(strings.Fields(entry), p.system)
	if err != nil {
		return fmt.Errorf("machine %.200q: %w", entry, err)
	}
	if p.list = append(p.list, m); len(p.list) > maxMachines {
		return fmt.Errorf("more than %d machines", maxMachines)
	}
	return nil
}

func parseMachine(fields []string, system string) (Machine, error) {
	if len(fields) > 8 {
		return Machine{}, fmt.Errorf("it has %d fields, at most 8 are known", len(fields))
	}
	field := func(n int) string {
		if n < len(fields) && fields[n] != "-" {
			return fields[n]
		}
		return ""
	}
	uri := fields[0]
	if !strings.Contains(uri, "://") && uri != "daemon" {
		uri = "ssh://" + uri
	}
	a, err := peer.ParseAddress(uri)
	if err != nil {
		return Machine{}, err
	}
	if key := field(2); key != "" {
		a.Key = key
	}
	if key := field(7); key != "" {
		if a.HostKey, err = peer.DecodeHostKey(key); err != nil {
			return Machine{}, err
		}
	}
	m := Machine{Name: fields[0], Address: a, Systems: words(field(1)), MaxJobs: 1, Speed: 1, Features: words(field(5)), Mandatory: words(field(6))}
	if m.Systems == nil {
		m.Systems = []string{system}
	}
	if n := field(3); n != "" {
		if m.MaxJobs, err = strconv.Atoi(n); err != nil || m.MaxJobs < 0 || m.MaxJobs > maxJobs {
			return Machine{}, fmt.Errorf("number of jobs %q is not between 0 and %d", n, maxJobs)
		}
	}
	if n := field(4); n != "" {
		if m.Speed, err = strconv.ParseFloat(n, 64); err != nil || !(m.Speed > 0 && m.Speed <= 1e9) {
			return Machine{}, fmt.Errorf("speed factor %q is not a positive number", n)
		}
	}
	return m, nil
}

func words(s string) []string {
	var list []string
	for w := range strings.SplitSeq(s, ",") {
		if w != "" {
			list = append(list, w)
		}
	}
	return list
}

// unfit says why a machine cannot build what needs a system and features; empty: it can.
func (m *Machine) unfit(system string, features []string) string {
	if system != "builtin" && !slices.Contains(m.Systems, system) {
		return fmt.Sprintf("it builds for %s", strings.Join(m.Systems, ", "))
	}
	for _, f := range features {
		if !slices.Contains(m.Features, f) && !slices.Contains(m.Mandatory, f) {
			return fmt.Sprintf("it has not the required feature '%s'", f)
		}
	}
	for _, f := range m.Mandatory {
		if !slices.Contains(features, f) {
			return fmt.Sprintf("it builds only what requires the feature '%s'", f)
		}
	}
	if m.MaxJobs == 0 {
		return "its number of jobs is 0"
	}
	return ""
}
