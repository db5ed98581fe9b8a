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
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"cairn/archive"
	"cairn/archive/wire"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/daemon/settings"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

// needRoot skips what has to be somebody else.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CAIRN_CI") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to be other users; enable with: sudo make root")
	}
}

// connectAs connects to the real socket as a user; the kernel takes the credentials from the thread.
func (r *rig) connectAs(uid int, gids ...int) net.Conn {
	r.t.Helper()
	if err := os.Chmod(strings.TrimSuffix(r.layout.RealDir, "/cairn/store"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		gid := uid
		groups := []uint32{0}
		for i, g := range gids {
			if i == 0 {
				gid = g
				continue
			}
			groups = append(groups, uint32(g))
		}
		groups = groups[1:]
		var first unsafe.Pointer
		if len(groups) > 0 {
			first = unsafe.Pointer(&groups[0])
		}
		_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0)
		_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if e1 != 0 || e2 != 0 || e3 != 0 {
			done <- result{nil, fmt.Errorf("become user %d: %v %v %v", uid, e1, e2, e3)}
			return
		}
		conn, err := dialHere(r.socket)
		done <- result{conn, err}
	}()
	res := <-done
	if res.err != nil {
		r.t.Fatal(res.err)
	}
	r.t.Cleanup(func() { res.conn.Close() })
	return res.conn
}

// dialHere connects in this thread, whatever the scheduler does.
func dialHere(socket string) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// as is a client that is another user.
func (r *rig) as(uid int, gids ...int) (*client.Conn, error) {
	r.t.Helper()
	c, err := client.New(context.Background(), r.connectAs(uid, gids...), nil)
	if err == nil {
		r.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (r *rig) writeACL(text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.layout.ConfDir, "acl"), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// requestOf writes the fields of a request that is harmless when it is allowed, and what is uploaded.
func requestOf(op protocol.Op, e *protocol.Encoder, p store.Path) (upload []byte, known bool) {
	drv, _ := store.DefaultDir.Path(baseB + ".drv")
	switch op {
	case protocol.OpIsValidPath, protocol.OpHasSubstitutes, protocol.OpQueryPathHash, protocol.OpQueryReferences, protocol.OpQueryReferrers, protocol.OpAddTempRoot,
		protocol.OpQueryDeriver, protocol.OpQuerySubstitutablePathInfo, protocol.OpQueryPathInfo, protocol.OpQueryValidDerivers, protocol.OpEnsurePath, protocol.OpGCWhy:
		e.Path(p)
	case protocol.OpQueryDerivationOutputs, protocol.OpQueryDerivationOutputNames, protocol.OpQueryDerivationOutputMap, protocol.OpFollowLog, protocol.OpNarFromPath:
		e.Path(drv)
	case protocol.OpSyncWithGC, protocol.OpFindRoots, protocol.OpQueryAllValidPaths, protocol.OpQueryFailedPaths, protocol.OpStatus, protocol.OpRoots, protocol.OpImportPaths, protocol.OpOptimiseStore, protocol.OpOptimise:
	case protocol.OpQueryValidPaths:
		e.Paths(nil)
		e.Bool(true)
	case protocol.OpQuerySubstitutablePaths, protocol.OpQueryClosure, protocol.OpQueryClosurePaths, protocol.OpNARs, protocol.OpQueryMissing, protocol.OpClearFailedPaths, protocol.OpQuerySubstitutablePathInfos:
		e.Uint64(0)
	case protocol.OpAddToStore:
		e.Text("x")
		e.Method(store.Flat, store.SHA256)
		e.Paths(nil)
		e.Bool(false)
		return []byte("x"), true
	case protocol.OpAddSized:
		e.Text("y")
		e.Method(store.Flat, store.SHA256)
		e.Paths(nil)
		e.Uint64(1)
		return []byte("x"), true
	case protocol.OpAddOpen:
		e.Text("z")
		e.Method(store.Flat, store.SHA256)
		e.Paths(nil)
	case protocol.OpAddTextToStore:
		e.Text("y")
		e.Text("y")
		e.Paths(nil)
	case protocol.OpBuildPaths, protocol.OpBuildPathsWithResults:
		e.Uint64(0)
		e.Uint64(0)
	case protocol.OpAddIndirectRoot:
		e.Text("relative")
	case protocol.OpExportPath:
		e.Path(drv)
		e.Uint64(0)
	case protocol.OpSetOptions:
		e.Options(&protocol.Options{})
	case protocol.OpCollectGarbage:
		e.GCOptions(&protocol.GCOptions{Action: protocol.GCReturnDead})
	case protocol.OpQueryPathFromHashPart:
		e.Text(p.Digest())
	case protocol.OpVerifyStore:
		e.Bool(false)
		e.Bool(false)
	case protocol.OpBuildDerivation:
		e.Path(drv)
		e.BasicDerivation(&derivation.Derivation{Name: "b", System: "none", Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}}})
		e.Uint64(0)
	case protocol.OpAddSignatures:
		e.Path(p)
		e.Texts(nil)
	case protocol.OpAddToStoreNar:
		e.KeyedInfo(&store.Info{Path: p, NarHash: store.SHA256.Sum(nil)})
		e.Bool(false)
		e.Bool(false)
		return []byte("x"), true
	case protocol.OpRegisterDrvOutput:
		e.Realisation(store.Realisation{ID: store.DrvOutput{Drv: store.SHA256.Sum(nil), Output: "out"}, OutPath: p})
	case protocol.OpQueryRealisation:
		e.DrvOutput(store.DrvOutput{Drv: store.SHA256.Sum(nil), Output: "out"})
	case protocol.OpAddMultipleToStore:
		e.Bool(false)
		e.Bool(false)
		return make([]byte, 8), true
	case protocol.OpAddBuildLog:
		e.Text(baseB + ".drv")
		return []byte("x"), true
	case protocol.OpAddPermRoot:
		e.Path(p)
		e.Text("relative")
	case protocol.OpImportBundle:
		return []byte("x"), true
	case protocol.OpExportBundle:
		e.Paths([]store.Path{p})
		e.Bool(false)
	case protocol.OpCollectGarbage2:
		e.Text(`{"dryRun":true}`)
	case protocol.OpAddRoot:
		e.Text(fmt.Sprintf(`{"path":%q,"ttl":1}`, p))
	case protocol.OpVerify, protocol.OpDeleteRoots, protocol.OpScrub:
		e.Text(`{}`)
	default:
		return nil, false
	}
	return nil, true
}

