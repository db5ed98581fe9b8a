// Package disk is the local store: a directory of objects, the metadata database, and the whole
// reference graph in memory. It is the only writer below the store directory.
//
//	REALDIR/<digest>-<name>   an object: read-only, mtime 1, owned by the daemon's user
//	REALDIR/.tmp-*            objects in the making and directories of builds; removed at start-up
//	REALDIR/.next-*           a tree that takes the place of a damaged one (replace.go); finished at start-up
//	REALDIR/.links/??/*       hard links to files of objects (optimise.go)
//	REALDIR/.busy-*           says whose directories are written to (optimise.go); dealt with at start-up
//	REALDIR/.trash/*          what is being deleted; removed at start-up
//	REALDIR/.lost/*           what a rebuilt database does not know (rebuild.go), or a torn one (removeStray); never removed
//	STATEDIR/db/              the database, see package meta
//	STATEDIR/backups/         backups of the database (backup.go)
//	STATEDIR/gcroots/**/.cairn-new-*    roots in the making (roots.go); removed at start-up
//	STATEDIR/scrub.json       how far the verification in the background is (scrub.go), and what is known to be damaged (finding.go)
//	STATEDIR/cairn.lock       locked while the store is open; holds the process id
//
// # Valid means durable
//
// A path is valid when it is in the graph, which is so exactly when its row is in the database.
// An addition goes through these states, and whatever kills the process leaves one of them:
//
//	stream ──▶ .tmp-* ──▶ flushed ──▶ renamed ──▶ directory flushed ──▶ row committed ──▶ in the graph
//	           └──────── stray: removed at the next start ───────────┘   └── valid after the next start
//
// A deletion goes the other way: out of the graph ──▶ row deleted ──▶ moved to .trash or unlinked.
// One goroutine (commit.go) takes all additions that wait through the steps from flush to graph together, so
// that they share one flush and one transaction. Few files are flushed one by one, many with
// syncfs.
//
// A replacement of damaged files (replace.go) changes nothing but them: the new tree is complete, checked and flushed,
// changes names with the old one in one step, and the old one goes to the trash.
//
// # Damaged objects
//
// What reading an object has found is kept until the object reads well, gets new files or is deleted, also across restarts (finding.go);
// whoever has read it: the scrub (scrub.go), Verify, Intact, or Open, which finds those without files.
//
// An object that is known to be damaged stays valid: others refer to it, and what is registered of it is true. What may still be done:
// ask for its info, its references and what refers to it; read it to verify; replace its files; delete it. What may not: give its archive to
// anybody (NAR), build with it, read it as a derivation (Damage, DamagedIn). Whoever adds it again, with the registered contents, mends it, and
// clients that ask what they need to send are told that it is not there (package daemon); a build that needs it mends it first (package build).
// Nothing is read for that: asking about an object costs one load of a number while nothing is known to be damaged.
//
// # Invariants
//
//   - References of a valid object are valid, itself included. Additions hold their references; deletions
//     take referrers first.
//   - The graph has no cycles but self-references. Nodes and their references never change, so that a
//     collection can mark on a snapshot without a lock (collection.go).
//   - A held object (lease.go) and its closure are never deleted, whether held before or during a collection.
//   - A digest stands for one path: a second path with the digest of a valid one is refused.
//   - A store directory with objects is never opened with a new database, for which all of them would be strays
//     (ErrNoDatabase), and no database is opened whose tables have bytes that are not those written (meta.ErrDamaged).
//   - Nothing is written when less than the database's reserve of space is free (meta.ErrNoSpace).
//
// # Lock order
//
// Keyed locks of paths (sorted), then Lease.mu, then Store.mu, then graph.mu; the last two for moments only, however many
// objects there are: what takes longer lets others in between (graph.go). scrubber.mu comes before graph.mu; its file is written under it.
// A deletion only tries keyed locks.
//
// Not here: who may add what (package daemon), roots and what is garbage (package gc), building.
package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"cairn/derivation"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
)

const (
	tempPrefix = ".tmp-"
	trashName  = ".trash"
	lockName   = "cairn.lock"
)

