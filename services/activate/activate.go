// Package activate switches this host to a system and back.
//
// # A switch
//
//	lock → recover what a crash left → plan and preflight: every conflict, before any change → journal →
//	stop what must stop first → accounts → files → generation → host name → tmpfiles → daemon-reload →
//	reload, restart, start → settle → health checks → disable accounts → state → confirm, or wait for it
//
// On any failure everything that was begun is undone, and the old units run again. The result says which.
//
// # On disk
//
//	VAR/profiles/system          store/profile: the current system; one rename makes all links through it live
//	VAR/journal/lock             locked (flock) by whoever changes the host; holds a line saying who
//	VAR/journal/pending          link to the journal that is not closed; absent otherwise
//	VAR/journal/switch-ID.jsonl  journals
//	VAR/journal/state.json       State: what is ours, and what was there before
//	VAR/journal/backup/ID-N      files of the host that ours replaced
//	/etc/PATH                    → VAR/profiles/system/etc/PATH, or a copy when it has a mode
//	/etc/systemd/system/UNIT     → VAR/profiles/system/units/UNIT, and links in UNIT.wants, UNIT.requires
//	/etc/ssh/authorized_keys.d/USER, /etc/tmpfiles.d/cairn.conf, /etc/hostname, /etc/localtime, /etc/timezone
//	/etc/systemd/system/cairn-recover.service   runs Recover at boot; installed by the first switch, and stays
//	/run/current-system, /run/booted-system     → the system in the store
//
// # Journal
//
// One JSON record per line, each on disk before what it announces happens:
//
//	open   version, id, from, system, bootID
//	begin  seq, step                 a step is data that says how to do and how to undo it
//	await  deadline, bootID          all is done; waits to be confirmed
//	confirm | undo reason
//	close  outcome: switched | undone | incomplete, errors
//
// A torn last line had no effect. States: open → (await) → confirm → close, or open → (await) → undo → close. A journal that
// is not closed is undone by Recover, unless it says confirm, or awaits in the same boot with its time
// not over. Undo is idempotent, so a crash in an undo is undone again. Steps are undone as follows, which is the reverse order
// but for units, whose old definitions must be back before they start: new units stop; files, generation, accounts
// and host name are put back, last first; daemon-reload; the old units run again.
//
// # Invariants
//
// A path that is not ours is never changed, unless its claim says replace; then what was there
// comes back when the system no longer claims it, or when the switch is undone. Accounts are disabled, never deleted, except by the undo of the switch that made them;
// homes and the directories made by tmpfiles stay. A unit is kept, with its process, when its definition and its triggers are
// unchanged; reloaded when only its reload triggers changed; restarted otherwise.
// A plan that would take the way in is refused: see protect.go.
//
// The lock is the outermost; the engine's mutex and the connection's are innermost, and never held together. The engine starts no goroutine that outlives a call.
//
// It knows no service by name, sets no extended attributes, and runs no shell.
package activate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/services/system"
	"cairn/store"
	"cairn/store/profile"
)

// Errors that callers test for with errors.Is.
var (
	// ErrBusy says that another switch has the lock.
	ErrBusy = errors.New("another switch is running")
	// ErrNoSystemd says that this host has no service manager to talk to.
	ErrNoSystemd = errors.New("systemd does not answer")
	// ErrUnconfirmed says that the last switch still waits to be confirmed.
	ErrUnconfirmed = errors.New("the last switch waits to be confirmed")
	// ErrNothingPending says that no switch waits to be confirmed.
	ErrNothingPending = errors.New("no switch waits to be confirmed")
)

// Options change where and how an engine works. The zero value is this host.
type Options struct {
	Root         string           // what stands before every path of the host; default "/". Anything else is for tests: only files change there.
	StateDir     string           // default /cairn/var; also the name that links have in them
	StoreDir     store.Dir        // default /cairn/store
	RealStoreDir string           // where the objects are; default Root + StoreDir
	Program      []string         // runs "recover"; default this program with "system recover"; must be at a place that survives a reboot
	Session      Session          // who asks; default from the environment
	Settle       time.Duration    // units must stay up this long; default 1 s
	AllowLockout bool             // do not refuse plans that take the way in
	MinFreeBytes int64            // refuse below; default 16 MiB
	MinFreeFiles int64            // inodes; default 256
	Systemd      Systemd          // default: dialled when needed
	Logger       *slog.Logger     // default: none
	Progress     func(msg string) // one line for each thing begun; default: none
	Journaled    func(*Record)    // called when a record is on disk, before its effect; default: none
}

