package disk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// smallFile is the size up to which a file is hashed in memory before anything is written.
const smallFile = 1 << 20

// Free space is looked at again when a stream had a part of what was free, or so many bytes: others take of it meanwhile.
const (
	spacePart          = 64
	leastSpaceInterval = 64 << 10
	mostSpaceInterval  = 8 << 20
)

// spaceInterval returns after how many bytes of a stream free space is to be looked at again, or that there is none.
func (s *Store) spaceInterval() (int64, error) {
	free, err := s.room(0)
	return min(max(free/spacePart, leastSpaceInterval), mostSpaceInterval), err
}

// Add reads exactly one NAR and makes info.Path valid. Hash, size and, if there is one, content address
// are checked. Whether the peer may add such an object is the caller's business.
// It returns when the object is durable.
func (s *Store) Add(ctx context.Context, info *store.Info, r io.Reader) error {
	mine := *info // its size is filled in when it is not known
	if err := s.add(ctx, &mine, r); err != nil {
		return fmt.Errorf("add %s: %w", info.Path, err)
	}
	return nil
}

func (s *Store) add(ctx context.Context, info *store.Info, r io.Reader) error {
	if err := s.checkInfo(info); err != nil {
		return err
	}
	d := meta.DigestOf(info.Path)
	release := s.holdFor(ctx, info.Path)
	defer release()
	unlock, err := s.locks.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := s.present(info.Path); err != nil || ok {
		if err != nil {
			return err
		}
		return s.again(ctx, info, r)
	}
	releaseRefs, err := s.holdRefs(info.Path, info.References, nil)
	if err != nil {
		return err
	}
	defer releaseRefs()
	t := s.newTree(info.Path)
	defer t.drop()
	if err := s.receive(ctx, info, t, r); err != nil {
		return noSpace(err)
	}
	p, err := s.pending(info, t, s.hashes)
	if err != nil {
		return err
	}
	return s.commit([]*pending{p})
}

// again reads the archive of a valid object, which nobody needs unless the object is damaged. The caller has the keyed lock.
func (s *Store) again(ctx context.Context, info *store.Info, r io.Reader) error {
	if s.Damage(info.Path) == nil {
		_, err := nar.Copy(io.Discard, r)
		return err
	}
	t := s.newTree(info.Path)
	defer t.drop()
	if err := s.receive(ctx, info, t, r); err != nil {
		return noSpace(err)
	}
	return s.renew(info, t.temp)
}

func (s *Store) checkInfo(info *store.Info) error {
	if info.Path.Dir() != s.layout.Dir {
		return fmt.Errorf("it belongs to the store %s, this one is %s", info.Path.Dir(), s.layout.Dir)
	}
	if info.NarHash.Algorithm() != store.SHA256 {
		return fmt.Errorf("nar hash %s is not sha256", info.NarHash)
	}
	if info.NarSize < 0 {
		return fmt.Errorf("nar size %d is negative", info.NarSize)
	}
	if info.CA.IsZero() {
		return nil
	}
	return info.CheckContentAddress()
}

// present reports whether a path is valid, and refuses one whose digest another valid path has.
// The caller holds the path's lock.
func (s *Store) present(p store.Path) (bool, error) {
	n := s.graph.lookup(meta.DigestOf(p))
	if n == nil {
		return false, nil
	}
	if n.name != p.Name() {
		return false, fmt.Errorf("its digest is that of %s", s.path(n))
	}
	return true, nil
}

// holdRefs keeps references from being deleted, and checks that they are valid or become so together with
// the object.
func (s *Store) holdRefs(self store.Path, refs []store.Path, together map[store.Path]bool) (func(), error) {
	var ds []meta.Digest
	for _, r := range refs {
		if r != self && !together[r] {
			if r.Dir() != s.layout.Dir {
				return nil, fmt.Errorf("reference %q is of another store", r)
			}
			ds = append(ds, meta.DigestOf(r))
		}
	}
	s.graph.hold(ds...)
	for _, r := range refs {
		if r != self && !together[r] && !s.graph.valid(r) {
			s.graph.release(ds...)
			return nil, fmt.Errorf("reference %s: %w", r, store.ErrNotValid)
		}
	}
	return func() { s.graph.release(ds...) }, nil
}

// receive makes the tree of a NAR and checks it against info, whose size is filled in when it is zero.
func (s *Store) receive(ctx context.Context, info *store.Info, t *tree, r io.Reader) error {
	check := newContentCheck(info)
	narHash, size, err := s.restore(ctx, t, r, check.writers()...)
	if err != nil {
		return err
	}
	failpoint.Hit("disk/add/received")
	if err := checkArchive(info, narHash, size); err != nil {
		return err
	}
	return check.verify(info, t.temp)
}