// Errors that callers test for with errors.Is.
var (
	// ErrNoSpace says that the file system is too full; the text says which and by how much.
	ErrNoSpace = meta.ErrNoSpace
	// ErrInUse says that another process has the store open.
	ErrInUse = errors.New("store is in use")
	// ErrAlive says that an object cannot be deleted because something needs it.
	ErrAlive = errors.New("object is needed")
	// ErrNoDatabase says that there are objects and no database that knows them. Opened with an empty one, all would be strays.
	ErrNoDatabase = errors.New("the database is lost")
	// ErrClosed says that the store is closed.
	ErrClosed = meta.ErrClosed
)

// Options of a store; the zero value works.
type Options struct {
	Logger *slog.Logger // default: discard
	Meta   meta.Options // of the database; its Logger is set to ours
	// NoSync leaves out every flush, the database's too. Only for throw-away stores: a power cut may lose or damage anything
	// (durability.go).
	NoSync bool
	// NoDedupe makes every file that comes a file of its own, until Optimise is called. Else those of some size become links
	// to equal ones at once (pool.go).
	NoDedupe bool
	// AutoOptimise makes files of all sizes links. With NoDedupe that is done as Optimise does it, soon after objects have become valid; when much
	// comes at once some are left for the next Optimise.
	AutoOptimise bool
	Backups      BackupOptions
	Scrub        ScrubOptions
}

// Store is an open store.
type Store struct {
	layout Layout
	opts   Options
	log    *slog.Logger
	lock   *os.File
	dir    *os.File // the store directory
	db     *meta.DB
	graph  *graph
	locks  keyed
	hashes *derivation.Hashes

	clean atomic.Pointer[unix.Timespec] // when the store directory had changed last when it had no strays (stray.go)

	noExchange bool // the file system cannot exchange names; for tests

	pool       *pool
	additions  chan *addition
	linkings   chan linking  // trees with new files
	optimising chan linking  // what AutoOptimise has to do with NoDedupe; else nil
	deletions  chan struct{} // full while a collection or another deletion runs
	background
	scrub   scrubber
	seals   seals
	backups sync.Mutex    // held while one is made
	names   atomic.Uint64 // for temporary names
	start   string        // makes temporary names unique across processes
	begun   time.Time
	added   atomic.Int64 // when the last addition was handed over, in nanoseconds since begun

	naming sync.Mutex // held while named roots are changed; before graph.mu

	mu     sync.Mutex // guards leases and closed
	leases map[*Lease]struct{}
	closed bool
}

// background is the goroutines of a store.
type background struct {
	wg   sync.WaitGroup
	stop chan struct{}
	quit sync.RWMutex // read-held while an addition is handed over
}

// Open opens a store whose directories Init has made, removes what a crash has left, and loads the graph.
// A second process gets ErrInUse.
func Open(ctx context.Context, l Layout, opts *Options) (*Store, error) {
	s := &Store{layout: l, graph: newGraph(), additions: make(chan *addition, 1024), deletions: make(chan struct{}, 1), leases: map[*Lease]struct{}{}}
	s.stop = make(chan struct{})
	s.linkings = make(chan linking, maxNewTrees)
	s.hashes = derivation.NewHashes(s.Derivation)
	if opts != nil {
		s.opts = *opts
	}
	s.pool = newPool(s)
	s.seals.s = s
	s.log = s.opts.Logger
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.opts.Meta.Logger = s.log
	s.begun = time.Now()
	s.added.Store(-int64(quietFor))
	s.start = fmt.Sprintf("%x-%x-", os.Getpid(), s.begun.UnixNano())
	if err := s.open(ctx); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("open store %s: %w", l.RealDir, err)
	}
	s.wg.Go(s.commitLoop)
	if s.opts.Backups.Interval > 0 {
		s.wg.Go(s.backupLoop)
	}
	s.wg.Go(s.scrubLoop)
	if s.opts.AutoOptimise && s.opts.NoDedupe {
		s.optimising = make(chan linking, 4096)
	}
	open := s.untilStop()
	s.wg.Go(func() { s.linkLoop(open) })
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if s.lock, err = lockFile(filepath.Join(s.layout.StateDir, lockName)); err != nil {
		return err
	}
	if s.dir, err = os.Open(s.layout.RealDir); err != nil {
		return err
	}
	if err := checkDatabase(s.layout); err != nil {
		return err
	}
	s.opts.Meta.NoSync = s.opts.NoSync
	s.opts.Meta.Fresh = func() error { return checkEmpty(s.layout) }
	loading, err := s.openDatabase()
	if err != nil {
		return err
	}
	if err := s.heedMark(); err != nil {
		return err
	}
	if err := s.checkAge(); err != nil {
		return err
	}
	s.loadScrub()
	if err := s.load(loading); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		return err
	}
	return s.loadLeases()
}

