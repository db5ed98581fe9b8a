package client

import (
	"context"
	"fmt"
	"io"

	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// Mode says how a build treats what is there already.
type Mode uint64

// The modes.
const (
	Normal Mode = iota // build what is missing
	Repair             // rebuild what is corrupt
	Check              // rebuild and compare
)

// Build builds or substitutes the targets and says of each how that went.
// A failed build is a result, not an error. obs may be nil.
func (c *Conn) Build(ctx context.Context, targets []protocol.Target, mode Mode, obs Observer) ([]*protocol.BuildResult, error) {
	var results []*protocol.BuildResult
	err := c.do(ctx, &call{
		op: protocol.OpBuildPathsWithResults, what: fmt.Sprintf("build %d targets", len(targets)), since: 34, obs: obs,
		fields: func(e *protocol.Encoder) {
			e.Targets(targets)
			e.Uint64(uint64(mode))
		},
		reply: func(d *protocol.Decoder) {
			for range d.Count() {
				t := d.Target()
				r := d.BuildResult()
				if d.Broken() != nil {
					return
				}
				r.Target = t
				results = append(results, r)
			}
		},
	})
	return results, err
}

// BuildDerivation builds a derivation whose inputs are resolved and valid.
func (c *Conn) BuildDerivation(ctx context.Context, path store.Path, drv *derivation.Derivation, mode Mode, obs Observer) (*protocol.BuildResult, error) {
	var r *protocol.BuildResult
	err := c.do(ctx, &call{
		op: protocol.OpBuildDerivation, what: "build " + path.String(), obs: obs,
		fields: func(e *protocol.Encoder) {
			e.Path(path)
			e.BasicDerivation(drv)
			e.Uint64(uint64(mode))
		},
		reply: func(d *protocol.Decoder) { r = d.BuildResult() },
	})
	if err != nil {
		return nil, err
	}
	r.Target = protocol.Target{Path: path, Outputs: protocol.All()}
	return r, nil
}

// Ensure makes a path valid, from a substituter if need be.
func (c *Conn) Ensure(ctx context.Context, path store.Path) error {
	return c.do(ctx, &call{
		op: protocol.OpEnsurePath, what: "ensure " + path.String(),
		fields: func(e *protocol.Encoder) { e.Path(path) }, reply: ack,
	})
}

// Missing says what a build of the targets would have to do. The daemon asks its caches for that, of which it tells obs.
func (c *Conn) Missing(ctx context.Context, targets []protocol.Target, obs Observer) (*protocol.Missing, error) {
	var m *protocol.Missing
	err := c.do(ctx, &call{
		op: protocol.OpQueryMissing, what: "query what is missing", since: 19, obs: obs,
		fields: func(e *protocol.Encoder) { e.Targets(targets) },
		reply:  func(d *protocol.Decoder) { m = d.Missing() },
	})
	return m, err
}

// OutputMap returns the paths of a derivation's outputs, zero where unknown.
func (c *Conn) OutputMap(ctx context.Context, drv store.Path) (map[string]store.Path, error) {
	var m map[string]store.Path
	err := c.do(ctx, &call{
		op: protocol.OpQueryDerivationOutputMap, what: "query outputs of " + drv.String(), since: 22,
		fields: func(e *protocol.Encoder) { e.Path(drv) },
		reply:  func(d *protocol.Decoder) { m = d.OutputMap() },
	})
	return m, err
}

// RegisterDrvOutput tells the daemon which path an output of a derivation has.
func (c *Conn) RegisterDrvOutput(ctx context.Context, r store.Realisation) error {
	return c.do(ctx, &call{
		op: protocol.OpRegisterDrvOutput, what: "register " + r.ID.String(), since: 31,
		fields: func(e *protocol.Encoder) { e.Realisation(r) },
	})
}

// FollowLog writes a derivation's build log to w. If the build runs, it ends when the build does.
func (c *Conn) FollowLog(ctx context.Context, drv store.Path, w io.Writer) error {
	return c.do(ctx, &call{
		op: protocol.OpFollowLog, what: "read the log of " + drv.String(),
		fields: func(e *protocol.Encoder) { e.Path(drv) },
		chunk:  writeTo(w),
	})
}

// AddBuildLog gives the daemon the log of a derivation that was built elsewhere. Only trusted peers may.
func (c *Conn) AddBuildLog(ctx context.Context, drv store.Path, r io.Reader) error {
	return c.do(ctx, &call{
		op: protocol.OpAddBuildLog, what: "add the log of " + drv.String(), since: 32,
		fields: func(e *protocol.Encoder) { e.Text(drv.Base()) },
		body:   copyAll(r), reply: ack,
	})
}

// writeTo returns a chunk function that writes to w.
func writeTo(w io.Writer) func([]byte) error {
	return func(b []byte) error {
		_, err := w.Write(b)
		return err
	}
}

// SetOptions sets the session's options.
func (c *Conn) SetOptions(ctx context.Context, o *protocol.Options) error {
	return c.do(ctx, &call{op: protocol.OpSetOptions, what: "set options", fields: func(e *protocol.Encoder) { e.Options(o) }})
}