// restore makes the tree of a NAR and returns the archive's hash and size. Others are written the archive, too.
func (s *Store) restore(ctx context.Context, t *tree, r io.Reader, others ...io.Writer) (store.Hash, int64, error) {
	sum := store.SHA256.New()
	in := s.newIntake(ctx, r)
	if err := t.restore(in, append([]io.Writer{sum}, others...)...); err != nil {
		return store.Hash{}, 0, err
	}
	return store.NewHash(store.SHA256, sum.Sum(nil)), in.size, nil
}

// pending makes the row of an object whose tree is made.
func (s *Store) pending(info *store.Info, t *tree, hashes *derivation.Hashes) (*pending, error) {
	p := &pending{path: info.Path, object: rowOf(info), tree: t}
	if info.NarSize >= leastSealed {
		p.object.Seal = t.seal
	}
	if info.Path.IsDerivation() {
		if err := s.derivationRows(p, info, hashes); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// rowOf returns the row of an object, registered now unless info says when.
func rowOf(info *store.Info) *meta.Object {
	o := &meta.Object{
		Name:         info.Path.Name(),
		NarSize:      info.NarSize,
		RegisteredAt: info.RegisteredAt,
		Ultimate:     info.Ultimate,
		Deriver:      info.Deriver,
		CA:           info.CA,
		Signatures:   sortedTexts(info.Signatures),
	}
	if o.RegisteredAt == 0 {
		o.RegisteredAt = time.Now().Unix()
	}
	copy(o.NarHash[:], info.NarHash.Bytes())
	for _, r := range store.SortPaths(slices.Clone(info.References)) {
		o.References = append(o.References, meta.DigestOf(r))
	}
	return o
}

func sortedTexts(texts []string) []string {
	texts = slices.Clone(texts)
	slices.Sort(texts)
	return slices.Compact(texts)
}

// AddStream adds an object whose path follows from its contents: r has a file's bytes, or a NAR with
// method Recursive, of which exactly one is read.
func (s *Store) AddStream(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, r io.Reader) (*store.Info, error) {
	info, err := s.addStream(ctx, name, method, algo, refs, r)
	if err != nil {
		return nil, fmt.Errorf("add %q: %w", name, err)
	}
	return info, nil
}

func (s *Store) addStream(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, r io.Reader) (*store.Info, error) {
	if err := s.checkAddition(name, method, algo); err != nil {
		return nil, err
	}
	release, err := s.holdRefs(store.Path{}, refs, nil)
	if err != nil {
		return nil, err
	}
	defer release()
	if method == store.Recursive {
		return s.addNAR(ctx, name, algo, refs, r)
	}
	return s.addFile(ctx, name, method, algo, refs, r)
}

func (s *Store) checkAddition(name string, method store.Method, algo store.Algorithm) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if method == store.Text && algo != store.SHA256 {
		return fmt.Errorf("text is always sha256")
	}
	return s.Room()
}

// addFile adds a plain file. A small one is hashed first, and not written when it is there.
func (s *Store) addFile(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, r io.Reader) (*store.Info, error) {
	head, err := io.ReadAll(io.LimitReader(r, smallFile+1))
	if err != nil {
		return nil, err
	}
	if len(head) > smallFile {
		return s.addLargeFile(ctx, name, method, algo, refs, io.MultiReader(bytes.NewReader(head), r))
	}
	narHash, size := hashFile(head)
	info, err := s.contentInfo(name, store.ContentAddress{Method: method, Hash: algo.Sum(head)}, refs, narHash, size)
	if err != nil {
		return nil, err
	}
	t := s.newTree(info.Path)
	return s.settle(ctx, info, t, func() error { return t.file(head) })
}

// hashFile returns hash and size of the NAR of a plain file.
func hashFile(data []byte) (store.Hash, int64) {
	c := counter{h: store.SHA256.New()}
	if err := nar.DumpString(&c, data, false); err != nil {
		panic("BUG: hash of bytes fails: " + err.Error())
	}
	return store.NewHash(store.SHA256, c.h.Sum(nil)), c.n
}

type counter struct {
	h hash.Hash
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.h.Write(p)
}

// addLargeFile spools to a temporary file, which it reads once more: the archive has the size before the bytes, no
// client of Nix's announces it, and SHA-256 cannot begin in the middle. A file whose size is known is read once (openFile).
func (s *Store) addLargeFile(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, r io.Reader) (*store.Info, error) {
	t := s.newTree(store.Path{})
	defer t.drop()
	sum := algo.New()
	if err := spool(t.temp, io.TeeReader(s.newIntake(ctx, r), sum)); err != nil {
		return nil, noSpace(err)
	}
	failpoint.Hit("disk/add/spooled")
	contents := store.NewHash(algo, sum.Sum(nil))
	narHash, size, err := t.pooled()
	if err != nil {
		return nil, err
	}
	ca := store.ContentAddress{Method: method, Hash: contents}
	info, err := s.contentInfo(name, ca, refs, narHash, size)
	if err != nil {
		return nil, err
	}
	return s.settle(ctx, info, t, nil)
}

// pooled takes a tree that is a plain file to the pool, and returns hash and size of its archive.
func (t *tree) pooled() (store.Hash, int64, error) {
	f, err := os.Open(t.temp)
	if err != nil {
		return store.Hash{}, 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return store.Hash{}, 0, err
	}
	contents, sealed := io.Reader(f), func(int, string) error { return nil }
	if t.pool != nil {
		if data, fn := t.Large(fi.Size(), false); data != nil {
			contents, sealed = io.TeeReader(f, data), fn
		}
	}
	c := counter{h: store.SHA256.New()}
	if _, err := io.Copy(&c, nar.NewFileReader(contents, fi.Size(), false)); err != nil {
		return store.Hash{}, 0, err
	}
	return store.NewHash(store.SHA256, c.h.Sum(nil)), c.n, sealed(int(t.s.dir.Fd()), filepath.Base(t.temp))
}

func (s *Store) addNAR(ctx context.Context, name string, algo store.Algorithm, refs []store.Path, r io.Reader) (*store.Info, error) {
	if err := s.settleLinks(ctx); err != nil {
		return nil, err
	}
	t := s.newTree(store.Path{})
	t.later = &newFiles{}
	defer t.drop()
	var others []io.Writer
	other := algo.New()
	if algo != store.SHA256 {
		others = append(others, other)
	}
	narHash, size, err := s.restore(ctx, t, r, others...)
	if err != nil {
		return nil, noSpace(err)
	}
	failpoint.Hit("disk/add/streamed")
	contents := narHash
	if algo != store.SHA256 {
		contents = store.NewHash(algo, other.Sum(nil))
	}
	info, err := s.contentInfo(name, store.ContentAddress{Method: store.Recursive, Hash: contents}, refs, narHash, size)
	if err != nil {
		return nil, err
	}
	if info, err = s.settle(ctx, info, t, nil); err != nil {
		return nil, err
	}
	s.linkNew(info.Path, t)
	return info, nil
}

// AddOpen adds what f is of, a regular file or, with method Recursive, a directory; see AddStream.
// A file that gets shorter meanwhile is an error; else the object is what was read.
func (s *Store) AddOpen(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, f *os.File) (*store.Info, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("add %q: %w", name, err)
	}
	switch {
	case fi.IsDir() && method == store.Recursive:
		tree := nar.NewTreeReader(f)
		defer tree.Close()
		return s.AddStream(ctx, name, method, algo, refs, tree)
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("add %q: %s is not a regular file", name, f.Name())
	}
	o := openFile{s: s, name: name, method: method, algo: algo, refs: refs, f: f, size: fi.Size(), executable: fi.Mode()&0o100 != 0}
	info, err := o.add(ctx)
	if err != nil {
		return nil, fmt.Errorf("add %q: %w", name, err)
	}
	return info, nil
}

