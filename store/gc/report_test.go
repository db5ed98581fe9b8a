package gc

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestReporter tells something now and then, and wants to hear of it at least each second.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []Event
		last := time.Now()
		r := newReporter(func(e Event) {
			if gap := time.Since(last); gap > time.Second {
				t.Errorf("nothing for %v", gap)
			}
			last = time.Now()
			events = append(events, e)
		})
		r.tell(Event{Phase: PhaseSweep, Done: 1, Total: 3, Elapsed: time.Second, Left: 2 * time.Second})
		time.Sleep(10 * time.Second)
		r.tell(Event{Phase: PhaseSweep, Done: 3, Total: 3, Elapsed: 11 * time.Second})
		time.Sleep(2 * time.Second)
		r.close()
		for i := 1; i < len(events); i++ {
			a, b := events[i-1], events[i]
			if b.Done < a.Done || b.Elapsed < a.Elapsed || b.Left > a.Left || b.Left < 0 {
				t.Errorf("%+v is followed by %+v", a, b)
			}
		}
		if n := len(events); n < 12 || events[n-1].Elapsed < 12500*time.Millisecond {
			t.Errorf("%d events, the last %+v", n, events[n-1])
		}
	})
}

// TestPace lets batches become as small or large as the time that they take says.
func TestPace(t *testing.T) {
	size := batchSize
	for range 20 {
		size = pace(size, 2*time.Second)
	}
	if size != 1 {
		t.Errorf("%d objects at once take too long", size)
	}
	for range 20 {
		size = pace(size, time.Millisecond)
	}
	if size != batchSize {
		t.Errorf("%d objects at once, which takes a moment", size)
	}
	if got := pace(500, 200*time.Millisecond); got != 500 {
		t.Errorf("500 became %d", got)
	}
}
