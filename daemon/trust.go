package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// vouch says whether anybody may add an object: it proves itself, or a key that may import signed it.
// Contents are not looked at; the store does that.
func (s *Server) vouch(info *store.Info) error {
	if !info.CA.IsZero() {
		return info.CheckContentAddress()
	}
	keys, err := s.importKeys()
	if err != nil {
		return err
	}
	if _, ok := archive.VerifyInfo(info, keys); ok {
		return nil
	}
	return fmt.Errorf("it is not content-addressed and %w", store.ErrUntrusted)
}

// checkSignatures checks that each signature of a valid path is by a key that may import.
func (s *Server) checkSignatures(ctx context.Context, q signatures) error {
	info, err := s.store.Info(ctx, q.path)
	if err != nil {
		return err
	}
	keys, err := s.importKeys()
	if err != nil {
		return err
	}
	for _, sig := range q.list {
		info.Signatures = []string{sig}
		if _, ok := archive.VerifyInfo(info, keys); !ok {
			return fmt.Errorf("signature %.100q %w", sig, store.ErrUntrusted)
		}
	}
	return nil
}

// importKeys returns the keys that may import.
func (s *Server) importKeys() ([]archive.PublicKey, error) {
	acl, err := archive.LoadACL(s.opts.ACL)
	if err != nil {
		return nil, err
	}
	return acl.Keys(archive.Import), nil
}

// maxDerivation is the size limit of a .drv.
const maxDerivation = 32 << 20

// checkedDerivation reads a .drv, plain or as a NAR, and returns what it read,
// after checking that the outputs that it claims are its own.
func (x *session) checkedDerivation(name string, archived bool, r io.Reader) ([]byte, error) {
	var text, all []byte
	var err error
	r = &metered{r: r, m: &x.memory, free: protocol.Step}
	if archived {
		all, text, err = readArchivedFile(r)
	} else {
		text, err = readAtMost(r, maxDerivation)
		all = text
	}
	if err != nil {
		return nil, err
	}
	dir := x.server.store.Dir()
	d, err := derivation.Parse(name[:len(name)-len(".drv")], dir, text)
	if err != nil {
		return nil, err
	}
	return all, x.server.hashes.get().CheckOutputs(d, dir)
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("derivation has more than %d bytes", limit)
	}
	return b, err
}

// readArchivedFile reads the NAR of one plain file and returns it and the file's contents.
func readArchivedFile(r io.Reader) (all, contents []byte, err error) {
	var copied bytes.Buffer
	n := nar.NewReader(io.TeeReader(r, &copied))
	h, err := n.Next()
	if err != nil {
		return nil, nil, err
	}
	if h.Type != nar.Regular || h.Executable || h.Size > maxDerivation {
		return nil, nil, errors.New("a derivation must be a plain file, not executable, and of moderate size")
	}
	if contents, err = io.ReadAll(n); err != nil {
		return nil, nil, err
	}
	if _, err := n.Next(); err != io.EOF {
		return nil, nil, fmt.Errorf("archive does not end: %w", err)
	}
	return copied.Bytes(), contents, nil
}

// hashes remembers hashes of derivations, of a bounded number of them.
type hashes struct {
	store interface {
		IsValid(store.Path) bool
		RealPath(store.Path) string
	}
	mu     sync.Mutex // guards what follows
	now    *derivation.Hashes
	loaded int
}

// maxHashes is how many derivations' hashes are remembered.
const maxHashes = 200_000

func (h *hashes) get() *derivation.Hashes {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now == nil || h.loaded > maxHashes {
		h.now, h.loaded = derivation.NewHashes(h.load), 0
	}
	return h.now
}

// load reads a valid derivation.
func (h *hashes) load(p store.Path) (*derivation.Derivation, error) {
	h.mu.Lock()
	h.loaded++
	h.mu.Unlock()
	if !h.store.IsValid(p) {
		return nil, fmt.Errorf("derivation %s: %w", p, store.ErrNotValid)
	}
	b, err := os.ReadFile(h.store.RealPath(p))
	if err != nil {
		return nil, fmt.Errorf("read derivation %s: %w", p, err)
	}
	return derivation.ParseAt(p, b)
}
