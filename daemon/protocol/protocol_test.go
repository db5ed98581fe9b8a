package protocol_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/archive/wire"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

const dir store.Dir = "/nix/store"

func path(t testing.TB, base string) store.Path {
	t.Helper()
	p, err := dir.Path(base)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func format(minor int, features ...protocol.Feature) protocol.Format {
	return protocol.Format{Dir: dir, Version: protocol.Minor(minor), Features: features}
}

// encode returns what write produces.
func encode(t testing.TB, f protocol.Format, write func(*protocol.Encoder)) []byte {
	t.Helper()
	var b bytes.Buffer
	e := protocol.NewEncoder(wire.NewWriter(&b), f)
	write(e)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decoder(b []byte, f protocol.Format) *protocol.Decoder {
	return protocol.NewDecoder(wire.NewReader(bytes.NewReader(b)), f)
}

// words concatenates integers and padded texts.
func words(t testing.TB, values ...any) []byte {
	return encode(t, format(38), func(e *protocol.Encoder) {
		for _, v := range values {
			switch v := v.(type) {
			case int:
				e.Uint64(uint64(v))
			case string:
				e.Text(v)
			}
		}
	})
}

func sampleInfo(t testing.TB) *store.Info {
	a, b := path(t, "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a"), path(t, "2bj8pdj5hdiqgbcr2z9k8wg6vvjxzbj6-b")
	return &store.Info{
		Path: a, NarHash: store.SHA256.Sum([]byte("x")), NarSize: 120, References: []store.Path{b, a},
		Deriver: path(t, "b6gvzjyb2pg0kjfwrjmg1vfhh54ad73z-a.drv"), RegisteredAt: 1700000000, Ultimate: true,
		Signatures: []string{"k:AAAA"}, CA: store.ContentAddress{Method: store.Recursive, Hash: store.SHA256.Sum([]byte("x"))},
	}
}

func sampleResult(t testing.TB) *protocol.BuildResult {
	d := 1500 * time.Microsecond
	id := store.DrvOutput{Drv: store.SHA256.Sum([]byte("drv")), Output: "out"}
	return &protocol.BuildResult{
		Status: protocol.PermanentFailure, Error: "no", TimesBuilt: 1, NonDeterministic: true, Start: 3, Stop: 5,
		CPUUser: &d, Outputs: map[string]store.Realisation{"out": {ID: id, OutPath: path(t, "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a"), Signatures: []string{"k:AA"}}},
	}
}

func TestInfoOnTheWire(t *testing.T) {
	i := sampleInfo(t)
	refs := []string{i.References[0].String(), i.References[1].String()}
	slices.Sort(refs)
	long := words(t, i.Path.String(), i.Deriver.String(), i.NarHash.Hex(), 2, refs[0], refs[1], 1700000000, 120, 1, 1, "k:AAAA", i.CA.String())
	if got := encode(t, format(18), func(e *protocol.Encoder) { e.KeyedInfo(i) }); !bytes.Equal(got, long) {
		t.Errorf("got %q, want %q", got, long)
	}
	d := decoder(long, format(38))
	got := d.KeyedInfo()
	want := *i
	want.References = store.SortPaths(append([]store.Path(nil), i.References...))
	if d.Err() != nil || !reflect.DeepEqual(got, &want) {
		t.Errorf("got %+v (%v), want %+v", got, d.Err(), &want)
	}
}

func TestHashIsReadInAnyNotation(t *testing.T) {
	h := store.SHA256.Sum([]byte("x"))
	for _, s := range []string{h.Hex(), h.Nix32(), h.String(), h.SRI(), "sha256:" + h.Hex(), strings.TrimPrefix(h.SRI(), "sha256-")} {
		d := decoder(words(t, s), format(34))
		if got := d.NarHash(); got != h || d.Err() != nil {
			t.Errorf("%q: got %v, %v", s, got, d.Err())
		}
	}
}

func TestBuildResultRoundTrip(t *testing.T) {
	for _, f := range []protocol.Format{format(20), format(28), format(29), format(34), format(37), format(38), format(38, protocol.FeatureRealisations)} {
		want := sampleResult(t)
		b := encode(t, f, func(e *protocol.Encoder) { e.BuildResult(want) })
		d := decoder(b, f)
		got := d.BuildResult()
		if d.Err() != nil {
			t.Fatalf("%v: %v", f, d.Err())
		}
		if f.Version < protocol.Minor(29) {
			want.TimesBuilt, want.NonDeterministic, want.Start, want.Stop = 0, false, 0, 0
		}
		if f.Version < protocol.Minor(37) {
			want.CPUUser = nil
		}
		switch {
		case f.Version < protocol.Minor(28):
			want.Outputs = nil
		case f.Has(protocol.FeatureRealisations):
			o := want.Outputs["out"]
			o.ID.Drv = store.Hash{}
			want.Outputs["out"] = o
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v: got %+v, want %+v", f, got, want)
		}
	}
}

// TestNewResultForOldPeer: a realisation known by path only goes to an old peer with a zero hash.
func TestNewResultForOldPeer(t *testing.T) {
	r := sampleResult(t)
	o := r.Outputs["out"]
	o.ID = store.DrvOutput{Output: "out"}
	r.Outputs["out"] = o
	d := decoder(encode(t, format(34), func(e *protocol.Encoder) { e.BuildResult(r) }), format(34))
	got := d.BuildResult()
	if d.Err() != nil || got.Outputs["out"].OutPath != o.OutPath || strings.Trim(got.Outputs["out"].ID.Drv.Hex(), "0") != "" {
		t.Errorf("got %+v, %v", got, d.Err())
	}
}

func TestTargets(t *testing.T) {
	drv := "/nix/store/b6gvzjyb2pg0kjfwrjmg1vfhh54ad73z-a.drv"
	for _, c := range []struct{ in, want, err string }{
		{drv, drv, ""},
		{drv + "!*", drv + "!*", ""},
		{drv + "!out,dev,out", drv + "!dev,out", ""},
		{drv + "!out!x", "", "dynamic"},
		{drv + "!", "", "output"},
		{drv + "!a/b", "", "output"},
		{"/nix/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a!out", "", "no derivation"},
		{"/tmp/x", "", "not below the store"},
	} {
		got, err := protocol.ParseTarget(dir, c.in)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, %v, want an error with %q", c.in, got, err, c.err)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%s: got %v, %v", c.in, got, err)
		}
	}
	if d := decoder(words(t, drv), format(29)); !d.Target().IsAll() {
		t.Error("a derivation before 1.30 does not mean all its outputs")
	}
	if d := decoder(words(t, drv), format(30)); d.Target().Outputs != nil {
		t.Error("a derivation since 1.30 does not mean itself")
	}
}

