package build

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/refscan"
)

// output is one output of an attempt.
type output struct {
	name  string
	path  store.Path   // where the builder makes it; for floating outputs a scratch path
	final store.Path   // zero until known
	found []store.Path // what it refers to, by the builder's paths
	tree  string       // where the builder left it
	ca    store.ContentAddress
	info  *store.Info
}

// readOutputs makes objects of what the builder left behind. Nothing of the builder runs any more, but everything it
// left is hostile: it is read through directory handles, and what is registered is a copy.
func (a *attempt) readOutputs(ctx context.Context) ([]disk.Output, error) {
	if err := os.Mkdir(a.dir("out"), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	for _, o := range a.outputs {
		o.tree = a.leftAt(o)
		if err := a.admit(o); err != nil {
			return nil, err
		}
	}
	read := a.readNamed
	if a.kind == derivation.Floating || a.kind == derivation.Impure {
		read = a.readFloating
	}
	if err := read(ctx); err != nil {
		return nil, err
	}
	if err := a.checkOutputs(ctx); err != nil {
		return nil, err
	}
	var list []disk.Output
	for _, o := range a.outputs {
		list = append(list, a.copied(o, o.info))
	}
	return list, nil
}

// copied is the copy of an output.
func (a *attempt) copied(o *output, info *store.Info) disk.Output {
	return disk.Output{Info: info, TempPath: filepath.Join(a.dir("out"), o.name), Canonical: true}
}

// leftAt is where the builder leaves an output.
func (a *attempt) leftAt(o *output) string { return filepath.Join(a.dir("store"), o.path.Base()) }

// admit checks that an output is there and is of an admissible type.
func (a *attempt) admit(o *output) error {
	fi, err := os.Lstat(o.tree)
	if errors.Is(err, os.ErrNotExist) {
		return failure(protocol.OutputRejected, "builder for '%s' failed to produce output path for output '%s' at '%s'", a.key.drv, o.name, o.path)
	}
	if err != nil {
		return err
	}
	if method := a.drv.Outputs[o.name].Method; method == store.Flat || method == store.Text {
		if !fi.Mode().IsRegular() || fi.Mode()&0o100 != 0 {
			return failure(protocol.OutputRejected, "output path '%s' should be a non-executable regular file since recursive hashing is not enabled (outputHashMode=flat)", o.path)
		}
	}
	if os.Geteuid() == 0 {
		return nil
	}
	return makeReadable(o.tree)
}

// makeReadable lets an ordinary user's daemon read what its builder has closed to itself.
func makeReadable(path string) error {
	at, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return makeReadableAt(at, filepath.Base(path))
}

func makeReadableAt(at int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	want := uint32(0)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		want = 0o400
	case unix.S_IFDIR:
		want = 0o700
	}
	if st.Mode&want != want {
		if err := unix.Fchmodat(at, name, st.Mode&0o777|want, 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := makeReadableAt(fd, n); err != nil {
			return fmt.Errorf("%s/%w", name, err)
		}
	}
	return nil
}

// removeWork deletes the working directory.
func (a *attempt) removeWork() {
	// Most builders leave one file and empty directories, for which there is no need to look.
	for _, o := range a.outputs {
		unix.Unlink(a.leftAt(o))
	}
	for _, name := range workDirs {
		unix.Rmdir(a.dir(name))
	}
	if unix.Rmdir(a.work) != nil {
		removeLeft(a.work)
	}
}

// removeLeft deletes what a builder has left, whatever modes it gave to that.
func removeLeft(path string) {
	if os.RemoveAll(path) == nil {
		return
	}
	makeReadable(path)
	os.RemoveAll(path)
}

// candidates are the paths that outputs may refer to.
func (a *attempt) candidates() []store.Path {
	list := slices.Clone(a.inputs)
	for _, o := range a.outputs {
		list = append(list, o.path)
	}
	return list
}

// readNamed reads outputs whose paths were known before: one pass.
func (a *attempt) readNamed(ctx context.Context) error {
	for _, o := range a.outputs {
		out := a.drv.Outputs[o.name]
		fixed := out.Kind() == derivation.Fixed
		got, err := a.copyScanned(ctx, o, fixed)
		if err != nil {
			return err
		}
		o.final, o.info.Path = o.path, o.path
		o.info.References = o.found
		if !fixed {
			continue
		}
		if err := a.checkFixed(o, out, got); err != nil {
			return errors.Join(err, a.keepUnexpected(ctx, o, out, got))
		}
	}
	return nil
}

// copyScanned copies an output as it is, and finds what it refers to. With fixed it returns the hash that is promised of outputs of
// its kind.
func (a *attempt) copyScanned(ctx context.Context, o *output, fixed bool) (store.Hash, error) {
	out := a.drv.Outputs[o.name]
	scan := refscan.NewScanner(nil, a.candidates())
	c := copying{also: []io.Writer{scan}}
	var h hash.Hash
	switch {
	case fixed && out.Method == store.Recursive:
		h = out.Algo.New()
		c.also = append(c.also, h)
	case fixed:
		h = out.Algo.New()
		c.contents = h
	}
	if err := a.copyOut(ctx, o, c); err != nil {
		return store.Hash{}, err
	}
	if !a.discards(o) {
		o.found = scan.Found()
	}
	if !fixed {
		return store.Hash{}, nil
	}
	return store.NewHash(out.Algo, h.Sum(nil)), nil
}

// checkFixed compares an output with what was promised.
func (a *attempt) checkFixed(o *output, out derivation.Output, got store.Hash) error {
	if got != out.Hash {
		return failure(protocol.OutputRejected, "hash mismatch in fixed-output derivation '%s':\n  specified: %s\n     got:    %s", a.key.drv, out.Hash.SRI(), got.SRI())
	}
	if len(o.found) > 0 && out.Method != store.Text {
		return failure(protocol.OutputRejected, "illegal path references in fixed-output derivation '%s': '%s' refers to '%s'", a.key.drv, o.path, o.found[0])
	}
	o.info.CA = out.ContentAddress()
	return nil
}

// keepUnexpected registers a fixed output that has another hash under the path of that one, so that whoever corrects
// the derivation need not fetch it again.
func (a *attempt) keepUnexpected(ctx context.Context, o *output, out derivation.Output, got store.Hash) error {
	if got == out.Hash || len(o.found) > 0 {
		return nil
	}
	info := *o.info
	info.CA = store.ContentAddress{Method: out.Method, Hash: got}
	path, err := a.b.store.Dir().ContentPath(a.drv.OutputName(o.name), info.CA, store.References{})
	if err != nil {
		return err
	}
	info.Path = path
	return a.b.store.Register(ctx, []disk.Output{a.copied(o, &info)})
}

// openOutput opens an output that is a regular file.
func openOutput(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// readFloating reads outputs whose paths follow from what is in them: find references, then, those referred
// to first, hash modulo the output's own digest, and copy with final digests in the place of scratch ones.
func (a *attempt) readFloating(ctx context.Context) error {
	for _, o := range a.outputs {
		scan := refscan.NewScanner(nil, a.candidates())
		if err := nar.Dump(scan, o.tree); err != nil {
			return a.unreadable(o, err)
		}
		if !a.discards(o) {
			o.found = scan.Found()
		}
	}
	order, err := a.sortOutputs()
	if err != nil {
		return err
	}
	final := map[string]string{} // digests
	paths := map[store.Path]store.Path{}
	for _, o := range order {
		if err := a.addressFloating(o, final, paths); err != nil {
			return err
		}
		final[o.path.Digest()], paths[o.path] = o.final.Digest(), o.final
		if err := a.copyOut(ctx, o, copying{digests: final}); err != nil {
			return err
		}
		o.info.Path = o.final
		o.info.References = finalPaths(o.found, paths)
		o.info.CA = o.ca
	}
	return nil
}

// addressFloating finds an output's content address and path. digests and paths say what became of the
// scratch paths of the outputs before it.
func (a *attempt) addressFloating(o *output, digests map[string]string, paths map[store.Path]store.Path) error {
	out := a.drv.Outputs[o.name]
	hash, err := a.hashFloating(o, out, digests)
	if err != nil {
		return err
	}
	o.ca = store.ContentAddress{Method: out.Method, Hash: hash}
	refs := store.SplitSelf(o.path, finalPaths(o.found, paths))
	o.final, err = a.b.store.Dir().ContentPath(a.drv.OutputName(o.name), o.ca, refs)
	if err != nil {
		return failure(protocol.OutputRejected, "output '%s' of '%s': %v", o.name, a.key.drv, err)
	}
	return nil
}

// hashFloating hashes what the output will be, modulo its own digest.
func (a *attempt) hashFloating(o *output, out derivation.Output, digests map[string]string) (store.Hash, error) {
	if out.Method != store.Recursive {
		if slices.Contains(o.found, o.path) {
			return store.Hash{}, failure(protocol.OutputRejected, "output '%s' of '%s' refers to itself, which a file addressed by its bytes cannot", o.name, a.key.drv)
		}
		return a.hashRewritten(o, out.Algo, digests)
	}
	h := refscan.HashModulo(out.Algo, o.path.Digest())
	r := refscan.NewRewriter(h, digests)
	if err := nar.Dump(r, o.tree); err != nil {
		return store.Hash{}, a.unreadable(o, err)
	}
	if err := r.Close(); err != nil {
		return store.Hash{}, err
	}
	return h.Sum(a.selfHash(o, h)), nil
}

// selfHash is the form of an output's hash modulo: the request's, or when a build is checked that of the first one.
func (a *attempt) selfHash(o *output, h *refscan.ModuloHasher) refscan.SelfHash {
	form := a.b.selfHash
	if a.key.mode != Check {
		return form
	}
	path, err := outputPath(a.facts, a.job.drv, o.name)
	if err != nil {
		return form // compare says so
	}
	if info, err := a.b.store.Info(context.Background(), path); err == nil && info.CA.Hash == h.Sum(form.Other()) {
		return form.Other()
	}
	return form
}

// hashRewritten hashes a file's bytes as they will be.
func (a *attempt) hashRewritten(o *output, algo store.Algorithm, digests map[string]string) (store.Hash, error) {
	h := algo.New()
	r := refscan.NewRewriter(h, digests)
	f, _, err := openOutput(o.tree)
	if err != nil {
		return store.Hash{}, err
	}
	defer f.Close()
	if _, err := io.Copy(r, f); err != nil {
		return store.Hash{}, err
	}
	if err := r.Close(); err != nil {
		return store.Hash{}, err
	}
	return store.NewHash(algo, h.Sum(nil)), nil
}

// discards reports whether the derivation wants an output to have no references, whatever is in it.
func (a *attempt) discards(o *output) bool {
	attrs, err := a.structured()
	if err != nil || attrs == nil {
		return false
	}
	all, _ := attrs["unsafeDiscardReferences"].(map[string]any)
	yes, _ := all[o.name].(bool)
	return yes
}

func finalPaths(found []store.Path, paths map[store.Path]store.Path) []store.Path {
	var list []store.Path
	for _, p := range found {
		if q, ok := paths[p]; ok {
			p = q
		}
		list = append(list, p)
	}
	return store.SortPaths(list)
}

func (a *attempt) unreadable(o *output, err error) error {
	return failure(protocol.OutputRejected, "output '%s' of '%s' is not admissible: %v", o.name, a.key.drv, err)
}

// sortOutputs orders outputs, those referred to first.
func (a *attempt) sortOutputs() ([]*output, error) {
	byPath := map[store.Path]*output{}
	for _, o := range a.outputs {
		byPath[o.path] = o
	}
	var order []*output
	state := map[*output]int{}
	var visit func(o *output) error
	visit = func(o *output) error {
		switch state[o] {
		case 1:
			return failure(protocol.OutputRejected, "cycle detected in build of '%s' in the references of output '%s' from its other outputs", a.key.drv, o.name)
		case 2:
			return nil
		}
		state[o] = 1
		for _, p := range o.found {
			if other := byPath[p]; other != nil && other != o {
				if err := visit(other); err != nil {
					return err
				}
			}
		}
		state[o] = 2
		order = append(order, o)
		return nil
	}
	for _, o := range a.outputs {
		if err := visit(o); err != nil {
			return nil, err
		}
	}
	return order, nil
}
