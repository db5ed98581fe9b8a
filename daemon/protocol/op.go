package protocol

import (
	"slices"
	"strconv"
)

// Op is the number of an operation.
type Op uint64

// The operations of Nix. Obsolete ones are served as far as they are cheap.
const (
	OpIsValidPath                 Op = 1
	OpHasSubstitutes              Op = 3
	OpQueryPathHash               Op = 4
	OpQueryReferences             Op = 5
	OpQueryReferrers              Op = 6
	OpAddToStore                  Op = 7
	OpAddTextToStore              Op = 8
	OpBuildPaths                  Op = 9
	OpEnsurePath                  Op = 10
	OpAddTempRoot                 Op = 11
	OpAddIndirectRoot             Op = 12
	OpSyncWithGC                  Op = 13
	OpFindRoots                   Op = 14
	OpExportPath                  Op = 16
	OpQueryDeriver                Op = 18
	OpSetOptions                  Op = 19
	OpCollectGarbage              Op = 20
	OpQuerySubstitutablePathInfo  Op = 21
	OpQueryDerivationOutputs      Op = 22
	OpQueryAllValidPaths          Op = 23
	OpQueryFailedPaths            Op = 24
	OpClearFailedPaths            Op = 25
	OpQueryPathInfo               Op = 26
	OpImportPaths                 Op = 27
	OpQueryDerivationOutputNames  Op = 28
	OpQueryPathFromHashPart       Op = 29
	OpQuerySubstitutablePathInfos Op = 30
	OpQueryValidPaths             Op = 31
	OpQuerySubstitutablePaths     Op = 32
	OpQueryValidDerivers          Op = 33
	OpOptimiseStore               Op = 34
	OpVerifyStore                 Op = 35
	OpBuildDerivation             Op = 36
	OpAddSignatures               Op = 37
	OpNarFromPath                 Op = 38
	OpAddToStoreNar               Op = 39
	OpQueryMissing                Op = 40
	OpQueryDerivationOutputMap    Op = 41
	OpRegisterDrvOutput           Op = 42
	OpQueryRealisation            Op = 43
	OpAddMultipleToStore          Op = 44
	OpAddBuildLog                 Op = 45
	OpBuildPathsWithResults       Op = 46
	OpAddPermRoot                 Op = 47
)

// The operations of FeatureCairn. Answers in JSON are one text.
const (
	// OpImportBundle: framed bundle → paths. Nothing is visible before all of it is.
	OpImportBundle Op = 0x6361_0001
	// OpExportBundle: paths, bool with closure → the signed bundle in Write messages.
	OpExportBundle Op = 0x6361_0002
	// OpFollowLog: derivation path → the log in Write messages, until the build ends.
	OpFollowLog Op = 0x6361_0003
	// OpGCWhy: path → JSON, the chains from roots to it.
	OpGCWhy Op = 0x6361_0004
	// OpStatus: → JSON, what the daemon is and does.
	OpStatus Op = 0x6361_0005
	// OpCollectGarbage2: JSON GCRequest → JSON GCResult.
	OpCollectGarbage2 Op = 0x6361_0006
	// OpQueryClosure: paths → keyed path infos of the closure, references first.
	OpQueryClosure Op = 0x6361_0007
	// OpVerify: JSON VerifyRequest → JSON Findings, one per line, in Write messages, then JSON VerifyResult without them.
	OpVerify Op = 0x6361_0008
	// OpOptimise: → JSON OptimiseResult.
	OpOptimise Op = 0x6361_0009
	// OpNARs: list of paths → their NARs, one behind the other, in that order.
	OpNARs Op = 0x6361_000a
	// OpQueryClosurePaths: paths → the list of paths of the closure, references first.
	OpQueryClosurePaths Op = 0x6361_000b
	// OpScrub: JSON ScrubRequest → JSON Scrub, how it is then.
	OpScrub Op = 0x6361_000c
	// OpRoots: → JSON list of RootInfo, all that keeps something.
	OpRoots Op = 0x6361_0010
	// OpAddRoot: JSON AddRootRequest → JSON RootInfo. The root is durable, and the peer's user owns it.
	OpAddRoot Op = 0x6361_0011
	// OpDeleteRoots: JSON DeleteRootsRequest → JSON list of RootInfo, those that were deleted: all or none.
	OpDeleteRoots Op = 0x6361_0012
	// OpAddOpen: name, content address method, references; with the first byte comes a file descriptor, open for reading, of
	// what is to be added → optional keyed path info: none when the daemon wants the contents sent (OpAddToStore). Of FeatureDescriptor.
	OpAddOpen Op = 0x6361_0020
	// OpAddSized: name, content address method of a file, references, size, framed contents of that size → keyed path info. It is
	// OpAddToStore for clients that know the size, which the archive has before the contents, so that these are read once.
	OpAddSized Op = 0x6361_0021
)

// ownOperations is below the numbers of our own operations.
const ownOperations Op = 0x6361_0000

// firstOperations are those of our own that every server with FeatureCairn has, in the form that they had from the beginning.
// The list never grows.
var firstOperations = []Op{OpImportBundle, OpExportBundle, OpFollowLog, OpGCWhy, OpStatus, OpQueryClosure}

// Feature is what a server announces that serves an operation of ours.
func (o Op) Feature() Feature {
	return Feature("cairn-operation-" + strconv.FormatUint(uint64(o-ownOperations), 16))
}

// Serves reports whether the server has an operation of ours. Nix's it has by version.
func (a Answer) Serves(op Op) bool {
	switch {
	case op < ownOperations:
		return true
	case op == OpAddOpen:
		return a.Has(FeatureDescriptor)
	case slices.Contains(a.Announced, FeatureOperations):
		return a.Has(FeatureCairn) && slices.Contains(a.Announced, op.Feature())
	}
	return a.Has(FeatureCairn) && slices.Contains(firstOperations, op)
}

// String returns the number in decimal; names are the server's table's.
func (o Op) String() string { return strconv.FormatUint(uint64(o), 10) }
