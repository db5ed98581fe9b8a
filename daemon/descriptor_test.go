package daemon_test

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/store"
)

// plant makes a tree with a large file, a link and files that only their owner reads.
func plant(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	for name, data := range map[string]string{"a": "a", "large": strings.Repeat("0123456789", 300_000), "sub/empty": "", "sub/x": "x"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What is handed over becomes what it becomes when it is sent, whoever adds it.
func TestAddFile(t *testing.T) {
	needRoot(t)
	r := start(t, nil)
	tree := plant(t)
	sender, err := client.New(t.Context(), r.pipe(daemon.Peer{Trusted: true}), &client.Options{Features: []protocol.Feature{protocol.FeatureCairn}})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	clients := map[string]*client.Conn{"root": r.dial(), "who sends": sender}
	user, err := r.as(31001)
	if err != nil {
		t.Fatal(err)
	}
	clients["user"] = user
	if !user.Server().Has(protocol.FeatureDescriptor) || sender.Server().Has(protocol.FeatureDescriptor) {
		t.Error("it is agreed on with who does not want it, or not with who does")
	}
	for who, c := range clients {
		for _, name := range []string{"", "a", "large", "link", "sub", "sub/empty"} {
			path := filepath.Join(tree, name)
			var b bytes.Buffer
			if err := nar.Dump(&b, path); err != nil {
				t.Fatal(err)
			}
			info, err := c.AddFile(t.Context(), "x", store.Recursive, store.SHA256, nil, path)
			if err != nil {
				t.Errorf("%s: add %q: %v", who, name, err)
				continue
			}
			if want := store.SHA256.Sum(b.Bytes()); info.NarHash != want || info.NarSize != int64(b.Len()) || info.CA.Hash != want {
				t.Errorf("%s: %q became %+v, want %s", who, name, info, want)
			}
		}
		for _, name := range []string{"a", "large"} {
			path := filepath.Join(tree, name)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			info, err := c.AddFile(t.Context(), "x", store.Flat, store.SHA256, nil, path)
			if err != nil || info.CA.Hash != store.SHA256.Sum(data) {
				t.Errorf("%s: flat %q became %+v, %v", who, name, info, err)
			}
		}
		if _, err := c.AddFile(t.Context(), "x", store.Flat, store.SHA256, nil, tree); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: flat folder: %v", who, err)
		}
	}
	if remain, err := clients["root"].Verify(t.Context(), true, false, nil); err != nil || remain {
		t.Errorf("the store has problems: %v, %v", remain, err)
	}
}

// A user's descriptor of a folder, one that does not read, a pipe's and none at all: the daemon wants the contents.
func TestAddOpenDeclines(t *testing.T) {
	needRoot(t)
	r := start(t, nil)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	proc, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	for name, files := range map[string][]*os.File{"none": nil, "folder": {dir}, "pipe": {pr}, "proc": {proc}, "two pipes": {pr, pw}} {
		conn := r.connectAs(31001).(*net.UnixConn)
		w := rawOn(t, conn, 38, protocol.FeatureDescriptor)
		var b bytes.Buffer
		e := protocol.NewEncoder(wire.NewWriter(&b), protocol.Format{Dir: store.DefaultDir, Version: protocol.Newest})
		e.Uint64(uint64(protocol.OpAddOpen))
		e.Text("x")
		e.Method(store.Recursive, store.SHA256)
		e.Paths(nil)
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		if _, _, err := conn.WriteMsgUnix(b.Bytes(), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
		w.last()
		if w.d.Bool() || w.d.Err() != nil {
			t.Errorf("%s: taken", name)
		}
		conn.Close()
	}
}
