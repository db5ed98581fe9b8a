package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/daemon/sandbox"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
	"cairn/store/failpoint"
)

// buildDir is where a builder finds its directory.
const buildDir = "/build"

// Causes of a build's end that are the build's own fault.
var (
	errTimeout  = errors.New("timed out")
	errSilent   = errors.New("silent for too long")
	errLogLimit = errors.New("log is too long")
)

// A Failure is why a derivation was not built.
type Failure struct {
	Status protocol.Status
	Text   string
}

func (f *Failure) Error() string { return f.Text }

func failure(s protocol.Status, format string, args ...any) error {
	return &Failure{Status: s, Text: fmt.Sprintf(format, args...)}
}

// run is a started job's work.
func (j *job) run() (*protocol.BuildResult, map[string]store.Path) {
	r := &protocol.BuildResult{Start: time.Now().Unix()}
	work := j.realise
	switch j.key.mode {
	case fetchObject:
		work = j.fetch
	case fetchOutputs:
		work = j.haveFetched
	}
	paths, err := j.do(r, work)
	r.Stop = time.Now().Unix()
	if err == nil {
		return r, paths
	}
	r.Status, r.Error = protocol.MiscFailure, err.Error()
	var f *Failure
	switch {
	case errors.As(err, &f):
		r.Status = f.Status
	case errors.Is(err, errLeft), errors.Is(err, errShutdown):
		r.Error = fmt.Sprintf("build of '%s' was cancelled: %v", j.key.drv, context.Cause(j.ctx))
	}
	return r, nil
}

// do does the job's work, unless there is no need.
func (j *job) do(r *protocol.BuildResult, work func(context.Context, *protocol.BuildResult) (map[string]store.Path, error)) (map[string]store.Path, error) {
	if err := j.ctx.Err(); err != nil {
		return nil, context.Cause(j.ctx)
	}
	if first := j.firstFailure(); first != nil {
		return nil, failure(protocol.DependencyFailed, "%d dependencies of derivation '%s' failed to build: '%s' failed: %s", j.failed(), j.key.drv, first.key.drv, first.result.Error)
	}
	return work(disk.WithLease(j.ctx, j.hold()), r)
}

// realise builds.
func (j *job) realise(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	if j.kind == derivation.Impure && !j.b.settings.HasExperimental("impure-derivations") {
		return nil, failure(protocol.InputRejected, "'%s' is impure: experimental Nix feature 'impure-derivations' is disabled; use '--extra-experimental-features impure-derivations' to override, for this daemon in its nix.conf", j.key.drv)
	}
	resolve, err := j.mustResolve()
	if err != nil {
		return nil, err
	}
	if resolve {
		return j.resolve(ctx, r)
	}
	if paths, err := j.keepPresent(); paths != nil || err != nil {
		r.Status = protocol.AlreadyValid
		return paths, err
	}
	if paths, err := j.fetchResolved(ctx); paths != nil || err != nil {
		r.Status = protocol.Substituted
		return paths, err
	}
	return j.perform(ctx, r)
}

// hold gives the job its lease.
func (j *job) hold() *disk.Lease {
	l := j.b.store.Lease("build of "+j.key.drv.String(), 0)
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	j.lease = l
	return l
}

// keepPresent returns the outputs when all are valid, and holds them.
func (j *job) keepPresent() (map[string]store.Path, error) {
	paths, err := j.present()
	if paths == nil || err != nil {
		return nil, err
	}
	if err := j.lease.Hold(slices.Collect(maps.Values(paths))...); err != nil {
		return nil, err
	}
	return j.present()
}

// failed counts the inputs that have failed so far.
func (j *job) failed() int {
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	n := 0
	for _, d := range j.deps {
		if d.ended && !d.result.Status.OK() {
			n++
		}
	}
	return n
}

// firstFailure follows failed inputs to the one that failed by itself.
func (j *job) firstFailure() *job {
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	first := j.broken
	for first != nil && first.broken != nil {
		first = first.broken
	}
	return first
}

