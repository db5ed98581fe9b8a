package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"cairn/archive"
	"cairn/derivation/eval"
	"cairn/services/activate"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		code int
		hint string
	}{
		{"none", nil, 0, ""},
		{"other", errors.New("x"), 1, ""},
		{"full disk", fmt.Errorf("write: %w", syscall.ENOSPC), 1, "'cairn gc' deletes"},
		{"full disk of the daemon", errors.New("add x: no space left: /s has 0 MiB free"), 1, "'cairn gc' deletes"},
		{"wrong file", fmt.Errorf("machine a: %w", &eval.Error{Message: "x"}), 3, ""},
		{"missing file", hinted(&configError{errors.New("x")}, "look"), 3, "look"},
		{"endless file", fmt.Errorf("evaluate x: %w", eval.ErrLimit), 3, ""},
		{"refused", &activate.Refused{Conflicts: []activate.Conflict{{Kind: "file"}}}, 4, "move the files away"},
		{"undone", errors.Join(&activate.Undone{Cause: &activate.UnitError{Unit: "a.service"}}, nil), 5, "journalctl -u a.service"},
		{"undone but not all", &activate.Undone{Cause: errors.New("x"), Left: []string{"y"}}, 1, "by hand"},
		{"machines", &machinesError{1, 2}, 6, ""},
		{"unknown key", fmt.Errorf("import: %w", archive.ErrUnauthorized), 7, "cairn acl allow"},
		{"no daemon", hinted(errNoDaemon, "start it"), 8, "start it"},
		{"damaged archive", fmt.Errorf("import: %w", archive.ErrCorrupt), 102, "make it again"},
		{"interrupted", fmt.Errorf("build: %w", context.Canceled), 130, ""},
	} {
		var b strings.Builder
		if code := report(&b, c.err); code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.name, code, c.code)
		}
		if hint := "\nhint: "; strings.Contains(b.String(), hint) != (c.hint != "") || !strings.Contains(b.String(), c.hint) {
			t.Errorf("%s: printed %q, want the hint %q", c.name, b.String(), c.hint)
		}
	}
}

func TestHintsOfJoinedErrors(t *testing.T) {
	err := hinted(errors.Join(nil, fmt.Errorf("a: %w", hinted(errors.New("x"), "inner")), hinted(errors.New("y"), "other")), "outer")
	if got := hints(err); !slices.Equal(got, []string{"inner", "other", "outer"}) {
		t.Errorf("got %q", got)
	}
}
