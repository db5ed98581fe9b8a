package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"cairn/archive"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/store"
)

// insideRights are those of a builder's clients. Their table asks for no others, and none of them may repair.
const insideRights = archive.Connect | archive.Add | archive.Build

// maxInside is how many clients of one builder are served at a time. Others wait.
const maxInside = 32

// insideOperations is what a builder can ask for, in the order of the numbers. Every handler here sees to it that the build learns
// of nothing that is not its own, and that what it adds or builds becomes its own.
var insideOperations = []operation{
	{op: protocol.OpIsValidPath, name: "IsValidPath", verb: archive.Connect, handle: on(readPath, (*session).insideIsValidPath)},
	{op: protocol.OpQueryReferrers, name: "QueryReferrers", verb: archive.Connect, handle: on(readPath, (*session).insideQueryReferrers)},
	{op: protocol.OpAddToStore, name: "AddToStore", verb: archive.Add, framed: 25, handle: on(readAddition, (*session).insideAddToStore)},
	{op: protocol.OpAddTextToStore, name: "AddTextToStore", verb: archive.Add, handle: on(readText, (*session).insideAddTextToStore)},
	{op: protocol.OpBuildPaths, name: "BuildPaths", verb: archive.Build, long: true, handle: on(readBuild, (*session).insideBuildPaths)},
	{op: protocol.OpEnsurePath, name: "EnsurePath", verb: archive.Connect, handle: on(readPath, (*session).insideEnsurePath)},
	{op: protocol.OpAddTempRoot, name: "AddTempRoot", verb: archive.Connect, handle: on(readPath, (*session).insideAddTempRoot)},
	{op: protocol.OpAddIndirectRoot, name: "AddIndirectRoot", verb: archive.Connect, handle: on(readLink, (*session).insideAddIndirectRoot)},
	{op: protocol.OpSetOptions, name: "SetOptions", verb: archive.Connect, handle: on((*protocol.Decoder).Options, (*session).insideSetOptions)},
	{op: protocol.OpCollectGarbage, name: "CollectGarbage", verb: archive.Connect, handle: on((*protocol.Decoder).GCOptions, (*session).insideCollectGarbage)},
	{op: protocol.OpQueryAllValidPaths, name: "QueryAllValidPaths", verb: archive.Connect, handle: on(none, (*session).insideQueryAllValidPaths)},
	{op: protocol.OpQueryPathInfo, name: "QueryPathInfo", verb: archive.Connect, handle: on(readPath, (*session).insideQueryPathInfo)},
	{op: protocol.OpQueryPathFromHashPart, name: "QueryPathFromHashPart", verb: archive.Connect, handle: on(readDigest, (*session).insideQueryPathFromHashPart)},
	{op: protocol.OpQueryValidPaths, name: "QueryValidPaths", verb: archive.Connect, handle: on(readValid, (*session).insideQueryValidPaths)},
	{op: protocol.OpQuerySubstitutablePaths, name: "QuerySubstitutablePaths", verb: archive.Connect, handle: on((*protocol.Decoder).Paths, (*session).insideQuerySubstitutablePaths)},
	{op: protocol.OpQueryValidDerivers, name: "QueryValidDerivers", verb: archive.Connect, handle: on(readPath, (*session).insideQueryValidDerivers)},
	{op: protocol.OpNarFromPath, name: "NarFromPath", verb: archive.Connect, handle: on(readPath, (*session).insideNarFromPath)},
	{op: protocol.OpAddToStoreNar, name: "AddToStoreNar", verb: archive.Add, framed: 23, handle: on(readNAR, (*session).insideAddToStoreNar)},
	{op: protocol.OpQueryMissing, name: "QueryMissing", since: 19, verb: archive.Connect, long: true, handle: on((*protocol.Decoder).Targets, (*session).insideQueryMissing)},
	{op: protocol.OpQueryDerivationOutputMap, name: "QueryDerivationOutputMap", since: 22, verb: archive.Connect, handle: on(readPath, (*session).insideQueryDerivationOutputMap)},
	{op: protocol.OpQueryRealisation, name: "QueryRealisation", since: 27, verb: archive.Connect, handle: on(readOutput, (*session).insideQueryRealisation)},
	{op: protocol.OpBuildPathsWithResults, name: "BuildPathsWithResults", since: 34, verb: archive.Build, long: true, handle: on(readBuild, (*session).insideBuildPathsWithResults)},
}