func (j *job) mustResolve() (bool, error) {
	var failed error
	must := resolves(j.drv, j.kind, func(in store.Path) bool {
		d, err := j.facts.derivation(in)
		if err != nil {
			failed = err
			return true
		}
		kind, err := d.Kind()
		if err != nil {
			failed = err
		}
		return kind == derivation.InputAddressed || kind == derivation.Fixed
	})
	return must, failed
}

// present returns the outputs when all are valid and nothing else is to be done.
func (j *job) present() (map[string]store.Path, error) {
	if j.key.mode != Normal {
		return nil, nil
	}
	paths := map[string]store.Path{}
	for o := range j.drv.Outputs {
		p, err := outputPath(j.facts, j.drv, o)
		if err != nil {
			return nil, err
		}
		if p.IsZero() || !j.facts.valid(p) {
			return nil, nil
		}
		paths[o] = p
	}
	return paths, nil
}

// resolve builds the derivation with the inputs' paths in their places, and records its outputs for j, too.
func (j *job) resolve(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	inputs := map[store.DrvOutput]store.Path{}
	d, err := j.drv.Resolve(j.b.store.Dir(), func(drv store.Path, output string) (store.Path, bool) {
		p, id, ok := j.realisedInput(drv, output)
		if ok && !id.Drv.IsZero() {
			inputs[id] = p
		}
		return p, ok
	})
	if err != nil {
		return nil, err
	}
	info, err := j.b.store.AddStream(ctx, d.Name+".drv", store.Text, store.SHA256, d.References(), strings.NewReader(string(d.ATerm())))
	if err != nil {
		return nil, fmt.Errorf("write resolved derivation: %w", err)
	}
	child, err := j.adopt(info.Path, d)
	if err != nil {
		return nil, err
	}
	defer func() {
		j.b.mu.Lock()
		defer j.b.mu.Unlock()
		j.b.leave(child)
	}()
	select {
	case <-child.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	start := r.Start
	*r = *child.result
	r.Start = start
	j.linkLog(info.Path)
	if !r.Status.OK() {
		return nil, &Failure{Status: r.Status, Text: r.Error}
	}
	if r.Status == protocol.AlreadyValid {
		r.Status = protocol.ResolvesToAlreadyValid
	}
	if err := j.lease.Hold(slices.Collect(maps.Values(child.paths))...); err != nil {
		return nil, err
	}
	return child.paths, j.record(ctx, child.paths, inputs)
}

// realisedInput returns the path and the identity of an input. Those of impure ones are known to this job alone, and have
// no identity.
func (j *job) realisedInput(drv store.Path, output string) (store.Path, store.DrvOutput, bool) {
	d, err := j.facts.derivation(drv)
	if err != nil {
		return store.Path{}, store.DrvOutput{}, false
	}
	if d.Outputs[output].Kind() == derivation.Impure {
		p, ok := j.builtInput(drv, output)
		return p, store.DrvOutput{}, ok
	}
	p, err := outputPath(j.facts, d, output)
	if err != nil || p.IsZero() || !j.facts.valid(p) {
		return store.Path{}, store.DrvOutput{}, false
	}
	id, err := j.facts.identity(d, output)
	return p, id, err == nil
}

// builtInput returns the path of an output of an input that was built for this job.
func (j *job) builtInput(drv store.Path, output string) (store.Path, bool) {
	for _, d := range j.deps {
		if d.key.drv == drv && d.result != nil && d.result.Status.OK() {
			p, ok := d.paths[output]
			return p, ok
		}
	}
	return store.Path{}, false
}

// adopt joins or makes the job of the resolved derivation.
func (j *job) adopt(path store.Path, d *derivation.Derivation) (*job, error) {
	kind, err := d.Kind()
	if err != nil {
		return nil, err
	}
	j.b.mu.Lock()
	defer j.b.mu.Unlock()
	child := j.b.enter(j.b, jobKey{path, j.key.mode}, func() *job {
		f := j.b.facts()
		f.drvs[path] = d
		return &job{drv: d, kind: kind, facts: f, derived: true}
	})
	j.child = child
	for _, w := range *j.watches.Load() {
		w.join(child)
	}
	return child, nil
}

// record makes the outputs of a derivation known whose text does not say their paths, and with Nix's ca-derivations
// those of every derivation, because its clients copy them from store to store.
// inputs are the realisations that it was resolved with.
func (j *job) record(ctx context.Context, paths map[string]store.Path, inputs map[store.DrvOutput]store.Path) error {
	if j.kind == derivation.Impure {
		return nil // all of them have the same identity
	}
	if j.kind != derivation.Floating && j.kind != derivation.Deferred && !j.b.settings.HasExperimental("ca-derivations") {
		return nil
	}
	keys, err := j.b.signingKeys()
	if err != nil {
		return err
	}
	for o, p := range paths {
		id, err := j.facts.identity(j.drv, o)
		if err != nil {
			return err
		}
		refs, err := j.b.store.References(p)
		if err != nil {
			return err
		}
		r := &store.Realisation{ID: id, OutPath: p, Dependents: map[store.DrvOutput]store.Path{}}
		for in, path := range inputs {
			for _, ref := range refs {
				if ref == path {
					r.Dependents[in] = path
				}
			}
		}
		r.Signatures = signAll(keys, r.Fingerprint())
		if err := j.b.store.AddRealisation(ctx, r); err != nil {
			return err
		}
		failpoint.Hit("build/realisation/added")
		if !j.b.store.IsValid(j.key.drv) {
			continue
		}
		if err := j.b.store.LinkOutput(ctx, j.key.drv, o, p); err != nil {
			return err
		}
	}
	return nil
}

// attempt is one run of a builder.
type attempt struct {
	*job
	drv     *derivation.Derivation // the job's, with the outputs' paths for their placeholders
	network bool
	machine Machine      // nil: this one
	direct  []store.Path // inputs
	inputs  []store.Path // and their closure
	outputs []*output
	work    string // directory of ours below the store directory
	log     *logWriter
	uid     uint32
	seat    *seat
	keys    []archive.SecretKey // that sign the outputs
}

// workDirs are the parts of the working directory: of the builder its own, what it sees as /tmp, and what it sees in the place of the store
// directory; and copies of outputs.
var workDirs = []string{"build", "tmp", "store", "out"}

func (a *attempt) dir(name string) string { return filepath.Join(a.work, name) }

func (a *attempt) run(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	if err := a.checkWishes(); err != nil {
		return nil, err
	}
	if err := a.b.store.Room(); err != nil {
		return nil, failure(protocol.TransientFailure, "build '%s': %v", a.key.drv, err)
	}
	keys, err := a.b.signingKeys() // now, and not after hours of work
	if err != nil {
		return nil, fmt.Errorf("build '%s': %w", a.key.drv, err)
	}
	a.keys = keys
	if err := a.collectInputs(); err != nil {
		return nil, err
	}
	if err := a.nameOutputs(); err != nil {
		return nil, err
	}
	work, err := a.b.store.TempDir()
	if err != nil {
		return nil, fmt.Errorf("build '%s': %w", a.key.drv, err)
	}
	a.work = work
	defer a.removeWork()
	slot, free := a.b.slot()
	defer free()
	a.uid = hostID(slot)
	if err := a.execute(ctx, r); err != nil {
		return nil, err
	}
	done, err := take(ctx, a.b.finishing)
	if err != nil {
		return nil, err
	}
	defer done()
	if a.seat != nil { // another machine's place is not ours to give
		a.seat.end()
	}
	paths, err := a.finish(ctx, r)
	if status := statusOf(err); a.b.settings.KeepFailed && (status == protocol.OutputRejected || status == protocol.NotDeterministic) {
		a.keep()
	}
	return paths, err
}

// collectInputs holds the inputs and finds everything that the builder may see.
func (a *attempt) collectInputs() error {
	direct := append([]store.Path{}, a.drv.InputSrcs...)
	for _, drv := range sortedKeys(a.drv.InputDrvs) {
		for _, o := range a.drv.InputDrvs[drv] {
			p, _, ok := a.realisedInput(drv, o)
			if !ok {
				return failure(protocol.InputRejected, "input '%s' of '%s', output %q, is not there", drv, a.key.drv, o)
			}
			direct = append(direct, p)
		}
	}
	if err := a.lease.Hold(append(direct, a.key.drv)...); err != nil {
		return err
	}
	for _, p := range direct {
		if !a.b.store.IsValid(p) {
			return failure(protocol.InputRejected, "input '%s' of '%s' is not valid and cannot be built", p, a.key.drv)
		}
	}
	a.direct = store.SortPaths(direct)
	var err error
	if a.inputs, err = a.b.store.Closure(direct...); err != nil {
		return err
	}
	if err := a.b.sound(direct); err != nil {
		return failure(protocol.MiscFailure, "an input of '%s' cannot be used: %v", a.key.drv, err)
	}
	return nil
}

// sound returns why objects cannot be used, when something in their closures is known to be damaged.
func (b *Builder) sound(paths []store.Path) error {
	bad, err := b.store.DamagedIn(paths...)
	if err != nil || len(bad) == 0 {
		return err
	}
	return b.store.Damage(bad[0])
}

// nameOutputs decides under which paths the builder makes its outputs.
func (a *attempt) nameOutputs() error {
	rewrite := map[string]string{}
	for _, name := range a.drv.OutputNames() {
		o := &output{name: name, final: a.drv.Outputs[name].Path, path: a.drv.Outputs[name].Path}
		if o.final.IsZero() {
			p, err := a.b.store.Dir().ScratchPath(a.key.drv, name, a.drv.OutputName(name), store.Path{})
			if err != nil {
				return err
			}
			o.path = p
		}
		rewrite[derivation.Placeholder(name)] = o.path.String()
		a.outputs = append(a.outputs, o)
	}
	a.drv = a.drv.Clone()
	a.drv.Rewrite(rewrite)
	a.network = a.kind == derivation.Fixed || a.kind == derivation.Impure
	return nil
}

// execute runs the builder or the built-in function, with the log open.
func (a *attempt) execute(ctx context.Context, r *protocol.BuildResult) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	log, err := a.b.newLogWriter(a.key.drv, a.tell, a.b.settings.MaxLog, stop)
	if err != nil {
		return fmt.Errorf("build '%s': %w", a.key.drv, err)
	}
	defer log.Close()
	a.log = log
	a.setLog(log)
	set := a.b.settings
	if set.Timeout > 0 && a.machine == nil { // other machines know it
		defer time.AfterFunc(set.Timeout, func() { stop(errTimeout) }).Stop()
	}
	if set.MaxSilent > 0 && a.machine == nil {
		t := time.AfterFunc(set.MaxSilent, func() { stop(errSilent) })
		defer t.Stop()
		log.touched = func() { t.Reset(set.MaxSilent) }
	}
	if a.machine != nil {
		err = a.away(ctx, r)
	} else if name, ok := strings.CutPrefix(a.drv.Builder, "builtin:"); ok {
		err = a.builtin(ctx, name)
	} else {
		err = a.sandboxed(ctx, r)
	}
	if err != nil && set.KeepFailed && a.machine == nil {
		a.keep()
	}
	if ctx.Err() == nil {
		r.TimesBuilt = 1 // not that of a builder that was ended
	}
	return a.explain(ctx, err)
}

