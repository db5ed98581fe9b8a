package cli_test

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"cairn/client/cli"
)

var update = flag.Bool("update", false, "write doc.go")

func TestReference(t *testing.T) {
	want, err := cli.Reference()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("doc.go", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("doc.go")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("doc.go is not the command tree (%v): run go test ./client/cli -update", err)
	}
}

// run runs one command in process.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := &cli.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }, Dir: t.TempDir()}
	code = cli.Run(t.Context(), env, args)
	return code, out.String(), errs.String()
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown command", []string{"stoer"}, `unknown command "stoer"`},
		{"unknown flag", []string{"--bogus"}, "unknown flag: --bogus"},
		{"flag without value", []string{"--root"}, "flag needs an argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := run(t, c.args...)
			if code != 2 || !strings.Contains(stderr, c.want) || !strings.Contains(stderr, "hint: ") {
				t.Errorf("exit %d, stderr %q; want 2, %q and a hint", code, stderr, c.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	code, stdout, stderr := run(t)
	if code != 0 || !strings.Contains(stdout, "Usage:") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}