var messages = []*protocol.Message{
	{Kind: protocol.KindNext, Text: "line\n"},
	{Kind: protocol.KindRead, Size: 7},
	{Kind: protocol.KindWrite, Data: []byte("data")},
	{Kind: protocol.KindStart, ID: 5, Level: protocol.LevelInfo, Activity: protocol.ActBuild, Text: "building", Fields: []protocol.Field{protocol.Text("x"), protocol.Number(1)}, Parent: 2},
	{Kind: protocol.KindResult, ID: 5, Result: protocol.ResBuildLogLine, Fields: []protocol.Field{protocol.Text("hi")}},
	{Kind: protocol.KindStop, ID: 5},
	{Kind: protocol.KindError, Err: &protocol.Error{Text: "no", Status: 1, Traces: []string{"while"}}},
	{Kind: protocol.KindLast},
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, m := range messages {
		b := encode(t, format(38), func(e *protocol.Encoder) { e.Message(m) })
		d := decoder(b, format(38))
		if got := d.Message(); d.Err() != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v (%v), want %+v", got, d.Err(), m)
		}
	}
}

func TestErrorsKeepTheirSentinel(t *testing.T) {
	err := protocol.NewError(errors.Join(errors.New("query"), store.ErrNotValid))
	m := &protocol.Message{Kind: protocol.KindError, Err: err}
	for _, c := range []struct {
		f    protocol.Format
		want bool
	}{{format(38, protocol.FeatureCairn), true}, {format(38), false}, {format(25), false}} {
		d := decoder(encode(t, c.f, func(e *protocol.Encoder) { e.Message(m) }), c.f)
		got := d.Message()
		if d.Err() != nil {
			t.Fatal(d.Err())
		}
		if errors.Is(got.Err, store.ErrNotValid) != c.want || got.Err.Text != err.Text {
			t.Errorf("%v: got %+v", c.f, got.Err)
		}
	}
}