// explain turns the end of a builder into a Failure.
func (a *attempt) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	set := a.b.settings
	switch cause := context.Cause(ctx); {
	case cause == nil:
	case errors.Is(cause, errTimeout):
		return failure(protocol.TimedOut, "building of '%s' timed out after %d seconds", a.key.drv, int(set.Timeout.Seconds()))
	case errors.Is(cause, errSilent):
		return failure(protocol.TimedOut, "building of '%s' timed out after %d seconds of silence", a.key.drv, int(set.MaxSilent.Seconds()))
	case errors.Is(cause, errLogLimit):
		return failure(protocol.LogLimitExceeded, "'%s' killed after writing more than %d bytes of log output", a.key.drv, set.MaxLog)
	default:
		return cause
	}
	return err
}

// sandboxed runs the builder.
func (a *attempt) sandboxed(ctx context.Context, r *protocol.BuildResult) error {
	if a.uid == 0 {
		return fmt.Errorf("build '%s': this container has no user id to give to a builder", a.key.drv)
	}
	spec, err := a.spec()
	if err != nil {
		return err
	}
	run := func() (sandbox.Status, error) { return a.b.boxes.Run(ctx, spec, a.log) }
	if a.requires(featureRecursive) {
		run = func() (sandbox.Status, error) { return a.runRecursive(ctx, spec) }
	}
	st, err := run()
	a.log.Close()
	r.CPUUser, r.CPUSystem = &st.User, &st.System
	var setup *sandbox.SetupError
	switch {
	case errors.As(err, &setup) && setup.Step == sandbox.StepExecute:
		return failure(protocol.PermanentFailure, "builder for '%s' cannot be executed: %s%s", a.key.drv, setup.Text, a.shellHint())
	case err != nil:
		return fmt.Errorf("build '%s': %w", a.key.drv, err)
	case !st.Success():
		status := protocol.PermanentFailure
		if a.network {
			status = protocol.TransientFailure
		}
		what := "failed with " + st.String()
		if st.Signal != 0 {
			name := st.Signal.String() // libc, and so Nix, writes it with a capital
			what = fmt.Sprintf("failed due to signal %d (%s)", int(st.Signal), strings.ToUpper(name[:1])+name[1:])
		}
		return failure(status, "builder for '%s' %s%s", a.key.drv, what, a.log.lastLines(a.key.drv))
	}
	return nil
}

