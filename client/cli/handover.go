package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"cairn/services/activate"
)

// handedOver is the variable that says that a system's own program runs already.
const handedOver = "CAIRN_HANDED_OVER"

// handOver lets the program of a generation's own closure make the switch to it, so that an older system is
// brought back by the logic it was made with. It does not return when it hands over. It returns nil when there is
// nobody to hand over to: generation 0, a generation that brings no program, or one that brings this very program.
func (e *Env) handOver(ctx context.Context, engine *activate.Engine, generation int, o *switchOptions) error {
	if generation == 0 || e.Getenv(handedOver) != "" {
		return nil
	}
	list, err := engine.Generations(ctx)
	if err != nil {
		return err
	}
	for _, g := range list {
		if g.Number != generation {
			continue
		}
		program, err := filepath.EvalSymlinks(filepath.Join(g.Path, "activate"))
		if err != nil || runsHere(program) {
			return nil
		}
		if err := engine.Close(); err != nil {
			return err
		}
		e.note("generation %d has a cairn of its own, which goes on: %s", generation, program)
		argv := append([]string{program, "system", "switch-generation", strconv.Itoa(generation)}, o.args()...)
		return syscall.Exec(program, argv, append(os.Environ(), handedOver+"=1"))
	}
	return nil
}

// args are the flags again.
func (o *switchOptions) args() []string {
	var args []string
	if o.dryRun {
		args = append(args, "--dry-run")
	}
	if o.json {
		args = append(args, "--json")
	}
	if o.confirmWithin > 0 {
		args = append(args, "--confirm-within="+o.confirmWithin.String())
	}
	return args
}

// runsHere reports whether a program has the contents of the one that runs.
func runsHere(program string) bool {
	a, err := os.Open("/proc/self/exe")
	if err != nil {
		return false
	}
	defer a.Close()
	b, err := os.Open(program)
	if err != nil {
		return false
	}
	defer b.Close()
	return sameBytes(a, b)
}

func sameBytes(a, b io.Reader) bool {
	x, y := make([]byte, 1<<18), make([]byte, 1<<18)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return atEnd(errA) && atEnd(errB)
		}
	}
}

func atEnd(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
