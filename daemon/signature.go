package daemon

import (
	"context"
	"fmt"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/store"
)

// signatures is the request of AddSignatures.
type signatures struct {
	path store.Path
	list []string
}

func readSignatures(d *protocol.Decoder) signatures {
	return signatures{d.Path(), d.Texts(protocol.MaxPath)}
}

// maxSignatures is how many signatures come at a time, and how many of keys without rights a path may have.
const maxSignatures = 64

// addSignatures takes signatures from anybody: which ones count is decided when somebody relies on them.
func (x *session) addSignatures(ctx context.Context, q signatures) (reply, error) {
	if len(q.list) > maxSignatures {
		return nil, fmt.Errorf("sign %s: %d signatures, the limit is %d", q.path, len(q.list), maxSignatures)
	}
	info, err := x.server.store.Info(ctx, q.path)
	if err != nil {
		return nil, err
	}
	list, err := x.signers()
	if err != nil {
		return nil, err
	}
	for _, s := range q.list {
		if _, err := archive.SignatureKey(s); err != nil {
			return nil, fmt.Errorf("sign %s: %w", q.path, err)
		}
	}
	more := keepSignatures(info.Fingerprint(), info.Signatures, q.list, list)
	if len(more) < len(q.list) {
		return nil, fmt.Errorf("sign %s: it has %d signatures, and only keys that may import can add more", q.path, len(info.Signatures))
	}
	return one, x.server.store.AddSignatures(ctx, q.path, more)
}

// keepSignatures returns which signatures a text, which describes an object or a realisation, may have beside those it has: all by keys of the list, and of the others as many as
// there is room for, so that junk keeps no good one away.
func keepSignatures(text string, has, more []string, list *archive.ACL) []string {
	keys := list.Keys(archive.Import)
	counts := func(s string) bool {
		_, ok := archive.VerifyText([]byte(text), []string{s}, keys)
		return ok
	}
	room := maxSignatures
	for _, s := range has {
		if !counts(s) {
			room--
		}
	}
	var kept []string
	for _, s := range more {
		if _, err := archive.SignatureKey(s); err != nil {
			continue
		}
		if !counts(s) {
			if room--; room < 0 {
				continue
			}
		}
		kept = append(kept, s)
	}
	return kept
}