// serveInside serves the clients of a builder.
func (s *Server) serveInside(ctx context.Context, l net.Listener, r *build.Restriction) {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	places := make(chan struct{}, maxInside)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		places <- struct{}{}
		sessions.Go(func() {
			defer func() { <-places }()
			if err := s.ServeConn(r.Context(ctx), c, Peer{UID: r.UID(), GID: r.UID(), inside: r}); err != nil && ctx.Err() == nil {
				s.log.Info("session within a build ended", "drv", r.Drv().String(), "error", err)
			}
		})
	}
}

// allows reports whether the build knows of a valid object.
func (x *session) allows(p store.Path) bool {
	return x.peer.inside.Allows(p) && x.server.store.IsValid(p)
}

// insist is an error for objects that the build does not know of, whether there are such objects or not.
func (x *session) insist(paths ...store.Path) error {
	for _, p := range paths {
		if !x.allows(p) {
			return fmt.Errorf("path '%s' is not valid, or not an input of this build: %w", p, store.ErrNotValid)
		}
	}
	return nil
}

func (x *session) onlyAllowed(list []store.Path) []store.Path {
	return slices.DeleteFunc(slices.Clone(list), func(p store.Path) bool { return !x.allows(p) })
}

func (x *session) insideIsValidPath(_ context.Context, p store.Path) (reply, error) {
	return replyBool(x.allows(p)), nil
}

func (x *session) insideQueryReferrers(_ context.Context, p store.Path) (reply, error) {
	if err := x.insist(p); err != nil {
		return nil, err
	}
	list, err := x.server.store.Referrers(p)
	return replyPaths(x.onlyAllowed(list), err)
}

// own makes what was added an input of the build, and replies.
func (x *session) own(rep reply, err error, paths ...store.Path) (reply, error) {
	if err != nil {
		return nil, err
	}
	return rep, x.peer.inside.Add(paths...)
}

func (x *session) insideAddToStore(ctx context.Context, a addition) (reply, error) {
	if err := x.checkAddition(a); err != nil {
		return nil, err
	}
	if err := x.insist(a.refs...); err != nil {
		return nil, fmt.Errorf("add %s: %w", a.name, err)
	}
	info, err := x.addContents(ctx, a)
	if err != nil {
		return nil, err
	}
	return x.own(a.reply(plainInfo(info)), nil, info.Path)
}

func (x *session) insideAddTextToStore(ctx context.Context, t text) (reply, error) {
	if err := store.CheckName(t.name); err != nil {
		return nil, fmt.Errorf("add: %w", err)
	}
	if err := x.insist(t.refs...); err != nil {
		return nil, fmt.Errorf("add %s: %w", t.name, err)
	}
	info, err := x.addStream(ctx, addition{name: t.name, method: store.Text, algo: store.SHA256, refs: t.refs}, strings.NewReader(t.contents))
	if err != nil {
		return nil, err
	}
	return x.own(replyPath(info.Path), nil, info.Path)
}

func (x *session) insideAddToStoreNar(ctx context.Context, a archived) (reply, error) {
	refs := slices.DeleteFunc(slices.Clone(a.info.References), func(p store.Path) bool { return p == a.info.Path })
	if err := x.insist(refs...); err != nil {
		return nil, fmt.Errorf("add %s: %w", a.info.Path, err)
	}
	rep, err := x.addToStoreNar(ctx, a)
	return x.own(rep, err, a.info.Path)
}

