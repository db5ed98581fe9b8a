package cli

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestHelpTexts holds the rule that each command explains itself and shows two uses.
func TestHelpTexts(t *testing.T) {
	eachCommand(newRootCmd(&Env{Getenv: func(string) string { return "" }}), func(cmd *cobra.Command) {
		if cmd.HasSubCommands() {
			return
		}
		if len(cmd.Long) < 60 {
			t.Errorf("%s: long help is %q", cmd.CommandPath(), cmd.Long)
		}
		if n := strings.Count("\n"+cmd.Example, "\n  cairn "); n < 2 {
			t.Errorf("%s: %d examples, want 2 or more", cmd.CommandPath(), n)
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short help is %q", cmd.CommandPath(), cmd.Short)
		}
	})
}

// TestExitTable holds that every code of the table is documented.
func TestExitTable(t *testing.T) {
	docs := map[int]bool{}
	for _, d := range exitDocs {
		docs[d.code] = true
	}
	for _, row := range exitTable {
		if !docs[row.code] {
			t.Errorf("exit code %d is not documented", row.code)
		}
	}
}