// outcome sends a request and returns the daemon's error.
func (c *raw) outcome(row daemon.Row, p store.Path) *protocol.Error {
	c.t.Helper()
	c.e.Uint64(uint64(row.Op))
	upload, known := requestOf(row.Op, c.e, p)
	if !known {
		c.t.Fatalf("%s: requestOf in trust_test.go has no request for it; add one", row.Name)
	}
	if row.Framed {
		w := wire.NewFrameWriter(c.e.Wire())
		w.Write(upload)
		w.Close()
	}
	if err := c.e.Flush(); err != nil {
		c.t.Fatal(err)
	}
	for {
		switch m := c.next(); m.Kind {
		case protocol.KindLast:
			return nil
		case protocol.KindError:
			return m.Err
		case protocol.KindRead:
			c.e.Text("")
			c.e.Flush()
		}
	}
}

// TestVerbsOfOperations asks for every operation as users who lack exactly one verb, and as users who have exactly one.
func TestVerbsOfOperations(t *testing.T) {
	needRoot(t)
	var acl strings.Builder
	with, without := map[archive.Verbs]int{}, map[archive.Verbs]int{}
	for i, v := range archive.All.Each() {
		with[v], without[v] = 20000+i, 21000+i
		fmt.Fprintf(&acl, "uid:%d %s\nuid:%d %s\n", with[v], v, without[v], archive.All&^v)
	}
	acl.WriteString("* none\n")
	r := start(t, nil)
	r.writeACL(acl.String())
	p := addText(t, r.dial(), "a", "hello").Path
	for _, row := range daemon.Operations() {
		if len(row.Verb.Each()) != 1 {
			t.Fatalf("%s takes the verbs %s, want one", row.Name, row.Verb)
		}
		ask := func(conn net.Conn) error {
			defer conn.Close()
			features := []protocol.Feature{protocol.FeatureCairn, protocol.FeatureDescriptor}
			if err := rawOn(t, conn, 38, features...).outcome(row, p); err != nil {
				return err
			}
			return nil
		}
		if err := ask(r.connectAs(with[row.Verb])); errors.Is(err, protocol.ErrNotAllowed) {
			t.Errorf("%s with %s: %v", row.Name, row.Verb, err)
		}
		if row.Verb == archive.Connect {
			continue // whoever may do anything may connect
		}
		err := ask(r.connectAs(without[row.Verb]))
		if !errors.Is(err, protocol.ErrNotAllowed) || !strings.Contains(err.Error(), fmt.Sprintf("lacks the right %q", row.Verb)) {
			t.Errorf("%s without %s: %v", row.Name, row.Verb, err)
		}
	}
	if _, err := r.as(22000); err == nil || !strings.Contains(err.Error(), "user 22000 is not allowed to connect") {
		t.Errorf("connect without any right: %v", err)
	}
}

