package build

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/store"
)

// hookGrace is how long a hook that was told to end may keep its output open.
const hookGrace = 2 * time.Second

// hook is a program of the administrator's that a build runs.
type hook struct {
	program string
	args    []string
	env     []string
	dir     string
	uid     uint32 // 0: the daemon's user
	line    func(string)
}

// run runs the hook to its end or ctx's, and passes on what it prints, line by line.
func (h *hook) run(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, h.program, h.args...)
	cmd.Env, cmd.Dir, cmd.WaitDelay = h.env, h.dir, hookGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if h.uid != 0 && os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: h.uid, Gid: h.uid}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out := &lineWriter{line: h.line}
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	out.Close()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exit) && exit.Exited():
		return fmt.Errorf("program '%s' failed with exit code %d", h.program, exit.ExitCode())
	case errors.As(err, &exit):
		return fmt.Errorf("program '%s' failed with %v", h.program, exit)
	}
	return fmt.Errorf("program '%s' cannot be run: %w", h.program, err)
}

// lineWriter cuts what is written into lines.
type lineWriter struct {
	line    func(string)
	mu      sync.Mutex // guards partial
	partial []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partial = append(w.partial, p...)
	for {
		i := bytes.IndexByte(w.partial, '\n')
		if i < 0 && len(w.partial) < maxLine {
			return len(p), nil
		}
		rest := i + 1
		if i < 0 {
			i, rest = maxLine, maxLine
		}
		w.line(string(w.partial[:i]))
		w.partial = append([]byte(nil), w.partial[rest:]...)
	}
}

// Close passes on what is left.
func (w *lineWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.partial) > 0 {
		w.line(string(w.partial))
		w.partial = nil
	}
	return nil
}

// postBuildHook runs the post-build hook for outputs that have become valid. They stay valid when it fails, but the build does not succeed.
// The build's own time-out holds for it, counted anew.
func (a *attempt) postBuildHook(ctx context.Context, paths map[string]store.Path) error {
	set := a.b.settings
	if set.PostBuildHook == "" {
		return nil
	}
	if set.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, set.Timeout, errTimeout)
		defer stop()
	}
	var outputs []string
	for _, p := range store.SortPaths(slices.Collect(maps.Values(paths))) {
		outputs = append(outputs, p.String())
	}
	a.tell(Event{Kind: HookStarted, Text: set.PostBuildHook})
	defer a.tell(Event{Kind: HookStopped})
	h := &hook{
		program: set.PostBuildHook,
		env:     a.hookEnvironment("DRV_PATH="+a.key.drv.String(), "OUT_PATHS="+strings.Join(outputs, " ")),
		line:    func(s string) { a.tell(Event{Kind: HookLine, Text: s}) },
	}
	err := h.run(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTimeout):
		return failure(protocol.TimedOut, "post-build hook of '%s' timed out after %d seconds: program '%s'", a.key.drv, int(set.Timeout.Seconds()), set.PostBuildHook)
	case ctx.Err() != nil:
		return err
	}
	return failure(protocol.MiscFailure, "post-build hook of '%s': %v", a.key.drv, err)
}

// hookEnvironment is the daemon's own, with the way to its socket and the settings that are not the defaults.
func (a *attempt) hookEnvironment(more ...string) []string {
	env := os.Environ()
	layout := a.b.store.Layout()
	for _, v := range []string{
		"NIX_REMOTE=daemon", "NIX_DAEMON_SOCKET_PATH=" + layout.SocketPath, "NIX_STORE_DIR=" + layout.Dir.String(), "NIX_STATE_DIR=" + layout.StateDir,
	} {
		if name, _, _ := strings.Cut(v, "="); os.Getenv(name) == "" {
			env = append(env, v)
		}
	}
	return append(append(env, "NIX_CONFIG="+configText(a.b.settings)), more...)
}

// configText writes the settings that are not the defaults, except those that are ours alone.
func configText(s *settings.Settings) string {
	var b strings.Builder
	usual := settings.Defaults()
	for _, setting := range settings.All() {
		text := setting.Text(s)
		if setting.Rights == settings.Daemon || text == setting.Text(usual) || strings.Contains(text, "\n") {
			continue
		}
		fmt.Fprintf(&b, "%s = %s\n", setting.Name, text)
	}
	return b.String()
}

// diffHook lets the administrator's program look at two results of one build, as the build's user, or as nobody if it had none.
// It decides nothing: what goes wrong is a line of the log.
func (a *attempt) diffHook(ctx context.Context, first, second string) {
	set := a.b.settings
	if set.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, set.Timeout, errTimeout)
		defer stop()
	}
	h := &hook{
		program: set.DiffHook, dir: "/", uid: cmp.Or(a.uid, nobody), env: os.Environ(),
		args: []string{first, second, a.key.drv.String(), a.dir("build")},
		line: a.log.note,
	}
	if err := h.run(ctx); err != nil {
		a.log.note(fmt.Sprintf("error: diff hook execution failed: diff-hook %v", err))
	}
}
