package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/archive"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/refscan"
)

// buildRequest is the request of BuildPaths and BuildPathsWithResults.
type buildRequest struct {
	targets []protocol.Target
	mode    uint64
}

func readBuild(d *protocol.Decoder) buildRequest {
	q := buildRequest{targets: d.Targets()}
	if d.Version >= protocol.Minor(15) {
		q.mode = d.Uint64()
	}
	return q
}

// modeOf checks a build mode and the right to it.
func (x *session) modeOf(n uint64) (build.Mode, error) {
	switch mode := build.Mode(n); {
	case n > uint64(build.Check):
		return 0, fmt.Errorf("build mode %d is unknown", n)
	case mode == build.Repair:
		return mode, x.need(archive.Repair, "repair")
	default:
		return mode, nil
	}
}

// builder returns the builder with the session's settings.
func (x *session) builder() *build.Builder {
	if x.set.builder == nil {
		x.set.builder = x.server.build.With(x.set.Settings).WithSelfHash(x.selfHash())
	}
	return x.set.builder
}

// selfHash is how the client's generation of Nix addresses what refers to itself; protocol 1.34 is Nix 2.14.
func (x *session) selfHash() refscan.SelfHash {
	if x.d.Version < protocol.Minor(35) {
		return refscan.WithOffsets
	}
	return refscan.Blanked
}

// buildAll builds targets and keeps what becomes of them for the session.
func (x *session) buildAll(ctx context.Context, q buildRequest) ([]*protocol.BuildResult, error) {
	mode, err := x.modeOf(q.mode)
	if err != nil {
		return nil, err
	}
	for _, t := range q.targets {
		if err := x.holdTarget(t); err != nil {
			return nil, err
		}
	}
	obs := x.observe()
	defer obs.end()
	results, err := x.builder().Build(ctx, q.targets, mode, obs)
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		if err := x.settle(ctx, r); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// settle keeps what a build has made. Nix's clients with CA derivations ask for realisations of outputs of every kind,
// also of those whose derivation says the path, so for them these are recorded, too.
func (x *session) settle(ctx context.Context, r *protocol.BuildResult) error {
	for _, o := range r.Outputs {
		if err := x.hold(o.OutPath); err != nil {
			return err
		}
		if x.d.Has(protocol.FeatureCairn) || x.d.Version < protocol.Minor(27) || r.Impure || o.ID.Drv.IsZero() {
			continue
		}
		if known, err := x.server.store.Realisation(o.ID); err == nil && known.OutPath == o.OutPath {
			continue
		}
		if err := x.server.store.AddRealisation(ctx, &o); err != nil {
			return err
		}
	}
	return nil
}

// holdTarget keeps a target, and its outputs as far as the derivation says their paths, before they are built.
func (x *session) holdTarget(t protocol.Target) error {
	if err := x.hold(t.Path); err != nil {
		return err
	}
	if len(t.Outputs) == 0 {
		return nil
	}
	d, err := x.server.hashes.load(t.Path)
	if err != nil {
		return nil // the build will say why
	}
	for _, o := range d.Outputs {
		if o.Path.IsZero() {
			continue
		}
		if err := x.hold(o.Path); err != nil {
			return err
		}
	}
	return nil
}

func (x *session) buildPaths(ctx context.Context, q buildRequest) (reply, error) {
	results, err := x.buildAll(ctx, q)
	if err != nil {
		return nil, err
	}
	return one, failures(results)
}

// failures makes one error of the builds that failed.
func failures(results []*protocol.BuildResult) error {
	var texts []string
	for _, r := range results {
		if r.Status.OK() || slices.Contains(texts, r.Error) {
			continue
		}
		texts = append(texts, cmpText(r.Error, fmt.Sprintf("build %s: %s", r.Target, r.Status)))
	}
	if len(texts) == 0 {
		return nil
	}
	return &protocol.Error{Text: strings.Join(texts, "\n"), Status: exitStatus(results)}
}

// exitStatus is what nix-store would exit with, which peers before 1.26 are told: 100, plus 1 for a time-out,
// 2 for a wrong hash; 104 for a second build that differs, 1 for the rest.
func exitStatus(results []*protocol.BuildResult) uint64 {
	const failed, timedOut, mismatch, differs = 100, 101, 102, 104
	status := uint64(0)
	for _, r := range results {
		switch r.Status {
		case protocol.PermanentFailure, protocol.TransientFailure, protocol.CachedFailure, protocol.MiscFailure, protocol.LogLimitExceeded:
			status |= failed
		case protocol.TimedOut:
			status |= timedOut
		case protocol.OutputRejected:
			status |= mismatch
		case protocol.NotDeterministic:
			status |= differs
		}
	}
	return max(status, 1)
}

func cmpText(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func (x *session) buildPathsWithResults(ctx context.Context, q buildRequest) (reply, error) {
	results, err := x.buildAll(ctx, q)
	return replyResults(results), err
}

func replyResults(results []*protocol.BuildResult) reply {
	return func(e *protocol.Encoder) error {
		e.Uint64(uint64(len(results)))
		for _, r := range results {
			e.Target(r.Target)
			e.BuildResult(r)
		}
		return nil
	}
}

// basicBuild is the request of BuildDerivation.
type basicBuild struct {
	path store.Path
	drv  *derivation.Derivation
	mode uint64
}

func readBuildDerivation(d *protocol.Decoder) basicBuild {
	p := d.Path()
	return basicBuild{p, d.BasicDerivation(strings.TrimSuffix(p.Name(), ".drv")), d.Uint64()}
}

// buildDerivation builds what need not be in the store. Who may not import may only have outputs that prove
// themselves, and only under the derivation's own path.
func (x *session) buildDerivation(ctx context.Context, q basicBuild) (reply, error) {
	mode, err := x.modeOf(q.mode)
	if err != nil {
		return nil, err
	}
	if !q.path.IsDerivation() {
		return nil, fmt.Errorf("build %s: it is no derivation", q.path)
	}
	if !x.may(archive.Import) {
		if q.path, err = ownPath(q.drv, q.path); err != nil {
			return nil, err
		}
	}
	if err := x.hold(q.path); err != nil {
		return nil, err
	}
	obs := x.observe()
	defer obs.end()
	r := x.builder().BuildDerivation(ctx, q.path, q.drv, mode, obs)
	if err := x.settle(ctx, r); err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.BuildResult(r)
		return nil
	}, nil
}

// ownPath returns the path that a derivation of an untrusted peer has.
func ownPath(d *derivation.Derivation, claimed store.Path) (store.Path, error) {
	kind, err := d.Kind()
	if err != nil {
		return store.Path{}, err
	}
	if kind != derivation.Fixed && kind != derivation.Floating {
		return store.Path{}, fmt.Errorf("build %s: its outputs are not content-addressed: %w", claimed, protocol.ErrNotAllowed)
	}
	if err := derivation.NewHashes(nil).CheckOutputs(d, claimed.Dir()); err != nil {
		return store.Path{}, err
	}
	return d.Path(claimed.Dir())
}

// ensurePath fetches a path that is not valid, and mends what is damaged of one that is.
func (x *session) ensurePath(ctx context.Context, p store.Path) (reply, error) {
	if err := x.hold(p); err != nil {
		return nil, err
	}
	if x.server.store.IsValid(p) {
		bad, err := x.server.store.DamagedIn(p)
		if err != nil || len(bad) == 0 {
			return one, err
		}
		return one, x.fetch(ctx, []store.Path{p})
	}
	err := x.fetch(ctx, []store.Path{p})
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("path '%s' does not exist and cannot be created: %w", p, err)
	}
	return one, err
}

