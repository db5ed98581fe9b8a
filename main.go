// Command cairn keeps machines in a declared state.
// It is daemon, client, deploy tool and target agent in one binary; client/cli holds the commands.
package main

import (
	"os"

	"cairn/client/cli"
	"cairn/client/config"
	"cairn/daemon/sandbox"
)

func main() {
	sandbox.Init() // returns unless this process is a builder's first process
	config.Init()  // returns unless this process evaluates for another
	os.Exit(cli.Main(os.Args))
}
