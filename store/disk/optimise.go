package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

// The pool is a directory of hard links, one for each file with contents and executable bit of its own:
//
//	.links/<2 hex digits>/<62 hex digits>    of the BLAKE3 hash of the file's archive
//
// Files come into it as they are made (pool.go), with a hash of the bytes that are being written, or when Optimise finds them.
// An entry is trusted for nothing: it is compared with what is to become a link to it, metadata and byte by byte,
// so that one that is damaged, or that a crash has left half written, or that an addition gave which then failed, harms nothing;
// a damaged one is replaced by that file.
// An entry with no other link is of no use any more, and goes with the next collection.
const poolName = ".links"

// busyPrefix begins the name of an empty file that says that an object's directories are being written to; the rest of
// the name is the object's. A start after a crash makes the object canonical again.
const busyPrefix = ".busy-"

// OptimiseOptions are the choices of Optimise; nil works.
type OptimiseOptions struct {
	Paths    []store.Path // only these; default all
	Workers  int          // default: as many as processors, at most 4
	Progress func(LinkStats)
	// Linked is called for each file that became a link, perhaps by several goroutines at once; nil is allowed.
	Linked func(size, blocks int64)
}

// LinkStats counts what an optimisation did.
type LinkStats struct {
	Paths   int   `json:"paths"`   // looked at
	Skipped int   `json:"skipped"` // of them not touched, because their contents are not those registered
	Files   int   `json:"files"`   // that became links
	Bytes   int64 `json:"bytes"`   // freed on disk
}

// Optimise makes equal files of valid objects hard links to one, through the pool. Only files of objects whose
// contents are just then verified are linked. Objects all of whose files are links to the pool are not read.
// It may run at any time and several times at once.
func (s *Store) Optimise(ctx context.Context, opts *OptimiseOptions) (LinkStats, error) {
	var o OptimiseOptions
	if opts != nil {
		o = *opts
	}
	if o.Workers <= 0 {
		o.Workers = min(4, runtime.GOMAXPROCS(0))
	}
	nodes, err := s.verifyNodes(o.Paths)
	if err != nil {
		return LinkStats{}, err
	}
	op := &optimisation{s: s, opts: o}
	defer s.pool.events.Add(1)
	if o.Paths == nil {
		if err := s.settleLinks(ctx); err != nil {
			return LinkStats{}, err
		}
		if err := op.loadPool(); err != nil {
			return LinkStats{}, fmt.Errorf("optimise: %w", err)
		}
	}
	err = parallel(ctx, o.Workers, nodes, op.visit)
	return op.stats, err
}

// optimiseLater hands new objects over to linkLoop.
func (s *Store) optimiseLater(objects []*pending) {
	for _, p := range objects {
		select {
		case s.optimising <- linking{path: p.path}:
		default: // too much at once
		}
	}
}

type optimisation struct {
	s    *Store
	opts OptimiseOptions
	pool sync.Map // inode → struct{}: entries of the pool

	mu    sync.Mutex // guards stats and serialises Progress
	stats LinkStats
}

// loadPool reads which inodes are in the pool.
func (op *optimisation) loadPool() error {
	return op.s.eachLink(context.Background(), func(l *link) error {
		op.pool.Store(l.st.Ino, struct{}{})
		return nil
	})
}

// link is an entry of the pool.
type link struct {
	dir  *os.File
	name string
	st   unix.Stat_t
}

func (l *link) path() string { return filepath.Join(l.dir.Name(), l.name) }

// eachLink calls fn for every entry of the pool, by several goroutines. The link is only lent.
func (s *Store) eachLink(ctx context.Context, fn func(*link) error) error {
	pool := filepath.Join(s.layout.RealDir, poolName)
	shards, err := os.ReadDir(pool)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return parallel(ctx, runtime.GOMAXPROCS(0), shards, func(ctx context.Context, shard fs.DirEntry) error {
		dir, err := os.Open(filepath.Join(pool, shard.Name()))
		if err != nil {
			return err
		}
		defer dir.Close()
		l := link{dir: dir}
		return namesIn(dir, func(names []string) error {
			for _, l.name = range names {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				err := retry(func() error { return unix.Fstatat(int(dir.Fd()), l.name, &l.st, unix.AT_SYMLINK_NOFOLLOW) })
				if err == nil {
					err = fn(&l)
				} else if err == unix.ENOENT {
					continue
				}
				if err != nil {
					return fmt.Errorf("%s: %w", l.path(), err)
				}
			}
			return nil
		})
	})
}

// visit optimises an object. What somebody is adding or deleting, or what is damaged, stays as it is.
func (op *optimisation) visit(ctx context.Context, n *node) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s := op.s
	s.graph.hold(n.digest)
	defer s.graph.release(n.digest)
	unlock, err := s.locks.lock(ctx, n.digest)
	if err != nil {
		return err
	}
	defer unlock()
	p := s.path(n)
	if !s.graph.valid(p) {
		return nil
	}
	done, err := op.object(ctx, p)
	if err != nil {
		return fmt.Errorf("optimise %s: %w", p, err)
	}
	op.count(func(t *LinkStats) {
		t.Paths++
		if !done {
			t.Skipped++
		}
	})
	return nil
}

func (op *optimisation) count(change func(*LinkStats)) {
	op.mu.Lock()
	defer op.mu.Unlock()
	change(&op.stats)
	if op.opts.Progress != nil {
		op.opts.Progress(op.stats)
	}
}

// candidate is a file that may become a link.
type candidate struct {
	path string // below the object, "" for itself
	st   unix.Stat_t
	key  store.Hash
}

