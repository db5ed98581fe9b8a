// Package protocol encodes and decodes the worker protocol of Nix, both directions.
//
// A connection is one session: a handshake (handshake.go), then strictly one request
// after the other. A request is an operation number (op.go) and its fields. The server
// answers with any number of messages (message.go) up to Last or Error, and after Last
// with the reply's fields. Bulk data travels in frames after the fields (archive/wire).
//
//	session  = handshake { request }
//	request  = u64 op, fields [, frames]             client → server
//	answer   = { message } (Last, reply | Error)     server → client
//
// What the two sides agreed on, version and features, is a Format; every encoding is a
// method of Encoder or Decoder, which carry one. Both keep their first error, so that a
// request is read field by field and checked once.
//
// A Decoder tells two errors apart. A broken frame (a length out of range, an early end)
// is final: where the next value starts is unknown, the session must end. A bad value
// (text that is no store path, an unknown content address) is remembered while decoding
// goes on, so that the request is consumed, the error can be answered, and the session lives.
//
// Bounds: each text has a limit of its own, and all texts and lists of one request share a
// budget, so that a peer costs bounded memory whatever counts it announces.
//
// Own extensions are operations from OpImportBundle on. They are served only when both
// sides announced FeatureCairn; Nix's own programs ignore features that they do not know.
// Sides of different versions meet. A server announces each operation of ours by a feature
// of its own (Op.Feature), from its table, and a client asks for none that was not
// announced (Answer.Serves). What an operation's fields are never changes: other
// fields are another operation. A request in JSON may get more of them, which a server that
// does not know them refuses, as it would do something else than it was asked for.
//
// The package has no goroutine and does no I/O but through the wire reader and writer.
package protocol

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/store"
)

// Version is a protocol version, major<<8 | minor.
type Version uint64

// The versions that matter: what is announced, and what is the least that is served. Nix itself has refused
// peers before 1.18 since 2.24; what the older ones do differently is little, and stands where it is encoded.
const (
	Newest Version = 1<<8 | 38
	// OldestServer is the least that our clients speak.
	OldestServer Version = 1<<8 | 18
	Oldest       Version = 1<<8 | 10
)

// Minor returns the version 1.n.
func Minor(n int) Version { return 1<<8 | Version(n) }

func (v Version) String() string { return fmt.Sprintf("%d.%d", uint64(v)>>8, uint64(v)&0xff) }

// Feature is something that both sides must announce before it is used. It needs 1.38.
type Feature string

// The features that are announced.
const (
	// FeatureRealisations identifies realisations by derivation path instead of by hash.
	FeatureRealisations Feature = "realisation-with-path-not-hash"
	// FeatureDeleteReferrers adds a word to CollectGarbage: delete dead referrers as well.
	FeatureDeleteReferrers Feature = "delete-dead-specific-referrers"
	// FeatureHeartbeat makes the server send ResHeartbeat every HeartbeatTime while it works on a request, so that a client
	// can tell a server that is busy from one that is dead.
	FeatureHeartbeat Feature = "cairn-heartbeat-1"
	// FeatureDescriptor adds OpAddOpen. It is agreed on over sockets of one machine only, which can pass descriptors.
	FeatureDescriptor Feature = "cairn-descriptor-1"
	// FeatureCairn adds the operations from OpImportBundle on, and error codes.
	FeatureCairn Feature = "cairn-1"
	// FeatureOperations says that the server announces each operation of ours that it serves; what servers without it serve
	// is firstOperations.
	FeatureOperations Feature = "cairn-operations-1"
)

// HeartbeatTime is how often a server with FeatureHeartbeat gives a sign of life.
const HeartbeatTime = 5 * time.Second

// AllFeatures lists what both sides here announce, sorted. Not among them are those of the daemon that Nix puts
// into a build ("disable-set-options", "add-to-store-scanning", "submit-output"): its clients announce these to
// everybody, and who answered with the first would never learn their settings.
func AllFeatures() []Feature {
	return []Feature{FeatureCairn, FeatureDescriptor, FeatureHeartbeat, FeatureOperations, FeatureDeleteReferrers, FeatureRealisations}
}

// Format is what the two sides of a session agreed on.
type Format struct {
	Dir      store.Dir
	Version  Version
	Features []Feature
}

// Has reports whether the feature was agreed on.
func (f Format) Has(feature Feature) bool { return slices.Contains(f.Features, feature) }

// Limits of single values, in bytes or elements.
const (
	MaxPath    = 4096     // a path or a name
	MaxText    = 1 << 20  // an error, a log line, a setting
	MaxValue   = 16 << 20 // a variable of a derivation, contents of a text
	MaxCount   = 1 << 24  // elements of a list; the budget binds first
	MaxRequest = 64 << 20
	MaxReply   = 2 << 30
)

// elementCost is what an element of a list costs of the budget beside its text.
const elementCost = 32

func clip(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}
