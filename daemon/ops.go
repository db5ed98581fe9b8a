package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"cairn/archive"
	"cairn/daemon/protocol"
)

// reply writes an operation's reply. An error ends the session.
type reply func(*protocol.Encoder) error

// runner does an operation whose request has been read.
type runner func(context.Context) (reply, error)

// operation is a row of the table.
type operation struct {
	op      protocol.Op
	name    string
	since   int // the least minor version that may ask for it
	feature protocol.Feature
	verb    archive.Verbs // what it takes; finer effects ask for more in the handler
	framed  int           // from which minor version on the body comes in frames; zero: no body
	pulled  int           // from which on, before that, the daemon asks for it piece by piece; zero: it follows the fields at once
	long    bool          // watch whether the client hangs up
	handle  func(*session) runner
}

// on reads a request's fields at once and runs it later.
func on[T any](read func(*protocol.Decoder) T, run func(*session, context.Context, T) (reply, error)) func(*session) runner {
	return func(x *session) runner {
		v := read(x.d)
		return func(ctx context.Context) (reply, error) { return run(x, ctx, v) }
	}
}

// onJSON is on for a request that is JSON. It refuses fields that it does not know: without them something else would be done than the client
// asks for.
func onJSON[T any](run func(*session, context.Context, *T) (reply, error)) func(*session) runner {
	read := func(d *protocol.Decoder) string { return d.Text(protocol.MaxValue) }
	return on(read, func(x *session, ctx context.Context, request string) (reply, error) {
		q := new(T)
		d := json.NewDecoder(strings.NewReader(request))
		d.DisallowUnknownFields()
		if err := d.Decode(q); err != nil {
			return nil, fmt.Errorf("read request: %w", err)
		}
		return run(x, ctx, q)
	})
}

// none reads a request without fields.
func none(*protocol.Decoder) struct{} { return struct{}{} }

