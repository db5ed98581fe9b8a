package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestReadme holds that the commands of the README exist with their flags, and that its file is evaluated.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^    cairn ([^#\n]*)`).FindAllSubmatch(readme, -1) {
		checkLine(t, strings.Fields(string(m[1])))
	}
	block := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("README.md has no example of a file")
	}
	file := filepath.Join(t.TempDir(), "readme.star")
	if err := os.WriteFile(file, block[1], 0o644); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	env := &Env{Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }, Dir: "/"}
	if code := Run(t.Context(), env, []string{"eval", file}); code != 0 || !strings.Contains(out.String(), `"host_name": "web-1"`) {
		t.Errorf("eval of the README's file: exit %d, %s%s", code, out.String(), errs.String())
	}
}

// checkLine parses a command line without running it.
func checkLine(t *testing.T, words []string) {
	t.Helper()
	cmd, rest, err := newRootCmd(&Env{Getenv: func(string) string { return "" }}).Find(words)
	if err != nil || !doesWork(cmd) {
		t.Errorf("cairn %s: no such command: %v", strings.Join(words, " "), err)
		return
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("cairn %s: %v", strings.Join(words, " "), err)
	}
}

// TestExamples holds the same for the examples in the help texts.
func TestExamples(t *testing.T) {
	root := newRootCmd(&Env{Getenv: func(string) string { return "" }})
	var lines []string
	eachCommand(root, func(cmd *cobra.Command) {
		for line := range strings.Lines(cmd.Example) {
			if line, ok := strings.CutPrefix(strings.TrimSpace(line), "cairn "); ok {
				lines = append(lines, line)
			}
		}
	})
	for _, line := range lines {
		line, _, _ = strings.Cut(line, " && ")
		checkLine(t, strings.Fields(line))
	}
}
