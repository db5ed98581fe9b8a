package daemon

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

// TestHeapGrowth lets small heaps grow as Go does, and large ones by little.
func TestHeapGrowth(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 1 << 20: 100, 44 << 20: 100, 64 << 20: 37, 96 << 20: 20, 10 << 30: 20} {
		if got := growth(live); got != want {
			t.Errorf("%d bytes live: growth of %d %%, want %d %%", live, got, want)
		}
	}
}

// TestHeapLimit is the least one for small heaps, and leaves others room to grow.
func TestHeapLimit(t *testing.T) {
	for live, want := range map[uint64]int64{0: 96, 40: 96, 64: 104, 80: 114, 800: 1068} {
		if got := limit(live << 20); got != want<<20 {
			t.Errorf("%d MiB live: limit of %d bytes, want %d MiB", live, got, want)
		}
	}
}

// TestHeapSettings leaves alone what the environment says, and sets things back in the end.
func TestHeapSettings(t *testing.T) {
	before, unlimited := debug.SetGCPercent(77), debug.SetMemoryLimit(-1)
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
		if now := debug.SetMemoryLimit(-1); now != unlimited {
			t.Errorf("with %s: a limit of %d bytes in the end, want %d", variable, now, unlimited)
		}
		if got != during || after != 77 {
			t.Errorf("with %s: %d %% while stores are opened, %d %% in the end, want %d %% and 77 %%", variable, got, after, during)
		}
	}
}

// TestHeapCollection tells of a collection when there was one.
func TestHeapCollection(t *testing.T) {
	for range 3 {
		next := collection()
		runtime.GC()
		select {
		case <-next:
		case <-time.After(time.Minute):
			t.Fatal("nothing is told")
		}
	}
}

// TestHeapIdle gives back what a busy time has left.
func TestHeapIdle(t *testing.T) {
	h := TendHeap(func(string) string { return "" })
	defer h.Close()
	h.Opened()
	unused := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/free:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64() >> 20
	}
	busy := make([][]byte, 64)
	for i := range busy {
		busy[i] = make([]byte, 1<<20)
	}
	runtime.KeepAlive(busy)
	busy = nil
	runtime.GC()
	if n := unused(); n < 32 {
		t.Fatalf("%d MiB are unused, which is nothing to give back", n)
	}
	for deadline := time.Now().Add(time.Minute); unused() > 8; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB are unused after a minute", unused())
		}
	}
}
