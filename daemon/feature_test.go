package daemon_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/archive"
	"cairn/archive/wire"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/store"
)

// task is something that a client can do, and the operation of ours that does it best.
type task struct {
	op      protocol.Op
	without bool // it can also be done without
	do      func(*client.Conn) (string, error)
}

// grown is a daemon, perhaps an older one, with objects: a, b that refers to it, a derivation, and one that is dead.
type grown struct {
	*rig
	key  archive.SecretKey
	a, b store.Path
	drv  store.Path
	dead store.Path
}

func grow(t *testing.T, withhold ...protocol.Feature) *grown {
	t.Helper()
	g := &grown{rig: start(t, &daemon.Options{Withhold: withhold})}
	key, err := archive.GenerateKey("here-1")
	if err == nil {
		err = key.WriteFile(filepath.Join(g.layout.ConfDir, "signing-key.sec"))
	}
	if err == nil {
		_, err = archive.Authorize(filepath.Join(g.layout.ConfDir, "acl"), key.Public(), archive.Import)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := g.rig.dial()
	g.key, g.a = key, addText(t, c, "a", "hello").Path
	g.b = addText(t, c, "b", "uses "+g.a.String(), g.a).Path
	g.drv = script(t, c, "built", "exit 1", false)
	if err := c.AddBuildLog(t.Context(), g.drv, strings.NewReader("a line\n")); err != nil {
		t.Fatal(err)
	}
	other := g.rig.dial()
	g.dead = addText(t, other, "dead", "x").Path
	other.Close()
	for found := false; !found; { // a moment after the session's end
		r, err := c.Collect(t.Context(), &protocol.GCRequest{DryRun: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		found = slices.Contains(r.Paths, g.dead)
	}
	return g
}

// tasks has one for each operation of ours.
func (g *grown) tasks(t *testing.T) []task {
	ctx := t.Context()
	bundle := signedBundle(t, g)
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, bytes.Repeat([]byte("0123456789"), 300_000), 0o644); err != nil {
		t.Fatal(err)
	}
	return []task{
		{protocol.OpImportBundle, false, func(c *client.Conn) (string, error) {
			paths, err := c.ImportBundle(ctx, bytes.NewReader(bundle))
			return fmt.Sprint(paths), err
		}},
		{protocol.OpExportBundle, false, func(c *client.Conn) (string, error) {
			return "", c.ExportBundle(ctx, []store.Path{g.b}, true, io.Discard)
		}},
		{protocol.OpFollowLog, false, func(c *client.Conn) (string, error) {
			var log strings.Builder
			err := c.FollowLog(ctx, g.drv, &log)
			return log.String(), err
		}},
		{protocol.OpGCWhy, false, func(c *client.Conn) (string, error) {
			chains, err := c.Why(ctx, g.a)
			return fmt.Sprint(len(chains) > 0), err
		}},
		{protocol.OpStatus, false, func(c *client.Conn) (string, error) {
			s, err := c.Status(ctx)
			return s.StoreDir, err
		}},
		{protocol.OpCollectGarbage2, true, func(c *client.Conn) (string, error) {
			r, err := c.Collect(ctx, &protocol.GCRequest{DryRun: true}, nil)
			if err != nil {
				return "", err
			}
			return fmt.Sprint(store.SortPaths(r.Paths)), nil
		}},
		{protocol.OpCollectGarbage2, false, func(c *client.Conn) (string, error) {
			_, err := c.Collect(ctx, &protocol.GCRequest{DryRun: true, OlderThan: 1}, nil)
			return "", err
		}},
		{protocol.OpQueryClosure, true, func(c *client.Conn) (string, error) {
			var text string
			infos, err := c.Closure(ctx, []store.Path{g.b, g.a})
			for _, i := range infos {
				text += i.Fingerprint() + "\n"
			}
			return text, err
		}},
		{protocol.OpVerify, false, func(c *client.Conn) (string, error) {
			r, err := c.Check(ctx, &protocol.VerifyRequest{Contents: true}, nil, nil)
			return fmt.Sprint(r.Left), err
		}},
		{protocol.OpOptimise, false, func(c *client.Conn) (string, error) {
			r, err := c.Optimise(ctx, nil)
			return fmt.Sprint(r.Skipped), err
		}},
		{protocol.OpNARs, true, func(c *client.Conn) (string, error) {
			var both bytes.Buffer
			err := c.NARs(ctx, []store.Path{g.b, g.a}, func(store.Path) (io.Writer, error) { return &both, nil })
			return both.String(), err
		}},
		{protocol.OpQueryClosurePaths, true, func(c *client.Conn) (string, error) {
			paths, err := c.ClosurePaths(ctx, []store.Path{g.b, g.a})
			return fmt.Sprint(paths), err
		}},
		{protocol.OpScrub, false, func(c *client.Conn) (string, error) {
			s, err := c.Scrub(ctx, &protocol.ScrubRequest{})
			if err != nil {
				return "", err
			}
			return string(s.State), err
		}},
		{protocol.OpRoots, false, func(c *client.Conn) (string, error) {
			_, err := c.Roots(ctx)
			return "", err
		}},
		{protocol.OpAddRoot, false, func(c *client.Conn) (string, error) {
			r, err := c.AddRoot(ctx, &protocol.AddRootRequest{Path: g.drv, Name: "kept"})
			return r.Name, err
		}},
		{protocol.OpDeleteRoots, false, func(c *client.Conn) (string, error) {
			_, err := c.DeleteRoots(ctx, &protocol.DeleteRootsRequest{})
			return "", err
		}},
		{protocol.OpAddOpen, true, func(c *client.Conn) (string, error) {
			info, err := c.AddFile(ctx, "file", store.Recursive, store.SHA256, nil, "feature_test.go")
			if err != nil {
				return "", err
			}
			return info.Path.String(), nil
		}},
		{protocol.OpAddSized, true, func(*client.Conn) (string, error) {
			c, err := client.New(ctx, g.pipe(daemon.Peer{Trusted: true}), nil) // which can hand over nothing
			if err != nil {
				return "", err
			}
			defer c.Close()
			info, err := c.AddFile(ctx, "large", store.Flat, store.SHA256, nil, large)
			if err != nil {
				return "", err
			}
			return info.Fingerprint(), nil
		}},
	}
}

// signedBundle is a and b as the daemon's own.
func signedBundle(t *testing.T, g *grown) []byte {
	t.Helper()
	c, whole := g.rig.dial(), start(t, nil)
	defer c.Close()
	if err := g.key.WriteFile(filepath.Join(whole.layout.ConfDir, "signing-key.sec")); err != nil {
		t.Fatal(err)
	}
	maker := whole.dial()
	infos, err := c.Closure(t.Context(), []store.Path{g.b})
	if err == nil {
		err = maker.AddFrom(t.Context(), infos, c)
	}
	var b bytes.Buffer
	if err == nil {
		err = maker.ExportBundle(t.Context(), []store.Path{g.b}, true, &b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestOlderDaemons has a client do everything with daemons that lack one thing each, and with one that lacks all: what
// can be done in another way is done, the rest is refused by the client, and the session goes on.
func TestOlderDaemons(t *testing.T) {
	whole := grow(t)
	want := map[int]string{}
	c := whole.rig.dial()
	known := map[protocol.Op]bool{}
	for i, x := range whole.tasks(t) {
		got, err := x.do(c)
		if err != nil {
			t.Fatalf("operation %s: %v", x.op.Feature(), err)
		}
		want[i], known[x.op] = got, true
	}
	lacks := map[string][]protocol.Feature{"everything": protocol.AllFeatures()}
	for _, f := range protocol.AllFeatures() {
		lacks[string(f)] = []protocol.Feature{f}
	}
	for _, row := range daemon.Operations() {
		if row.Op < protocol.OpImportBundle {
			continue
		}
		if !known[row.Op] {
			t.Errorf("operation %s: no task says what a client does without it; add one", row.Name)
		}
		if row.Op != protocol.OpAddOpen { // it has a feature of its own
			lacks[row.Name] = []protocol.Feature{row.Op.Feature()}
		}
	}
	for name, features := range lacks {
		t.Run(name, func(t *testing.T) { withOlder(t, features, want) })
	}
}

func withOlder(t *testing.T, lacks []protocol.Feature, want map[int]string) {
	g := grow(t, lacks...)
	c := g.rig.dial()
	for _, f := range lacks {
		if slices.Contains(c.Server().Announced, f) {
			t.Errorf("the daemon announces %s", f)
		}
	}
	for i, x := range g.tasks(t) {
		got, err := x.do(c)
		if lack := !c.Server().Serves(x.op); lack && !x.without {
			if !errors.Is(err, client.ErrUnsupported) {
				t.Errorf("operation %s, which is not there: %v", x.op.Feature(), err)
			}
			continue
		}
		if err != nil || got != want[i] {
			t.Errorf("operation %s: got  %q, %v\nwant %q", x.op.Feature(), got, err, want[i])
		}
	}
}

// TestOlderClients asks for every operation of ours as clients did that knew of no features but these.
func TestOlderClients(t *testing.T) {
	needRoot(t)
	r := start(t, nil)
	p := addText(t, r.dial(), "a", "hello").Path
	for _, row := range daemon.Operations() {
		if row.Op < protocol.OpImportBundle {
			continue
		}
		conn := r.connectAs(0)
		err := rawOn(t, conn, 38, protocol.FeatureCairn, protocol.FeatureDescriptor).outcome(row, p)
		if err != nil && strings.Contains(err.Error(), "invalid operation") {
			t.Errorf("%s: %v", row.Name, err)
		}
		conn.Close()
	}
}

// TestUnknownFields sends requests of clients that are newer: they want something that this daemon would leave undone.
func TestUnknownFields(t *testing.T) {
	r := start(t, nil)
	for _, op := range []protocol.Op{protocol.OpCollectGarbage2, protocol.OpVerify, protocol.OpScrub, protocol.OpAddRoot, protocol.OpDeleteRoots} {
		c := r.raw(38, protocol.FeatureCairn)
		c.send(op, func(e *protocol.Encoder) { e.Text(`{"gently":true}`) })
		m := c.next()
		if m.Kind != protocol.KindError || !strings.Contains(m.Err.Text, `unknown field "gently"`) {
			t.Errorf("operation %s: %+v", op.Feature(), m)
		}
	}
}

// TestSizes adds files that are shorter or longer than was announced: they are refused, and the session goes on.
func TestSizes(t *testing.T) {
	r := start(t, nil)
	c := r.raw(38, protocol.FeatureCairn)
	for _, announced := range []uint64{0, 9, 11, 2 << 20, 3_000_000 - 1, 3_000_000 + 1, 1 << 62, 10, 3_000_000} {
		for _, size := range []int{10, 3_000_000} {
			c.send(protocol.OpAddSized, func(e *protocol.Encoder) {
				e.Text("x")
				e.Method(store.Flat, store.SHA256)
				e.Paths(nil)
				e.Uint64(announced)
				w := wire.NewFrameWriter(e.Wire())
				io.CopyN(w, zeros{}, int64(size))
				w.Close()
			})
			m := c.next()
			if right := uint64(size) == announced; right != (m.Kind == protocol.KindLast) {
				t.Fatalf("announced %d, sent %d: %+v", announced, size, m)
			} else if right {
				if i := c.d.KeyedInfo(); c.d.Err() != nil || i.NarSize < int64(size) {
					t.Fatalf("%d bytes: %+v, %v", size, i, c.d.Err())
				}
			}
		}
	}
}