// Engine changes one host. Its methods may be called by several goroutines; the lock orders them.
type Engine struct {
	opts Options

	mu      sync.Mutex // guards systemd; innermost
	systemd Systemd    // nil until connect; not changed afterwards but by Close
}

// New makes an engine. Nothing is touched before the first call.
func New(opts *Options) *Engine {
	if opts == nil {
		opts = &Options{}
	}
	e := &Engine{opts: *opts, systemd: opts.Systemd}
	o := &e.opts
	setDefault(&o.Root, "/")
	setDefault(&o.StateDir, "/cairn/var")
	setDefault(&o.StoreDir, store.DefaultDir)
	setDefault(&o.RealStoreDir, filepath.Join(o.Root, string(o.StoreDir)))
	setDefault(&o.Settle, time.Second)
	setDefault(&o.MinFreeBytes, 16<<20)
	setDefault(&o.MinFreeFiles, 256)
	setDefault(&o.Session, CurrentSession(os.Getenv))
	setDefault(&o.Logger, slog.New(slog.DiscardHandler))
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if len(o.Program) == 0 {
		if exe, err := os.Executable(); err == nil {
			o.Program = []string{exe, "system", "recover"}
		}
	}
	return e
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// Close ends the connection to systemd that the engine made.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.systemd != nil && e.opts.Systemd == nil {
		err := e.systemd.Close()
		e.systemd = nil
		return err
	}
	return nil
}

func (e *Engine) connect(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.systemd != nil {
		return nil
	}
	s, err := DialSystemd(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	e.systemd = s
	return nil
}

func (e *Engine) host(path string) string   { return filepath.Join(e.opts.Root, path) }
func (e *Engine) journalDir() string        { return e.host(e.opts.StateDir + "/journal") }
func (e *Engine) statePath() string         { return e.opts.StateDir + "/journal/state.json" }
func (e *Engine) profileLink() string       { return e.opts.StateDir + "/profiles/system" }
func (e *Engine) profile() *profile.Profile { return profile.Open(e.host(e.profileLink())) }
func (e *Engine) backup(id string, n int) string {
	return fmt.Sprintf("%s/journal/backup/%s-%d", e.opts.StateDir, id, n)
}

// real returns where a path of the host or of the store is.
func (e *Engine) real(path string) string {
	if rest, ok := strings.CutPrefix(path, string(e.opts.StoreDir)+"/"); ok {
		return filepath.Join(e.opts.RealStoreDir, rest)
	}
	return e.host(path)
}

func (e *Engine) realAll(paths []string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = e.real(p)
	}
	return out
}

// Manifest reads the manifest of a system; of the empty path, an empty one.
func (e *Engine) Manifest(sys string) (*system.Manifest, error) {
	if sys == "" {
		return &system.Manifest{Version: system.ManifestVersion}, nil
	}
	if _, err := e.opts.StoreDir.ParsePath(sys); err != nil {
		return nil, fmt.Errorf("system %q: %w", sys, err)
	}
	return system.ReadManifest(e.real(sys))
}

// lock takes the host's lock, naming who has it otherwise. It waits until the context ends when wait is set.
func (e *Engine) lock(ctx context.Context, wait bool) (release func(), err error) {
	if err := os.MkdirAll(filepath.Join(e.journalDir(), "backup"), 0o700); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(e.journalDir(), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) || !wait {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
			continue
		}
		break
	}
	if err != nil {
		who := make([]byte, 200)
		n, _ := f.ReadAt(who, 0)
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrBusy, strings.TrimSpace(string(who[:n])))
	}
	f.Truncate(0)
	f.WriteAt(fmt.Appendf(nil, "process %d since %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339)), 0)
	return func() { f.Close() }, nil
}

// run runs a program of the host. What it says is in the error, when there is one.
func (e *Engine) run(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if !filepath.IsAbs(argv[0]) {
		cmd = exec.CommandContext(ctx, lookProgram(argv[0]), argv[1:]...)
	}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	said := strings.TrimSpace(string(out[:min(len(out), 4096)]))
	if err != nil {
		return said, fmt.Errorf("run %s: %w%s", strings.Join(argv, " "), err, colon(said))
	}
	return said, nil
}

func lookProgram(name string) string {
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		p := filepath.Join(dir, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return name
}

func colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

// sinceBoot is a clock that no one sets.
func sinceBoot() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return ts.Sec, nil
}