// operations is what the daemon can do, in the order of the numbers.
var operations = []operation{
	{op: protocol.OpIsValidPath, name: "IsValidPath", verb: archive.Connect, handle: on(readPath, (*session).isValidPath)},
	{op: protocol.OpHasSubstitutes, name: "HasSubstitutes", verb: archive.Connect, handle: on(readPath, (*session).hasSubstitutes)},
	{op: protocol.OpQueryPathHash, name: "QueryPathHash", verb: archive.Connect, handle: on(readPath, (*session).queryPathHash)},
	{op: protocol.OpQueryReferences, name: "QueryReferences", verb: archive.Connect, handle: on(readPath, (*session).queryReferences)},
	{op: protocol.OpQueryReferrers, name: "QueryReferrers", verb: archive.Connect, handle: on(readPath, (*session).queryReferrers)},
	{op: protocol.OpAddToStore, name: "AddToStore", verb: archive.Add, framed: 25, handle: on(readAddition, (*session).addToStore)},
	{op: protocol.OpAddTextToStore, name: "AddTextToStore", verb: archive.Add, handle: on(readText, (*session).addTextToStore)},
	{op: protocol.OpBuildPaths, name: "BuildPaths", verb: archive.Build, long: true, handle: on(readBuild, (*session).buildPaths)},
	{op: protocol.OpEnsurePath, name: "EnsurePath", verb: archive.Connect, long: true, handle: on(readPath, (*session).ensurePath)},
	{op: protocol.OpAddTempRoot, name: "AddTempRoot", verb: archive.Connect, handle: on(readPath, (*session).addTempRoot)},
	{op: protocol.OpAddIndirectRoot, name: "AddIndirectRoot", verb: archive.Root, handle: on(readLink, (*session).addIndirectRoot)},
	{op: protocol.OpSyncWithGC, name: "SyncWithGC", verb: archive.Connect, handle: on(none, (*session).syncWithGC)},
	{op: protocol.OpFindRoots, name: "FindRoots", verb: archive.Connect, long: true, handle: on(none, (*session).findRoots)},
	{op: protocol.OpExportPath, name: "ExportPath", verb: archive.Connect, long: true, handle: on(readExport, (*session).exportPath)},
	{op: protocol.OpQueryDeriver, name: "QueryDeriver", verb: archive.Connect, handle: on(readPath, (*session).queryDeriver)},
	{op: protocol.OpSetOptions, name: "SetOptions", verb: archive.Connect, handle: on((*protocol.Decoder).Options, (*session).setOptions)},
	{op: protocol.OpCollectGarbage, name: "CollectGarbage", verb: archive.Connect, long: true, handle: on((*protocol.Decoder).GCOptions, (*session).collectGarbage)},
	{op: protocol.OpQuerySubstitutablePathInfo, name: "QuerySubstitutablePathInfo", verb: archive.Connect, handle: on(readPath, (*session).querySubstitutablePathInfo)},
	{op: protocol.OpQueryDerivationOutputs, name: "QueryDerivationOutputs", verb: archive.Connect, handle: on(readPath, (*session).queryDerivationOutputs)},
	{op: protocol.OpQueryAllValidPaths, name: "QueryAllValidPaths", verb: archive.Connect, handle: on(none, (*session).queryAllValidPaths)},
	{op: protocol.OpQueryFailedPaths, name: "QueryFailedPaths", verb: archive.Connect, handle: on(none, (*session).queryFailedPaths)},
	{op: protocol.OpClearFailedPaths, name: "ClearFailedPaths", verb: archive.Connect, handle: on(readTexts, (*session).clearFailedPaths)},
	{op: protocol.OpQueryPathInfo, name: "QueryPathInfo", verb: archive.Connect, handle: on(readPath, (*session).queryPathInfo)},
	{op: protocol.OpImportPaths, name: "ImportPaths", verb: archive.Import, handle: on(none, (*session).importPaths)},
	{op: protocol.OpQueryDerivationOutputNames, name: "QueryDerivationOutputNames", verb: archive.Connect, handle: on(readPath, (*session).queryDerivationOutputNames)},
	{op: protocol.OpQueryPathFromHashPart, name: "QueryPathFromHashPart", verb: archive.Connect, handle: on(readDigest, (*session).queryPathFromHashPart)},
	{op: protocol.OpQuerySubstitutablePathInfos, name: "QuerySubstitutablePathInfos", verb: archive.Connect, since: 12, handle: on(readSubstitutable, (*session).querySubstitutablePathInfos)},
	{op: protocol.OpQueryValidPaths, name: "QueryValidPaths", verb: archive.Connect, since: 12, handle: on(readValid, (*session).queryValidPaths)},
	{op: protocol.OpQuerySubstitutablePaths, name: "QuerySubstitutablePaths", verb: archive.Connect, since: 12, handle: on((*protocol.Decoder).Paths, (*session).querySubstitutablePaths)},
	{op: protocol.OpQueryValidDerivers, name: "QueryValidDerivers", verb: archive.Connect, handle: on(readPath, (*session).queryValidDerivers)},
	{op: protocol.OpOptimiseStore, name: "OptimiseStore", verb: archive.Verify, long: true, handle: on(none, (*session).optimiseStore)},
	{op: protocol.OpVerifyStore, name: "VerifyStore", verb: archive.Verify, long: true, handle: on(readVerify, (*session).verifyStore)},
	{op: protocol.OpBuildDerivation, name: "BuildDerivation", verb: archive.Build, long: true, handle: on(readBuildDerivation, (*session).buildDerivation)},
	{op: protocol.OpAddSignatures, name: "AddSignatures", verb: archive.Add, handle: on(readSignatures, (*session).addSignatures)},
	{op: protocol.OpNarFromPath, name: "NarFromPath", verb: archive.Connect, handle: on(readPath, (*session).narFromPath)},
	{op: protocol.OpAddToStoreNar, name: "AddToStoreNar", verb: archive.Add, framed: 23, pulled: 21, handle: on(readNAR, (*session).addToStoreNar)},
	{op: protocol.OpQueryMissing, name: "QueryMissing", verb: archive.Connect, since: 19, long: true, handle: on((*protocol.Decoder).Targets, (*session).queryMissing)},
	{op: protocol.OpQueryDerivationOutputMap, name: "QueryDerivationOutputMap", verb: archive.Connect, since: 22, handle: on(readPath, (*session).queryDerivationOutputMap)},
	{op: protocol.OpRegisterDrvOutput, name: "RegisterDrvOutput", verb: archive.Add, since: 27, handle: on(readRealisation, (*session).registerDrvOutput)},
	{op: protocol.OpQueryRealisation, name: "QueryRealisation", verb: archive.Connect, since: 27, handle: on(readOutput, (*session).queryRealisation)},
	{op: protocol.OpAddMultipleToStore, name: "AddMultipleToStore", verb: archive.Add, since: 32, framed: 32, handle: on(readMultiple, (*session).addMultipleToStore)},
	{op: protocol.OpAddBuildLog, name: "AddBuildLog", verb: archive.Import, since: 32, framed: 32, handle: on(readLogOf, (*session).addBuildLog)},
	{op: protocol.OpBuildPathsWithResults, name: "BuildPathsWithResults", verb: archive.Build, since: 34, long: true, handle: on(readBuild, (*session).buildPathsWithResults)},
	{op: protocol.OpAddPermRoot, name: "AddPermRoot", verb: archive.Pin, since: 36, handle: on(readPermRoot, (*session).addPermRoot)},

	{op: protocol.OpImportBundle, name: "ImportBundle", verb: archive.Add, feature: protocol.FeatureCairn, framed: 38, handle: on(none, (*session).importBundle)},
	{op: protocol.OpExportBundle, name: "ExportBundle", verb: archive.Export, feature: protocol.FeatureCairn, long: true, handle: on(readBundle, (*session).exportBundle)},
	{op: protocol.OpFollowLog, name: "FollowLog", verb: archive.Connect, feature: protocol.FeatureCairn, long: true, handle: on(readPath, (*session).followLog)},
	{op: protocol.OpGCWhy, name: "GCWhy", verb: archive.Connect, feature: protocol.FeatureCairn, long: true, handle: on(readPath, (*session).gcWhy)},
	{op: protocol.OpStatus, name: "Status", verb: archive.Connect, feature: protocol.FeatureCairn, handle: on(none, (*session).status)},
	{op: protocol.OpCollectGarbage2, name: "CollectGarbage2", verb: archive.Connect, feature: protocol.FeatureCairn, long: true, handle: onJSON((*session).collect)},
	{op: protocol.OpQueryClosure, name: "QueryClosure", verb: archive.Connect, feature: protocol.FeatureCairn, handle: on((*protocol.Decoder).Paths, (*session).queryClosure)},
	{op: protocol.OpVerify, name: "Verify", verb: archive.Verify, feature: protocol.FeatureCairn, long: true, handle: onJSON((*session).verify)},
	{op: protocol.OpOptimise, name: "Optimise", verb: archive.Verify, feature: protocol.FeatureCairn, long: true, handle: on(none, (*session).optimise)},
	{op: protocol.OpNARs, name: "NARs", verb: archive.Connect, feature: protocol.FeatureCairn, handle: on((*protocol.Decoder).PathList, (*session).nars)},
	{op: protocol.OpQueryClosurePaths, name: "QueryClosurePaths", verb: archive.Connect, feature: protocol.FeatureCairn, handle: on((*protocol.Decoder).Paths, (*session).queryClosurePaths)},
	{op: protocol.OpScrub, name: "Scrub", verb: archive.Verify, feature: protocol.FeatureCairn, long: true, handle: onJSON((*session).scrub)},
	{op: protocol.OpRoots, name: "Roots", verb: archive.Connect, feature: protocol.FeatureCairn, long: true, handle: on(none, (*session).roots)},
	{op: protocol.OpAddRoot, name: "AddRoot", verb: archive.Root, feature: protocol.FeatureCairn, handle: onJSON((*session).addRoot)},
	{op: protocol.OpDeleteRoots, name: "DeleteRoots", verb: archive.Root, feature: protocol.FeatureCairn, handle: onJSON((*session).deleteRoots)},
	{op: protocol.OpAddOpen, name: "AddOpen", verb: archive.Add, feature: protocol.FeatureDescriptor, long: true, handle: on(readOpen, (*session).addOpen)},
	{op: protocol.OpAddSized, name: "AddSized", verb: archive.Add, feature: protocol.FeatureCairn, framed: 38, handle: on(readSized, (*session).addSized)},
}