func (a *attempt) shellHint() string {
	if a.drv.Builder != "/bin/sh" || a.b.opts.SandboxPaths["/bin/sh"] != "" {
		return ""
	}
	return "; the host has no shell to give to builders: install busybox-static or name one in the sandbox paths"
}

// spec lays out the working directory and says what the builder sees.
func (a *attempt) spec() (*sandbox.Spec, error) {
	env, files, err := a.environment()
	if err != nil {
		return nil, err
	}
	if err := a.layOut(files); err != nil {
		return nil, fmt.Errorf("build '%s': lay out: %w", a.key.drv, err)
	}
	s := &sandbox.Spec{
		Path:    a.drv.Builder,
		Argv:    append([]string{path.Base(a.drv.Builder)}, a.drv.Args...),
		Env:     env,
		Dir:     buildDir,
		Root:    a.dir("out"), // nothing is there outside before the builder has ended
		Network: a.network,
		Linux32: a.drv.System == "i686-linux",
		HostUID: a.uid, HostGID: a.uid,
		Files: map[string]string{
			"/etc/passwd": "root:x:0:0:Nix build user:" + buildDir + ":/noshell\nnixbld:x:1000:100:Nix build user:" + buildDir + ":/noshell\nnobody:x:65534:65534:Nobody:/:/noshell\n",
			"/etc/group":  "root:x:0:\nnixbld:!:100:\nnogroup:x:65534:\n",
		},
		Mounts: []sandbox.Mount{
			{Source: a.dir("build"), Target: buildDir, Writable: true},
			{Source: a.dir("tmp"), Target: "/tmp", Writable: true},
			{Source: a.dir("store"), Target: a.b.store.Dir().String(), Writable: true},
		},
	}
	for _, p := range a.inputs {
		s.Mounts = append(s.Mounts, sandbox.Mount{Source: a.b.store.RealPath(p), Target: p.String()})
	}
	host, err := a.hostMounts()
	if err != nil {
		return nil, err
	}
	s.Mounts = append(append(s.Mounts, host...), a.devices()...)
	if a.network {
		networkFiles(s)
	} else {
		s.Files["/etc/hosts"] = "127.0.0.1 localhost\n::1 localhost\n"
	}
	return s, nil
}