// AddSized is AddStream of a file of which r must give size bytes and no more. It is hashed as it comes.
func (s *Store) AddSized(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, r io.Reader, size int64) (*store.Info, error) {
	o := openFile{s: s, name: name, method: method, algo: algo, refs: refs, f: &announced{r, size}, size: size}
	info, err := o.add(ctx)
	if err != nil {
		return nil, fmt.Errorf("add %q: %w", name, err)
	}
	return info, nil
}

// announced gives what a stream has, which must be left bytes.
type announced struct {
	r    io.Reader
	left int64
}

func (a *announced) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	a.left -= int64(n)
	if a.left == 0 && err == nil { // who reads no further must know, too
		var more [1]byte
		n, e := io.ReadFull(a.r, more[:])
		a.left -= int64(n)
		if e != nil && e != io.EOF {
			err = e
		}
	}
	switch {
	case a.left < 0:
		return 0, errors.New("there is more of it than was announced")
	case a.left > 0 && err == io.EOF:
		return 0, fmt.Errorf("it ends %d bytes before the size that was announced", a.left)
	}
	return n, err
}

// openFile is a regular file that is being added.
type openFile struct {
	s          *Store
	name       string
	method     store.Method
	algo       store.Algorithm
	refs       []store.Path
	f          io.Reader
	size       int64
	executable bool
}

func (o *openFile) add(ctx context.Context) (*store.Info, error) {
	if err := o.s.checkAddition(o.name, o.method, o.algo); err != nil {
		return nil, err
	}
	release, err := o.s.holdRefs(store.Path{}, o.refs, nil)
	if err != nil {
		return nil, err
	}
	defer release()
	if o.method == store.Recursive {
		return o.s.addNAR(ctx, o.name, o.algo, o.refs, nar.NewFileReader(o.f, o.size, o.executable))
	}
	if o.size <= smallFile {
		return o.s.addFile(ctx, o.name, o.method, o.algo, o.refs, o.f)
	}
	return o.large(ctx)
}

