package cli

import (
	"errors"
	"fmt"
	"strings"

	"cairn/daemon/protocol"
)

// buildError says which targets were not built.
type buildError struct{ failed []*protocol.BuildResult }

func (e *buildError) Error() string {
	var lines []string
	for _, r := range e.failed {
		text, _, _ := strings.Cut(strings.TrimSpace(r.Error), "\nFor full logs, run 'nix log") // the hint says it in our words
		if text == "" {
			text = r.Status.String()
		}
		if !strings.Contains(text, r.Target.Path.String()) {
			text = fmt.Sprintf("build %s: %s", r.Target.Path, text)
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "\nerror: ")
}

// Is lets the exit table ask for a status.
func (e *buildError) Is(target error) bool {
	want, ok := target.(statusError)
	for _, r := range e.failed {
		if ok && r.Status == protocol.Status(want) {
			return true
		}
	}
	return false
}

// statusError stands for a build status in the exit table.
type statusError protocol.Status

func (e statusError) Error() string { return protocol.Status(e).String() }

// isHashMismatch finds an output that was refused for its hash.
func isHashMismatch(err error) bool {
	var b *buildError
	if !errors.As(err, &b) {
		return false
	}
	for _, r := range b.failed {
		if r.Status == protocol.OutputRejected && strings.Contains(r.Error, "hash mismatch") {
			return true
		}
	}
	return false
}

// failedBuilds returns an error when not all results are there.
func failedBuilds(results []*protocol.BuildResult) error {
	var failed []*protocol.BuildResult
	for _, r := range results {
		if !r.Status.OK() {
			failed = append(failed, r)
		}
	}
	if failed == nil {
		return nil
	}
	return buildHint(&buildError{failed}, failed[0])
}

// buildHint adds the next step after a failed build.
func buildHint(err error, r *protocol.BuildResult) error {
	switch {
	case isDiskFull(err) || !r.Target.Path.IsDerivation():
		return err
	case isHashMismatch(err):
		return hinted(err, "when that is what you want, write the hash behind 'got:' into the file")
	case r.Status == protocol.OutputRejected && strings.Contains(r.Error, "cycle"):
		return hinted(err, "of two outputs only one may mention the other; --keep-failed keeps what was built")
	}
	return hinted(err, "'cairn log %s' prints what the builder wrote", r.Target.Path)
}
