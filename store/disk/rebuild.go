package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/derivation"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/meta"
	"cairn/store/refscan"
)

// lostName is the directory of what a rebuilt database does not know.
const lostName = ".lost"

// ErrWhole says that a database needs no rebuilding.
var ErrWhole = errors.New("the database is whole")

// RebuildOptions are choices of Rebuild; the zero value works.
type RebuildOptions struct {
	Logger *slog.Logger // default: discard
	Meta   meta.Options // of the new database
	// Backup is the file to take rows from; default: the newest that is whole, if there is one.
	Backup string
	// DryRun changes nothing.
	DryRun bool
	// Force also replaces a database that is whole.
	Force bool
	// Workers read objects; default: as many as processors.
	Workers int
	// Progress is called after each object of the directory, one call at a time.
	Progress func(done, total int)
}

// RebuildResult says what the new database has, and what it has not.
type RebuildResult struct {
	Backup      string    `json:"backup,omitempty"` // the file that rows were taken from
	BackupTime  time.Time `json:"backupTime,omitzero"`
	BadBackups  []string  `json:"badBackups,omitempty"`
	Restored    int       `json:"restored"` // objects that are as the backup says
	Proven      int       `json:"proven"`   // objects without a row whose contents prove their path
	Bytes       int64     `json:"bytes"`    // of archives read
	Damaged     []Loss    `json:"damaged"`  // have a row again and no files: to be repaired
	Lost        []Loss    `json:"lost"`     // have files and no row any more
	Deleted     int       `json:"deleted"`  // rows of the backup that nothing needs and that have no files: most were deleted since
	Leases      int       `json:"leases"`
	Aside       string    `json:"aside,omitempty"`       // the directory with the files of damaged and lost objects
	OldDatabase string    `json:"oldDatabase,omitempty"` // where the old database is now
}

// Loss is an object that a rebuilt database does not have as it was.
type Loss struct {
	Path store.Path `json:"path"`
	Why  string     `json:"why"`
	How  string     `json:"how"` // to get it again
}

