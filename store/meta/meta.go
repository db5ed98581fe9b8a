// Package meta is the metadata database of a local store: a Badger database behind one method per
// question, and the only package that imports Badger.
//
// # Schema, version 1
//
// A key is a one-byte table and binary columns; an object is named by the 20 bytes that the 32
// digits of its path encode. Integers are little-endian, a string is a u16 length and bytes, a
// record starts with a version byte (1) and must end where its last column ends, so that each
// record has exactly one encoding.
//
//	table  key                                 record
//	0x01   settings: name                      raw bytes ("schema" = u32, "dir" = logical store directory, "name" = 16 random
//	                                           bytes, "backup" = u64, number of the last backup that was begun; see backup.go;
//	                                           "commit" = version acknowledged before this one, number of objects: u64; see journal.go)
//	0x02   objects: object                     flags u8, narHash [32], narSize u64, registered i64, name,
//	                                           [deriver: object, name], [CA: method u8, algorithm u8, digest], [seal [32]],
//	                                           references: u32 × object, signatures: u16 × string
//	0x03   realisations: drv hash [32], output base, signatures: u16 × string,
//	                                           dependents: u16 × (drv hash [32], output, base), sorted
//	0x04   realised by: object, drv hash, output   –
//	0x05   outputs: drv object, output         flags u8 (1 = through a realisation, 2 = signed), base,
//	                                           [signatures: u16 × string]
//	0x06   derivers: object, drv object, output    –
//	0x07   leases: owner                       expiry i64 (Unix seconds), paths: u32 × base
//
// Tables 0x03 and 0x05 are the two names of a realisation, by hash and by the path of the derivation: clients of
// different ages know one of them only. Both go when the output goes, neither with the derivation.
//
// References are digests only: whatever an object refers to is itself an object, except for the
// moment between two batches, which must therefore come references first (additions) or referrers
// first (deletions). Tables 0x04 and 0x06 are indexes of 0x03 and 0x05. Referrers are not stored:
// package disk holds the graph in memory.
//
// # Invariants
//
//   - Who reads sees what was acknowledged when the reading began (read.go).
//   - A batch is atomic and durable (Options.NoSync: only atomic) when Commit returns nil. Batches that wait at the same time share one
//     synced transaction: a single goroutine commits (Badger itself does one msync per transaction).
//   - A batch above MaxBatch bytes is refused; whoever has more splits it in the order above.
//   - Badger writes through memory maps of sparse files, so that a full disk kills the process with SIGBUS. Hence journals, the present
//     and the next, have their place on the disk before they are written to (space.go). No
//     batch is tried below the reserve of free space or of inodes (ErrNoSpace). Batches that only delete may use the
//     reserve; a ballast of bytes and inodes is given up when even that is gone,
//     and is made again, in part if need be, before anything is added. Nothing is opened or closed, and no full journal left for the next,
//     without room for the tables that Badger writes then. Where there is no room to merge tables, which Badger does at each opening, it is
//     opened without that (merge.go), and what a process has left that died while it merged goes before anything else.
//     What remains: a table is made by Badger alone, from some milliseconds after that look at the room on, and a compaction when it
//     likes. When another program takes all that is left in those moments, reserve and ballast, the
//     process dies, and has lost nothing that was acknowledged. Where a file system writes what it overwrites to another place (btrfs, unless told
//     otherwise), that is so for journals, too.
//   - Badger cannot take back a transaction whose flush fails: it is in memory, and perhaps on the disk. Hence something is written
//     before each, which a file system that is read-only or has gone down refuses, without harm; and if the flush fails all the same, nothing
//     more is committed by this process (ErrBroken; broken.go).
//   - Badger ends a scan early at a block whose checksum is wrong, without an error, and whoever scans would take the
//     rows behind it for deleted. Hence all blocks are checked before the database is opened (ErrDamaged; check.go).
//   - Badger ends a journal at the first bytes that are not those written, and whoever opens it would miss what was acknowledged
//     behind them. Hence journals are read before, and damage is told from what a power cut leaves (ErrDamaged; journal.go): each
//     transaction says which one was acknowledged before it, and a witness (witness.go) says it of the last one, at most a second late. So what is
//     lost is noticed, be it a bit, a page, a journal, a table or the end of the manifest, but for one case: damage that meets only
//     transactions of the last second before the end of the process, and nothing before or behind them. Those are taken for
//     unfinished; Torn says so, and who asks it keeps what has no row. With NoSync journals are not checked.
//   - Badger's compaction goes on without a table that it could not make (for want of an inode or a handle, or after an I/O
//     error), and its rows are gone without a word. Hence each transaction says how many objects there are. They are counted when the database is
//     opened and when it is backed up; other rows than those of objects are only as safe as Badger.
//   - A backup (backup.go) is what the rows were at one moment, and is believed as a whole or not at all.
//   - One process. The directory is locked.
//
// # Memory
//
// Badger writes to a memtable, an arena of a third more than Options.MemTableSize on the Go heap and a mapped journal; when it is full, the next
// is begun and the old one becomes a table on disk. So two arenas live while much is written, 21 MiB by default, four at most, and their garbage as long
// as Go lets it be. Whoever commits waits while an arena is made and cleared, and competes with the making of the table, which takes the longer the larger
// they are: hence the least that has room for the longest row. Batches, objects
// and leases are bounded by it, too: an object may have some 50,000 references. Tables are mapped, and read without a cache.
//
// Values stay below Badger's value threshold; the value log holds nothing and needs no collection.
// Space of deleted rows comes back by compaction.
package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"cairn/store"
)

