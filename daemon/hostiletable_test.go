package daemon_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/archive/wire"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/store"
)

// hostileDialects are the versions between which requests differ most.
var hostileDialects = []dialect{{minor: 10}, {minor: 22}, {minor: 24}, {minor: 34}, {38, []protocol.Feature{protocol.FeatureDeleteReferrers, protocol.FeatureRealisations}}}

// hostileTexts stand where paths, names, hashes and settings should be.
var hostileTexts = []string{
	"", "/", "..", "/cairn/store", "/cairn/store/", "/cairn/store/../../etc/passwd", "/etc/passwd", "/cairn/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz",
	"/cairn/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-" + strings.Repeat("x", 212), "/cairn/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a!*!*",
	"/cairn/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-a.drv!out,", "a\x00b", "\xff\xfe\x80", "{\"id\":", "fixed:r:md6", "sha256:", strings.Repeat("x", 5000),
}

// texts counts the texts in values, and replaces the one with number n.
func texts(values list, n int, by string) (int, list) {
	count, changed := 0, make(list, len(values))
	for i, v := range values {
		changed[i] = v
		switch v := v.(type) {
		case string, store.Path:
			if count == n {
				changed[i] = by
			}
			count++
		case list:
			inner, l := texts(v, n-count, by)
			count += inner
			changed[i] = l
		}
	}
	return count, changed
}

// TestHostileTexts puts each hostile text into the place of each text of each request. Whoever sent it gets an answer, and may go on.
func TestHostileTexts(t *testing.T) {
	r := start(t, &daemon.Options{Version: "2.8.0"})
	f := newFacts(t, r, r.dial())
	refused, alive := 0, 0
	for _, d := range hostileDialects {
		for _, x := range f.exchanges(d) {
			if d.minor < x.since || d.minor >= x.until {
				continue
			}
			count, _ := texts(x.request, -1, "")
			for n := range count {
				for _, text := range hostileTexts {
					_, request := texts(x.request, n, text)
					what := fmt.Sprintf("1.%d: %s with %.80q as text %d", d.minor, x.name, text, n)
					no, more := r.ask(t, what, d, bytesOf(x.op, request), f.out)
					if no {
						refused++
					}
					if more {
						alive++
					}
				}
			}
		}
	}
	t.Logf("%d requests were refused, after %d of them the session went on", refused, alive)
	if refused < 1000 || alive < refused*3/4 {
		t.Errorf("%d requests were refused, after %d of them the session went on", refused, alive)
	}
	addText(t, r.dial(), "after", "all")
}

// ask sends a request in a session of its own, reports whether it was refused, and sees that the session goes on or has ended.
func (r *rig) ask(t *testing.T, what string, d dialect, request []byte, out *store.Info) (refused, alive bool) {
	t.Helper()
	conn := r.pipe(daemon.Peer{UID: 1234, GID: 1234})
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	hello, _ := d.hello("")
	if _, err := conn.Write(append(hello, request...)); err != nil && !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("%s: %v", what, err)
	}
	rd := wire.NewReader(conn)
	_, greeting := d.hello("2.8.0")
	if _, err := io.CopyN(io.Discard, rd, int64(len(greeting))); err != nil {
		t.Fatalf("%s: handshake: %v", what, err)
	}
	dec := protocol.NewDecoder(rd, protocol.Format{Dir: store.DefaultDir, Version: protocol.Minor(d.minor)})
	for {
		m := dec.Message()
		if err := dec.Err(); err != nil {
			t.Errorf("%s: no answer: %v", what, err)
			return false, false
		}
		if strings.Contains(fmt.Sprint(m.Err), "BUG") {
			t.Errorf("%s: %v", what, m.Err)
		}
		if m.Kind == protocol.KindLast {
			return false, false // what follows has a length of its own
		}
		if m.Kind == protocol.KindError {
			break
		}
	}
	if _, err := conn.Write(bytesOf(1, out.Path)); err != nil {
		return true, false
	}
	got, err := io.ReadAll(io.LimitReader(rd, 16))
	if want := bytesOf(0x616c7473, 1); len(got) > 0 && !bytes.Equal(got, want) {
		t.Errorf("%s: after the error comes %q, %v", what, got, err)
	}
	return true, len(got) > 0
}

// TestHostileNumbers replaces each number of each request, and stops after it.
func TestHostileNumbers(t *testing.T) {
	r := start(t, nil)
	f := newFacts(t, r, r.dial())
	for _, d := range hostileDialects {
		hello, _ := d.hello("")
		for _, x := range f.exchanges(d) {
			if d.minor < x.since || d.minor >= x.until {
				continue
			}
			request := bytesOf(x.op, x.request)
			step := max(8, len(request)/24&^7)
			for n := 8; n+8 <= len(request); n += step {
				r.play(t, append(bytes.Clone(hello), request[:n]...))
				for _, v := range []uint64{1 << 63, 1<<64 - 1, 1 << 31, 1 << 20} {
					bad := bytes.Clone(request)
					binary.LittleEndian.PutUint64(bad[n:], v)
					r.play(t, append(bytes.Clone(hello), bad...))
				}
			}
			if t.Failed() {
				t.Fatalf("in 1.%d: %s", d.minor, x.name)
			}
		}
	}
	addText(t, r.dial(), "after", "all")
}

// TestThousandConnections are opened by one user, who gets half of what there may be; others are served.
func TestThousandConnections(t *testing.T) {
	r := start(t, nil)
	conns := make(chan *client.Conn, 1000)
	errs := make(chan error, 1000)
	for range 4 {
		go func() {
			for range 250 {
				c, err := client.New(t.Context(), r.pipe(daemon.Peer{UID: 1234}), nil)
				conns <- c
				errs <- err
			}
		}()
	}
	refused := 0
	for range 1000 {
		if c, err := <-conns, <-errs; err != nil {
			refused++
			if !strings.Contains(err.Error(), "which is the limit") {
				t.Fatal(err)
			}
		} else {
			defer c.Close()
		}
	}
	if refused != 500 {
		t.Errorf("%d of 1000 connections are refused", refused)
	}
	addText(t, r.dial(), "others", "are served")
}

// TestFloodOfRequests sends requests and never reads an answer.
func TestFloodOfRequests(t *testing.T) {
	r := start(t, nil)
	f := newFacts(t, r, r.dial())
	d := dialect{minor: 34}
	hello, _ := d.hello("")
	var flood bytes.Buffer
	for range 1000 {
		put(&flood, 26, f.out.Path, 23, 26, f.text.Path)
	}
	for range 10 {
		conn := r.pipe(daemon.Peer{UID: 1234})
		conn.Write(hello)
		go func() {
			for {
				if _, err := conn.Write(flood.Bytes()); err != nil {
					return
				}
			}
		}()
	}
	c := r.dial()
	for i := range 50 {
		addText(t, c, fmt.Sprint("n", i), "x")
	}
}
