// Package build makes derivations' outputs valid: it plans what has to be built, runs builders in
// sandboxes, several at a time, and registers what they leave behind.
//
// # A request
//
//  1. Plan (plan.go), a pure function of the facts: from the targets down to what is valid already, or what caches have; the result
//     lists the derivations to build, inputs first, and the objects to fetch, references first. What it does not know of caches yet it
//     asks for; the request finds out (package substitute) and plans again (request.go). What caches have is fetched, with all that it refers
//     to, unless the derivation says allowSubstitutes = false; of a derivation either all wanted outputs or none.
//  2. Each derivation and each object gets a job (job.go), or joins the one there is: nothing is built or fetched twice at the same time.
//     A job is wanted by requests and by the jobs that need it; when the last of them leaves, it is cancelled.
//  3. The request waits for the jobs of its targets, or leaves at the first failure unless it wants to keep going.
//  4. When a cache did not keep its word the request plans again without that offer: another cache has the object, or it is built. What
//     runs goes on. Nix fails there without the setting "fallback", so that nobody builds for hours what a flaky network did not deliver; here a
//     cache that fails has been asked as often as download-attempts says, the user is warned, and gets what was asked for.
//
// # A job that fetches
//
// It takes one of max-substitution-jobs places (the daemon's setting, not a client's), downloads into an import of the store, gives the place
// back, and waits for the jobs of what the object refers to before it makes the object valid (fetch.go): downloads are parallel, validity
// comes references first. When the download fails it goes on to the next cache that has the object with the same references. Where outputs of floating
// derivations were found by realisations, a job of the derivation records them, with their signatures.
//
// # A job
//
//  1. Wait for the inputs. One failed input fails the job.
//  2. Resolve: when an input's path was not known before it was built, the derivation that is built is another
//     one, which names the paths of inputs instead of their derivations. It is written to the store and
//     gets a job of its own. When its outputs are there already, nothing is built: that is the early cut-off. Realisations are
//     recorded for both.
//  3. Look again whether the outputs are there. Those of a resolved derivation may be in caches, too.
//  4. Wait for a place on the machine that suits best (machine.go): another one that has a place free, or one of MaxJobs places
//     here. Check the inputs; hold their closure against collection. When another machine fails, not the build, go to the next.
//  5. Run the builder (run.go) in a sandbox that sees that closure and a directory of its own in the place of the
//     store directory, or, for "builtin:…", a function of this process (builtin.go).
//     Outputs that are addressed by content are built under a scratch path.
//  6. When every process of the builder is dead, read the outputs (output.go): archive each, find references, hash,
//     replace scratch paths by final ones, check fixed hashes and the derivation's own conditions (checks.go), and write a
//     copy. A copy, because nobody else can have that open, link to it, or own it.
//     An impure derivation is built like one that is addressed by content, with the network, whenever it is wanted: nothing
//     records its outputs, which only the jobs that waited for this build know. Those are impure themselves, or fixed.
//     The place goes to the next builder now: while the outputs of one are read and registered another runs. No more than
//     MaxJobs are that far.
//  7. Register all outputs at once, then realisations. Run the post-build hook (hook.go).
//
// In Check mode step 7 compares with what is there (compare.go): the error shows what differs, and the diff hook may look at it.
// In Repair mode it puts what is damaged in its place again (repair.go); what gives other contents repairs nothing.
// What is known to be damaged is neither built with nor returned: a request mends it first (mend.go).
//
// # Builds within builds
//
// A builder that requires "recursive-nix" finds a daemon's socket in its directory (recursive.go). What its clients may see is a Restriction,
// whose session the daemon serves: the closure of the inputs, and what was added or built that way, which is mounted into the running
// sandbox, held, and counted among the inputs in step 6. The build lends its place to the builds that it asks for (seat.go), and
// whatever waits for the build itself is refused to it. Such a build depends on nothing that its derivation does not name, but for
// paths that prove themselves and outputs of derivations that it has written itself.
//
// # Trust
//
// A derivation is believed to be what its path says: whoever adds ".drv" files checks that their output paths
// follow from them (derivation.Hashes.CheckOutputs). A derivation that comes with BuildDerivation is trusted as its sender is.
// The builder is not trusted with anything; see package sandbox.
//
// # Logs
//
// What a builder writes goes to LogDir/drvs/<2 digits>/<rest>.drv while it runs (log.go), where Nix's clients look; when it is
// complete and long it is packed, as <rest>.drv.bz2. FollowLog reads it to the end of the build. Lines that start with "@nix " and JSON are structured messages; they are events, and not in the log.
//
// # Not here
//
// How other machines are reached: package remote. Which cache is asked, and believed: package substitute. Dynamic derivations are refused.
package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/daemon/settings"
	"cairn/daemon/substitute"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/refscan"
)

