package daemon

import (
	"testing"
	"time"
)

// TestPause: what did not help is tried again when something has changed, but not at once, and ever more
// rarely otherwise.
func TestPause(t *testing.T) {
	now := time.Unix(1e9, 0)
	var p pause
	if !p.over(now, 7) {
		t.Fatal("the first collection waits")
	}
	p = p.after(now, 7, false)
	for _, c := range []struct {
		after   time.Duration
		changes uint64
		want    bool
	}{
		{0, 7, false},
		{0, 8, false},
		{shortPause - 1, 8, false},
		{shortPause - 1, 7, false},
		{shortPause, 7, true},
	} {
		if got := p.over(now.Add(c.after), c.changes); got != c.want {
			t.Errorf("after %v with change %d: %v", c.after, c.changes, got)
		}
	}
	p = p.after(now, 7, false)
	if p.over(now.Add(shortPause), 7) || !p.over(now.Add(shortPause), 8) || !p.over(now.Add(2*shortPause), 7) {
		t.Errorf("second pause: %+v", p)
	}
	for range 20 {
		p = p.after(now, 7, false)
	}
	if p.length != longPause {
		t.Errorf("pauses grow to %v", p.length)
	}
	if p = p.after(now, 7, true); p != (pause{}) {
		t.Errorf("a collection that helped leaves %+v", p)
	}
}
