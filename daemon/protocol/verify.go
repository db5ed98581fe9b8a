package protocol

import "cairn/store"

// VerifyRequest is the request of OpVerify.
type VerifyRequest struct {
	Paths    []store.Path `json:"paths,omitempty"` // none: all, and the store directory itself
	Contents bool         `json:"contents,omitempty"`
	Repair   bool         `json:"repair,omitempty"`
	DryRun   bool         `json:"dryRun,omitempty"` // with Repair: say what would be done
	Plan     bool         `json:"plan,omitempty"`   // with Repair: tell what will be done before it is, by findings that are Planned
	Limit    int64        `json:"limit,omitempty"`  // bytes of contents per second; 0: no limit
}

// Remedy is a way to mend an object.
type Remedy struct {
	Kind   string `json:"kind"`
	From   string `json:"from"`             // a store path, or a cache
	URL    string `json:"url,omitempty"`    // of FetchRemedy, what is fetched, if the derivation says so
	Unable string `json:"unable,omitempty"` // why it cannot be had
}

// The kinds of remedies, in the order in which they are tried.
const (
	CopyRemedy  = "copy"  // another object of the store has the same archive
	CacheRemedy = "cache" // a binary cache has it
	BuildRemedy = "build" // a derivation builds it
	FetchRemedy = "fetch" // a fixed one, by fetching again what it names
)

// Finding is something that is wrong in a store, and what came of it.
type Finding struct {
	Kind  string `json:"kind"`            // modified, vanished, dangling, unreadable, link, unknown
	Path  string `json:"path"`            // a store path, or a file's name
	Text  string `json:"text"`            // what is wrong, as Nix says it
	Fixed bool   `json:"fixed"`           // nothing of it is left
	How   string `json:"how,omitempty"`   // where the new files come from, or "removed"
	Error string `json:"error,omitempty"` // why it could not be repaired

	// With DryRun or Plan:
	Size     int64        `json:"size,omitempty"`     // of the archive
	Remedies []Remedy     `json:"remedies,omitempty"` // what may mend it
	NeededBy []store.Path `json:"neededBy,omitempty"` // if nothing can, or could: what has to be deleted with it, referrers first
	Planned  bool         `json:"planned,omitempty"`  // told before anything is done about it; it is told again with the outcome
}

// VerifyResult is the answer of OpVerify. Its findings come before it, one JSON Finding per line in Write messages: a badly damaged
// store has more than fit into an answer. With Plan those that are to be mended come before that is done, too.
type VerifyResult struct {
	Paths    int       `json:"paths"`
	Bytes    int64     `json:"bytes"` // read
	Findings []Finding `json:"findings"`
	Left     int       `json:"left"` // findings that are still so; files that nobody knows do not count
}

// OptimiseResult is the answer of OpOptimise.
type OptimiseResult struct {
	Paths   int   `json:"paths"`   // looked at
	Skipped int   `json:"skipped"` // of them damaged, and left alone
	Files   int   `json:"files"`   // that became links
	Bytes   int64 `json:"bytes"`   // freed on disk
}