// networkFiles gives a builder that shares the host's network what it needs to find its way in it.
func networkFiles(s *sandbox.Spec) {
	s.Files["/etc/nsswitch.conf"] = "hosts: files dns\nservices: files\n"
	for _, f := range []string{"/etc/resolv.conf", "/etc/services", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"} {
		if real, err := filepath.EvalSymlinks(f); err == nil {
			s.Mounts = append(s.Mounts, sandbox.Mount{Source: real, Target: f})
		}
	}
}

// layOut makes the directories of a build. Those the builder writes to belong to it.
func (a *attempt) layOut(files map[string][]byte) error {
	modes := map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky, "store": 0o755} // others are for their owner alone
	for _, name := range workDirs {
		if err := os.Mkdir(a.dir(name), 0o700); err != nil {
			return err
		}
		if mode, ok := modes[name]; ok {
			if err := os.Chmod(a.dir(name), mode); err != nil {
				return err
			}
		}
	}
	mine := []string{a.dir("build"), a.dir("store")}
	for name, data := range files {
		file := filepath.Join(a.dir("build"), name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
		mine = append(mine, file)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	for _, f := range mine {
		if err := os.Lchown(f, int(a.uid), int(a.uid)); err != nil {
			return err
		}
	}
	return nil
}

// keep moves the build directory of a failed build to where the user finds it, and may read it.
// It stays the builder's: giving its files to somebody would let the builder choose what is given.
func (a *attempt) keep() {
	dir := filepath.Join(a.b.store.Layout().StateDir, "builds")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		a.log.note(fmt.Sprintf("warning: the build directory is not kept: %v", err))
		return
	}
	os.Chmod(a.dir("build"), 0o755)
	for n := 0; ; n++ {
		target := filepath.Join(dir, fmt.Sprintf("nix-build-%s-%d", a.key.drv.Name(), n))
		err := moveOrCopy(a.dir("build"), target)
		switch {
		case err == nil:
			a.log.note(fmt.Sprintf("note: keeping build directory '%s'", target))
			return
		case !errors.Is(err, os.ErrExist):
			a.log.note(fmt.Sprintf("warning: the build directory is not kept: %v", err))
			return
		}
	}
}