// object reports false when the object is not what is registered.
func (op *optimisation) object(ctx context.Context, p store.Path) (bool, error) {
	real := op.s.RealPath(p)
	files, err := op.candidates(real)
	if err != nil || len(files) == 0 {
		return true, err
	}
	whole, err := op.hash(ctx, p, files)
	if err != nil || !whole {
		if err != nil && context.Cause(ctx) == nil {
			op.s.log.Warn("an object that is damaged is not optimised", "path", p.String(), "error", err)
			return false, nil
		}
		return false, err
	}
	w := &linker{op: op, real: real}
	for i := range files {
		if err == nil {
			err = w.link(&files[i])
		}
	}
	return true, errors.Join(err, w.close())
}

// candidates lists the files of a tree that use space and are in the pool not yet.
func (op *optimisation) candidates(real string) ([]candidate, error) {
	var files []candidate
	err := filepath.WalkDir(real, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		c := candidate{path: strings.TrimPrefix(strings.TrimPrefix(path, real), "/")}
		if err := unix.Lstat(path, &c.st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if _, in := op.pool.Load(c.st.Ino); in || c.st.Size == 0 || c.st.Blocks == 0 {
			return nil // empty, or small enough to be part of its inode
		}
		files = append(files, c)
		return nil
	})
	return files, err
}

// hash reads the whole object, fills in the keys of files, and reports whether it is what is registered.
func (op *optimisation) hash(ctx context.Context, p store.Path, files []candidate) (bool, error) {
	o, err := op.s.db.Object(meta.DigestOf(p))
	if err != nil {
		return false, err
	}
	byPath := map[string]*candidate{}
	for i := range files {
		byPath[files[i].path] = &files[i]
	}
	whole := counter{h: store.SHA256.New()}
	pr, pw := io.Pipe()
	dumped := make(chan error, 1)
	go func() {
		err := nar.Dump(io.MultiWriter(&whole, contextWriter{ctx, pw}), op.s.RealPath(p))
		pw.CloseWithError(err)
		dumped <- err
	}()
	err = hashFiles(pr, byPath)
	pr.CloseWithError(errors.New("nobody reads"))
	if dumpErr := <-dumped; err == nil {
		err = dumpErr
	}
	return err == nil && bytes.Equal(whole.h.Sum(nil), o.NarHash[:]), err
}

// hashFiles reads an archive to its end and hashes the archives of the files in it that are asked for.
func hashFiles(r io.Reader, files map[string]*candidate) error {
	nr := nar.NewReader(r)
	for {
		h, err := nr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c := files[h.Path]
		if c == nil || h.Type != nar.Regular {
			continue
		}
		sum := store.BLAKE3.New()
		w := nar.NewWriter(sum)
		if err := w.WriteHeader(&nar.Header{Type: nar.Regular, Size: h.Size, Executable: h.Executable}); err != nil {
			return err
		}
		if _, err := io.Copy(w, nr); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		c.key = store.NewHash(store.BLAKE3, sum.Sum(nil))
	}
}

// SweepLinks removes entries of the pool that nothing but the pool has, and returns what that freed and what the others save.
// When nothing has happened since the last sweep that could have left such an entry, the pool is not read.
func (s *Store) SweepLinks(ctx context.Context) (freed, saved int64, err error) {
	if err := s.settleLinks(ctx); err != nil {
		return 0, 0, err
	}
	events := s.pool.events.Load()
	if last := s.pool.swept.Load(); last != nil && last.events == events {
		return 0, last.saved, nil
	}
	var gone, shared atomic.Int64
	err = s.eachLink(ctx, func(l *link) error {
		if l.st.Nlink > 1 {
			shared.Add(int64(l.st.Nlink-2) * l.st.Blocks * 512)
			return nil
		}
		if err := unix.Unlinkat(int(l.dir.Fd()), l.name, 0); err != nil && err != unix.ENOENT {
			return err
		}
		failpoint.Hit("disk/sweep/link")
		gone.Add(l.st.Blocks * 512)
		return nil
	})
	freed, saved = gone.Load(), shared.Load()
	if err != nil {
		return freed, saved, fmt.Errorf("sweep links: %w", err)
	}
	s.pool.swept.Store(&sweep{events, saved})
	return freed, saved, nil
}

// BadLink is an entry of the pool that is not what its name says.
type BadLink struct {
	Path      string
	Want, Got store.Hash
	Removed   bool
}

// LinkCheck says what VerifyLinks does.
type LinkCheck struct {
	Unshared bool // only entries that have no other name: a verification has just read the files of all objects, and found them right
	Remove   bool // take damaged entries out
}

// VerifyLinks reads the pool and calls report, one call at a time, for entries that are damaged. Objects that have such a file are damaged as
// well, which Verify finds.
func (s *Store) VerifyLinks(ctx context.Context, o LinkCheck, report func(BadLink)) error {
	if err := s.settleLinks(ctx); err != nil {
		return err
	}
	var mu sync.Mutex // held to report
	err := s.eachLink(ctx, func(l *link) error {
		if o.Unshared && l.st.Nlink > 1 {
			return nil
		}
		path := l.path()
		want, err := store.ParseHash("blake3:"+filepath.Base(l.dir.Name())+l.name, store.BLAKE3)
		if err != nil {
			return nil // not ours
		}
		h := store.BLAKE3.New()
		if err := nar.Dump(contextWriter{ctx, h}, path); err != nil {
			return err
		}
		bad := BadLink{Path: path, Want: want, Got: store.NewHash(store.BLAKE3, h.Sum(nil))}
		if bad.Got == want {
			return nil
		}
		if o.Remove {
			if err := os.Remove(path); err != nil {
				return err
			}
			bad.Removed = true
		}
		mu.Lock()
		defer mu.Unlock()
		report(bad)
		return nil
	})
	if err != nil {
		return fmt.Errorf("verify links: %w", err)
	}
	return nil
}
