package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
)

// dialInside connects to the daemon of the one build that runs, whose socket's name may be too long.
func dialInside(t *testing.T, r *rig) (*client.Conn, string) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(r.layout.RealDir, ".tmp-*", "build", ".nix-socket"))
	if len(found) != 1 {
		t.Fatalf("sockets: %v", found)
	}
	dir, err := os.Open(filepath.Dir(found[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/.nix-socket", dir.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := client.New(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn, filepath.Dir(found[0])
}

// TestInside asks the daemon of a build for all that it must not tell or do, and for what it must.
func TestInside(t *testing.T) {
	needSandbox(t)
	set := settings.Defaults()
	set.ExperimentalOptions = []string{"recursive-nix"}
	r := start(t, &daemon.Options{Settings: set})
	outer := r.dial()
	add := func(c *client.Conn, name, text string, refs ...store.Path) (store.Path, error) {
		info, err := c.AddToStore(t.Context(), name, store.Text, store.SHA256, refs, strings.NewReader(text))
		if err != nil {
			return store.Path{}, err
		}
		return info.Path, nil
	}
	secret, err := add(outer, "secret", "secret")
	if err != nil {
		t.Fatal(err)
	}
	input, err := add(outer, "input", "input")
	if err != nil {
		t.Fatal(err)
	}
	secretDrv := script(t, outer, "secret-drv", "echo > $out", false)
	d := &derivation.Derivation{
		Name: "outer", System: "x86_64-linux", Builder: "/bin/sh", Args: []string{"-c", "echo ready; while ! [ -e /build/go ]; do sleep 0.05; done; echo > $out"},
		Outputs: map[string]derivation.Output{"out": {}}, InputSrcs: []store.Path{input}, Env: map[string]string{"requiredSystemFeatures": "recursive-nix"},
	}
	if err := derivation.NewHashes(nil).FillOutputs(d, store.DefaultDir); err != nil {
		t.Fatal(err)
	}
	drv, err := add(outer, "outer.drv", string(d.ATerm()), input)
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	done := make(chan string, 1)
	go func() {
		once := false
		list, err := outer.Build(context.Background(), all(drv), client.Normal, client.ObserverFunc(func(m *protocol.Message) {
			if !once && strings.Contains(fmt.Sprint(m.Fields), "ready") {
				once = true
				close(ready)
			}
		}))
		if err != nil {
			done <- err.Error()
			return
		}
		done <- fmt.Sprint(list[0].Status, list[0].Error)
	}()
	select {
	case <-ready:
	case text := <-done:
		t.Fatal(text)
	}
	c, dir := dialInside(t, r)
	if list, err := c.AllPaths(t.Context()); err != nil || !slices.Equal(list, []store.Path{input}) {
		t.Errorf("all paths: %v, %v", list, err)
	}
	if c.Trusted() {
		t.Error("a builder is trusted")
	}
	if ok, err := c.IsValid(t.Context(), secret); ok || err != nil {
		t.Errorf("secret: %v %v", ok, err)
	}
	if list, err := c.ValidPaths(t.Context(), []store.Path{secret, input, secretDrv}); err != nil || !slices.Equal(list, []store.Path{input}) {
		t.Errorf("valid: %v %v", list, err)
	}
	if p, err := c.PathFromDigest(t.Context(), secret.Digest()); err == nil && !p.IsZero() {
		t.Errorf("digest: %v", p)
	}
	info, err := c.Info(t.Context(), input)
	if err != nil || info.RegisteredAt != 0 || info.Ultimate {
		t.Errorf("info: %+v %v", info, err)
	}
	for what, f := range map[string]func() error{
		"info":       func() error { _, err := c.Info(t.Context(), secret); return err },
		"contents":   func() error { return c.NAR(t.Context(), secret, io.Discard) },
		"ensure":     func() error { return c.Ensure(t.Context(), secret) },
		"reference":  func() error { _, err := add(c, "x", "x", secret); return err },
		"build":      func() error { _, err := c.Build(t.Context(), all(secretDrv), client.Normal, nil); return err },
		"output map": func() error { _, err := c.OutputMap(t.Context(), secretDrv); return err },
		"referrers":  func() error { _, err := c.Referrers(t.Context(), secret); return err },
		"check":      func() error { _, err := c.Build(t.Context(), all(drv), client.Check, nil); return err },
		"unsigned": func() error {
			return c.Add(t.Context(), &store.Info{Path: secretOutput(t), NarHash: store.SHA256.Sum(nil), NarSize: 1}, bytes.NewReader(nil))
		},
		"the build":     func() error { _, err := c.Build(t.Context(), all(drv), client.Normal, nil); return err },
		"another store": func() error { _, err := add(c, "bad name/", "x"); return err },
	} {
		if err := f(); err == nil {
			t.Errorf("%s: no error", what)
		} else if what == "info" && !errors.Is(err, store.ErrNotValid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, f := range map[string]func(c *client.Conn) error{
		"roots":      func(c *client.Conn) error { _, err := c.FindRoots(t.Context()); return err },
		"signatures": func(c *client.Conn) error { return c.AddSignatures(t.Context(), input, []string{"a:b"}) },
		"log":        func(c *client.Conn) error { return c.AddBuildLog(t.Context(), drv, strings.NewReader("x")) },
		"verify":     func(c *client.Conn) error { _, err := c.Verify(t.Context(), true, true, nil); return err },
		"perm root":  func(c *client.Conn) error { return c.AddPermRoot(t.Context(), input, filepath.Join(dir, "root")) },
		"realisation": func(c *client.Conn) error {
			return c.RegisterDrvOutput(t.Context(), store.Realisation{ID: store.DrvOutput{Drv: store.SHA256.Sum(nil), Output: "out"}, OutPath: input})
		},
		"build derivation": func(c *client.Conn) error {
			_, err := c.BuildDerivation(t.Context(), drv, d, client.Normal, nil)
			return err
		},
	} {
		c, _ := dialInside(t, r)
		if err := f(c); err == nil {
			t.Errorf("%s: no error", what)
		}
		c.Close()
	}
	mine, err := add(c, "mine", "mine", input)
	if err != nil {
		t.Fatal(err)
	}
	inner := script(t, c, "inner", "read x < "+mine.String()+"; echo $x > $out", false, mine)
	list, err := c.Build(t.Context(), all(inner), client.Normal, nil)
	if err != nil || !list[0].Status.OK() {
		t.Fatalf("%v %+v", err, list)
	}
	out := list[0].Outputs["out"].OutPath
	var b bytes.Buffer
	if err := c.NAR(t.Context(), out, &b); err != nil || !strings.Contains(b.String(), "mine") {
		t.Errorf("%v: %q", err, b.String())
	}
	if all, err := c.AllPaths(t.Context()); err != nil || len(all) != 4 { // input, mine, inner, out
		t.Errorf("%v %v", all, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if text := <-done; text != "built" {
		t.Error(text)
	}
	if _, err := c.IsValid(t.Context(), input); err == nil {
		t.Error("the session outlives the build")
	}
}

func secretOutput(t *testing.T) store.Path {
	t.Helper()
	p, err := store.DefaultDir.Path("00000000000000000000000000000000-output")
	if err != nil {
		t.Fatal(err)
	}
	return p
}