// moveOrCopy gives a directory another name, which must be free, or makes a copy there when that is on another file system: one without
// owners, and only of what an archive can hold.
func moveOrCopy(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return os.ErrExist
	}
	return copyTree(from, to)
}

// finish makes what the builder left behind valid.
func (a *attempt) finish(ctx context.Context, r *protocol.BuildResult) (map[string]store.Path, error) {
	outputs, err := a.readOutputs(ctx)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("build/outputs/read")
	paths := map[string]store.Path{}
	for _, o := range a.outputs {
		paths[o.name] = o.final
	}
	if a.key.mode != Normal {
		r.Status = protocol.Built
		again := a.compare
		if a.key.mode == Repair {
			again = a.replace
		}
		if err := again(ctx); err != nil {
			r.NonDeterministic = statusOf(err) == protocol.NotDeterministic
			return nil, err
		}
		return paths, a.postBuildHook(ctx, paths)
	}
	for _, o := range outputs {
		o.Info.Signatures = signAll(a.keys, o.Info.Fingerprint())
	}
	if err := a.b.store.Register(ctx, outputs); err != nil {
		return nil, fmt.Errorf("build '%s': %w", a.key.drv, err)
	}
	failpoint.Hit("build/outputs/registered")
	if err := a.record(ctx, paths, nil); err != nil {
		return nil, err
	}
	failpoint.Hit("build/outputs/recorded")
	r.Status = protocol.Built
	return paths, a.postBuildHook(ctx, paths)
}