// openDatabase opens it, on a full disk after making room with what an interrupted process has left.
func (s *Store) openDatabase() (*loading, error) {
	l, err := s.tryDatabase()
	if !errors.Is(err, ErrNoSpace) {
		return l, err
	}
	if n := s.removeTemps(); n > 0 {
		s.log.Warn("disk is full: removed what an interrupted process had left", "names", n)
		l, err = s.tryDatabase()
	}
	return l, err
}

func (s *Store) tryDatabase() (l *loading, err error) {
	l = new(loading)
	opts := s.opts.Meta
	opts.Node = l.read
	s.db, err = meta.Open(databaseDir(s.layout), s.layout.Dir, &opts)
	return l, err
}

// removeTemps removes what nobody needs who knows the database or not, and returns how many there were.
func (s *Store) removeTemps() int {
	trash, _ := filepath.Glob(filepath.Join(s.layout.RealDir, trashName, "*"))
	temps, _ := filepath.Glob(filepath.Join(s.layout.RealDir, tempPrefix+"*"))
	names := append(trash, temps...)
	for _, name := range names {
		if _, err := removeTree(name); err != nil {
			s.log.Warn("remove what an interrupted process had left", "name", name, "error", err)
		}
	}
	return len(names)
}

// checkDatabase refuses to let Badger make a new database for a store directory that has objects.
func checkDatabase(l Layout) error {
	exists, err := meta.Exists(databaseDir(l))
	if exists || err != nil {
		return err
	}
	return checkEmpty(l)
}

// checkEmpty refuses a store directory that has objects. A store's first database is made before its first object.
func checkEmpty(l Layout) error {
	object := ""
	err := readNames(l.RealDir, func(names []string) error {
		for _, name := range names {
			if _, err := l.Dir.Path(name); err == nil {
				object = name
			}
		}
		return nil
	})
	if err != nil || object == "" {
		return err
	}
	return fmt.Errorf("%w: %s has none, but %s has objects, %s for one, which an empty database would not know and which would be deleted; "+
		"nothing was changed", ErrNoDatabase, databaseDir(l), l.RealDir, object)
}

func databaseDir(l Layout) string { return filepath.Join(l.StateDir, "db") }

// Close waits for what is under way and closes the store.
// Additions that come later fail with ErrClosed.
func (s *Store) Close() error {
	if s.opts.Backups.Interval > 0 && !s.isClosed() && !s.Deleted() && s.untilBackup() <= 0 {
		s.backUpNow() // those that are opened for moments only need backups, too
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.quit.Lock()
	close(s.stop)
	s.quit.Unlock()
	s.stopScrub()
	s.wg.Wait()
	if !s.Deleted() {
		s.keepFindings()
	}
	return s.closeFiles()
}

// Deleted reports whether the store's directories, or its state's, are no longer those that were opened: whoever removes or
// replaces them wants another store.
func (s *Store) Deleted() bool {
	return !isAt(s.lock, filepath.Join(s.layout.StateDir, lockName)) || !isAt(s.dir, s.layout.RealDir) || s.db.Deleted()
}

// isAt reports whether an open file still has its name.
func isAt(f *os.File, name string) bool {
	opened, err := f.Stat()
	if err != nil {
		return true // closed
	}
	now, err := os.Stat(name)
	return err == nil && os.SameFile(opened, now)
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Store) closeFiles() error {
	var err error
	s.pool.close()
	if s.db != nil {
		err = s.db.Close()
	}
	for _, f := range []*os.File{s.dir, s.lock} {
		if f != nil {
			f.Close()
		}
	}
	return err
}

// lockFile takes the lock of a store and writes our process id into it.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w; make the store with cairn init", err)
	}
	if err != nil {
		return nil, err
	}
	if err := retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w by process %s; talk to that daemon or stop it", ErrInUse, strings.TrimSpace(string(pid)))
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := writePID(f); err != nil && !errors.Is(noSpace(err), ErrNoSpace) { // it is only for the error above
		f.Close()
		return nil, err
	}
	return f, nil
}

