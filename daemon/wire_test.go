package daemon_test

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"cairn/archive"
	"cairn/archive/wire"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/store"
)

// raw is a client that speaks word by word.
type raw struct {
	t testing.TB
	d *protocol.Decoder
	e *protocol.Encoder
}

func (r *rig) raw(minor int, features ...protocol.Feature) *raw {
	r.t.Helper()
	return rawOn(r.t, r.pipe(daemon.Peer{Trusted: true}), minor, features...)
}

// rawOn greets the daemon at the other end of a connection.
func rawOn(t testing.TB, conn net.Conn, minor int, features ...protocol.Feature) *raw {
	t.Helper()
	rd, w := wire.NewReader(conn), wire.NewWriter(conn)
	a, err := protocol.Client{Dir: store.DefaultDir, Version: protocol.Minor(minor), Features: features}.Handshake(rd, w)
	if err != nil {
		t.Fatal(err)
	}
	c := &raw{t, protocol.NewDecoder(rd, a.Format), protocol.NewEncoder(w, a.Format)}
	c.last()
	return c
}

// send starts a request.
func (c *raw) send(op protocol.Op, fields func(*protocol.Encoder)) {
	c.t.Helper()
	c.e.Uint64(uint64(op))
	if fields != nil {
		fields(c.e)
	}
	if err := c.e.Flush(); err != nil {
		c.t.Fatal(err)
	}
}

// next reads a message.
func (c *raw) next() *protocol.Message {
	c.t.Helper()
	m := c.d.Message()
	if err := c.d.Err(); err != nil {
		c.t.Fatal(err)
	}
	return m
}

// last reads messages up to Last, and returns what was written.
func (c *raw) last() string {
	c.t.Helper()
	var written strings.Builder
	for {
		switch m := c.next(); m.Kind {
		case protocol.KindLast:
			return written.String()
		case protocol.KindError:
			c.t.Fatal(m.Err)
		case protocol.KindWrite:
			written.Write(m.Data)
		}
	}
}

// feed answers Read messages with contents until Last.
func (c *raw) feed(contents []byte) {
	c.t.Helper()
	for {
		m := c.next()
		switch m.Kind {
		case protocol.KindLast:
			return
		case protocol.KindRead:
			n := min(m.Size, uint64(len(contents)), 100)
			c.e.Text(string(contents[:n]))
			contents = contents[n:]
			if err := c.e.Flush(); err != nil {
				c.t.Fatal(err)
			}
		default:
			c.t.Fatalf("message %x: %v", uint64(m.Kind), m.Err)
		}
	}
}

func TestOldAddToStore(t *testing.T) {
	r := start(t, nil)
	c := r.raw(24)
	contents := narOf(t, "hello")
	for _, f := range []struct {
		fixed, recursive bool
		algo             string
		ca               store.ContentAddress
	}{
		{false, false, "md5", store.ContentAddress{Method: store.Recursive, Hash: store.SHA256.Sum(contents)}},
		{true, true, "sha1", store.ContentAddress{Method: store.Recursive, Hash: store.SHA1.Sum(contents)}},
		{true, false, "sha512", store.ContentAddress{Method: store.Flat, Hash: store.SHA512.Sum([]byte("hello"))}},
	} {
		c.send(protocol.OpAddToStore, func(e *protocol.Encoder) {
			e.Text("a")
			e.Bool(f.fixed)
			e.Bool(f.recursive)
			e.Text(f.algo)
			e.Wire().Write(contents)
		})
		c.last()
		want, err := store.DefaultDir.ContentPath("a", f.ca, store.References{})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.d.Path(); got != want {
			t.Errorf("%+v: got %s, want %s, %v", f, got, want, c.d.Err())
		}
	}
	c.send(protocol.OpAddTextToStore, func(e *protocol.Encoder) {
		e.Text("t")
		e.Text("text")
		e.Paths(nil)
	})
	c.last()
	want, _ := store.DefaultDir.TextPath("t", store.SHA256.Sum([]byte("text")), nil)
	if got := c.d.Path(); got != want {
		t.Errorf("text: got %s, want %s", got, want)
	}
}

func TestOldAddToStoreNar(t *testing.T) {
	r := start(t, nil)
	contents := narOf(t, strings.Repeat("hello", 100))
	for minor, base := range map[int]string{20: baseA, 21: baseB} {
		c := r.raw(minor)
		info := inputAddressed(t, base, contents)
		c.send(protocol.OpAddToStoreNar, func(e *protocol.Encoder) {
			e.KeyedInfo(info)
			e.Bool(false)
			e.Bool(true)
			if minor < 21 {
				e.Wire().Write(contents)
			}
		})
		if minor < 21 {
			c.last()
		} else {
			c.feed(contents)
		}
		c.send(protocol.OpIsValidPath, func(e *protocol.Encoder) { e.Path(info.Path) })
		c.last()
		if !c.d.Bool() {
			t.Errorf("1.%d: not valid", minor)
		}
	}
}