// announced lists the features of a server that withholds some.
func announced(withhold []protocol.Feature) []protocol.Feature {
	features := protocol.AllFeatures()
	for _, row := range operations {
		if row.feature == protocol.FeatureCairn && !slices.Contains(withhold, protocol.FeatureOperations) {
			features = append(features, row.op.Feature())
		}
	}
	return slices.DeleteFunc(features, func(f protocol.Feature) bool { return slices.Contains(withhold, f) })
}

// find returns the row of an operation, or nil when the session has none.
func (x *session) find(op protocol.Op) *operation {
	if x.peer.inside != nil {
		return findIn(insideOperations, op, x.d.Format)
	}
	row := findIn(operations, op, x.d.Format)
	if row != nil && row.feature == protocol.FeatureCairn && slices.Contains(x.server.opts.Withhold, op.Feature()) {
		return nil
	}
	return row
}

func findIn(operations []operation, op protocol.Op, f protocol.Format) *operation {
	i, ok := slices.BinarySearchFunc(operations, op, func(row operation, op protocol.Op) int { return int(row.op) - int(op) })
	if !ok {
		return nil
	}
	row := &operations[i]
	if f.Version < protocol.Minor(row.since) || row.feature != "" && !f.Has(row.feature) {
		return nil
	}
	return row
}

// one is the reply of operations that only succeed.
func one(e *protocol.Encoder) error {
	e.Uint64(1)
	return nil
}