// large adds a file that is addressed by its bytes, and too large to be hashed in memory.
func (o *openFile) large(ctx context.Context) (*store.Info, error) {
	t := o.s.newTree(store.Path{})
	defer t.drop()
	sum := o.algo.New()
	narHash, size, err := o.s.restore(ctx, t, nar.NewFileReader(io.TeeReader(o.f, sum), o.size, false))
	if err != nil {
		return nil, noSpace(err)
	}
	ca := store.ContentAddress{Method: o.method, Hash: store.NewHash(o.algo, sum.Sum(nil))}
	info, err := o.s.contentInfo(o.name, ca, o.refs, narHash, size)
	if err != nil {
		return nil, err
	}
	return o.s.settle(ctx, info, t, nil)
}

func (s *Store) contentInfo(name string, ca store.ContentAddress, refs []store.Path, narHash store.Hash, size int64) (*store.Info, error) {
	refs = store.SortPaths(slices.Clone(refs))
	p, err := s.layout.Dir.ContentPath(name, ca, store.References{Others: refs})
	if err != nil {
		return nil, err
	}
	return &store.Info{Path: p, NarHash: narHash, NarSize: size, References: refs, CA: ca, RegisteredAt: time.Now().Unix()}, nil
}

// settle makes a path valid whose tree is made, or is by write, unless it is valid already; one that is damaged gets the tree.
// The caller holds the references and removes a tree that is made.
func (s *Store) settle(ctx context.Context, info *store.Info, t *tree, write func() error) (*store.Info, error) {
	release := s.holdFor(ctx, info.Path)
	defer release()
	unlock, err := s.locks.lock(ctx, meta.DigestOf(info.Path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	ok, err := s.present(info.Path)
	if err != nil {
		return nil, err
	}
	if ok && s.Damage(info.Path) == nil {
		return s.Info(ctx, info.Path)
	}
	if write != nil {
		defer t.drop()
		if err := write(); err != nil {
			return nil, noSpace(err)
		}
	}
	if ok {
		if err := s.renew(info, t.temp); err != nil {
			return nil, err
		}
		return s.Info(ctx, info.Path)
	}
	p, err := s.pending(info, t, s.hashes)
	if err != nil {
		return nil, err
	}
	if err := s.commit([]*pending{p}); err != nil {
		return nil, err
	}
	return info, nil
}

// spool makes a canonical plain file of what comes.
func spool(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(struct{ io.Writer }{f}, r)
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), 0o444)
	}
	if err == nil {
		err = unix.UtimesNanoAt(int(f.Fd()), "", epoch, unix.AT_EMPTY_PATH)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// AddFromPath adds a copy of the tree or file at path, see AddStream. References to itself are not possible.
func (s *Store) AddFromPath(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs store.References, path string) (*store.Info, error) {
	if refs.Self {
		return nil, fmt.Errorf("add %s: a path that follows from its contents cannot be in them; register it", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) && method == store.Recursive { // a link
		return s.addDumped(ctx, name, algo, refs.Others, func(w io.Writer) error { return nar.Dump(w, path) })
	}
	if err != nil {
		return nil, fmt.Errorf("add %q: %w", name, err)
	}
	defer f.Close()
	return s.AddOpen(ctx, name, method, algo, refs.Others, f)
}

// addDumped adds the tree whose archive dump writes.
func (s *Store) addDumped(ctx context.Context, name string, algo store.Algorithm, refs []store.Path, dump func(io.Writer) error) (*store.Info, error) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(dump(pw))
	}()
	info, err := s.AddStream(ctx, name, store.Recursive, algo, refs, bufio.NewReaderSize(pr, pipeSize))
	pr.CloseWithError(errors.New("nobody reads"))
	<-done
	if err != nil {
		return nil, err
	}
	return info, nil
}

// pipeSize is how much of a tree is read ahead of its being written.
const pipeSize = 64 << 10

// intake passes a stream on while it counts, and watches free space and the context.
type intake struct {
	ctx  context.Context
	s    *Store
	src  io.Reader
	size int64
	next int64 // where free space is looked at again
}

func (s *Store) newIntake(ctx context.Context, r io.Reader) *intake {
	return &intake{ctx: ctx, s: s, src: r}
}

func (t *intake) Read(p []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, context.Cause(t.ctx)
	}
	if t.size >= t.next {
		interval, err := t.s.spaceInterval()
		if err != nil {
			return 0, err
		}
		t.next = t.size + interval
	}
	n, err := t.src.Read(p)
	t.size += int64(n)
	return n, err
}
