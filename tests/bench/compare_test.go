package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// slower is by how much a ratio or a value may be worse than before, for noise.
const slower = 1.25

// compare says what of the newer results is worse than before: a row's ratio, which other machines have, too, and a figure's value. Of each name and size
// the last result counts.
func compare(before, after []*result) (worse []string) {
	last := map[string]*result{}
	for _, r := range before {
		last[r.key()] = r
	}
	for i, r := range after {
		old := last[r.key()]
		newer := slices.ContainsFunc(after[i+1:], func(o *result) bool { return o.key() == r.key() })
		if old == nil || newer {
			continue
		}
		if r.Unit == "" && r.Ratio*slower < old.Ratio {
			worse = append(worse, fmt.Sprintf("%s: %.2f× as fast as nix, before %.2f×", r.Row, r.Ratio, old.Ratio))
		}
		if r.Unit != "" && r.Value > old.Value*slower {
			worse = append(worse, fmt.Sprintf("%s: %.4g %s, before %.4g %s", r.Row, r.Value, r.Unit, old.Value, old.Unit))
		}
	}
	return worse
}

// key tells results that may be compared.
func (r *result) key() string { return fmt.Sprint(r.Row, " ", r.Size, " ", r.Unit) }

// decodeResults reads what record wrote.
func decodeResults(in io.Reader) (results []*result, err error) {
	for d := json.NewDecoder(in); ; {
		r := new(result)
		if err := d.Decode(r); errors.Is(err, io.EOF) {
			return results, nil
		} else if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
}

func TestCompare(t *testing.T) {
	file := func(ratio, pause float64) []*result {
		var text strings.Builder
		for _, r := range []*result{{Row: "gc", Size: 10, Ratio: 1}, {Row: "gc", Size: 10, Ratio: ratio}, {Row: "gc", Size: 20, Ratio: 3}, {Row: "pause", Value: pause, Unit: "ms"}} {
			if err := json.NewEncoder(&text).Encode(r); err != nil {
				t.Fatal(err)
			}
		}
		results, err := decodeResults(strings.NewReader(text.String()))
		if err != nil {
			t.Fatal(err)
		}
		return results
	}
	for _, c := range []struct {
		ratio, pause float64
		worse        int
	}{{5, 10, 0}, {9, 2, 0}, {4.5, 11, 0}, {3, 10, 1}, {5, 20, 1}, {1, 100, 2}} {
		if got := compare(file(5, 10), file(c.ratio, c.pause)); len(got) != c.worse {
			t.Errorf("ratio 5, then %g, and 10 ms, then %g: %d are worse, not %d: %q", c.ratio, c.pause, len(got), c.worse, got)
		}
	}
}

// TestCompareFiles lists what is worse in one file than in another, and fails if anything is.
func TestCompareFiles(t *testing.T) {
	names := strings.Fields(os.Getenv("CAIRN_BENCH_COMPARE"))
	if len(names) == 0 {
		return // nothing was asked
	}
	if len(names) != 2 {
		t.Fatal("needs two files: make compare OLD=FILE NEW=FILE")
	}
	var files [2][]*result
	for i, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if files[i], err = decodeResults(f); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for _, line := range compare(files[0], files[1]) {
		t.Error(line)
	}
}