// TestBadValueIsNotFatal: the request is consumed, so that the session lives.
func TestBadValueIsNotFatal(t *testing.T) {
	d := decoder(words(t, "/etc/passwd", "text:md5", 42), format(34))
	d.Path()
	d.Method()
	if n := d.Uint64(); n != 42 || d.Broken() != nil || d.Err() == nil {
		t.Errorf("got %d, broken %v, err %v", n, d.Broken(), d.Err())
	}
}

func TestBoundsAreFatal(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		read  func(*protocol.Decoder)
	}{
		"length":       {words(t, 1<<62), func(d *protocol.Decoder) { d.Text(1 << 20) }},
		"count":        {words(t, 1<<62), func(d *protocol.Decoder) { d.Paths() }},
		"end":          {words(t, 3, "a"), func(d *protocol.Decoder) { d.Texts(10) }},
		"map":          {words(t, 2, "a"), func(d *protocol.Decoder) { d.Map(10, 10) }},
		"padding":      {[]byte("\x01\x00\x00\x00\x00\x00\x00\x00aaaaaaaa"), func(d *protocol.Decoder) { d.Text(10) }},
		"message kind": {words(t, 17), func(d *protocol.Decoder) { d.Message() }},
		"field tag":    {words(t, int(protocol.KindResult), 1, 101, 1, 9, 9), func(d *protocol.Decoder) { d.Message() }},
	} {
		d := decoder(c.bytes, format(38))
		c.read(d)
		if d.Broken() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBudgetBindsWholeRequest(t *testing.T) {
	b := encode(t, format(38), func(e *protocol.Encoder) {
		e.Uint64(100)
		for range 100 {
			e.Text(strings.Repeat("x", 1000))
		}
	})
	d := decoder(b, format(38))
	d.Reset(50_000)
	if got := d.Texts(1000); got != nil || d.Broken() == nil {
		t.Errorf("got %d texts, broken %v", len(got), d.Broken())
	}
}

func TestOptionsRoundTrip(t *testing.T) {
	want := &protocol.Options{KeepGoing: true, Verbosity: 3, MaxJobs: 4, MaxSilent: 9, UseBuildHook: true, VerboseBuild: true, Cores: 2, UseSubstitutes: true, Overrides: map[string]string{"timeout": "3"}}
	d := decoder(encode(t, format(34), func(e *protocol.Encoder) { e.Options(want) }), format(34))
	if got := d.Options(); d.Err() != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, d.Err())
	}
}

func TestGCOptionsRoundTrip(t *testing.T) {
	for _, f := range []protocol.Format{format(34), format(38, protocol.FeatureDeleteReferrers)} {
		want := &protocol.GCOptions{Action: protocol.GCDeleteSpecific, Paths: []store.Path{path(t, "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a")}, MaxFreed: protocol.NoLimit}
		d := decoder(encode(t, f, func(e *protocol.Encoder) { e.GCOptions(want) }), f)
		if got := d.GCOptions(); d.Err() != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: got %+v, %v", f, got, d.Err())
		}
	}
}

