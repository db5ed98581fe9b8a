package protocol

import "cairn/store"

// VerifyRequest is the request of OpVerify.
type VerifyRequest struct {
	Paths    []store.Path `json:"paths,omitempty"` // none: all, and the store directory itself
	Contents bool         `json:"contents,omitempty"`
	Repair   bool         `json:"repair,omitempty"`
	DryRun   bool         `json:"dryRun,omitempty"` // with Repair: say what would be done
	Limit    int64        `json:"limit,omitempty"`  // bytes of contents per second; 0: no limit
}

// Finding is something that is wrong in a store, and what came of it.
type Finding struct {
	Kind  string `json:"kind"`            // modified, vanished, dangling, unreadable, link, unknown
	Path  string `json:"path"`            // a store path, or a file's name
	Text  string `json:"text"`            // what is wrong, as Nix says it
	Fixed bool   `json:"fixed"`           // nothing of it is left
	How   string `json:"how,omitempty"`   // where the new files come from, or "removed"
	Error string `json:"error,omitempty"` // why it could not be repaired
}

// VerifyResult is the answer of OpVerify. Its findings come before it, one JSON Finding per line in Write messages: a badly damaged
// store has more than fit into an answer.
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