// TestFinerEffects asks for what operations may do besides.
func TestFinerEffects(t *testing.T) {
	needRoot(t)
	r := start(t, nil)
	r.writeACL("uid:30001 default\nuid:30002 default,import\nuid:30003 default,repair\nuid:30004 default,inspect\nuid:30005 connect,add\nuid:30006 default,override\n* none\n")
	ctx := t.Context()
	root := r.dial()
	text := addText(t, root, "a", "hello")
	nothing, _ := store.DefaultDir.Path(baseB + ".drv")
	contents := narOf(t, "x")
	builds := byte(0)
	addressed := &derivation.Derivation{Name: "b", System: "none", Builder: "/bin/sh", Outputs: map[string]derivation.Output{"out": {Path: text.Path}}}
	for _, c := range []struct {
		name string
		verb archive.Verbs
		run  func(*client.Conn) error
	}{
		{"add without proof", archive.Import, func(c *client.Conn) error {
			return c.Add(ctx, inputAddressed(t, baseA, contents), bytes.NewReader(contents))
		}},
		{"build what is not content-addressed", archive.Import, func(c *client.Conn) error {
			_, err := c.BuildDerivation(ctx, nothing, addressed, client.Normal, nil)
			return err
		}},
		{"register a realisation", archive.Import, func(c *client.Conn) error {
			builds++ // what is known already is no news
			return c.RegisterDrvOutput(ctx, store.Realisation{ID: store.DrvOutput{Drv: store.SHA256.Sum([]byte{builds}), Output: "out"}, OutPath: text.Path})
		}},
		{"build to repair", archive.Repair, func(c *client.Conn) error { _, err := c.Build(ctx, nil, client.Repair, nil); return err }},
		{"verify to repair", archive.Repair, func(c *client.Conn) error { _, err := c.Verify(ctx, false, true, nil); return err }},
		{"collect", archive.GC, func(c *client.Conn) error {
			_, err := c.CollectGarbage(ctx, &protocol.GCOptions{Action: protocol.GCDeleteSpecific, Paths: []store.Path{text.Path}, MaxFreed: 1})
			return notAlive(err)
		}},
		{"collect as we ask for it", archive.GC, func(c *client.Conn) error { _, err := c.Collect(ctx, &protocol.GCRequest{}, nil); return err }},
		{"fetch", archive.Build, func(c *client.Conn) error {
			if err := c.Ensure(ctx, nothing); errors.Is(err, protocol.ErrNotAllowed) {
				return err
			}
			return nil
		}},
	} {
		for uid, rights := range map[int]archive.Verbs{
			30001: archive.Ordinary, 30002: archive.Ordinary | archive.Import, 30003: archive.Ordinary | archive.Repair, 30005: archive.Connect | archive.Add, 0: archive.All,
		} {
			conn, err := r.as(uid)
			if err != nil {
				t.Fatal(err)
			}
			err = c.run(conn)
			denied := errors.Is(err, protocol.ErrNotAllowed) || errors.Is(err, store.ErrUntrusted)
			if denied == rights.Has(c.verb) || err != nil && !denied {
				t.Errorf("%s with %s: %v", c.name, rights, err)
			}
			conn.Close()
		}
	}
	t.Run("inspect", func(t *testing.T) { inspect(t, r, text.Path) })
	t.Run("override", func(t *testing.T) { override(t, r) })
}

// notAlive forgets that something is in use.
func notAlive(err error) error {
	if err != nil && (errors.Is(err, disk.ErrAlive) || strings.Contains(err.Error(), "alive")) {
		return nil
	}
	return err
}

// inspect looks at what others do with and without the right.
func inspect(t *testing.T, r *rig, held store.Path) {
	for uid, may := range map[int]bool{30001: false, 30004: true, 0: true} {
		c, err := r.as(uid)
		if err != nil {
			t.Fatal(err)
		}
		chains, err := c.Why(t.Context(), held)
		if err != nil || len(chains) == 0 {
			t.Fatalf("user %d: chains %+v, %v", uid, chains, err)
		}
		for _, chain := range chains {
			if seen := chain.Link != "{censored}"; seen != may {
				t.Errorf("user %d sees %q", uid, chain.Link)
			}
		}
		st, err := c.Status(t.Context())
		if err != nil || len(st.Sessions) > 0 != may {
			t.Errorf("user %d sees the sessions %+v, %v", uid, st.Sessions, err)
		}
		if st.You.UID != uid || st.You.Rights.Has(archive.Inspect) != may || st.You.Trusted != (uid == 0) || c.Trusted() != (uid == 0) {
			t.Errorf("user %d is told to be %+v", uid, st.You)
		}
		c.Close()
	}
}