// shake does a handshake between two sides.
func shake(t *testing.T, s protocol.Server, c protocol.Client) (protocol.Format, protocol.Answer, error, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	type served struct {
		f   protocol.Format
		err error
	}
	done := make(chan served, 1)
	go func() {
		w := wire.NewWriter(a)
		f, err := s.Handshake(wire.NewReader(a), w)
		if err == nil {
			err = w.Flush()
		} else {
			a.Close()
		}
		done <- served{f, err}
	}()
	answer, cerr := c.Handshake(wire.NewReader(b), wire.NewWriter(b))
	if cerr != nil {
		b.Close()
	}
	got := <-done
	return got.f, answer, got.err, cerr
}

func TestHandshake(t *testing.T) {
	all := protocol.AllFeatures()
	for _, c := range []struct {
		server, client int
		want           int
		features       int
		trust          protocol.Trust
	}{
		{38, 38, 38, 6, protocol.Trusted},
		{38, 34, 34, 0, protocol.TrustUnknown},
		{34, 38, 34, 0, protocol.TrustUnknown},
		{38, 35, 35, 0, protocol.Trusted},
		{38, 18, 18, 0, protocol.TrustUnknown},
	} {
		s := protocol.Server{Dir: dir, Name: "x", Version: protocol.Minor(c.server), Features: all, Trust: protocol.Trusted}
		f, a, serr, cerr := shake(t, s, protocol.Client{Dir: dir, Version: protocol.Minor(c.client), Features: all})
		if serr != nil || cerr != nil {
			t.Errorf("%+v: server %v, client %v", c, serr, cerr)
			continue
		}
		if f.Version != protocol.Minor(c.want) || !reflect.DeepEqual(f, a.Format) || len(f.Features) != c.features || a.Trust != c.trust {
			t.Errorf("%+v: got %+v and %+v", c, f, a)
		}
	}
}

func TestHandshakeRefusesOldAndForeign(t *testing.T) {
	s := protocol.Server{Dir: dir}
	if _, _, err, _ := shake(t, s, protocol.Client{Dir: dir, Version: protocol.Minor(9)}); err == nil || !strings.Contains(err.Error(), "1.9") {
		t.Errorf("1.9: %v", err)
	}
	var out bytes.Buffer
	if _, err := s.Handshake(wire.NewReader(strings.NewReader("GET / HTTP/1.1\r\n\r\n")), wire.NewWriter(&out)); !errors.Is(err, protocol.ErrNoPeer) || out.Len() > 0 {
		t.Errorf("HTTP: %v, answered %q", err, out.String())
	}
	if _, err := s.Handshake(wire.NewReader(strings.NewReader("abc")), wire.NewWriter(&out)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short: %v", err)
	}
}

// FuzzDecode feeds every decoder. What is accepted must come out of the encoder and be accepted again.
func FuzzDecode(f *testing.F) {
	for i, c := range codecs {
		_ = c
		f.Add(uint8(i), uint8(38), []byte("\x01\x00\x00\x00\x00\x00\x00\x00"))
	}
	info := sampleInfo(f)
	f.Add(uint8(0), uint8(38), encode(f, format(38), func(e *protocol.Encoder) { e.KeyedInfo(info) }))
	f.Add(uint8(1), uint8(38), encode(f, format(38), func(e *protocol.Encoder) { e.BuildResult(sampleResult(f)) }))
	for _, m := range messages {
		f.Add(uint8(2), uint8(38), encode(f, format(38), func(e *protocol.Encoder) { e.Message(m) }))
	}
	f.Fuzz(func(t *testing.T, which, minor uint8, b []byte) {
		c := codecs[int(which)%len(codecs)]
		fm := format(10 + int(minor)%29)
		if minor >= 128 {
			fm.Features = protocol.AllFeatures()
		}
		d := decoder(b, fm)
		d.Reset(1 << 20)
		v := c.decode(d)
		if d.Err() != nil {
			return
		}
		once := encode(t, fm, func(e *protocol.Encoder) { c.encode(e, v) })
		d = decoder(once, fm)
		again := c.decode(d)
		if d.Err() != nil {
			t.Fatalf("own encoding is refused: %v", d.Err())
		}
		if twice := encode(t, fm, func(e *protocol.Encoder) { c.encode(e, again) }); !bytes.Equal(once, twice) {
			t.Fatalf("encoding is not canonical: %q, then %q", once, twice)
		}
	})
}

