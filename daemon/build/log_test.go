package build_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/daemon/build"
	"cairn/daemon/settings"
	"cairn/store"
)

// logFiles returns the names of what is left of a derivation's log.
func (r *rig) logFiles(d store.Path) []string {
	r.Helper()
	base := d.Base()
	list, err := filepath.Glob(filepath.Join(r.layout.LogDir, "drvs", base[:2], "*"+base[3:]+"*"))
	if err != nil {
		r.Fatal(err)
	}
	for i, name := range list {
		list[i] = strings.TrimPrefix(filepath.Base(name), base[2:])
	}
	return list
}

func TestLogFiles(t *testing.T) {
	r := newRig(t, nil)
	plain, none := settings.Defaults(), settings.Defaults()
	plain.CompressBuildLog, none.KeepBuildLog = false, false
	for _, c := range []struct {
		name  string
		lines int
		set   *settings.Settings
		want  string
	}{
		{"short", 3, settings.Defaults(), "[]"},
		{"long", 3000, settings.Defaults(), "[.bz2]"},
		{"long-plain", 3000, plain, "[]"},
		{"none", 3000, none, "none"},
	} {
		d := r.add(drv{name: c.name, script: fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; touch $out", c.lines)})
		list, err := r.build.With(c.set).Build(t.Context(), all(d), build.Normal, nil)
		if err != nil || !list[0].Status.OK() {
			t.Fatalf("%s: %v, %v", c.name, list, err)
		}
		var log, want bytes.Buffer
		err = r.build.FollowLog(t.Context(), d, &log)
		if c.want == "none" {
			if files := r.logFiles(d); len(files) != 0 || !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: files %v, %v", c.name, files, err)
			}
			continue
		}
		for i := range c.lines {
			fmt.Fprintf(&want, "line %d\n", i)
		}
		if err != nil || log.String() != want.String() {
			t.Errorf("%s: log of %d bytes, wanted are %d: %v", c.name, log.Len(), want.Len(), err)
		}
		if got := fmt.Sprint(r.logFiles(d)); got != c.want {
			t.Errorf("%s: files end in %s, wanted is %s", c.name, got, c.want)
		}
	}
}

// TestFullLog has a log's file system fill up: the build does not fail, and the daemon's log says which log is not complete.
func TestFullLog(t *testing.T) {
	if os.Geteuid() != 0 {
		lacks(t, "mounts a file system; run the tests as root")
	}
	var said bytes.Buffer
	r := newRig(t, &build.Options{Logger: slog.New(slog.NewTextHandler(&said, nil))})
	logs := filepath.Join(r.layout.LogDir, "drvs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", logs, "tmpfs", 0, "size=8k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(logs, unix.MNT_DETACH) })
	for _, log := range []struct {
		name  string
		lines int
	}{{"short", 3}, {"long", 3000}} { // which leaves no room for another
		name, lines := log.name, log.lines
		said.Reset()
		d := r.add(drv{name: name, script: fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; touch $out", lines)})
		list, err := r.build.Build(t.Context(), all(d), build.Normal, nil)
		if err != nil || !list[0].Status.OK() {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
		if warned := strings.Contains(said.String(), "not complete") && strings.Contains(said.String(), d.Base()) && strings.Contains(said.String(), "no space left"); warned != (name == "long") {
			t.Errorf("%s: the daemon's log says %q", name, said.String())
		}
	}
}
