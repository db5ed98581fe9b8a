package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
)

// TestOurClient has our client do the same with their daemon, which knows nothing of our operations, and with ours.
func TestOurClient(t *testing.T) { generations(t, testOurClient) }

func testOurClient(t *testing.T, w *world) {
	tree := filepath.Join(w.root, "tree")
	for name, data := range map[string]string{"a": "a", "sub/large": strings.Repeat("0123456789", 300_000), "sub/b": "b"} {
		file := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	theirs := useClient(t, w.theirs, tree)
	for i, got := range useClient(t, w.ours, tree) {
		if got != theirs[i] {
			t.Errorf("ours    %.300q\ntheirs  %.300q", got, theirs[i])
		}
	}
}

// useClient does what a client can do with every daemon, and says what came of each.
func useClient(t *testing.T, s *side, tree string) (said []string) {
	t.Helper()
	ctx := t.Context()
	say := func(v any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		said = append(said, fmt.Sprint(v))
	}
	dial := func() *client.Conn {
		c, err := client.Dial(ctx, s.conn, &client.Options{Dir: store.Dir(s.dir)})
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	added, err := c.AddFile(ctx, "tree", store.Recursive, store.SHA256, nil, tree)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	say(added.Fingerprint(), nil)
	text, err := c.AddToStore(ctx, "text", store.Text, store.SHA256, []store.Path{added.Path}, strings.NewReader("uses "+added.Path.String()))
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	say(c.AddFiles(ctx, []client.File{
		{Name: "a", Method: store.Flat, Path: filepath.Join(tree, "a")}, {Name: "large", Method: store.Flat, Path: filepath.Join(tree, "sub/large")},
	}))
	closure, err := c.Closure(ctx, []store.Path{text.Path})
	for _, i := range closure {
		say(i.Fingerprint(), err)
	}
	say(c.ClosurePaths(ctx, []store.Path{text.Path}))
	var archives bytes.Buffer
	err = c.NARs(ctx, []store.Path{text.Path, added.Path}, func(store.Path) (io.Writer, error) { return &archives, nil })
	say(store.SHA256.Sum(archives.Bytes()), err)
	if _, err := c.Collect(ctx, &protocol.GCRequest{OlderThan: 1, DryRun: true}, nil); s.name == "nix" && !errors.Is(err, client.ErrUnsupported) {
		t.Errorf("%s: collect what is old: %v", s.name, err)
	}
	if _, err := c.Status(ctx); s.name == "nix" && !errors.Is(err, client.ErrUnsupported) {
		t.Errorf("%s: status: %v", s.name, err)
	}
	c.Close()
	c = dial()
	var dead []store.Path
	for err = nil; err == nil && len(dead) < 4; { // what a session has added it lets go of a moment after its end
		dead, err = collect(ctx, c, &protocol.GCRequest{DryRun: true})
	}
	say(dead, err)
	say(collect(ctx, c, &protocol.GCRequest{Paths: []store.Path{text.Path}}))
	say(collect(ctx, c, &protocol.GCRequest{}))
	say(c.AllPaths(ctx))
	return said
}

func collect(ctx context.Context, c *client.Conn, q *protocol.GCRequest) ([]store.Path, error) {
	r, err := c.Collect(ctx, q, nil)
	if err != nil {
		return nil, err
	}
	return store.SortPaths(r.Paths), nil
}
