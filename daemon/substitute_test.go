package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
)

// from makes the options of a session that fetches from another daemon.
func from(other *rig, parameters string) *protocol.Options {
	return &protocol.Options{UseSubstitutes: true, MaxJobs: protocol.Keep, Verbosity: protocol.LevelInfo, Overrides: map[string]string{
		"substituters": "unix://" + other.socket + "?" + parameters,
	}}
}

func (r *rig) addText(name, text string, refs ...store.Path) store.Path {
	r.t.Helper()
	info, err := r.store.AddStream(context.Background(), name, store.Text, store.SHA256, refs, strings.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	return info.Path
}

// TestSubstituteOperations asks one daemon for what another has.
func TestSubstituteOperations(t *testing.T) {
	source, r := start(t, nil), start(t, nil)
	low := source.addText("low", "low")
	top := source.addText("top", "top "+low.String(), low)
	gone := store.DefaultDir.String() + "/" + strings.Repeat("0", 32) + "-gone"
	none, err := store.DefaultDir.ParsePath(gone)
	if err != nil {
		t.Fatal(err)
	}
	c := r.raw(34)
	c.send(protocol.OpSetOptions, func(e *protocol.Encoder) { e.Options(from(source, "")) })
	c.last()
	ask := func(op protocol.Op, p store.Path) bool {
		t.Helper()
		c.send(op, func(e *protocol.Encoder) { e.Path(p) })
		c.last()
		return c.d.Bool()
	}
	if !ask(protocol.OpHasSubstitutes, top) || ask(protocol.OpHasSubstitutes, none) {
		t.Error("HasSubstitutes")
	}
	if ask(protocol.OpQuerySubstitutablePathInfo, none) || !ask(protocol.OpQuerySubstitutablePathInfo, top) {
		t.Error("QuerySubstitutablePathInfo")
	}
	if deriver, refs, down, size := c.d.OptionalPath(), c.d.Paths(), c.d.Uint64(), c.d.Uint64(); !deriver.IsZero() || len(refs) != 1 || refs[0] != low || down != 0 || size == 0 {
		t.Errorf("QuerySubstitutablePathInfo: %v %v %d %d", deriver, refs, down, size)
	}
	c.send(protocol.OpQuerySubstitutablePathInfos, func(e *protocol.Encoder) {
		e.Uint64(2)
		e.Path(none)
		e.Text("")
		e.Path(low)
		e.Text("")
	})
	c.last()
	if n, p := c.d.Uint64(), c.d.Path(); n != 1 || p != low {
		t.Errorf("QuerySubstitutablePathInfos: %d %s", n, p)
	}
	c.d.OptionalPath()
	c.d.Paths()
	c.d.Uint64()
	c.d.Uint64()
	c.send(protocol.OpQuerySubstitutablePaths, func(e *protocol.Encoder) { e.Paths([]store.Path{none, top}) })
	c.last()
	if list := c.d.Paths(); len(list) != 1 || list[0] != top {
		t.Errorf("QuerySubstitutablePaths: %v", list)
	}
	valid := func(substitute bool) []store.Path {
		c.send(protocol.OpQueryValidPaths, func(e *protocol.Encoder) {
			e.Paths([]store.Path{none, top})
			e.Bool(substitute)
		})
		c.last()
		return c.d.Paths()
	}
	if list := valid(false); len(list) != 0 {
		t.Errorf("valid before: %v", list)
	}
	if list := valid(true); len(list) != 1 || list[0] != top || !r.store.IsValid(low) {
		t.Errorf("valid afterwards: %v", list)
	}
}

// TestEnsurePath fetches from another daemon, under the rules of trust.
func TestEnsurePath(t *testing.T) {
	source, r := start(t, nil), start(t, nil)
	ctx := context.Background()
	a := source.addText("a", "a")
	archive := narOf(t, "built")
	info := &store.Info{NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive)), References: []store.Path{a}}
	var err error
	if info.Path, err = store.DefaultDir.ParsePath(store.DefaultDir.String() + "/" + strings.Repeat("1", 32) + "-built"); err != nil {
		t.Fatal(err)
	}
	if err := source.store.Add(ctx, info, strings.NewReader(string(archive))); err != nil {
		t.Fatal(err)
	}
	var warned []string
	c, err := client.Dial(ctx, r.socket, &client.Options{Observer: client.ObserverFunc(func(m *protocol.Message) {
		if m.Kind == protocol.KindNext {
			warned = append(warned, m.Text)
		}
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetOptions(ctx, from(source, "")); err != nil {
		t.Fatal(err)
	}
	if err := c.Ensure(ctx, a); err != nil {
		t.Error(err)
	}
	if err := c.Ensure(ctx, info.Path); err == nil || !strings.Contains(err.Error(), "does not exist and cannot be created") || len(warned) != 1 {
		t.Errorf("unsigned: %v, warned of %q", err, warned)
	}
	if err := c.SetOptions(ctx, from(source, "trusted=true")); err != nil {
		t.Fatal(err)
	}
	if err := c.Ensure(ctx, info.Path); err != nil {
		t.Error(err)
	}
	if m, err := c.Missing(ctx, []protocol.Target{{Path: info.Path}}, nil); err != nil || len(m.Substitute) != 0 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestLogFromCache shows a log that only a cache has.
func TestLogFromCache(t *testing.T) {
	r := start(t, nil)
	drv := r.addText("x", "x")
	var err error
	if drv, err = store.DefaultDir.ParsePath(strings.TrimSuffix(drv.String(), "-x") + "-x.drv"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "log", drv.Base()), []byte("it was built\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := r.dial()
	var log strings.Builder
	if err := c.FollowLog(context.Background(), drv, &log); err == nil {
		t.Error("there is a log without caches")
	}
	o := &protocol.Options{UseSubstitutes: true, MaxJobs: protocol.Keep, Overrides: map[string]string{"substituters": "file://" + dir}}
	if err := c.SetOptions(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if err := c.FollowLog(context.Background(), drv, &log); err != nil || log.String() != "it was built\n" {
		t.Errorf("%q, %v", log.String(), err)
	}
}
