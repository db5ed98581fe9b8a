package eval

import (
	"fmt"
	"io"
	"slices"

	"cairn/derivation"
	"cairn/store"
)

// ref is what a store path or a placeholder in a text stands for.
type ref struct {
	text   string     // the store path, or the placeholder
	source store.Path // an object that is added as it is
	drv    store.Path // or an output of a derivation
	output string
}

// objects are the store objects of one evaluation.
type objects struct {
	dir     store.Dir
	digests map[string]*ref // by the first 32 digits of path or placeholder
	added   map[store.Path]Addition
	drvs    map[store.Path]*derivation.Derivation
	hashes  *derivation.Hashes
	hosts   map[string]bool // host paths that were made

	mentioned map[string]mentioned // host paths by text
	programs  map[string]*Object   // by file
}

func (o *objects) init(dir store.Dir) {
	o.dir = dir
	o.digests, o.added = map[string]*ref{}, map[store.Path]Addition{}
	o.drvs, o.hosts = map[store.Path]*derivation.Derivation{}, map[string]bool{}
	o.mentioned, o.programs = map[string]mentioned{}, map[string]*Object{}
	o.hashes = derivation.NewHashes(func(p store.Path) (*derivation.Derivation, error) {
		if d := o.drvs[p]; d != nil {
			return d, nil
		}
		return nil, fmt.Errorf("%s is no derivation of this evaluation", p)
	})
}

// register makes a reference findable and returns the one that is known for the same text.
func (o *objects) register(r *ref) *ref {
	var key string
	if p, err := o.dir.ParsePath(r.text); err == nil {
		key = p.Digest()
	} else {
		key = r.text[1 : 1+store.DigestLen]
	}
	if old := o.digests[key]; old != nil {
		return old
	}
	o.digests[key] = r
	return r
}

// base32Digit says which bytes are digits of Nix's base 32.
var base32Digit = func() (t [256]bool) {
	for _, c := range "0123456789abcdfghijklmnpqrsvwxyz" {
		t[c] = true
	}
	return t
}()

// scan adds to found what text refers to. It looks at every run of 32 digits, wherever it stands, and skips
// as far as the last byte that is none allows.
func (o *objects) scan(text string, found map[*ref]bool) {
	for i := 0; i+store.DigestLen <= len(text); {
		j := store.DigestLen - 1
		for j >= 0 && base32Digit[text[i+j]] {
			j--
		}
		if j >= 0 {
			i += j + 1
			continue
		}
		if r := o.digests[text[i:i+store.DigestLen]]; r != nil {
			found[r] = true
		}
		i++
	}
}

// References returns the store paths and placeholders of this evaluation that texts mention, sorted.
func (e *Evaluation) References(texts ...string) []string {
	found := map[*ref]bool{}
	for _, t := range texts {
		e.objects.scan(t, found)
	}
	out := make([]string, 0, len(found))
	for r := range found {
		out = append(out, r.text)
	}
	slices.Sort(out)
	return out
}

// Addition is an object that a store must be given: the contents and everything its path is computed from.
type Addition struct {
	Path       store.Path
	Name       string
	Method     store.Method
	Algo       store.Algorithm
	References []store.Path
	Text       string // contents of a Text object
	File       string // the absolute file or folder that a Recursive object is the archive of
}

// Open returns the bytes that a store hashes: the text, or the NAR.
func (a *Addition) Open() (io.ReadCloser, error) { return a.open() }

// Additions returns what must be added to a store so that paths exist in it, references first.
// Paths that are no objects of this evaluation are taken to exist.
func (e *Evaluation) Additions(paths ...store.Path) []Addition {
	var list []Addition
	seen := map[store.Path]bool{}
	var visit func(p store.Path)
	visit = func(p store.Path) {
		a, ours := e.objects.added[p]
		if seen[p] || !ours {
			return
		}
		seen[p] = true
		for _, r := range a.References {
			visit(r)
		}
		list = append(list, a)
	}
	for _, p := range paths {
		visit(p)
	}
	return list
}

// Derivation returns a derivation of this evaluation, or nil.
func (e *Evaluation) Derivation(p store.Path) *derivation.Derivation { return e.objects.drvs[p] }