// Mode says what to do when the outputs are there.
type Mode uint8

// The modes, with the protocol's numbers.
const (
	Normal Mode = iota // nothing
	Repair             // rebuild those that are damaged, and what is damaged of their closures
	Check              // build again and compare
)

// Options of a Builder; the zero value works.
type Options struct {
	MaxJobs int      // builds at the same time; default: what the settings say
	Systems []string // what can be built; default: this machine's, and its variants
	// SandboxPaths are files and directories of the host that every builder sees: target inside → source outside.
	// An executable brings the shared libraries that it needs. They are inputs that no hash covers, so keep
	// them few. Nil: /bin/sh alone, see DefaultSandboxPaths. Empty: none.
	SandboxPaths map[string]string
	ACL          string       // keys that may import, besides trusted-public-keys; default: "acl" in the layout's ConfDir
	SSHOptions   string       // NIX_SSHOPTS, for caches that are stores behind ssh
	Logger       *slog.Logger // default: discard
	Machines     Machines     // that build for this one; default: none
	// Settings hold unless a view has others (With); default: settings.Defaults. Where builds are shared, those of the first
	// request count.
	Settings *settings.Settings
}

// Builder builds derivations of a store. It is safe for concurrent use.
type Builder struct {
	*core
	store    *disk.Store
	opts     Options
	settings *settings.Settings // never changed
	selfHash refscan.SelfHash
	life     context.Context
	die      context.CancelCauseFunc
	shell    *hostPaths
	pool     *substitute.Pool
	caches   *substitute.Caches
	boxes    *sandbox.Launcher
}

// New returns a builder for a store, which must stay open until Close has returned.
func New(s *disk.Store, opts *Options) *Builder {
	b := &Builder{store: s, boxes: new(sandbox.Launcher)}
	if opts != nil {
		b.opts = *opts
	}
	if b.settings = b.opts.Settings; b.settings == nil {
		b.settings = settings.Defaults()
	}
	if b.opts.MaxJobs <= 0 {
		b.opts.MaxJobs = max(1, b.settings.MaxJobs)
	}
	if b.opts.Systems == nil {
		b.opts.Systems = nativeSystems()
	}
	if b.opts.Logger == nil {
		b.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if b.opts.SandboxPaths == nil {
		b.opts.SandboxPaths = DefaultSandboxPaths()
	}
	b.shell = &hostPaths{want: b.opts.SandboxPaths}
	b.core = &core{jobs: map[jobKey]*job{}, queues: map[string]*queue{}, slots: map[uint32]bool{}, places: make(chan struct{}, b.opts.MaxJobs), finishing: make(chan struct{}, b.opts.MaxJobs)}
	b.downloads = make(chan struct{}, cmp.Or(b.settings.MaxSubstitutions, b.settings.HTTPConnections, 1))
	b.life, b.die = context.WithCancelCause(context.Background())
	b.pool = substitute.NewPool(s, &substitute.Options{ACL: b.opts.ACL, SSHOptions: b.opts.SSHOptions, Logger: b.opts.Logger})
	b.caches = b.pool.Caches(b.settings)
	return b
}

// With returns a view of the same builder, sharing its jobs, with other settings, which must not change any more.
func (b *Builder) With(s *settings.Settings) *Builder {
	v := *b
	v.settings = s
	v.caches = b.pool.Caches(s)
	return &v
}

// Caches returns what the view fetches from.
func (b *Builder) Caches() *substitute.Caches { return b.caches }

// WithSelfHash returns a view of the same builder, sharing its jobs, that addresses self-referential outputs in a form.
// Where builds are shared, that of the first request counts.
func (b *Builder) WithSelfHash(form refscan.SelfHash) *Builder {
	v := *b
	v.selfHash = form
	return &v
}

// Settings returns the view's settings, which must not be changed.
func (b *Builder) Settings() *settings.Settings { return b.settings }

// Close cancels all builds and waits until nothing of them runs any more.
func (b *Builder) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.die(errShutdown)
	b.work.Wait()
	return errors.Join(b.boxes.Close(), b.pool.Close())
}