// TestPulledErrors refuses what the daemon would have to ask for, or was about to: the session goes on.
func TestPulledErrors(t *testing.T) {
	r := start(t, nil)
	contents := narOf(t, "hello")
	c := r.raw(22)
	for _, wrong := range []string{"other contents of the same len", "h"} {
		info := inputAddressed(t, baseA, narOf(t, wrong))
		c.send(protocol.OpAddToStoreNar, func(e *protocol.Encoder) {
			e.KeyedInfo(info)
			e.Bool(false)
			e.Bool(true)
		})
		for rest := contents; ; {
			m := c.next()
			if m.Kind == protocol.KindError {
				break
			}
			if m.Kind != protocol.KindRead {
				t.Fatalf("message %x", uint64(m.Kind))
			}
			c.e.Text(string(rest))
			c.e.Flush()
			rest = nil
		}
		c.send(protocol.OpIsValidPath, func(e *protocol.Encoder) { e.Path(info.Path) })
		c.last()
		if c.d.Bool() || c.d.Err() != nil {
			t.Errorf("after the error: %v", c.d.Err())
		}
	}
}

func TestImportAndExportPaths(t *testing.T) {
	from, to := start(t, nil), start(t, nil)
	c := from.dial()
	a := addText(t, c, "a", "hello")
	b := addText(t, c, "b", "uses "+a.Path.String(), a.Path)
	var stream bytes.Buffer
	if err := archive.WriteExport(t.Context(), &stream, from.store, []store.Path{a.Path, b.Path}); err != nil {
		t.Fatal(err)
	}
	d := to.raw(34)
	d.send(protocol.OpImportPaths, nil)
	d.feed(stream.Bytes())
	if got := d.d.Paths(); len(got) != 2 || d.d.Err() != nil {
		t.Errorf("imported %v, %v", got, d.d.Err())
	}
	var one bytes.Buffer
	if err := archive.WriteExport(t.Context(), &one, to.store, []store.Path{b.Path}); err != nil {
		t.Fatal(err)
	}
	d.send(protocol.OpExportPath, func(e *protocol.Encoder) {
		e.Path(b.Path)
		e.Uint64(0)
	})
	if got, want := d.last(), one.String()[8:one.Len()-8]; got != want {
		t.Errorf("exported %q, want %q", got, want)
	}
	if d.d.Uint64() != 1 {
		t.Error("export does not end with 1")
	}
}

// TestRealisationsOfBothGenerations registers by path and by hash, and asks in the other way.
func TestRealisationsOfBothGenerations(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	drv := script(t, c, "n", "true", true)
	out := addText(t, c, "out", "x").Path
	id := drvOutput(t, r, drv)

	young := r.raw(38, protocol.FeatureRealisations)
	name := protocol.PathOutput{Drv: drv, Output: "out"}
	young.send(protocol.OpQueryRealisation, func(e *protocol.Encoder) { e.PathOutput(name) })
	young.last()
	if young.d.Bool() {
		t.Error("there is a realisation before there is one")
	}
	young.send(protocol.OpRegisterDrvOutput, func(e *protocol.Encoder) {
		e.PathOutput(name)
		e.Unkeyed(store.Realisation{OutPath: out})
	})
	young.last()
	young.send(protocol.OpQueryRealisation, func(e *protocol.Encoder) { e.PathOutput(name) })
	young.last()
	if !young.d.Bool() || young.d.Unkeyed().OutPath != out || young.d.Err() != nil {
		t.Errorf("by path: %v", young.d.Err())
	}

	old := r.raw(34)
	old.send(protocol.OpQueryRealisation, func(e *protocol.Encoder) { e.DrvOutput(id) })
	old.last()
	if n := old.d.Count(); n != 1 {
		t.Fatalf("by hash: %d", n)
	}
	if got := old.d.Realisation(); got.OutPath != out || got.ID != id {
		t.Errorf("by hash: %+v, %v", got, old.d.Err())
	}

	ancient := r.raw(28)
	second := store.DrvOutput{Drv: store.SHA256.Sum(nil), Output: "out"}
	ancient.send(protocol.OpRegisterDrvOutput, func(e *protocol.Encoder) {
		e.DrvOutput(second)
		e.Text(out.Base())
	})
	ancient.last()
	ancient.send(protocol.OpQueryRealisation, func(e *protocol.Encoder) { e.DrvOutput(second) })
	ancient.last()
	if n := ancient.d.Count(); n != 1 || ancient.d.Path() != out {
		t.Errorf("ancient: %d, %v", n, ancient.d.Err())
	}
}

func TestErrorsOnTheWire(t *testing.T) {
	r := start(t, nil)
	c := r.raw(34)
	c.send(protocol.OpIsValidPath, func(e *protocol.Encoder) { e.Text("/etc/passwd") })
	if m := c.next(); m.Kind != protocol.KindError || !strings.Contains(m.Err.Text, "/etc/passwd") {
		t.Errorf("a foreign path: %+v", m)
	}
	c.send(protocol.OpQueryAllValidPaths, nil)
	c.last()
	if got := c.d.Paths(); len(got) != 0 || c.d.Err() != nil {
		t.Errorf("after a bad value: %v, %v", got, c.d.Err())
	}
	for _, op := range []protocol.Op{protocol.OpStatus, 2, 99} {
		c := r.raw(34)
		c.send(op, nil)
		if m := c.next(); m.Kind != protocol.KindError || !strings.Contains(m.Err.Text, "invalid operation") {
			t.Errorf("operation %s: %+v", op, m)
		}
		if _, err := c.d.Wire().ReadByte(); err != io.EOF {
			t.Errorf("operation %s: the session goes on: %v", op, err)
		}
	}
}