// Errors that callers test for with errors.Is.
var (
	// ErrNotFound says that there is no such row.
	ErrNotFound = errors.New("no such row")
	// ErrNoSpace says that the file system has less free space than the database must keep.
	ErrNoSpace = errors.New("no space left")
	// ErrTooLarge says that a batch does not fit into one transaction.
	ErrTooLarge = errors.New("batch is too large for one transaction")
	// ErrDamaged says that the database's files are not as they were written.
	ErrDamaged = errors.New("database is damaged")
	// ErrBroken says that a transaction could not be written, so that nothing is known of it, and nothing more is written before the next opening.
	ErrBroken = errors.New("the database could not be written")
	// ErrClosed says that the database is closed.
	ErrClosed = errors.New("database is closed")
)

const schemaVersion = 1

// Memtables.
const (
	leastMemTable = 8 << 20  // whose transactions have room for the longest row
	olderMemTable = 16 << 20 // of earlier cairns
)

// Tables.
const (
	tableSettings byte = iota + 1
	tableObjects
	tableRealisations
	tableRealisedBy
	tableOutputs
	tableDerivers
	tableLeases
)

// Options of a database; the zero value works.
type Options struct {
	Logger *slog.Logger // default: discard
	// MemTableSize bounds a transaction (an eighth of it) and memory (twice it); default and least 8 MiB.
	MemTableSize int64
	// Reserve is the free space below which nothing is added; default 64 MiB and
	// as much as a compaction may need. Smaller values risk death by SIGBUS on a full disk.
	Reserve int64
	// Ballast is the size of the file given up when the disk is full; default a memtable and 8 MiB, negative: none.
	Ballast int64
	// NoSync leaves out the flush of each transaction: a batch survives the end of the process, not that of the machine.
	NoSync bool
	// Fresh is asked before a database without settings, as a new one is, gets them; its error is returned. Default: fine.
	Fresh func() error
	// Node is called for each object while the database is opened, from as many goroutines as there are processors. Objects whose digests have
	// the same first byte come one after the other, in order. The node is only lent; an error ends the opening.
	Node func(object Digest, n *Node) error
}

// DB is an open database.
type DB struct {
	dir    string
	store  store.Dir
	opts   Options
	badger *badger.DB
	place  os.FileInfo // of dir
	name   [16]byte
	quiet  atomic.Bool // let Badger complain to nobody

	requests chan *request
	done     chan struct{}
	once     sync.Once

	mu     sync.RWMutex // guards closed against sends on requests; held for moments only
	closed bool

	tables atomic.Int64 // bytes, as measured last
	looked time.Time    // when; of the committing goroutine, as is what follows

	witness      *os.File      // witness.go
	reads        reads         // read.go
	acknowledged atomic.Uint64 // the version of the last transaction that was
	committed    chan struct{} // tells flushLoop; full while it has something to do
	flushed      chan struct{} // closed when flushLoop has ended
	torn         bool          // Torn
	filling      filling       // space.go
	merging      bool          // Badger merges tables when it likes; merge.go
	mergers      chan struct{} // holds one while all tables are merged
	objects      int64         // rows of objects
	broken       error         // why nothing is written any more
}

// Open opens or makes the database in the directory dir for a store with the logical directory storeDir.
func Open(dir string, storeDir store.Dir, opts *Options) (*DB, error) {
	d := &DB{dir: dir, store: storeDir, opts: withDefaults(opts), requests: make(chan *request, 256), done: make(chan struct{}), reads: reads{at: map[uint64]int{}}, committed: make(chan struct{}, 1), flushed: make(chan struct{}), mergers: make(chan struct{}, 1)}
	if err := d.open(); err != nil {
		d.awaitNext()
		if d.badger != nil {
			d.waitForBadger()
		}
		return nil, fmt.Errorf("open database %s: %w", dir, err)
	}
	d.lookAfter()
	go d.run()
	go d.flushLoop()
	return d, nil
}