type codec struct {
	decode func(*protocol.Decoder) any
	encode func(*protocol.Encoder, any)
}

func codecOf[T any](decode func(*protocol.Decoder) T, encode func(*protocol.Encoder, T)) codec {
	return codec{func(d *protocol.Decoder) any { return decode(d) }, func(e *protocol.Encoder, v any) { encode(e, v.(T)) }}
}

var codecs = []codec{
	codecOf(func(d *protocol.Decoder) *derivation.Derivation { return d.BasicDerivation("a") }, (*protocol.Encoder).BasicDerivation),
	codecOf((*protocol.Decoder).KeyedInfo, (*protocol.Encoder).KeyedInfo),
	codecOf((*protocol.Decoder).BuildResult, (*protocol.Encoder).BuildResult),
	codecOf((*protocol.Decoder).Message, (*protocol.Encoder).Message),
	codecOf((*protocol.Decoder).Targets, (*protocol.Encoder).Targets),
	codecOf((*protocol.Decoder).Options, (*protocol.Encoder).Options),
	codecOf((*protocol.Decoder).GCOptions, (*protocol.Encoder).GCOptions),
	codecOf((*protocol.Decoder).Roots, (*protocol.Encoder).Roots),
	codecOf((*protocol.Decoder).GCResult, (*protocol.Encoder).GCResult),
	codecOf((*protocol.Decoder).Missing, (*protocol.Encoder).Missing),
	codecOf((*protocol.Decoder).OutputMap, (*protocol.Encoder).OutputMap),
	codecOf((*protocol.Decoder).Realisation, (*protocol.Encoder).Realisation),
	codecOf((*protocol.Decoder).Unkeyed, (*protocol.Encoder).Unkeyed),
	codecOf((*protocol.Decoder).PathOutput, (*protocol.Encoder).PathOutput),
}

// FuzzHandshake feeds both sides of the handshake.
func FuzzHandshake(f *testing.F) {
	f.Add(words(f, 0x6e697863, 0x126, 1, "cairn-1", 0, 0))
	f.Add(words(f, 0x6478696f, 0x126, 1, "cairn-1", "2.8.0", 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		protocol.Server{Dir: dir}.Handshake(wire.NewReader(bytes.NewReader(b)), wire.NewWriter(io.Discard))
		protocol.Client{Dir: dir}.Handshake(wire.NewReader(bytes.NewReader(b)), wire.NewWriter(io.Discard))
	})
}

func TestBasicDerivationRoundTrip(t *testing.T) {
	for name, columns := range map[string][3]string{
		"input-addressed": {"/nix/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a", "", ""},
		"fixed":           {"/nix/store/7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-a", "r:sha256", store.SHA256.Sum(nil).Hex()},
		"floating":        {"", "r:sha256", ""},
		"deferred":        {"", "", ""},
		"impure":          {"", "r:sha256", "impure"},
	} {
		b := words(t, 1, "out", columns[0], columns[1], columns[2], 1, "/nix/store/2bj8pdj5hdiqgbcr2z9k8wg6vvjxzbj6-b",
			"x86_64-linux", "/bin/sh", 2, "-c", "echo", 1, "out", "x")
		d := decoder(b, format(34))
		drv := d.BasicDerivation("a")
		if d.Err() != nil {
			t.Errorf("%s: %v", name, d.Err())
			continue
		}
		if got := encode(t, format(34), func(e *protocol.Encoder) { e.BasicDerivation(drv) }); !bytes.Equal(got, b) {
			t.Errorf("%s: got %q, want %q", name, got, b)
		}
	}
}