// TestNamedRoots adds roots as some users and deletes them as others.
func TestNamedRoots(t *testing.T) {
	needRoot(t)
	r := start(t, nil)
	r.writeACL("uid:32001 default\nuid:32002 default\nuid:32003 default,pin\n* none\n")
	p := addText(t, r.dial(), "a", "hello").Path
	conns := map[int]*client.Conn{}
	for _, uid := range []int{32001, 32002, 32003} {
		c, err := r.as(uid)
		if err != nil {
			t.Fatal(err)
		}
		conns[uid] = c
	}
	ctx := t.Context()
	for _, uid := range []int{32001, 32002} {
		got, err := conns[uid].AddRoot(ctx, &protocol.AddRootRequest{Path: p, Name: "mine", TTL: 3600})
		if err != nil || got.Who == nil || got.Who.UID != uid || time.Until(got.Who.Until) < 50*time.Minute {
			t.Fatalf("user %d: %+v, %v", uid, got, err)
		}
	}
	for _, ttl := range []int64{-1, 1 << 62} {
		if _, err := conns[32001].AddRoot(ctx, &protocol.AddRootRequest{Path: p, TTL: ttl}); err == nil {
			t.Errorf("a root for %d seconds", ttl)
		}
	}
	theirs := 32001
	for _, c := range []struct {
		uid     int
		owner   *int
		allowed bool
	}{{32002, &theirs, false}, {32003, &theirs, true}, {32002, nil, true}} {
		gone, err := conns[c.uid].DeleteRoots(ctx, &protocol.DeleteRootsRequest{Names: []string{"mine"}, UID: c.owner})
		if c.allowed && (err != nil || len(gone) != 1) || !c.allowed && !errors.Is(err, protocol.ErrNotAllowed) {
			t.Errorf("user %d deletes: %+v, %v", c.uid, gone, err)
		}
	}
	list, err := conns[32001].Roots(ctx)
	for _, root := range list {
		if root.Kind == "named" || root.Kind == "lease" && (root.Link != "{censored}" || root.Who != nil) {
			t.Errorf("left: %+v", root)
		}
	}
	if err != nil || len(list) == 0 {
		t.Errorf("roots: %+v, %v", list, err)
	}
}

