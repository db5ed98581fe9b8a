package daemon

import (
	"bytes"
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

// signers returns the list of keys whose signatures count in this session: the ACL's, and those of the setting
// trusted-public-keys, which the session may have overridden.
func (x *session) signers() (*archive.ACL, error) {
	acl, err := x.server.access.keys()
	if err != nil {
		return nil, err
	}
	if x.set.signers != nil && x.set.signersOf == acl {
		return x.set.signers, nil
	}
	var rules []archive.Rule
	for _, word := range x.set.TrustedPublicKeys {
		if s, err := keySubject(word); err == nil {
			rules = append(rules, archive.Rule{Subject: s, Verbs: archive.Import})
		}
	}
	x.set.signers, x.set.signersOf = acl.With(rules...), acl
	return x.set.signers, nil
}

// signed returns nil when a key that may import has signed a text, or else store.ErrUntrusted. Whatever this daemon believes
// because of a signature passes here, but for bundles, which have one signature for all of their objects.
func (x *session) signed(text string, signatures []string) error {
	list, err := x.signers()
	if err != nil {
		return err
	}
	if _, ok := archive.VerifyText([]byte(text), signatures, list.Keys(archive.Import)); !ok {
		return store.ErrUntrusted
	}
	return nil
}

// vouch says whether anybody may add an object: it proves itself, or a key that may import has signed it.
// Contents are not looked at; the store does that.
func (x *session) vouch(info *store.Info) error {
	if !info.CA.IsZero() {
		return info.CheckContentAddress()
	}
	err := x.signed(info.Fingerprint(), info.Signatures)
	if errors.Is(err, store.ErrUntrusted) {
		return fmt.Errorf("it is not content-addressed and %w", err)
	}
	return err
}

// admit says whether the peer may add such an object, and drops what it may not claim: where the object was built,
// and signatures without number.
func (x *session) admit(a archived) error {
	if a.repair {
		if err := x.need(archive.Repair, "repair"); err != nil {
			return err
		}
	}
	if x.may(archive.Import) {
		if a.unsigned || !x.set.RequireSignatures {
			return nil
		}
		return x.vouch(a.info)
	}
	a.info.Ultimate = false
	if err := x.vouch(a.info); err != nil {
		return err
	}
	list, err := x.signers()
	if err != nil {
		return err
	}
	a.info.Signatures = keepSignatures(a.info.Fingerprint(), nil, a.info.Signatures, list)
	return nil
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
	if err := x.server.hashes.get().CheckOutputs(d, dir); err != nil {
		return nil, err
	}
	return all, x.server.learn(x.ctx, d)
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
		Damage(store.Path) error
		RealPath(store.Path) string
	}
	mu     sync.Mutex // guards what follows
	now    *derivation.Hashes
	loaded int
	drvs   map[store.Hash]store.Path // by hash, of those that were added lately and whose outputs need realisations
}

// maxHashes is how many derivations' hashes are remembered.
const maxHashes = 200_000

// maxKnown is how many derivations are known by hash.
const maxKnown = 50_000

func (h *hashes) get() *derivation.Hashes {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now == nil || h.loaded > maxHashes {
		h.now, h.loaded = derivation.NewHashes(h.load), 0
	}
	return h.now
}

// note remembers which derivation has a hash.
func (h *hashes) note(hash store.Hash, drv store.Path) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.drvs == nil || len(h.drvs) > maxKnown {
		h.drvs = map[store.Hash]store.Path{}
	}
	h.drvs[hash] = drv
}

// known returns the derivation with a hash, or the zero value.
func (h *hashes) known(hash store.Hash) store.Path {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drvs[hash]
}

// load reads a valid derivation.
func (h *hashes) load(p store.Path) (*derivation.Derivation, error) {
	h.mu.Lock()
	h.loaded++
	h.mu.Unlock()
	if !h.store.IsValid(p) {
		return nil, fmt.Errorf("derivation %s: %w", p, store.ErrNotValid)
	}
	if err := h.store.Damage(p); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(h.store.RealPath(p))
	if err != nil {
		return nil, fmt.Errorf("read derivation %s: %w", p, err)
	}
	return derivation.ParseAt(p, b)
}