// TestOldClientsGetNoActivities speaks 1.19.
func TestOldClientsGetNoActivities(t *testing.T) {
	r := start(t, nil)
	c := r.raw(19)
	c.send(protocol.OpCollectGarbage, func(e *protocol.Encoder) {
		e.GCOptions(&protocol.GCOptions{Action: protocol.GCDeleteDead, MaxFreed: protocol.NoLimit})
	})
	for {
		m := c.next()
		if m.Kind == protocol.KindLast {
			break
		}
		if m.Kind != protocol.KindNext {
			t.Errorf("message %x", uint64(m.Kind))
		}
	}
}

// query asks for the realisation of an output of drv by path or by hash.
func (c *raw) query(name protocol.PathOutput, id store.DrvOutput) (out store.Path) {
	c.t.Helper()
	c.send(protocol.OpQueryRealisation, func(e *protocol.Encoder) {
		if e.Has(protocol.FeatureRealisations) {
			e.PathOutput(name)
		} else {
			e.DrvOutput(id)
		}
	})
	c.last()
	if !c.d.Bool() {
		return out
	}
	if c.d.Has(protocol.FeatureRealisations) {
		out = c.d.Unkeyed().OutPath
	} else {
		out = c.d.Realisation().OutPath
	}
	if err := c.d.Err(); err != nil {
		c.t.Fatal(err)
	}
	return out
}

// register registers it in one of the two ways.
func (c *raw) register(name protocol.PathOutput, id store.DrvOutput, out store.Path, signatures ...string) {
	c.t.Helper()
	c.send(protocol.OpRegisterDrvOutput, func(e *protocol.Encoder) {
		if e.Has(protocol.FeatureRealisations) {
			e.PathOutput(name)
			e.Unkeyed(store.Realisation{OutPath: out, Signatures: signatures})
		} else {
			e.Realisation(store.Realisation{ID: id, OutPath: out, Signatures: signatures})
		}
	})
	c.last()
}

// TestRealisationsWithoutDerivation registers in one way and asks in the other, while the derivation is valid before, after or in between.
func TestRealisationsWithoutDerivation(t *testing.T) {
	r := start(t, nil)
	c := r.dial()
	out := addText(t, c, "out", "x").Path
	young, old := r.raw(38, protocol.FeatureRealisations), r.raw(34)
	drop := func(p store.Path) {
		t.Helper()
		c.Close()
		for range 200 { // the session that has just been closed may hold it for a moment
			if _, err := r.dial().Collect(t.Context(), &protocol.GCRequest{Paths: []store.Path{p}}, nil); err == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if r.store.IsValid(p) {
			t.Fatalf("%s is still valid", p)
		}
		c = r.dial()
	}
	keep := r.dial()
	keep.AddTempRoot(t.Context(), out)

	first := script(t, c, "first", "true", true)
	name, id := protocol.PathOutput{Drv: first, Output: "out"}, drvOutput(t, r, first)
	old.register(name, id, out)
	drop(first)
	if got := young.query(name, id); got != out {
		t.Errorf("registered by hash with its derivation, asked by path without: %s", got)
	}

	second := script(t, c, "second", "true; true", true)
	name, id = protocol.PathOutput{Drv: second, Output: "out"}, drvOutput(t, r, second)
	drop(second)
	young.register(name, id, out, "key:c2ln")
	if got := young.query(name, id); got != out {
		t.Errorf("registered and asked by path without derivation: %s", got)
	}
	if got := old.query(name, id); !got.IsZero() {
		t.Errorf("the hash cannot be known yet: %s", got)
	}
	script(t, c, "second", "true; true", true)
	if got := old.query(name, id); got != out {
		t.Errorf("registered by path before there is the derivation, asked by hash: %s", got)
	}
	other := addText(t, c, "other", "y").Path
	young.send(protocol.OpRegisterDrvOutput, func(e *protocol.Encoder) {
		e.PathOutput(name)
		e.Unkeyed(store.Realisation{OutPath: other})
	})
	if m := young.next(); m.Kind != protocol.KindError || !strings.Contains(m.Err.Text, "it is realised by") {
		t.Errorf("a second realisation: %+v", m)
	}
	drop(second)
	if got := old.query(name, id); got != out {
		t.Errorf("by hash after the derivation went: %s", got)
	}
	keep.Close()
	drop(out)
	for _, asker := range []*raw{young, old} {
		if got := asker.query(name, id); !got.IsZero() {
			t.Errorf("the output is gone, but realises: %s", got)
		}
	}
}
