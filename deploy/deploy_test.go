package deploy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/wire"
	"cairn/deploy"
	"cairn/deploy/ssh"
	"cairn/services/system"
	"cairn/store/disk"
)

func TestBanner(t *testing.T) {
	for _, c := range []struct{ name, in, rest string }{
		{"alone", deploy.Banner + "rest", "rest"},
		{"without its first newline", deploy.Banner[1:] + "rest", "rest"},
		{"after a login script", "Welcome!\n\nyou have mail" + deploy.Banner + "rest", "rest"},
		{"after a false start", "\ncairn-agent \ncairn-ag\n" + deploy.Banner + "rest", "rest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if rest, err := deploy.SkipNoise(strings.NewReader(c.in)); err != nil || rest != c.rest {
				t.Errorf("got %q, %v", rest, err)
			}
		})
	}
	if _, err := deploy.SkipNoise(strings.NewReader("nothing")); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	if _, err := deploy.SkipNoise(strings.NewReader(strings.Repeat("noise\n", 1<<20))); err == nil || !strings.Contains(err.Error(), "login script") {
		t.Errorf("got %v", err)
	}
}

func TestLease(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	a := deploy.Lease{Token: "a", Agent: "1", Owner: "ann@here", Purpose: "deploy of web"}
	b := deploy.Lease{Token: "b", Agent: "2", Owner: "bob@there", Purpose: "deploy of web"}
	take := func(l deploy.Lease, at time.Time) error { return deploy.TakeLease(dir, l, at) }
	if err := take(a, now); err != nil {
		t.Fatal(err)
	}
	err := take(b, now.Add(time.Second))
	if !errors.Is(err, deploy.ErrLeased) || !strings.Contains(err.Error(), "ann@here, for deploy of web") {
		t.Errorf("got %v", err)
	}
	if err := take(a, now.Add(time.Second)); err != nil {
		t.Errorf("renew: %v", err)
	}
	if err := take(b, now.Add(deploy.LeaseTime+2*time.Second)); err != nil {
		t.Errorf("take an abandoned one: %v", err)
	}
	again := b
	again.Agent = "3" // a second connection of the same deploy
	if err := take(again, now.Add(deploy.LeaseTime+3*time.Second)); err != nil {
		t.Error(err)
	}
	if err := deploy.GiveLease(dir, b); err != nil {
		t.Error(err)
	}
	if err := take(a, now.Add(deploy.LeaseTime+4*time.Second)); !errors.Is(err, deploy.ErrLeased) {
		t.Errorf("the first connection's end gave the second one's lease away: %v", err)
	}
	if err := deploy.GiveLease(dir, again); err != nil {
		t.Error(err)
	}
	if err := take(a, now.Add(deploy.LeaseTime+4*time.Second)); err != nil {
		t.Error(err)
	}
	os.WriteFile(filepath.Join(dir, "lease.json"), []byte("{\"tok"), 0o600) // torn
	if err := take(b, now); err != nil {
		t.Errorf("a torn lease: %v", err)
	}
}

