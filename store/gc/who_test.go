package gc_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/store/gc"
)

func TestWho(t *testing.T) {
	me := gc.Root{Kind: gc.KindProcess, Link: fmt.Sprintf("/proc/%d/exe", os.Getpid())}.Who()
	if me.PID != os.Getpid() || me.UID != os.Getuid() || me.Command == "" {
		t.Errorf("this process: %+v", me)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/x", link); err != nil {
		t.Fatal(err)
	}
	if w := (gc.Root{Kind: gc.KindLink, Link: link}).Who(); w.UID != os.Getuid() || w.PID != 0 || time.Since(w.Since) > time.Hour {
		t.Errorf("our link: %+v", w)
	}
	for _, r := range []gc.Root{{Kind: gc.KindLink, Link: link + "-none"}, {Kind: gc.KindLease, Link: "somebody"}, {Kind: gc.KindProcess, Link: "/proc/sys/kernel/modprobe"}} {
		if w := r.Who(); w != (gc.Who{UID: -1}) {
			t.Errorf("%s: %+v", r, w)
		}
	}
}