// override sets a restricted setting with and without the right.
func override(t *testing.T, r *rig) {
	for uid, may := range map[int]bool{30001: false, 30006: true, 0: true} {
		var told strings.Builder
		c, err := client.New(t.Context(), r.connectAs(uid), &client.Options{Observer: client.ObserverFunc(func(m *protocol.Message) { told.WriteString(m.Text) })})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetOptions(t.Context(), &protocol.Options{Verbosity: protocol.LevelInfo, Overrides: map[string]string{"post-build-hook": "/bin/true", "timeout": "3"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.AllPaths(t.Context()); err != nil {
			t.Fatal(err)
		}
		const want = "warning: ignoring the client-specified setting 'post-build-hook', because it is a restricted setting and you are not a trusted user\n"
		if got := told.String(); (got == "") != may || !may && got != want {
			t.Errorf("user %d is told %q", uid, got)
		}
		c.Close()
	}
}

// TestWhoConnects checks users, groups of the process, settings, and the group of builders.
func TestWhoConnects(t *testing.T) {
	needRoot(t)
	set := settings.Defaults()
	set.AllowedUsers = []string{"31001", "@31500"}
	set.TrustedUsers = []string{"root", "@31600"}
	set.BuildUsers = "daemon"
	r := start(t, &daemon.Options{Settings: set})
	r.writeACL("gid:31700 gc\n")
	for _, c := range []struct {
		name string
		ids  []int
		want string
	}{
		{"named", []int{31001}, "connect,add,build,root,gc,verify,export"},
		{"of a group", []int{31002, 31500}, "connect,add,build,root,gc,verify,export"},
		{"of a further group", []int{31003, 31003, 1, 31500}, "connect,add,build,root,gc,verify,export"},
		{"trusted", []int{31004, 31004, 31600}, "all"},
		{"of the list", []int{31005, 31700}, "connect,gc"},
		{"nobody known", []int{31006}, "user 31006 is not allowed to connect"},
		{"a builder", []int{31001, 1}, "user 31001 is of the group daemon, whose members only build"},
		{"a builder among others", []int{31004, 31600, 1}, "user 31004 is of the group daemon"},
	} {
		conn, err := r.as(c.ids[0], c.ids[1:]...)
		if c.name == "of a further group" { // 1 is the builders' group
			if err == nil || !strings.Contains(err.Error(), "group daemon") {
				t.Errorf("%s: %v", c.name, err)
			}
			conn, err = r.as(31003, 31003, 2, 31500)
		}
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %s", c.name, err, c.want)
			}
			continue
		}
		st, err := conn.Status(t.Context())
		if err != nil || st.You.Rights.String() != c.want {
			t.Errorf("%s: %+v, %v, want %s", c.name, st, err, c.want)
		}
		conn.Close()
	}
}

// TestListChanges changes the access list under a running daemon.
func TestListChanges(t *testing.T) {
	needRoot(t)
	r := start(t, nil)
	ctx := t.Context()
	early, err := r.as(32000)
	if err != nil {
		t.Fatal(err)
	}
	addText(t, early, "a", "one")
	r.writeACL("* connect\n")
	addText(t, early, "b", "rights are decided once")
	late, err := r.as(32000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.AddToStore(ctx, "c", store.Text, store.SHA256, nil, strings.NewReader("c")); !errors.Is(err, protocol.ErrNotAllowed) {
		t.Errorf("add with the right to connect: %v", err)
	}
	for _, broken := range []string{"* rule\n", "user alice all\n", strings.Repeat("#", 2<<20)} {
		r.writeACL(broken)
		if _, err := r.as(32000); err == nil || !strings.Contains(err.Error(), "access list is wrong") {
			t.Errorf("list %.10q: %v", broken, err)
		}
		if root, err := r.as(0); err != nil || !root.Trusted() {
			t.Errorf("list %.10q: root: %v", broken, err)
		}
		// Nothing is believed because of a signature.
		contents := narOf(t, "x")
		if err := early.Add(ctx, inputAddressed(t, baseA, contents), bytes.NewReader(contents)); err == nil {
			t.Error("an unsigned object is accepted")
		}
	}
	r.writeACL("uid:32000 build\n* none\n")
	c, err := r.as(32000)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := c.Status(ctx); err != nil || st.You.Rights != archive.Connect|archive.Build {
		t.Errorf("after it was mended: %+v, %v", st, err)
	}
}

// TestLimit gives rights away before the handshake.
func TestLimit(t *testing.T) {
	r := start(t, nil)
	ask := func(peer daemon.Peer, most archive.Verbs) (archive.Verbs, error) {
		conn := r.pipe(peer)
		if err := protocol.WriteLimit(conn, most); err != nil {
			t.Fatal(err)
		}
		c, err := client.New(t.Context(), conn, nil)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		if c.Trusted() != (peer.Trusted && most == archive.All) {
			t.Errorf("%+v with at most %s is trusted: %v", peer, most, c.Trusted())
		}
		st, err := c.Status(t.Context())
		if err != nil {
			return 0, err
		}
		return st.You.Rights, nil
	}
	for _, c := range []struct {
		peer       daemon.Peer
		most, want archive.Verbs
	}{
		{daemon.Peer{Trusted: true}, archive.Ordinary, archive.Ordinary},
		{daemon.Peer{Trusted: true}, archive.Repair, archive.Repair | archive.Connect},
		{daemon.Peer{Trusted: true}, archive.All, archive.All},
		{daemon.Peer{UID: 1234}, archive.All, archive.Ordinary},
		{daemon.Peer{UID: 1234}, archive.Repair | archive.Add, archive.Add | archive.Connect},
		{daemon.Peer{Trusted: true, Limit: archive.Add}, archive.Ordinary, archive.Add | archive.Connect},
	} {
		got, err := ask(c.peer, c.most)
		if err != nil || got != c.want {
			t.Errorf("%+v with at most %s may %s, want %s, %v", c.peer, c.most, got, c.want, err)
		}
	}
	if _, err := ask(daemon.Peer{Trusted: true}, 0); err == nil {
		t.Error("a session without rights begins")
	}
}

// TestForcedRights is a daemon that does not look at who connects.
func TestForcedRights(t *testing.T) {
	r := start(t, &daemon.Options{Rights: archive.Add})
	c := r.dial()
	if st, err := c.Status(t.Context()); err != nil || st.You.Rights != archive.Add|archive.Connect || c.Trusted() {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestSignaturesAreBounded floods a path with signatures that nobody counts.
func TestSignaturesAreBounded(t *testing.T) {
	r := start(t, nil)
	ctx := t.Context()
	c := r.stranger()
	info := addText(t, c, "a", "hello")
	good, err := archive.GenerateKey("good-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Authorize(filepath.Join(r.layout.ConfDir, "acl"), good.Public(), archive.Import); err != nil {
		t.Fatal(err)
	}
	junk := func(from, n int) []string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("junk-%d:%s==", from+i, strings.Repeat("A", 86)))
		}
		return list
	}
	for _, bad := range []string{"", "x", "x:y", ":" + strings.Repeat("A", 86) + "==", "x:" + strings.Repeat("A", 88)} {
		if err := c.AddSignatures(ctx, info.Path, []string{bad}); err == nil {
			t.Errorf("%q is a signature", bad)
		}
	}
	if err := c.AddSignatures(ctx, info.Path, junk(0, 65)); err == nil {
		t.Error("65 at a time")
	}
	if err := c.AddSignatures(ctx, info.Path, junk(0, 64)); err != nil {
		t.Error(err)
	}
	if err := c.AddSignatures(ctx, info.Path, junk(64, 1)); err == nil {
		t.Error("the 65th is accepted")
	}
	if err := c.AddSignatures(ctx, info.Path, []string{good.SignInfo(info)}); err != nil {
		t.Errorf("junk keeps a good signature away: %v", err)
	}
	got, err := c.Info(ctx, info.Path)
	if err != nil || len(got.Signatures) != 65 || !slices.Contains(got.Signatures, good.SignInfo(info)) {
		t.Errorf("%d signatures, %v", len(got.Signatures), err)
	}
	// The same with what comes with an object.
	contents := narOf(t, "x")
	signed := inputAddressed(t, baseA, contents)
	signed.Signatures = append(junk(0, 200), "no signature", good.SignInfo(signed))
	if err := c.Add(ctx, signed, bytes.NewReader(contents)); err != nil {
		t.Fatal(err)
	}
	got, err = c.Info(ctx, signed.Path)
	if err != nil || len(got.Signatures) != 65 || !slices.Contains(got.Signatures, good.SignInfo(signed)) {
		t.Errorf("%d signatures, %v", len(got.Signatures), err)
	}
}

// TestTrustedPublicKeys counts keys of the setting, and who may override it.
func TestTrustedPublicKeys(t *testing.T) {
	ours, other := mustKey(t, "ours-1"), mustKey(t, "other-1")
	set := settings.Defaults()
	set.TrustedPublicKeys = []string{ours.Public().String(), "nonsense"}
	r := start(t, &daemon.Options{Settings: set})
	ctx := t.Context()
	contents := narOf(t, "x")
	c := r.stranger()
	info := inputAddressed(t, baseA, contents)
	info.Signatures = []string{other.SignInfo(info)}
	trustOther := &protocol.Options{Overrides: map[string]string{"trusted-public-keys": other.Public().String(), "require-sigs": "false"}}
	if err := c.SetOptions(ctx, trustOther); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(ctx, info, bytes.NewReader(contents)); !errors.Is(err, store.ErrUntrusted) {
		t.Errorf("a stranger chooses whom to trust: %v", err)
	}
	info.Signatures = []string{ours.SignInfo(info)}
	if err := c.Add(ctx, info, bytes.NewReader(contents)); err != nil {
		t.Errorf("signed by a key of the setting: %v", err)
	}
	root, err := client.Dial(ctx, r.socket, &client.Options{CheckSignatures: true})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	second := inputAddressed(t, baseB, contents)
	second.Signatures = []string{other.SignInfo(second)}
	if err := root.Add(ctx, second, bytes.NewReader(contents)); !errors.Is(err, store.ErrUntrusted) {
		t.Errorf("who is trusted wants signatures checked: %v", err)
	}
	delete(trustOther.Overrides, "require-sigs")
	if err := root.SetOptions(ctx, trustOther); err != nil {
		t.Fatal(err)
	}
	if err := root.Add(ctx, second, bytes.NewReader(contents)); err != nil {
		t.Errorf("signed by a key of the session: %v", err)
	}
}

func mustKey(t testing.TB, name string) archive.SecretKey {
	t.Helper()
	k, err := archive.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestLies lets a stranger, and root, claim what is not so. None of it may become valid or change what is.
func TestLies(t *testing.T) {
	r := start(t, nil)
	ctx := t.Context()
	root := r.dial()
	honest := addText(t, root, "honest", "truth")
	contents := narOf(t, "x")
	key := mustKey(t, "good-1")
	if _, err := archive.Authorize(filepath.Join(r.layout.ConfDir, "acl"), key.Public(), archive.Import); err != nil {
		t.Fatal(err)
	}
	ca := func(name string, refs store.References, change func(*store.Info)) *store.Info {
		i := &store.Info{NarHash: store.SHA256.Sum(contents), NarSize: int64(len(contents))}
		i.CA = store.ContentAddress{Method: store.Recursive, Hash: i.NarHash}
		p, err := store.DefaultDir.ContentPath(name, i.CA, refs)
		if err != nil {
			t.Fatal(err)
		}
		i.Path, i.References = p, refs.Others
		change(i)
		return i
	}
	signed := func(change func(*store.Info)) *store.Info {
		i := inputAddressed(t, baseA, contents)
		change(i)
		i.Signatures = []string{key.SignInfo(i)}
		return i
	}
	nowhere, _ := store.DefaultDir.Path(baseB)
	for _, c := range []struct {
		name string
		info *store.Info
		data []byte
	}{
		{"references that the address lacks", ca("x", store.References{}, func(i *store.Info) { i.References = []store.Path{honest.Path} }), contents},
		{"an address with references that are left out", ca("x", store.References{Others: []store.Path{honest.Path}}, func(i *store.Info) { i.References = nil }), contents},
		{"a self reference that the address lacks", ca("x", store.References{}, func(i *store.Info) { i.References = []store.Path{i.Path} }), contents},
		{"another method", ca("x", store.References{}, func(i *store.Info) { i.CA.Method = store.Flat }), contents},
		{"text in the place of an archive", ca("x", store.References{}, func(i *store.Info) { i.CA.Method = store.Text }), contents},
		{"another name", ca("x", store.References{}, func(i *store.Info) { i.Path, _ = store.DefaultDir.Path(i.Path.Digest() + "-y") }), contents},
		{"other contents", ca("x", store.References{}, func(*store.Info) {}), narOf(t, "y")},
		{"another hash", ca("x", store.References{}, func(i *store.Info) { i.NarHash = store.SHA256.Sum(nil) }), contents},
		{"a hash that fits the address only", ca("x", store.References{}, func(i *store.Info) { i.NarHash = store.SHA256.Sum(narOf(t, "y")) }), narOf(t, "y")},
		{"a smaller size", ca("x", store.References{}, func(i *store.Info) { i.NarSize-- }), contents},
		{"a larger size", ca("x", store.References{}, func(i *store.Info) { i.NarSize += 8 }), contents},
		{"a reference that is not there", ca("x", store.References{Others: []store.Path{nowhere}}, func(*store.Info) {}), contents},
		{"signed: other contents", signed(func(*store.Info) {}), narOf(t, "y")},
		{"signed: a size that is not so", signed(func(i *store.Info) { i.NarSize++ }), contents},
		{"signed: a reference that is not there", signed(func(i *store.Info) { i.References = []store.Path{nowhere} }), contents},
		{"signed with an address that is not so", signed(func(i *store.Info) { i.CA = store.ContentAddress{Method: store.Recursive, Hash: i.NarHash} }), contents},
		{"signed: no derivation", signed(func(i *store.Info) { i.Path, _ = store.DefaultDir.Path(baseA + ".drv") }), contents},
	} {
		for who, conn := range map[string]*client.Conn{"stranger": r.stranger(), "root": r.dial()} {
			info := *c.info
			if err := conn.Add(ctx, &info, bytes.NewReader(c.data)); err == nil {
				t.Errorf("%s by %s is accepted", c.name, who)
			}
			if ok, err := root.IsValid(ctx, c.info.Path); err != nil || ok {
				t.Fatalf("%s by %s: valid %v, %v", c.name, who, ok, err)
			}
		}
	}
	// A valid path stays as it is, whatever is sent for it, and whoever vouches for that.
	other := narOf(t, "lie")
	evil := &store.Info{Path: honest.Path, NarHash: store.SHA256.Sum(other), NarSize: int64(len(other))}
	evil.Signatures = []string{key.SignInfo(evil)}
	if err := r.stranger().Add(ctx, evil, bytes.NewReader(other)); err != nil && !errors.Is(err, store.ErrHashMismatch) {
		t.Errorf("add what is there: %v", err)
	}
	var got bytes.Buffer
	if err := root.NAR(ctx, honest.Path, &got); err != nil || !bytes.Contains(got.Bytes(), []byte("truth")) {
		t.Errorf("contents became %q, %v", got.String(), err)
	}
	if info, err := root.Info(ctx, honest.Path); err != nil || info.NarHash != honest.NarHash || len(info.Signatures) != 0 {
		t.Errorf("description became %+v, %v", info, err)
	}
}

// TestEveryWayForADerivation brings a .drv that claims somebody else's output in every way there is.
func TestEveryWayForADerivation(t *testing.T) {
	r := start(t, nil)
	ctx := t.Context()
	root := r.dial()
	victim, _ := store.DefaultDir.Path(baseA)
	text := `Derive([("out","` + victim.String() + `","","")],[],[],"x86_64-linux","/bin/sh",[],[("out","` + victim.String() + `")])`
	key := mustKey(t, "good-1")
	if _, err := archive.Authorize(filepath.Join(r.layout.ConfDir, "acl"), key.Public(), archive.Import); err != nil {
		t.Fatal(err)
	}
	contents := narOf(t, text)
	info := &store.Info{NarHash: store.SHA256.Sum(contents), NarSize: int64(len(contents)), CA: store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum([]byte(text))}}
	var err error
	if info.Path, err = store.DefaultDir.ContentPath("a.drv", info.CA, store.References{}); err != nil {
		t.Fatal(err)
	}
	bare := *info
	bare.CA = store.ContentAddress{}
	bare.Signatures = []string{key.SignInfo(&bare)}
	source := oneObject{info: info, contents: contents}
	var bundle, export bytes.Buffer
	if err := archive.WriteBundle(ctx, &bundle, key, store.DefaultDir, []*store.Info{info}, source); err != nil {
		t.Fatal(err)
	}
	if err := archive.WriteExport(ctx, &export, source, []store.Path{info.Path}); err != nil {
		t.Fatal(err)
	}
	ways := map[string]func() error{
		"AddToStore": func() error {
			_, err := root.AddToStore(ctx, "a.drv", store.Text, store.SHA256, nil, strings.NewReader(text))
			return err
		},
		"AddToStore flat": func() error {
			_, err := root.AddToStore(ctx, "a.drv", store.Flat, store.SHA256, nil, strings.NewReader(text))
			return err
		},
		"AddToStore archive": func() error {
			_, err := root.AddToStore(ctx, "a.drv", store.Recursive, store.SHA256, nil, bytes.NewReader(contents))
			return err
		},
		"AddToStoreNar":      func() error { i := *info; return r.dial().Add(ctx, &i, bytes.NewReader(contents)) },
		"AddToStoreNar bare": func() error { i := bare; return r.dial().Add(ctx, &i, bytes.NewReader(contents)) },
		"AddMultipleToStore": func() error { return r.dial().AddFrom(ctx, []*store.Info{info}, source) },
		"ImportBundle":       func() error { _, err := root.ImportBundle(ctx, bytes.NewReader(bundle.Bytes())); return err },
		"AddTextToStore": func() error {
			return r.refused(protocol.OpAddTextToStore, func(e *protocol.Encoder) { e.Text("a.drv"); e.Text(text); e.Paths(nil) }, nil)
		},
		"ImportPaths": func() error { return r.refused(protocol.OpImportPaths, nil, export.Bytes()) },
		"stranger's AddToStore": func() error {
			_, err := r.stranger().AddToStore(ctx, "a.drv", store.Text, store.SHA256, nil, strings.NewReader(text))
			return err
		},
		"stranger's AddToStoreNar": func() error { i := bare; return r.stranger().Add(ctx, &i, bytes.NewReader(contents)) },
		"the store itself":         func() error { i := *info; return r.store.Add(ctx, &i, bytes.NewReader(contents)) },
	}
	for name, way := range ways {
		if err := way(); err == nil || !strings.Contains(err.Error(), "should be") && !strings.Contains(err.Error(), "which would be") {
			t.Errorf("%s: %v", name, err)
		}
		if all, err := root.AllPaths(ctx); err != nil || len(all) != 0 {
			t.Fatalf("%s: valid: %v, %v", name, all, err)
		}
	}
}

// refused sends a request word by word, answers Read messages with data, and returns the daemon's error.
func (r *rig) refused(op protocol.Op, fields func(*protocol.Encoder), data []byte) error {
	c := r.raw(38)
	c.send(op, fields)
	for {
		switch m := c.next(); m.Kind {
		case protocol.KindLast:
			return nil
		case protocol.KindError:
			return m.Err
		case protocol.KindRead:
			n := min(int(m.Size), len(data))
			c.e.Text(string(data[:n]))
			data = data[n:]
			c.e.Flush()
		}
	}
}

// oneObject is a store of one object.
type oneObject struct {
	info     *store.Info
	contents []byte
}

func (o oneObject) Info(_ context.Context, p store.Path) (*store.Info, error) {
	if p != o.info.Path {
		return nil, store.ErrNotValid
	}
	i := *o.info
	return &i, nil
}

func (o oneObject) NAR(_ context.Context, _ store.Path, w io.Writer) error {
	_, err := w.Write(o.contents)
	return err
}

// TestRefusedPeersLeaveSoon keeps refused connections open for a short time only.
func TestRefusedPeersLeaveSoon(t *testing.T) {
	set := settings.Defaults()
	set.AllowedUsers = nil
	r := start(t, &daemon.Options{Settings: set})
	conn := r.pipe(daemon.Peer{UID: 1234})
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// TestSubstitutedDerivation has a cache, whose key is trusted, offer a .drv that claims somebody else's output, and one that is another
// file than its path says.
func TestSubstitutedDerivation(t *testing.T) {
	victim, _ := store.DefaultDir.Path(baseA)
	text := `Derive([("out","` + victim.String() + `","","")],[],[],"x86_64-linux","/bin/sh",[],[("out","` + victim.String() + `")])`
	key, cache := mustKey(t, "cache-1"), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(cache, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nix-cache-info", "StoreDir: "+store.DefaultDir.String()+"\nWantMassQuery: 1\nPriority: 40\n")
	offer := func(i *store.Info, contents []byte) store.Path {
		t.Helper()
		i.NarHash, i.NarSize = store.SHA256.Sum(contents), int64(len(contents))
		nar := i.Path.Digest() + ".nar"
		write(nar, string(contents))
		write(i.Path.Digest()+".narinfo", fmt.Sprintf("StorePath: %s\nURL: %s\nCompression: none\nFileSize: %d\nNarHash: %s\nNarSize: %d\nReferences: \nSig: %s\n",
			i.Path, nar, i.NarSize, i.NarHash, i.NarSize, key.SignInfo(i)))
		return i.Path
	}
	own, err := store.DefaultDir.ContentPath("a.drv", store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum([]byte(text))}, store.References{})
	if err != nil {
		t.Fatal(err)
	}
	lies := offer(&store.Info{Path: own}, narOf(t, text))
	other, _ := store.DefaultDir.Path(baseB + ".drv")
	another := offer(&store.Info{Path: other}, narOf(t, strings.ReplaceAll(text, victim.String(), "")))
	good := offer(inputAddressed(t, baseA, nil), narOf(t, "good"))

	set := settings.Defaults()
	set.Substituters, set.TrustedPublicKeys = []string{"file://" + cache}, []string{key.Public().String()}
	r := start(t, &daemon.Options{Settings: set})
	for p, why := range map[store.Path]string{lies: "should be", another: "not the derivation that its path says"} {
		c := r.stranger()
		if err := c.Ensure(t.Context(), p); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s is fetched: %v, want %q", p, err, why)
		}
		if ok, err := c.IsValid(t.Context(), p); err != nil || ok {
			t.Errorf("%s is valid, %v", p, err)
		}
	}
	if err := r.stranger().Ensure(t.Context(), good); err != nil {
		t.Errorf("what is signed and no derivation: %v", err)
	}
}