// Rebuild remakes the database of a store that nobody has open from a backup and from the store directory:
//
//  1. An object with a row in the backup is registered as it was when its files have the row's hash. With other files, or without
//     any when something that is registered refers to it, it keeps its row without files, which is not valid and can be
//     repaired (Replace).
//  2. An object without a row is registered when its contents prove its path: derivations, other texts, sources, fixed outputs and
//     floating ones (proof.go). What it refers to must be registered, too.
//  3. All other objects are moved to .lost: their path follows from their derivation, and nothing says what their contents were. The next
//     Rebuild looks at them again.
//  4. The new database is made beside the old one, which is renamed to db.old-* when all else is done.
//
// A crash leaves the old database or the new one; where the file system cannot exchange two names, or there was none, perhaps none, with which
// the store is refused.
// Realisations and outputs of derivations come from the backup only.
func Rebuild(ctx context.Context, l Layout, opts *RebuildOptions) (*RebuildResult, error) {
	r := &rebuilding{layout: l, rows: map[meta.Digest]*found{}, result: &RebuildResult{Damaged: []Loss{}, Lost: []Loss{}}}
	if opts != nil {
		r.opts = *opts
	}
	if r.opts.Logger == nil {
		r.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if r.opts.Workers <= 0 {
		r.opts.Workers = runtime.GOMAXPROCS(0)
	}
	if err := r.run(ctx); err != nil {
		return nil, fmt.Errorf("rebuild database of %s: %w", l.RealDir, err)
	}
	return r.result, nil
}

// found is an object that the backup or the store directory has.
type found struct {
	path    store.Path
	object  *meta.Object // its row, if it has one
	proven  bool         // the row is not the backup's
	refs    []store.Path // of a proven one
	present bool         // the directory has something of its name
	aside   bool         // in .lost
	whole   bool         // which are the files of the row
	why     string       // what is wrong
	visited bool
	kept    bool // gets a row
}

type rebuilding struct {
	layout Layout
	opts   RebuildOptions
	result *RebuildResult

	rows         map[meta.Digest]*found
	realisations []*store.Realisation
	outputs      map[meta.Digest][]meta.Output
	makers       map[store.Path]string // the derivations of outputs
	leases       []*meta.Lease
	index        *refscan.Index

	mu sync.Mutex // guards counts of result while objects are read
}

func (r *rebuilding) run(ctx context.Context) error {
	lock, err := lockFile(filepath.Join(r.layout.StateDir, lockName))
	if err != nil {
		return err
	}
	defer lock.Close()
	if !r.opts.Force {
		if err := r.checkNeeded(); err != nil {
			return err
		}
	}
	steps := []func(context.Context) error{r.readBackup, r.list, r.read, r.choose}
	if !r.opts.DryRun {
		steps = append(steps, r.moveAside, r.write)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// checkNeeded opens a copy of the database, because opening changes a damaged one.
func (r *rebuilding) checkNeeded() error {
	db := databaseDir(r.layout)
	if exists, err := meta.Exists(db); err != nil || !exists {
		return err
	}
	try := db + ".try"
	if err := os.RemoveAll(try); err != nil {
		return err
	}
	defer os.RemoveAll(try)
	if err := meta.Copy(try, db); err != nil {
		return noSpace(err)
	}
	s := &Store{layout: r.layout, opts: Options{Meta: r.opts.Meta}}
	s.opts.Meta.Fresh = func() error { return checkEmpty(r.layout) }
	s.opts.Meta.Ballast = -1
	var err error
	if s.db, err = meta.Open(try, r.layout.Dir, &s.opts.Meta); err == nil {
		err = errors.Join(s.checkAge(), s.db.Objects(func(meta.Digest, *meta.Object) error { return nil }))
		s.db.Close()
	}
	switch {
	case err == nil:
		return ErrWhole
	case errors.Is(err, ErrNoSpace):
		return err
	}
	r.opts.Logger.Info("the database cannot be used", "error", err)
	return nil
}

// readBackup takes the rows of the newest backup that is whole.
func (r *rebuilding) readBackup(context.Context) error {
	if r.opts.Backup != "" {
		return r.readBackupFile(r.opts.Backup)
	}
	list, err := Backups(r.layout)
	if err != nil {
		return err
	}
	for _, b := range list {
		err := r.readBackupFile(b.File)
		if !errors.Is(err, meta.ErrBackup) {
			return err
		}
		r.opts.Logger.Warn("a backup is of no use", "file", b.File, "error", err)
		r.result.BadBackups = append(r.result.BadBackups, b.File)
	}
	return nil
}

func (r *rebuilding) readBackupFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := meta.ReadBackupHeader(f)
	if err == nil && h.Dir != r.layout.Dir {
		return fmt.Errorf("backup %s is of the store directory %s, not of %s", name, h.Dir, r.layout.Dir)
	}
	r.outputs, r.makers = map[meta.Digest][]meta.Output{}, map[store.Path]string{}
	if err == nil {
		h, err = meta.ReadBackup(f, &meta.Rows{Object: r.takeObject, Realisation: r.takeRealisation, Output: r.takeOutput, Lease: r.takeLease})
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	r.result.Backup, r.result.BackupTime = name, h.Created
	return nil
}

func (r *rebuilding) takeObject(d meta.Digest, o *meta.Object) error {
	p, err := r.layout.Dir.Path(d.String() + "-" + o.Name)
	if err != nil {
		return err
	}
	own := *o
	own.References, own.Signatures = slices.Clone(o.References), slices.Clone(o.Signatures)
	r.rows[d] = &found{path: p, object: &own}
	return nil
}

func (r *rebuilding) takeRealisation(real *store.Realisation) error {
	r.realisations = append(r.realisations, real)
	return nil
}

func (r *rebuilding) takeOutput(drv meta.Digest, o *meta.Output) error {
	r.outputs[drv] = append(r.outputs[drv], *o)
	if f := r.rows[drv]; f != nil { // objects come first
		r.makers[o.Path] = f.path.String()
	}
	return nil
}

func (r *rebuilding) takeLease(l *meta.Lease) error {
	if time.Now().Unix() < l.Expires {
		r.leases = append(r.leases, l)
	}
	return nil
}

// list finds what the store directory has.
func (r *rebuilding) list(context.Context) error {
	if r.outputs == nil {
		r.outputs, r.makers = map[meta.Digest][]meta.Output{}, map[store.Path]string{}
	}
	for _, dir := range []string{"", lostName} {
		err := readNames(filepath.Join(r.layout.RealDir, dir), func(names []string) error {
			for _, name := range names {
				if next, ok := strings.CutPrefix(name, nextPrefix); ok && dir == "" && !r.opts.DryRun {
					name = r.finishNext(next)
				}
				if p, err := r.layout.Dir.Path(name); err == nil {
					r.see(p, dir == lostName)
				}
			}
			return nil
		})
		if err != nil && !(dir == lostName && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	paths := make([]store.Path, 0, len(r.rows))
	for _, f := range r.rows {
		paths = append(paths, f.path)
	}
	r.index = refscan.NewIndex(paths)
	return nil
}

// finishNext gives what was to replace an object its place when that is free, as Open does.
func (r *rebuilding) finishNext(name string) string {
	final := filepath.Join(r.layout.RealDir, name)
	if absent(final) {
		os.Rename(filepath.Join(r.layout.RealDir, nextPrefix+name), final)
	}
	return name
}

func (r *rebuilding) see(p store.Path, aside bool) {
	d := meta.DigestOf(p)
	f := r.rows[d]
	switch {
	case f == nil:
		f = &found{path: p}
		r.rows[d] = f
	case f.path != p:
		r.opts.Logger.Warn("leaving alone what has the digest of another object", "name", p.Base())
		return
	case f.present: // the other one is in .lost
		return
	}
	f.present, f.aside = true, aside
}

func (r *rebuilding) realPath(f *found) string {
	if f.aside {
		return filepath.Join(r.layout.RealDir, lostName, f.path.Base())
	}
	return r.layout.RealPath(f.path)
}

// read reads all objects, those with a row to compare it, the others for proofs.
func (r *rebuilding) read(ctx context.Context) error {
	var all []*found
	for _, f := range r.rows {
		if f.present {
			all = append(all, f)
		}
	}
	done := 0
	return parallel(ctx, r.opts.Workers, all, func(ctx context.Context, f *found) error {
		n, err := r.readObject(ctx, f)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.result.Bytes += n
		if done++; r.opts.Progress != nil {
			r.opts.Progress(done, len(all))
		}
		return err
	})
}

// readObject compares an object with its row or looks for a proof.
func (r *rebuilding) readObject(ctx context.Context, f *found) (int64, error) {
	p := proof{ctx: ctx, path: f.path, file: r.realPath(f), index: r.index}
	err := p.read()
	if cause := context.Cause(ctx); cause != nil {
		return p.size, cause
	}
	switch {
	case err != nil:
		f.why = "its files cannot be read: " + err.Error()
	case f.object != nil:
		if f.whole = p.hash == store.NewHash(store.SHA256, f.object.NarHash[:]); !f.whole {
			f.why = "its files are not those that the backup knows"
		}
	default:
		info, err := p.prove()
		if err != nil {
			f.why = err.Error()
			break
		}
		f.proven, f.whole, f.refs = true, true, info.References
		f.object = rowOf(info)
	}
	return p.size, nil
}

// choose decides which objects get rows.
func (r *rebuilding) choose(context.Context) error {
	hashes := derivation.NewHashes(r.derivation)
	for _, f := range r.rows {
		if f.present && f.object != nil {
			r.keep(f, hashes)
		}
	}
	for _, f := range r.rows {
		switch {
		case f.kept && f.whole && f.proven:
			r.result.Proven++
		case f.kept && f.whole:
			r.result.Restored++
		case f.kept:
			if !f.present {
				f.why = "it has no files"
			}
			r.result.Damaged = append(r.result.Damaged, Loss{f.path, f.why, "cairn store repair " + f.path.String()})
		case f.present:
			r.result.Lost = append(r.result.Lost, Loss{f.path, f.why, r.remedy(f)})
		default:
			r.result.Deleted++
		}
	}
	for _, list := range [][]Loss{r.result.Damaged, r.result.Lost} {
		slices.SortFunc(list, func(a, b Loss) int { return a.Path.Compare(b.Path) })
	}
	r.result.Leases = len(r.leases)
	return nil
}

// keep decides about an object that has a row, after what it refers to. The backup's rows refer to each other only, and
// proven objects in no circles.
func (r *rebuilding) keep(f *found, hashes *derivation.Hashes) bool {
	if f.visited {
		return f.kept
	}
	f.visited = true
	for _, ref := range f.object.References {
		other := r.rows[ref]
		if other == f {
			continue
		}
		if other == nil || other.object == nil || !r.keep(other, hashes) {
			f.why = fmt.Sprintf("it refers to %s, of which nothing is known", r.name(ref, f))
			return false
		}
	}
	if f.proven && f.path.IsDerivation() {
		if err := r.takeDerivation(f, hashes); err != nil {
			f.why = err.Error()
			return false
		}
	}
	f.kept = true
	return true
}

func (r *rebuilding) name(d meta.Digest, from *found) string {
	for _, p := range from.refs {
		if meta.DigestOf(p) == d {
			return p.String()
		}
	}
	return d.String()
}

// takeDerivation checks the outputs that a proven derivation claims, and notes them.
func (r *rebuilding) takeDerivation(f *found, hashes *derivation.Hashes) error {
	drv, err := r.derivation(f.path)
	if err == nil {
		err = hashes.CheckOutputs(drv, r.layout.Dir)
	}
	if err != nil {
		return err
	}
	d := meta.DigestOf(f.path)
	for _, name := range drv.OutputNames() {
		if o := drv.Outputs[name]; !o.Path.IsZero() {
			r.outputs[d] = append(r.outputs[d], meta.Output{Name: name, Path: o.Path})
			r.makers[o.Path] = f.path.String()
		}
	}
	return nil
}

// derivation reads a derivation that is whole.
func (r *rebuilding) derivation(p store.Path) (*derivation.Derivation, error) {
	f := r.rows[meta.DigestOf(p)]
	if f == nil || f.path != p || !f.whole {
		return nil, notValid(p)
	}
	return readDerivation(r.realPath(f), p)
}

// remedy says how an object can be had again.
func (r *rebuilding) remedy(f *found) string {
	if drv := r.makers[f.path]; drv != "" {
		return "cairn build " + drv
	}
	if f.path.IsDerivation() {
		return "evaluate again what made it"
	}
	return "build, copy or substitute it again"
}

// moveAside moves the files of what is not whole to .lost, and those of what is from there.
func (r *rebuilding) moveAside(context.Context) error {
	aside := filepath.Join(r.layout.RealDir, lostName)
	if err := makeDir(aside, 0o700); err != nil {
		return err
	}
	for _, f := range r.rows {
		wanted := f.present && !(f.kept && f.whole)
		if wanted {
			r.result.Aside = aside
		}
		if !f.present || wanted == f.aside {
			continue
		}
		if err := r.move(f); err != nil {
			return fmt.Errorf("move %s aside: %w", f.path, err)
		}
		failpoint.Hit("disk/rebuild/aside")
	}
	if err := errors.Join(meta.SyncDir(aside), meta.SyncDir(r.layout.RealDir)); err != nil {
		return err
	}
	os.Remove(aside) // when it is empty
	return nil
}

// move moves an object to the other side.
func (r *rebuilding) move(f *found) error {
	from := r.realPath(f)
	f.aside = !f.aside
	to := r.realPath(f)
	if exists(to) { // in .lost, since an earlier rebuilding
		older := filepath.Join(filepath.Dir(to), fmt.Sprintf(".older-%d-%s", time.Now().UnixNano(), filepath.Base(to)))
		if err := os.Rename(to, older); err != nil {
			return err
		}
	}
	if err := moveTree(from, to); err != nil || f.aside {
		return err
	}
	return canonicalise(to)
}

// write makes the new database and gives it its place.
func (r *rebuilding) write(ctx context.Context) error {
	db := databaseDir(r.layout)
	made := db + ".new"
	if err := os.RemoveAll(made); err != nil {
		return err
	}
	if err := r.fill(ctx, made); err != nil {
		return err
	}
	failpoint.Hit("disk/rebuild/filled")
	if err := r.place(made, db); err != nil {
		return err
	}
	failpoint.Hit("disk/rebuild/placed")
	return meta.SyncDir(r.layout.StateDir)
}

// place gives the new database its place, by one exchange of names where the file system can do that.
func (r *rebuilding) place(made, db string) error {
	if !exists(db) {
		return os.Rename(made, db)
	}
	old := db + ".old-" + time.Now().UTC().Format("20060102T150405.000")
	if err := os.Rename(made, old); err != nil { // after the exchange the old one has this name
		return err
	}
	r.result.OldDatabase = old
	err := unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, db, unix.RENAME_EXCHANGE)
	if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	for _, move := range [][2]string{{old, made}, {db, old}, {made, db}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			return err
		}
	}
	return nil
}

func (r *rebuilding) fill(ctx context.Context, dir string) error {
	r.opts.Meta.Logger = r.opts.Logger
	db, err := meta.Open(dir, r.layout.Dir, &r.opts.Meta)
	if err != nil {
		return err
	}
	w := rowWriter{ctx: ctx, db: db}
	for d, f := range r.rows {
		if f.kept {
			w.put(func(b *meta.Batch) { b.PutObject(d, f.object) })
		}
	}
	for _, real := range r.realisations {
		if f := r.rows[meta.DigestOf(real.OutPath)]; f != nil && f.kept && f.path == real.OutPath {
			w.put(func(b *meta.Batch) { b.PutRealisation(real) })
		}
	}
	for _, drv := range slices.Collect(maps.Keys(r.outputs)) {
		for _, o := range r.outputs[drv] {
			if r.stays(drv, &o) {
				w.put(func(b *meta.Batch) { b.PutOutput(drv, o.Name, o.Path, o.Realised, o.Signatures...) })
			}
		}
	}
	for _, l := range r.leases {
		w.put(func(b *meta.Batch) { b.PutLease(l) })
	}
	w.flush()
	return errors.Join(w.err, db.Close())
}

// stays reports whether there is what a row of an output goes with: the derivation, or, if only a realisation says so, the output.
func (r *rebuilding) stays(drv meta.Digest, o *meta.Output) bool {
	d := drv
	if o.Realised {
		d = meta.DigestOf(o.Path)
	}
	f := r.rows[d]
	return f != nil && f.kept
}

// rowWriter commits rows in batches, until an error.
type rowWriter struct {
	ctx   context.Context
	db    *meta.DB
	batch meta.Batch
	err   error
}

func (w *rowWriter) put(fn func(*meta.Batch)) {
	var one meta.Batch
	fn(&one)
	if w.batch.Size()+one.Size() > w.db.MaxBatch() {
		w.flush()
	}
	w.batch.Append(&one)
}

func (w *rowWriter) flush() {
	if w.err == nil {
		w.err = context.Cause(w.ctx)
	}
	if w.err == nil {
		w.err = w.db.Commit(&w.batch)
	}
	w.batch = meta.Batch{}
}