// insideBuild builds targets that the build knows of, while its place is free for them. Their outputs become its inputs.
func (x *session) insideBuild(ctx context.Context, q buildRequest) (list []*protocol.BuildResult, err error) {
	if build.Mode(q.mode) != build.Normal {
		return nil, fmt.Errorf("build within a build in mode %d: %w", q.mode, protocol.ErrNotAllowed)
	}
	for _, t := range q.targets {
		if err := x.insist(t.Path); err != nil {
			return nil, fmt.Errorf("build %s: %w", t, err)
		}
	}
	r := x.peer.inside
	back := r.Lend(ctx)
	defer func() { err = errors.Join(err, back()) }()
	if list, err = x.buildAll(r.Context(ctx), q); err != nil {
		return nil, err
	}
	for _, b := range list {
		for _, o := range b.Outputs {
			if err := r.Add(o.OutPath); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

func (x *session) insideBuildPaths(ctx context.Context, q buildRequest) (reply, error) {
	list, err := x.insideBuild(ctx, q)
	if err != nil {
		return nil, err
	}
	return one, failures(list)
}

func (x *session) insideBuildPathsWithResults(ctx context.Context, q buildRequest) (reply, error) {
	list, err := x.insideBuild(ctx, q)
	return replyResults(list), err
}

func (x *session) insideEnsurePath(_ context.Context, p store.Path) (reply, error) {
	return one, x.insist(p)
}

// insideAddTempRoot holds what the build knows of, which is held anyway. Others may come to be later.
func (x *session) insideAddTempRoot(context.Context, store.Path) (reply, error) { return one, nil }

// insideAddIndirectRoot makes no root: a link in a build's directory keeps nothing once the build is done.
func (x *session) insideAddIndirectRoot(context.Context, string) (reply, error) { return one, nil }

// insideSetOptions changes nothing: the settings are those of the build.
func (x *session) insideSetOptions(context.Context, *protocol.Options) (reply, error) {
	return nil, nil
}

// insideCollectGarbage finds none, as within Nix's builds.
func (x *session) insideCollectGarbage(context.Context, *protocol.GCOptions) (reply, error) {
	return nothingFreed, nil
}

func (x *session) insideQueryAllValidPaths(context.Context, struct{}) (reply, error) {
	return replyPaths(x.onlyAllowed(x.peer.inside.Paths()), nil)
}

func (x *session) insideQueryPathInfo(ctx context.Context, p store.Path) (reply, error) {
	if err := x.insist(p); err != nil {
		return x.replyInfo(nil, err)
	}
	info, err := x.server.store.Info(ctx, p)
	if err != nil {
		return nil, err
	}
	return x.replyInfo(plainInfo(info), nil)
}

// plainInfo is what is known of an object without what depends on this machine's past.
func plainInfo(i *store.Info) *store.Info {
	plain := *i
	plain.Deriver, plain.RegisteredAt, plain.Ultimate, plain.Signatures = store.Path{}, 0, false, nil
	return &plain
}

func (x *session) insideQueryPathFromHashPart(_ context.Context, digest string) (reply, error) {
	for _, p := range x.peer.inside.Paths() {
		if p.Digest() == digest && x.allows(p) {
			return replyPath(p), nil
		}
	}
	return replyPath(store.Path{}), nil
}

func (x *session) insideQueryValidPaths(_ context.Context, q validQuery) (reply, error) {
	return replyPaths(x.onlyAllowed(q.paths), nil)
}

func (x *session) insideQuerySubstitutablePaths(context.Context, []store.Path) (reply, error) {
	return replyPaths(nil, nil)
}

func (x *session) insideQueryValidDerivers(_ context.Context, p store.Path) (reply, error) {
	if err := x.insist(p); err != nil {
		return nil, err
	}
	list, err := x.server.store.Derivers(p)
	return replyPaths(x.onlyAllowed(list), err)
}

func (x *session) insideNarFromPath(ctx context.Context, p store.Path) (reply, error) {
	if err := x.insist(p); err != nil {
		return nil, err
	}
	return x.narFromPath(ctx, p)
}

// insideQueryMissing plans what the build knows of, and calls the rest unknown.
func (x *session) insideQueryMissing(ctx context.Context, targets []protocol.Target) (reply, error) {
	var known []protocol.Target
	var unknown []store.Path
	for _, t := range targets {
		if x.allows(t.Path) {
			known = append(known, t)
		} else {
			unknown = append(unknown, t.Path)
		}
	}
	m, err := x.builder().Missing(ctx, known, nil)
	if err != nil {
		return nil, err
	}
	m.Unknown = store.SortPaths(append(m.Unknown, unknown...))
	return replyMissing(m), nil
}

func (x *session) insideQueryDerivationOutputMap(ctx context.Context, drv store.Path) (reply, error) {
	if err := x.insist(drv); err != nil {
		return nil, err
	}
	return x.queryDerivationOutputMap(ctx, drv)
}

// insideQueryRealisation tells of outputs that the build knows of.
func (x *session) insideQueryRealisation(ctx context.Context, o output) (reply, error) {
	if o.byPath {
		if err := x.insist(o.path.Drv); err != nil {
			return nil, err
		}
	}
	return x.replyRealisation(ctx, o, x.allows)
}
