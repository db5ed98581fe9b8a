package daemon

import (
	"runtime/debug"
	"testing"
)

// TestHeapGrowth lets small heaps grow as Go does, and large ones by little.
func TestHeapGrowth(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 1 << 20: 100, 48 << 20: 100, 96 << 20: 50, 240 << 20: 20, 10 << 30: 20} {
		if got := growth(live); got != want {
			t.Errorf("%d bytes live: growth of %d %%, want %d %%", live, got, want)
		}
	}
}

// TestHeapSettings leaves alone what the environment says, and sets things back in the end.
func TestHeapSettings(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	for variable, during := range map[string]int{"GOGC": 77, "GOMEMLIMIT": 77, "HOME": whileOpen} {
		h := TendHeap(func(name string) string {
			if name == variable {
				return "x"
			}
			return ""
		})
		got := debug.SetGCPercent(during)
		h.Opened()
		h.Close()
		after := debug.SetGCPercent(77)
		if got != during || after != 77 {
			t.Errorf("with %s: %d %% while stores are opened, %d %% in the end, want %d %% and 77 %%", variable, got, after, during)
		}
	}
}
