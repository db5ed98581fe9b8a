package script

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"cairn/client/cli"
	"cairn/client/config"
	"cairn/daemon/sandbox"
)

// TestMain makes "cairn" in a script this test binary, so that scripts run what was just compiled.
func TestMain(m *testing.M) {
	sandbox.Init()
	config.Init()
	testscript.Main(m, map[string]func(){
		"cairn": func() { os.Exit(cli.Main(os.Args)) },
	})
}

// TestScripts runs testdata/*.txtar, each in a directory of its own with a store in it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// Everything below --root R: sockets have short names, so R does.
			env.Setenv("R", "r")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": exit,
			"flip": flip,
			"nar":  nar,

			"tmpfs":  tmpfs,
			"resize": resize,
		},
		Condition: condition,
	})
}

// condition "sandbox" holds where builders can run, "root" where file systems can be mounted. In CI both must.
func condition(cond string) (bool, error) {
	ci := os.Getenv("CAIRN_CI") != ""
	switch cond {
	case "sandbox":
		return ci || sandbox.Available() == nil, nil
	case "root":
		return ci || os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}