func (d *DB) open() (err error) {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	if d.place, err = os.Stat(d.dir); err != nil {
		return err
	}
	written, err := d.check()
	if err != nil {
		return err
	}
	if err := removeEmpty(d.dir); err != nil {
		return err
	}
	if d.opts.MemTableSize, err = d.memTableFor(journalNames(d.dir)); err != nil {
		return err
	}
	tables, err := listTables(d.dir)
	if err != nil {
		return err
	}
	if err := d.removeLeftTables(tables); err != nil {
		return err
	}
	if err := d.roomToOpen(written); err != nil {
		return err
	}
	if d.merging, err = d.mayMerge(tables, written); err != nil {
		return err
	}
	if !d.merging {
		d.opts.Logger.Warn("disk is full: tables of the database are not merged", "dir", d.dir)
	}
	if err := d.openBadger(); err != nil {
		return err
	}
	for _, name := range journalNames(d.dir) {
		d.filling.number = journalNumber(name)
	}
	if err := d.secure(); err != nil && !full(err) {
		return err
	}
	if err := d.readNodes(); err != nil {
		return err
	}
	if err := d.checkSettings(); err != nil {
		return err
	}
	if err := d.readName(); err != nil {
		return err
	}
	if err := SyncDir(d.dir); err != nil {
		return err
	}
	return d.openWitness()
}

// check looks for damage before Badger sees the files, and returns how much is in the journals.
func (d *DB) check() (written int64, err error) {
	known, err := checkTables(d.dir, false)
	if err != nil || d.opts.NoSync { // whose journals may be anything after a power cut
		return 0, err
	}
	j, err := checkJournals(d.dir, known)
	if err != nil {
		return 0, err
	}
	if d.torn, err = j.cutOff(); d.torn {
		d.opts.Logger.Warn("database: a transaction was not finished and is left out; nobody was told that it was done", "dir", d.dir)
	}
	return j.bytes(), err
}

// Torn reports whether an unfinished transaction was left out when the database was opened.
func (d *DB) Torn() bool { return d.torn }

// Exists reports whether there is a database in the directory dir, whole or not.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func withDefaults(opts *Options) Options {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MemTableSize == 0 {
		o.MemTableSize = leastMemTable
	}
	o.MemTableSize = max(o.MemTableSize, leastMemTable)
	if o.Reserve == 0 {
		o.Reserve = 64 << 20
	}
	if o.Ballast == 0 {
		o.Ballast = o.MemTableSize + 8<<20
	}
	return o
}

// openBadger opens it twice when need be: after a kill there may be memtable files that were made
// but not written, which the first try repairs or trips over.
func (d *DB) openBadger() error {
	var err error
	for range 2 {
		if err = removeEmpty(d.dir); err != nil {
			return err
		}
		if err = d.tryBadger(); err == nil {
			return nil
		}
		if strings.Contains(err.Error(), unix.ENOSPC.Error()) { // Badger hides causes
			return fmt.Errorf("%w: %w; make room", ErrNoSpace, err)
		}
		d.opts.Logger.Warn("open database: trying again", "dir", d.dir, "error", err)
	}
	if _, system := errors.AsType[syscall.Errno](err); system {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// tryBadger opens it. Badger panics at some damages, too.
func (d *DB) tryBadger() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("read tables: %v", r)
		}
	}()
	db, err := badger.OpenManaged(d.badgerOptions())
	if err == nil { // else there is none, whatever it returns
		d.badger = db
		d.acknowledge(db.MaxVersion())
	}
	return err
}

func (d *DB) badgerOptions() badger.Options {
	mergers, zeroTables := 0, anyZeroTables
	if d.merging {
		mergers, zeroTables = 2, mostZeroTables
	}
	return badger.DefaultOptions(d.dir).
		WithSyncWrites(!d.opts.NoSync).
		WithCompression(options.None).WithBlockCacheSize(0).WithIndexCacheSize(0).
		WithMemTableSize(d.opts.MemTableSize).WithNumMemtables(2).
		WithNumLevelZeroTables(usualZeroTables).WithNumLevelZeroTablesStall(zeroTables).WithNumCompactors(mergers).
		WithValueLogFileSize(1 << 20).WithDetectConflicts(false).WithMetricsEnabled(false).
		WithNumVersionsToKeep(1).WithLogger(logger{d.opts.Logger, &d.quiet})
}

