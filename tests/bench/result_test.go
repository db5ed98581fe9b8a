package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// sample is one kind of work, as often as it was measured.
type sample []time.Duration

func (m sample) median() time.Duration {
	s := slices.Sorted(slices.Values(m))
	return s[len(s)/2]
}

// String is the median, with the range.
func (m sample) String() string { return m.per(1) }

// per shows the median for one of n things, with the range.
func (m sample) per(n int) string {
	ms := func(d time.Duration) string {
		v := d.Seconds() * 1000 / float64(n)
		if v < 100 {
			return fmt.Sprintf("%.3g", v)
		}
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%s (%s–%s)", ms(m.median()), ms(slices.Min(m)), ms(slices.Max(m)))
}

// result is a row or a figure as it was measured, and the line of the file for machines.
type result struct {
	Row     string `json:"row"`
	Work    string `json:"work"`
	Size    int    `json:"size,omitempty"`
	Rounds  int    `json:"rounds,omitempty"`
	Reached bool   `json:"reached"`
	Note    string `json:"note,omitempty"`

	// Of a row: times in nanoseconds, and how many times as fast as nix.
	Nix    sample  `json:"nix,omitempty"`
	Cairn  sample  `json:"cairn,omitempty"`
	Ratio  float64 `json:"ratio,omitempty"`
	Wanted float64 `json:"wanted,omitempty"`

	// Of a figure: what it is and what it may be at most, in a unit; no bound: it is only told.
	Value float64 `json:"value,omitempty"`
	Bound float64 `json:"bound,omitempty"`
	Unit  string  `json:"unit,omitempty"`

	Version string  `json:"version"`
	Date    string  `json:"date"`
	Machine machine `json:"machine"`
}

// newResult is that of a row.
func newResult(r *row, size int, nix, cairn sample) *result {
	ratio := float64(nix.median()) / float64(cairn.median())
	return &result{
		Row: r.name, Work: fmt.Sprintf(r.work, size), Size: size, Rounds: len(nix), Reached: ratio >= r.wanted,
		Nix: nix, Cairn: cairn, Ratio: ratio, Wanted: r.wanted,
	}
}

func (r *result) String() string {
	yes := map[bool]string{true: "yes", false: "no"}[r.Reached]
	if r.Unit == "" {
		return fmt.Sprintf("%6.2f× %6.4g× %-3s  %-24s %-24s %-14s %s", r.Ratio, r.Wanted, yes, r.Nix, r.Cairn, r.Row, r.told())
	}
	bound := "               "
	if r.Bound > 0 {
		bound = fmt.Sprintf("≤ %6.4g %-3s %-3s", r.Bound, r.Unit, yes)
	}
	return fmt.Sprintf("%8.4g %-3s %s  %-17s %s", r.Value, r.Unit, bound, r.Row, r.Work)
}

// told is the work, with what else there is to say of it.
func (r *result) told() string {
	if r.Note == "" {
		return r.Work
	}
	return r.Work + "; " + r.Note
}

// format is the table.
func format(results []*result) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%7s %7s      %-24s %-24s %-14s %s\n", "faster", "wanted", "nix, ms", "cairn, ms", "row", "work")
	reached := 0
	for _, r := range results {
		fmt.Fprintln(&out, r)
		if r.Reached {
			reached++
		}
	}
	fmt.Fprintf(&out, "%d of %d reached", reached, len(results))
	return out.String()
}

// machine is where something was measured.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, %s, Linux %s", m.CPU, m.Cores, m.Memory, m.Kernel)
}

var thisMachine = sync.OnceValue(func() machine {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return machine{CPU: procField("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Memory: procField("/proc/meminfo", "MemTotal"), Kernel: strings.TrimSpace(string(kernel))}
})

// procField is the value of the first line "NAME: VALUE" of a file.
func procField(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// version is what is measured, as git describes it.
var version = sync.OnceValue(func() string {
	out, _ := exec.Command("git", "describe", "--always", "--dirty", "--tags").Output()
	return strings.TrimSpace(string(out))
})

// record appends a result to the file that CAIRN_BENCH_JSON names.
func record(t *testing.T, r *result) {
	t.Helper()
	r.Version, r.Date, r.Machine = version(), time.Now().UTC().Format(time.RFC3339), thisMachine()
	name := os.Getenv("CAIRN_BENCH_JSON")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := json.NewEncoder(f).Encode(r); err != nil {
		t.Fatal(err)
	}
}