// Build makes targets exist and returns one result for each, in their order. What they need is kept from collection
// meanwhile; afterwards the outputs are held by the lease of ctx (disk.WithLease), if it has one.
// The error is for requests that could not be planned, cancelled ones included; failures of builds are in the results.
func (b *Builder) Build(ctx context.Context, targets []protocol.Target, mode Mode, obs Observer) ([]*protocol.BuildResult, error) {
	if mode == Repair {
		return b.repair(ctx, targets, obs)
	}
	return b.request(ctx, b.facts(), targets, mode, obs)
}

func more(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (and %d more like it)", n)
}

// enlist gives everything in a plan a job. It returns those of the targets, and all, with one waiter more each.
func (b *Builder) enlist(f *storeFacts, p *plan, targets []protocol.Target, mode Mode, w *watch) (roots, made map[jobKey]*job, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, nil, errShutdown
	}
	made = map[jobKey]*job{}
	for _, path := range p.fetches {
		made[jobKey{path, fetchObject}] = b.enlistFetch(f, path, made, w)
	}
	for _, n := range p.fetched {
		made[jobKey{n.path, Normal}] = b.enlistOutputs(f, n, made, w)
	}
	for _, n := range p.nodes {
		made[jobKey{n.path, Normal}] = b.enlistNode(f, n, made, Normal, w)
	}
	roots = map[jobKey]*job{}
	for _, t := range targets {
		key, n := keyOf(t), p.known[t.Path]
		if roots[key] != nil {
			continue
		}
		j := made[key]
		if mode != Normal && n != nil && t.Outputs != nil && !n.needed && n.fetch == nil {
			j = b.enlistNode(f, n, made, mode, w)
			made[jobKey{n.path, mode}] = j
		}
		if j != nil {
			roots[key] = j
		}
	}
	return roots, made, nil
}

// enlistNode returns the job of one derivation, with one more waiter. The caller holds mu.
func (b *Builder) enlistNode(f *storeFacts, n *node, made map[jobKey]*job, mode Mode, w *watch) *job {
	j := b.enter(b, jobKey{n.path, mode}, func() *job {
		j := &job{drv: n.drv, kind: n.kind, facts: f}
		for _, in := range n.inputs {
			j.deps = append(j.deps, made[jobKey{in.path, Normal}])
		}
		for _, src := range n.sources {
			if d := made[jobKey{src, fetchObject}]; d != nil {
				j.deps = append(j.deps, d)
			}
		}
		return j
	})
	j.keepGoing = j.keepGoing || b.settings.KeepGoing
	w.join(j)
	return j
}