// fetch makes paths valid that are not.
func (x *session) fetch(ctx context.Context, paths []store.Path) error {
	if err := x.need(archive.Build, "fetch"); err != nil {
		return err
	}
	q := buildRequest{}
	for _, p := range paths {
		q.targets = append(q.targets, protocol.Target{Path: p})
	}
	results, err := x.buildAll(ctx, q)
	if err != nil {
		return err
	}
	return failures(results)
}

func (x *session) queryMissing(ctx context.Context, targets []protocol.Target) (reply, error) {
	obs := x.observe()
	defer obs.end()
	m, err := x.builder().Missing(ctx, targets, obs)
	if err != nil {
		return nil, err
	}
	return replyMissing(m), nil
}

func replyMissing(m *build.Missing) reply {
	return func(e *protocol.Encoder) error {
		e.Missing(&protocol.Missing{
			Build: m.Build, Substitute: m.Substitute, Unknown: m.Unknown,
			Download: uint64(m.DownloadSize), Unpacked: uint64(m.NarSize),
		})
		return nil
	}
}

func (x *session) queryDerivationOutputMap(_ context.Context, drv store.Path) (reply, error) {
	m, err := x.server.build.OutputMap(drv)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.OutputMap(m)
		return nil
	}, nil
}

func (x *session) queryDerivationOutputs(_ context.Context, drv store.Path) (reply, error) {
	m, err := x.server.build.OutputMap(drv)
	if err != nil {
		return nil, err
	}
	return replyPaths(slices.DeleteFunc(slices.Collect(maps.Values(m)), store.Path.IsZero), nil)
}

func (x *session) queryDerivationOutputNames(_ context.Context, drv store.Path) (reply, error) {
	m, err := x.server.build.OutputMap(drv)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.TextSet(slices.Collect(maps.Keys(m)))
		return nil
	}, nil
}