// writePID writes over what is there, which takes no space.
func writePID(f *os.File) error {
	text := fmt.Sprintf("%d\n", os.Getpid())
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// recover compares the store directory with the graph: what has no row is a stray and goes, a row
// without an object is not valid.
func (s *Store) recover(ctx context.Context) error {
	if err := s.dropNewRoots(); err != nil {
		return err
	}
	found := make([]atomic.Bool, len(s.graph.nodes))
	trash := filepath.Join(s.layout.RealDir, trashName)
	var count atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var names, interrupted []string
	look := func() {
		some := names
		names = nil
		g.Go(func() error {
			strays, err := s.recoverNames(some, found)
			count.Add(int64(strays))
			return err
		})
	}
	err := readNames(s.layout.RealDir, func(some []string) error {
		for _, name := range some {
			if isInterrupted(name) {
				interrupted = append(interrupted, name)
			} else if names = append(names, name); len(names) == namesAtOnce {
				look()
			}
		}
		return context.Cause(ctx)
	})
	look()
	if err := cmp.Or(g.Wait(), err); err != nil {
		return err
	}
	for _, name := range interrupted {
		given, err := s.finish(name)
		if err != nil {
			return err
		}
		failpoint.Hit("disk/recover/finished")
		strays, err := s.recoverNames(given, found)
		if err != nil {
			return err
		}
		count.Add(int64(strays))
	}
	if n := count.Load(); n > 0 {
		s.log.Info("removed what an interrupted process had left", "strays", n)
	}
	missing := 0
	for _, n := range s.graph.nodes {
		if n == nil || found[n.id].Load() {
			continue
		}
		n.missing = true
		p := s.path(n)
		s.note(p, &Problem{Kind: Vanished, Err: errVanished}, nothing)
		if missing++; missing <= 10 {
			s.log.Error("object has disappeared from the store; add it again", "path", p.String())
		}
	}
	if missing > 10 {
		s.log.Error("more objects have disappeared from the store; verify lists them", "objects", missing)
	}
	failpoint.Hit("disk/recover/swept")
	return s.emptyTrash(trash)
}

// namesAtOnce is how many names recover looks up at once: some for each page of the graph, so that a page is found once for all of them.
const namesAtOnce = 1 << 16

// recoverNames notes which objects have the names, and removes strays, which it counts.
func (s *Store) recoverNames(names []string, found []atomic.Bool) (strays int, err error) {
	var near [256][]string // by first byte of their digests, as the graph is when it has just been loaded
	for _, name := range names {
		d, _ := meta.ParseDigest(name[:min(len(name), store.DigestLen)])
		near[d[0]] = append(near[d[0]], name)
	}
	for _, names := range near {
		for i, n := range s.graph.namedEach(names) {
			name := names[i]
			if n != nil {
				found[n.id].Store(true)
			} else if s.isStray(name) {
				strays++
				if err := s.removeStray(name); err != nil {
					return strays, err
				}
				failpoint.Hit("disk/recover/stray")
			}
		}
	}
	return strays, nil
}

// removeStray removes what is named like an object and has no row. When the database had an unfinished transaction, it goes to .lost: should damage
// have been taken for a torn write, which nobody can tell when it meets the last second before a power cut alone (package meta), these are
// the files of an object that somebody was told is valid. There are no more of them than objects in one transaction.
func (s *Store) removeStray(name string) error {
	path := filepath.Join(s.layout.RealDir, name)
	if !s.db.Torn() || strings.HasPrefix(name, tempPrefix) {
		return s.discard(path)
	}
	aside := filepath.Join(s.layout.RealDir, lostName)
	if err := makeDir(aside, 0o700); err != nil {
		return err
	}
	if exists(filepath.Join(aside, name)) { // since an earlier time
		return s.discard(path)
	}
	s.log.Warn("keeping what the unfinished transaction was about; add it again, or delete it", "name", filepath.Join(aside, name))
	return moveTree(path, filepath.Join(aside, name))
}

// nodeNamed returns the object whose name in the store directory is name.
func (s *Store) nodeNamed(name string) *node { return s.graph.named(name) }

// isStray reports whether a name in the store directory that is no object is ours to remove.
func (s *Store) isStray(name string) bool {
	if strings.HasPrefix(name, tempPrefix) {
		return true
	}
	if strings.HasPrefix(name, ".") {
		return false
	}
	_, err := s.layout.Dir.Path(name)
	if err != nil {
		s.log.Warn("leaving alone what is no store object", "name", filepath.Join(s.layout.RealDir, name))
	}
	return err == nil
}

// emptyTrash deletes, in the background, what is in the trash now.
func (s *Store) emptyTrash(trash string) error {
	var names []string
	err := readNames(trash, func(some []string) error {
		names = append(names, some...)
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		for _, name := range names {
			select {
			case <-s.stop:
				return
			default:
			}
			if _, err := removeTree(filepath.Join(trash, name)); err != nil {
				s.log.Warn("trash stays", "error", err)
			}
			failpoint.Hit("disk/recover/trash")
		}
		os.Remove(trash) // when nothing came meanwhile
	})
	return nil
}

// discard moves something out of sight, to be deleted in the background or at the next start.
func (s *Store) discard(path string) error {
	_, err := s.toTrash(path)
	if errors.Is(noSpace(err), ErrNoSpace) { // for a trash
		_, err = removeTree(path)
	}
	return err
}

// toTrash moves a tree to the trash and returns its new name.
func (s *Store) toTrash(path string) (string, error) {
	to := filepath.Join(s.layout.RealDir, trashName, s.start+fmt.Sprint(s.names.Add(1)))
	err := os.Rename(path, to)
	for range 100 { // whoever finds the trash empty removes it
		if !errors.Is(err, os.ErrNotExist) || !exists(path) {
			break
		}
		if err = makeDir(filepath.Dir(to), 0o700); err == nil {
			err = os.Rename(path, to)
		}
	}
	if errors.Is(err, os.ErrPermission) { // a directory that its owner may not write cannot change parents
		if os.Chmod(path, 0o700) == nil {
			err = os.Rename(path, to)
		}
	}
	return to, err
}

// exists reports whether something is seen at path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// absent reports whether nothing is at path; when that cannot be told it is not.
func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// temp returns a new name in the store directory.
func (s *Store) temp() string {
	return filepath.Join(s.layout.RealDir, tempPrefix+s.start+fmt.Sprint(s.names.Add(1)))
}

// TempDir makes a directory below the store directory, so that what is built in it can be renamed into
// place. The caller removes it; a restart does, too.
func (s *Store) TempDir() (string, error) {
	if _, err := s.room(buildRoom); err != nil {
		return "", fmt.Errorf("make temporary directory: %w", err)
	}
	dir := s.temp()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make temporary directory: %w", noSpace(err))
	}
	return dir, nil
}