// session runs an agent on a store of its own and returns both ends of its stream.
func session(t *testing.T) (*wire.Reader, *wire.Writer, disk.Layout) {
	t.Helper()
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Init(layout); err != nil {
		t.Fatal(err)
	}
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- deploy.Serve(context.Background(), inR, outW, deploy.Agent{Layout: layout, Program: "/nowhere"})
		outW.Close()
	}()
	t.Cleanup(func() {
		inW.Close()
		go io.Copy(io.Discard, outR)
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	if _, err := io.ReadFull(outR, make([]byte, len(deploy.Banner))); err != nil {
		t.Fatal(err)
	}
	return wire.NewReader(outR), wire.NewWriter(inW), layout
}

func ask(t *testing.T, r *wire.Reader, w *wire.Writer, q deploy.Request) *deploy.Reply {
	t.Helper()
	b, _ := json.Marshal(q)
	w.Bytes(b)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	p, err := deploy.ReadReply(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAgent(t *testing.T) {
	r, w, layout := session(t)
	p := ask(t, r, w, deploy.Request{Op: "hello"})
	if p.Error != nil || p.Facts == nil || p.Facts.StoreDir != "/cairn/store" || p.Facts.Kernel == "" || p.Facts.DaemonError == "" {
		t.Errorf("hello: %+v, %+v", p, p.Facts)
	}
	for _, c := range []struct {
		q    deploy.Request
		want string
	}{
		{deploy.Request{Op: "dance"}, "unknown request"},
		{deploy.Request{Op: "switch", System: "/cairn/store/x"}, "without a lease"},
		{deploy.Request{Op: "import"}, "without a lease"},
		{deploy.Request{Op: "hello", Key: "k:AAAA"}, "without a lease"},
		{deploy.Request{Op: "plan", System: "/etc/passwd"}, "not below the store"},
		{deploy.Request{Op: "missing", Paths: []string{"/cairn/store/../x"}}, "store path"},
	} {
		if p := ask(t, r, w, c.q); p.Error == nil || !strings.Contains(p.Error.Text, c.want) {
			t.Errorf("%s: got %+v, want %q", c.q.Op, p.Error, c.want)
		}
	}
	key, err := archive.GenerateKey("coordinator-1")
	if err != nil {
		t.Fatal(err)
	}
	hello := deploy.Request{Op: "hello", Token: "t", Owner: "o", Purpose: "p", Key: key.Public().String()}
	if p := ask(t, r, w, hello); p.Error != nil || !p.Did {
		t.Errorf("authorize: %+v", p)
	}
	if p := ask(t, r, w, hello); p.Error != nil || p.Did {
		t.Errorf("authorize again: %+v", p)
	}
	acl, err := archive.LoadACL(layout.ConfDir + "/acl")
	if err != nil || !acl.Allows(key.Public(), archive.Import) {
		t.Errorf("the key is not in the ACL: %v", err)
	}
	if p := ask(t, r, w, deploy.Request{Op: "release"}); p.Error != nil {
		t.Error(p.Error)
	}
}

func TestSudoError(t *testing.T) {
	for _, c := range []struct {
		said string
		want error
	}{
		{"sudo: a password is required", deploy.ErrSudoPassword},
		{"sudo: a terminal is required to read the password; either use the -S option…\nsudo: a password is required", deploy.ErrSudoPassword},
		{"bob is not in the sudoers file.", deploy.ErrSudoRefused},
		{"sh: 1: sudo: not found", deploy.ErrSudoRefused},
		{"Sorry, user bob is not allowed to execute '/cairn/bin/x' as root on h1.", deploy.ErrSudoRefused},
		{"disk full", nil},
	} {
		err := deploy.SudoError("bob", &ssh.ExitError{Command: "sh", Status: 1, Stderr: c.said})
		var h interface{ Hint() string }
		if c.want == nil && !errors.As(err, &h) {
			continue
		}
		if !errors.Is(err, c.want) || !errors.As(err, &h) || !strings.Contains(h.Hint(), "bob") {
			t.Errorf("%q: got %v", c.said, err)
		}
	}
}

func TestDifferences(t *testing.T) {
	a, b := &system.Manifest{}, &system.Manifest{}
	a.Units = []system.Unit{{Name: "a.service", Text: "1"}, {Name: "b.service", Text: "1"}, {Name: "c.service", Text: "1"}}
	b.Units = []system.Unit{{Name: "b.service", Text: "1"}, {Name: "c.service", Text: "2"}, {Name: "d.service", Text: "1"}}
	b.Etc = []system.EtcFile{{Path: "motd", Source: "/cairn/store/x"}}
	uid := 7
	a.Users = []system.User{{Name: "u", UID: &uid}}
	other := 7
	b.Users = []system.User{{Name: "u", UID: &other}}
	b.HostName = "h"
	got := strings.Join(deploy.Differences(a, b), "\n")
	want := "unit a.service: gone\nunit c.service: changed\nunit d.service: new\nfile /etc/motd: new\nhost name: \"\" to \"h\""
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestNewerRequestIsRefused asks for what only a later cairn knows.
func TestNewerRequestIsRefused(t *testing.T) {
	refused := func(f *deploy.Failure, field string) {
		t.Helper()
		if f == nil || !strings.Contains(f.Text, deploy.ErrNotUnderstood.Error()) || !strings.Contains(f.Text, field) {
			t.Errorf("answered with %+v", f)
		}
	}
	for _, question := range []string{
		`{"op":"switch","system":"/cairn/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-system","gently":true}`,
		`{"op":"status","system":"","session":{"User":"u","SSH":true,"gently":1},"stateDir":"/nowhere","storeDir":"/cairn/store","program":"/p"}`,
	} {
		var out bytes.Buffer
		if err := deploy.Main(t.Context(), []string{"activate"}, strings.NewReader(question), &out, nil); err != nil {
			t.Fatal(err)
		}
		var p deploy.Reply
		if err := json.Unmarshal(out.Bytes(), &p); err != nil || !p.Done {
			t.Fatalf("%v: %q", err, out.String())
		}
		refused(p.Error, "gently")
	}
	layout, err := disk.NewLayout(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var in, out bytes.Buffer
	w := wire.NewWriter(&in)
	for _, question := range []string{`{"op":"ping","gently":true}`, `{"op":"ping"}`} {
		w.Bytes([]byte(question))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := deploy.Serve(t.Context(), &in, &out, deploy.Agent{Layout: layout, Program: "/nowhere"}); err != nil {
		t.Error(err)
	}
	r := wire.NewReader(strings.NewReader(strings.TrimPrefix(out.String(), deploy.Banner)))
	p, err := deploy.ReadReply(r)
	if err != nil || !p.Done {
		t.Fatalf("%+v, %v", p, err)
	}
	refused(p.Error, "gently")
	if p, err := deploy.ReadReply(r); err == nil {
		t.Errorf("the agent goes on: %+v", p)
	}
}

func FuzzRequest(f *testing.F) {
	for _, q := range []deploy.Request{{Op: "hello", Token: "t"}, {Op: "missing", Paths: []string{"/cairn/store/x"}}, {Op: "switch", Within: 60}} {
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		j, _ := json.Marshal(q)
		w.Bytes(j)
		w.Flush()
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := deploy.ReadRequest(wire.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		j, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		w.Bytes(j)
		w.Flush()
		again, err := deploy.ReadRequest(wire.NewReader(&b))
		if err != nil {
			t.Fatal(err)
		}
		if k, _ := json.Marshal(again); !bytes.Equal(j, k) {
			t.Errorf("%s became %s", j, k)
		}
	})
}

// FuzzServe lets anybody say anything to an agent that has no lease and no daemon.
func FuzzServe(f *testing.F) {
	f.Add([]byte("\x0e\x00\x00\x00\x00\x00\x00\x00{\"op\":\"hello\"}\x00\x00"))
	layout, err := disk.NewLayout(f.TempDir(), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		deploy.Serve(t.Context(), bytes.NewReader(data), &out, deploy.Agent{Layout: layout, Program: "/nowhere"})
		if !strings.HasPrefix(out.String(), deploy.Banner) {
			t.Error("no greeting")
		}
	})
}