// removeEmpty unlinks memtable and value log files of no bytes, which make Badger refuse to open.
func removeEmpty(dir string) error {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, name := range names {
			if fi, err := os.Stat(name); err == nil && fi.Size() == 0 {
				if err := os.Remove(name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkSettings writes the settings of a new database and checks those of an old one.
func (d *DB) checkSettings() error {
	schema, err := d.get(settingKey("schema"))
	if errors.Is(err, ErrNotFound) {
		if d.opts.Fresh != nil {
			if err := d.opts.Fresh(); err != nil {
				return err
			}
		}
		return d.writeSettings()
	}
	if err != nil {
		return err
	}
	if len(schema) != 4 || binary.LittleEndian.Uint32(schema) != schemaVersion {
		return fmt.Errorf("schema %x is not version %d; it was written by another cairn", schema, schemaVersion)
	}
	dir, err := d.get(settingKey("dir"))
	if err != nil {
		return err
	}
	if store.Dir(dir) != d.store {
		return fmt.Errorf("it belongs to the store directory %s, wanted is %s", dir, d.store)
	}
	return nil
}

func (d *DB) writeSettings() error {
	return d.transact(func(txn *badger.Txn, _ *int64) error {
		if err := txn.Set(settingKey("dir"), []byte(d.store)); err != nil {
			return err
		}
		return txn.Set(settingKey("schema"), binary.LittleEndian.AppendUint32(nil, schemaVersion))
	})
}

func settingKey(name string) []byte { return append([]byte{tableSettings}, name...) }

// Close commits what waits and closes the database. On a disk without any room, or that cannot be written, it is left open until the
// process ends, which loses nothing: what was committed is in the journal. If its directory has been deleted, what would
// be written is thrown away; if another one is in its place, the database is left open, too.
func (d *DB) Close() error {
	var err error
	d.once.Do(func() {
		d.mu.Lock()
		d.closed = true
		close(d.requests)
		d.mu.Unlock()
		<-d.done
		d.awaitNext()
		d.mergers <- struct{}{}
		close(d.committed)
		<-d.flushed
		err = d.closeBadger()
		if d.witness != nil {
			d.witness.Close()
		}
	})
	if err != nil {
		return fmt.Errorf("close database %s: %w", d.dir, err)
	}
	return nil
}

// Deleted reports whether the database's directory has been deleted or replaced.
func (d *DB) Deleted() bool {
	now, err := os.Stat(d.dir)
	return err != nil || !os.SameFile(now, d.place)
}

func (d *DB) closeBadger() error {
	now, err := os.Stat(d.dir)
	if errors.Is(err, os.ErrNotExist) {
		return d.closeDeleted()
	}
	if err != nil {
		return err
	}
	if !os.SameFile(now, d.place) {
		return errors.New("another directory has its name")
	}
	if err := d.closable(); err != nil {
		return err
	}
	if err := d.roomToClose(); err != nil {
		return err
	}
	if err := d.waitForBadger(); err != nil {
		return err
	}
	if err := removeEmpty(d.dir); err != nil { // the journal that was to come next
		return err
	}
	return d.flushWitness()
}

// waitForBadger closes Badger, which tries again and again to write its tables, until there is no room for them.
func (d *DB) waitForBadger() error {
	written := d.unflushed()
	closed := make(chan error, 1)
	go func() { closed <- d.badger.Close() }()
	for {
		select {
		case err := <-closed:
			return err
		case <-time.After(time.Second):
			if err := d.roomFor(min(written, d.opts.MemTableSize)+minRoom/4, 1); err != nil {
				return err
			}
		}
	}
}

// closeDeleted gives Badger, which tries for ever, a directory while it closes.
func (d *DB) closeDeleted() error {
	made := d.dir // and what is above it
	for parent := filepath.Dir(made); ; parent = filepath.Dir(parent) {
		if _, err := os.Stat(parent); err == nil || parent == made {
			break
		}
		made = parent
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	d.quiet.Store(true)
	d.waitForBadger() // complains of files that are gone
	err := os.RemoveAll(d.dir)
	for dir := d.dir; dir != made && err == nil; {
		dir = filepath.Dir(dir)
		err = os.Remove(dir)
	}
	return err
}

// get returns a copy of a row.
func (d *DB) get(key []byte) ([]byte, error) {
	var value []byte
	err := d.view(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, ErrNotFound
	}
	return value, err
}

// scan calls fn for each row whose key starts with prefix, in key order.
// Key and value are only lent. Prefetching would start a goroutine for each value, to copy what is at hand.
func (d *DB) scan(prefix []byte, fn func(key, value []byte) error) error {
	return d.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		for it.Rewind(); it.ValidForPrefix(prefix); it.Next() {
			item := it.Item()
			if err := item.Value(func(v []byte) error { return fn(item.Key(), v) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// logger gives Badger's messages to slog, one level lower: they are about its own housekeeping.
type logger struct {
	*slog.Logger
	quiet *atomic.Bool
}

func (l logger) Errorf(f string, a ...any) {
	if !l.quiet.Load() {
		l.Error("database: " + fmt.Sprintf(f, a...))
	}
}
func (l logger) Warningf(f string, a ...any) { l.Warn("database: " + fmt.Sprintf(f, a...)) }
func (l logger) Infof(f string, a ...any)    { l.Debug("database: " + fmt.Sprintf(f, a...)) }
func (l logger) Debugf(string, ...any)       {}
