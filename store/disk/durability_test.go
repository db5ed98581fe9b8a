package disk_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/store"
	"cairn/store/disk"
)

// TestWithoutDurability opens a store without durability, and then with it: what was left unflushed is remembered until then.
func TestWithoutDurability(t *testing.T) {
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err == nil {
		err = disk.Init(layout)
	}
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(layout.StateDir, "no-durability")
	var added store.Path
	for _, step := range []struct {
		name   string
		noSync bool
		warns  string // what the log says
		marked bool   // afterwards
	}{
		{"durable", false, "", false},
		{"throw-away", true, "nothing is flushed", true},
		{"throw-away again", true, "nothing is flushed", true},
		{"durable after it", false, "was used without durability", false},
		{"durable again", false, "", false},
	} {
		var log bytes.Buffer
		s, err := disk.Open(t.Context(), layout, &disk.Options{NoSync: step.noSync, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(step.name, err)
		}
		if s.Durable() == step.noSync {
			t.Errorf("%s: Durable is %t", step.name, s.Durable())
		}
		info, err := s.AddStream(t.Context(), strings.ReplaceAll(step.name, " ", "-"), store.Text, store.SHA256, nil, strings.NewReader(step.name))
		if err != nil {
			t.Fatal(step.name, err)
		}
		if !added.IsZero() && !s.IsValid(added) {
			t.Errorf("%s: what was added before is not valid", step.name)
		}
		added = info.Path
		if err := s.Close(); err != nil {
			t.Fatal(step.name, err)
		}
		if got := log.String(); (step.warns == "") != (got == "") || !strings.Contains(got, step.warns) {
			t.Errorf("%s: the log says %q, want %q", step.name, got, step.warns)
		}
		if _, err := os.Stat(mark); (err == nil) != step.marked {
			t.Errorf("%s: mark: %v, want it to be there: %t", step.name, err, step.marked)
		}
	}
}