// Layout returns where things are.
func (s *Store) Layout() Layout { return s.layout }

// Dir returns the logical store directory.
func (s *Store) Dir() store.Dir { return s.layout.Dir }

// RealPath returns where the object p is.
func (s *Store) RealPath(p store.Path) string { return s.layout.RealPath(p) }

// Space is what is free on a file system.
type Space = meta.Space

// Space returns what is free where the objects are.
func (s *Store) Space() (Space, error) { return meta.Free(s.layout.RealDir) }

// Room reports with ErrNoSpace whether the store or its database is too full for new work.
func (s *Store) Room() error {
	_, err := s.room(0)
	return err
}

// room is Room for so many bytes. It returns for how many more bytes of files and archives there is room at least.
func (s *Store) room(bytes int64) (int64, error) {
	rows, err := s.db.Room(bytes)
	if err != nil {
		return 0, err
	}
	files, err := meta.Need("the store", s.layout.RealDir, minFree+bytes)
	if err != nil {
		return 0, err
	}
	inodes := min(rows.Inodes, files.Inodes, math.MaxInt64/leastEntry)
	return min(rows.Bytes, files.Bytes, inodes*leastEntry), nil
}

// leastEntry is how many bytes of an archive make a file at least.
const leastEntry = 128

// minFree is the free space that the store directory's file system must have, when it is not the database's.
const minFree = 4 << 20

// buildRoom is how much more must be free for something new of unknown size to begin.
const buildRoom = 16 << 20

// noSpace makes an error of a full disk or quota ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w; collect garbage or make room", ErrNoSpace, err)
	}
	return err
}

// path returns the store path of a node.
func (s *Store) path(n *node) store.Path {
	p, err := s.layout.Dir.Path(n.digest.String() + "-" + n.name)
	if err != nil {
		panic("BUG: node without a path: " + err.Error())
	}
	return p
}