// await waits for the jobs, or for the first that fails.
func (b *Builder) await(ctx context.Context, jobs map[jobKey]*job) error {
	stop := make(chan struct{})
	defer close(stop)
	ended := make(chan *job)
	for _, j := range jobs {
		go func() {
			select {
			case <-j.done:
				select {
				case ended <- j:
				case <-stop:
				}
			case <-stop:
			}
		}()
	}
	for range jobs {
		select {
		case j := <-ended:
			if !j.result.Status.OK() && !b.settings.KeepGoing {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("build: %w", context.Cause(ctx))
		}
	}
	return nil
}

// results makes the answer for each target, and has the lease of ctx, if there is one, hold the outputs.
func (b *Builder) results(ctx context.Context, f *storeFacts, p *plan, targets []protocol.Target, jobs map[jobKey]*job) ([]*protocol.BuildResult, error) {
	list := make([]*protocol.BuildResult, len(targets))
	for i, t := range targets {
		n, j := p.known[t.Path], jobs[keyOf(t)]
		switch {
		case t.Outputs == nil && j == nil:
			list[i] = &protocol.BuildResult{Status: protocol.AlreadyValid}
		case j == nil:
			r := &protocol.BuildResult{Status: protocol.AlreadyValid}
			if err := f.fill(r, n.drv, wantedOf(t, n.drv), nil); err != nil {
				return nil, err
			}
			list[i] = r
		default:
			r, err := b.resultOf(f, t, n, j)
			if err != nil {
				return nil, err
			}
			list[i] = r
		}
		list[i].Target = t
		if err := keepOutputs(ctx, list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func keepOutputs(ctx context.Context, r *protocol.BuildResult) error {
	lease := disk.LeaseOf(ctx)
	if lease == nil {
		return nil
	}
	if r.Target.Outputs == nil {
		return lease.Hold(r.Target.Path)
	}
	for _, o := range r.Outputs {
		if err := lease.Hold(o.OutPath); err != nil {
			return err
		}
	}
	return nil
}

func (b *Builder) resultOf(f *storeFacts, t protocol.Target, n *node, j *job) (*protocol.BuildResult, error) {
	select {
	case <-j.done:
	default:
		return &protocol.BuildResult{Status: protocol.MiscFailure, Error: fmt.Sprintf("build of %s was cancelled because another one failed", t.Path)}, nil
	}
	r := *j.result
	r.Impure = j.kind == derivation.Impure
	if r.Status.OK() && t.Outputs != nil {
		if err := f.fill(&r, n.drv, wantedOf(t, n.drv), j.paths); err != nil {
			return nil, err
		}
	}
	return &r, nil
}

func wantedOf(t protocol.Target, d *derivation.Derivation) []string {
	if t.IsAll() {
		return d.OutputNames()
	}
	return t.Outputs
}

// BuildDerivation builds a derivation that need not be in the store; its inputs are sources only.
// The caller has decided whether its sender may ask for that.
func (b *Builder) BuildDerivation(ctx context.Context, path store.Path, d *derivation.Derivation, mode Mode, obs Observer) *protocol.BuildResult {
	target := protocol.Target{Path: path, Outputs: protocol.All()}
	f := b.facts()
	f.drvs[path] = d
	fail := func(err error) *protocol.BuildResult {
		return &protocol.BuildResult{Target: target, Status: protocol.MiscFailure, Error: err.Error()}
	}
	list, err := b.request(ctx, f, []protocol.Target{target}, mode, obs)
	if err != nil {
		return fail(err)
	}
	return list[0]
}

// Missing is what Build would have to do.
type Missing struct {
	Build        []store.Path // derivations
	Substitute   []store.Path // objects, from elsewhere
	Unknown      []store.Path // objects that nobody has
	DownloadSize int64
	NarSize      int64
}

// Missing plans a request, asking caches, and says what it would do.
func (b *Builder) Missing(ctx context.Context, targets []protocol.Target, obs Observer) (*Missing, error) {
	f := b.facts()
	var known []protocol.Target
	m := &Missing{}
	for _, t := range targets {
		if t.Outputs != nil && !b.store.IsValid(t.Path) {
			m.Unknown = append(m.Unknown, t.Path)
			continue
		}
		known = append(known, t)
	}
	q := &request{b: b, f: f, lease: b.store.Lease("query", 0), watch: &watch{observer: obs}, targets: known}
	defer q.lease.Release()
	defer q.part()
	f.search = b.search(q.watch)
	p, err := q.plan(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range p.nodes {
		m.Build = append(m.Build, n.path)
	}
	for _, path := range p.fetches {
		o, _ := f.search.Offer(path)
		m.DownloadSize += o.FileSize
		m.NarSize += o.NarSize
	}
	m.Build = store.SortPaths(m.Build)
	m.Substitute = store.SortPaths(p.fetches)
	m.Unknown = store.SortPaths(append(m.Unknown, p.unknown...))
	return m, nil
}

// OutputMap returns the outputs of a derivation; the path of one that is not known yet is zero.
func (b *Builder) OutputMap(drv store.Path) (map[string]store.Path, error) {
	f := b.facts()
	d, err := f.derivation(drv)
	if err != nil {
		return nil, err
	}
	outputs := map[string]store.Path{}
	for _, o := range d.OutputNames() {
		if outputs[o], err = outputPath(f, d, o); err != nil {
			return nil, err
		}
	}
	return outputs, nil
}

// storeFacts answers from the store, and remembers the derivations of one request.
type storeFacts struct {
	b      *Builder
	mu     sync.Mutex          // guards the rest
	hashed map[store.Path]bool // what the store's hashes modulo know
	drvs   map[store.Path]*derivation.Derivation
	search *substitute.Search // nil: nobody is asked
}

func (b *Builder) facts() *storeFacts {
	f := &storeFacts{b: b, drvs: map[store.Path]*derivation.Derivation{}, hashed: map[store.Path]bool{}}
	return f
}

func (f *storeFacts) valid(p store.Path) bool { return f.b.store.IsValid(p) }

func (f *storeFacts) derivation(p store.Path) (*derivation.Derivation, error) {
	f.mu.Lock()
	d := f.drvs[p]
	f.mu.Unlock()
	if d != nil {
		return d, nil
	}
	if !f.valid(p) {
		return nil, fmt.Errorf("derivation %s: %w", p, store.ErrNotValid)
	}
	if err := f.b.store.Damage(p); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(f.b.store.RealPath(p))
	if err != nil {
		return nil, fmt.Errorf("read derivation: %w", err)
	}
	if d, err = derivation.ParseAt(p, data); err != nil {
		return nil, fmt.Errorf("derivation %s: %w", p, err)
	}
	f.mu.Lock()
	f.drvs[p] = d
	f.mu.Unlock()
	return d, nil
}

func (f *storeFacts) realised(id store.DrvOutput) (store.Path, bool) {
	r, err := f.b.store.Realisation(id)
	if err != nil {
		return store.Path{}, false
	}
	return r.OutPath, true
}

func (f *storeFacts) offered(p store.Path) (refs []store.Path, has, asked bool) {
	o, asked := f.search.Offer(p)
	if o == nil {
		return nil, false, asked
	}
	return o.References, true, true
}

func (f *storeFacts) traced(id store.DrvOutput) (p store.Path, has, asked bool) {
	r, asked := f.search.Realised(id)
	if r == nil {
		return store.Path{}, false, asked
	}
	return r.OutPath, true, true
}

func (f *storeFacts) identity(d *derivation.Derivation, output string) (store.DrvOutput, error) {
	if err := f.hash(d); err != nil {
		return store.DrvOutput{}, err
	}
	return f.b.store.Hashes().DrvOutput(d, output)
}

// hash has the inputs' hashes modulo computed from below, so that a chain of any length takes no stack.
func (f *storeFacts) hash(d *derivation.Derivation) error {
	type frame struct {
		path store.Path
		todo []store.Path
	}
	stack := []frame{{todo: sortedKeys(d.InputDrvs)}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.todo) == 0 {
			if !top.path.IsZero() {
				if _, err := f.b.store.Hashes().Input(top.path); err != nil {
					return err
				}
			}
			stack = stack[:len(stack)-1]
			continue
		}
		next := top.todo[0]
		top.todo = top.todo[1:]
		f.mu.Lock()
		known := f.hashed[next]
		f.hashed[next] = true
		f.mu.Unlock()
		if known {
			continue
		}
		in, err := f.derivation(next)
		if err != nil {
			return err
		}
		stack = append(stack, frame{path: next, todo: sortedKeys(in.InputDrvs)})
	}
	return nil
}

// fill adds the realisations of the wanted outputs to a result.
func (f *storeFacts) fill(r *protocol.BuildResult, d *derivation.Derivation, wanted []string, paths map[string]store.Path) error {
	r.Outputs = map[string]store.Realisation{}
	for _, o := range wanted {
		id, err := f.identity(d, o)
		if err != nil {
			return err
		}
		path := paths[o]
		if path.IsZero() {
			if path, err = outputPath(f, d, o); err != nil {
				return err
			}
		}
		if path.IsZero() {
			continue
		}
		r.Outputs[o] = store.Realisation{ID: id, OutPath: path}
		if known, err := f.b.store.Realisation(id); err == nil && known.OutPath == path {
			r.Outputs[o] = *known
		}
	}
	return nil
}
