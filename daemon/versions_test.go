package daemon_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cairn/archive/wire"
	"cairn/client"
	"cairn/daemon"
	"cairn/daemon/protocol"
	"cairn/store"
)

// someSignature is well-formed.
var someSignature = "k:" + base64.StdEncoding.EncodeToString(make([]byte, 64))

// list is values one after the other: numbers, texts, raw bytes, lists.
type list []any

// put writes values as they are on the wire, without this project's encoders.
func put(b *bytes.Buffer, values ...any) {
	number := func(n uint64) { b.Write(binary.LittleEndian.AppendUint64(nil, n)) }
	for _, v := range values {
		switch v := v.(type) {
		case int:
			number(uint64(v))
		case uint64:
			number(v)
		case string:
			number(uint64(len(v)))
			b.WriteString(v)
			b.Write(make([]byte, (8-len(v)%8)%8))
		case store.Path:
			put(b, v.String())
		case []byte:
			b.Write(v)
		case list:
			put(b, v...)
		default:
			panic(fmt.Sprintf("BUG: %T", v))
		}
	}
}

func bytesOf(values ...any) []byte {
	var b bytes.Buffer
	put(&b, values...)
	return b.Bytes()
}

// frames is contents as a framed upload.
func frames(contents []byte) list {
	var l list
	for len(contents) > 0 {
		n := min(len(contents), 50)
		l, contents = append(l, n, contents[:n]), contents[n:]
	}
	return append(l, 0)
}

// dialect is a version with features.
type dialect struct {
	minor    int
	features []protocol.Feature
}

func (d dialect) byPath() bool { return len(d.features) > 0 }

// hello is the whole handshake of both sides.
func (d dialect) hello(name string) (request, answer []byte) {
	q, a := list{0x6e697863, 0x100 | d.minor}, list{0x6478696f, 0x126}
	if d.minor >= 38 {
		offers := []string{"cairn-1", "cairn-descriptor-1", "cairn-heartbeat-1", "cairn-operations-1", "delete-dead-specific-referrers", "realisation-with-path-not-hash"}
		for _, row := range daemon.Operations() {
			if n := int(row.Op) - 0x63610000; n > 0 && n != 0x20 {
				offers = append(offers, fmt.Sprintf("cairn-operation-%x", n))
			}
		}
		slices.Sort(offers)
		q, a = append(q, len(d.features)), append(a, len(offers))
		for _, f := range d.features {
			q = append(q, string(f))
		}
		for _, f := range offers {
			a = append(a, f)
		}
	}
	if d.minor >= 14 {
		q = append(q, 0)
	}
	if d.minor >= 11 {
		q = append(q, 0)
	}
	if d.minor >= 33 {
		a = append(a, name)
	}
	if d.minor >= 35 {
		a = append(a, 1)
	}
	return bytesOf(q), bytesOf(a, 0x616c7473)
}

// exchange is a request and its reply, for the versions from since to before until.
type exchange struct {
	name         string
	op           int
	since, until int
	request      list
	reply        list
}

// facts are what the exchanges are about.
type facts struct {
	text, drv, out, free *store.Info
	id                   string // of out
	system, link         string
}

func newFacts(t testing.TB, r *rig, c *client.Conn) *facts {
	t.Helper()
	f := &facts{text: addText(t, c, "text", "hello")}
	drv := script(t, c, "known", "exit 1", false, f.text.Path)
	info, err := c.Info(t.Context(), drv)
	if err != nil {
		t.Fatal(err)
	}
	f.drv = info
	outputs, err := c.OutputMap(t.Context(), drv)
	if err != nil {
		t.Fatal(err)
	}
	contents := narOf(t, "made")
	f.out = inputAddressed(t, outputs["out"].Base(), contents, f.text.Path)
	f.out.Deriver, f.out.RegisteredAt, f.out.Signatures = drv, 1234, []string{someSignature}
	if err := c.Add(t.Context(), f.out, bytes.NewReader(contents)); err != nil {
		t.Fatal(err)
	}
	if f.out, err = c.Info(t.Context(), f.out.Path); err != nil {
		t.Fatal(err)
	}
	f.free = inputAddressed(t, baseA, contents)
	f.system = map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH]
	f.link = filepath.Join(r.layout.StateDir, "gcroots", "permanent")
	f.id = drvOutput(t, r, drv).String()
	return f
}

// info is what is known of an object, without its path.
func info(i *store.Info, minor int) list {
	deriver := ""
	if !i.Deriver.IsZero() {
		deriver = i.Deriver.String()
	}
	l := list{deriver, i.NarHash.Hex(), len(i.References)}
	for _, p := range i.References {
		l = append(l, p)
	}
	l = append(l, int(i.RegisteredAt), int(i.NarSize))
	if minor < 16 {
		return l
	}
	ultimate := 0
	if i.Ultimate {
		ultimate = 1
	}
	l = append(l, ultimate, len(i.Signatures))
	for _, s := range i.Signatures {
		l = append(l, s)
	}
	return append(l, i.CA.String())
}

// result is the answer about an output that is there.
func (f *facts) result(d dialect) list {
	l := list{2, ""}
	if d.minor >= 29 {
		l = append(l, 0, 0, 0, 0)
	}
	if d.minor >= 37 {
		l = append(l, 0, 0)
	}
	switch {
	case d.byPath():
		l = append(l, 1, "out", f.out.Path, 0)
	case d.minor >= 28:
		l = append(l, 1, f.id, f.json())
	}
	return l
}

func (f *facts) json() string {
	return fmt.Sprintf(`{"dependentRealisations":{},"id":%q,"outPath":%q,"signatures":[]}`, f.id, f.out.Path.Base())
}

// when is l if a condition holds.
func when(b bool, l ...any) list {
	if b {
		return l
	}
	return nil
}

// exchanges are the conversations about f in a dialect.
func (f *facts) exchanges(d dialect) []exchange {
	m := d.minor
	made := []byte("\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1\x00\x00\x00")
	archive := append(made, bytesOf("(", "type", "regular", "contents", "made", ")")...)
	out := f.out.Path.String()
	absent := f.free.Path.String()
	target := out
	name := f.drv.Path.String() + "!*"
	if m < 30 {
		name = f.drv.Path.String() // a .drv means its outputs
	}
	options := list{0, 0, 0, 3, 1, 0, 1, 7, 0, 0, 1, 1}
	derivation := list{1, "out", out, "", "", 1, f.text.Path, f.system, "/bin/sh", 2, "-c", "exit 1", 1, "out", out}
	return []exchange{
		{"SetOptions", 19, 0, 12, options, nil},
		{"SetOptions", 19, 12, 99, list{options, 1, "cores", "1"}, nil},
		{"IsValidPath", 1, 0, 99, list{out}, list{1}},
		{"IsValidPath of what is not", 1, 0, 99, list{absent}, list{0}},
		{"HasSubstitutes", 3, 0, 99, list{out}, list{0}},
		{"QueryPathHash", 4, 0, 99, list{out}, list{f.out.NarHash.Hex()}},
		{"QueryReferences", 5, 0, 99, list{out}, list{1, f.text.Path}},
		{"QueryReferrers", 6, 0, 99, list{f.drv.Path}, list{0}},
		{"AddToStore", 7, 25, 99, list{"made", "fixed:r:sha256", 0, 0, frames(archive)}, nil},
		{"AddToStore", 7, 0, 25, list{"made", 1, 1, "sha256", archive}, nil},
		{"AddTextToStore", 8, 0, 99, list{"text", "hello", 0}, list{f.text.Path}},
		{"BuildPaths", 9, 0, 15, list{1, target}, list{1}},
		{"BuildPaths", 9, 15, 99, list{2, target, name, 0}, list{1}},
		{"EnsurePath", 10, 0, 99, list{out}, list{1}},
		{"AddTempRoot", 11, 0, 99, list{absent}, list{1}},
		{"AddIndirectRoot", 12, 0, 99, list{"/nonexistent/link"}, list{1}},
		{"SyncWithGC", 13, 0, 99, nil, list{1}},
		{"ExportPath", 16, 0, 99, list{out, 0}, list{1}},
		{"QueryDeriver", 18, 0, 99, list{out}, list{f.drv.Path}},
		{"CollectGarbage", 20, 0, 99, list{3, when(d.byPath(), 0), 0, when(d.byPath(), 0), 0, 1 << 40, 0, 0, 0}, list{0, 0, 0}},
		{"QuerySubstitutablePathInfo", 21, 0, 99, list{out}, list{0}},
		{"QueryDerivationOutputs", 22, 0, 99, list{f.drv.Path}, list{1, out}},
		{"QueryFailedPaths", 24, 0, 99, nil, list{0}},
		{"ClearFailedPaths", 25, 0, 99, list{1, "*"}, list{1}},
		{"QueryPathInfo", 26, 0, 17, list{out}, info(f.out, m)},
		{"QueryPathInfo", 26, 17, 99, list{out}, list{1, info(f.out, m)}},
		{"QueryPathInfo of what is not", 26, 17, 99, list{absent}, list{0}},
		{"QueryDerivationOutputNames", 28, 0, 99, list{f.drv.Path}, list{1, "out"}},
		{"QueryPathFromHashPart", 29, 0, 99, list{f.out.Path.Digest()}, list{out}},
		{"QueryPathFromHashPart of what is not", 29, 0, 99, list{f.free.Path.Digest()}, list{""}},
		{"QuerySubstitutablePathInfos", 30, 12, 22, list{1, out}, list{0}},
		{"QuerySubstitutablePathInfos", 30, 22, 99, list{2, absent, "", out, "fixed:r:sha256:" + f.out.NarHash.Nix32()}, list{0}},
		{"QueryValidPaths", 31, 12, 99, list{2, absent, out, when(m >= 27, 0)}, list{1, out}},
		{"QuerySubstitutablePaths", 32, 12, 99, list{2, absent, out}, list{0}},
		{"QueryValidDerivers", 33, 0, 99, list{out}, list{1, f.drv.Path}},
		{"OptimiseStore", 34, 0, 99, nil, list{1}},
		{"VerifyStore", 35, 0, 99, list{0, 0}, list{0}},
		{"BuildDerivation", 36, 0, 99, list{f.drv.Path, derivation, 0}, f.result(d)},
		{"AddSignatures", 37, 0, 99, list{out, 1, someSignature}, list{1}},
		{"NarFromPath", 38, 0, 99, list{out}, list{archive}},
		{"AddToStoreNar", 39, 23, 99, list{out, info(f.out, 38), 0, 1, frames(archive)}, nil},
		{"QueryMissing", 40, 19, 99, list{2, target, name}, list{0, 0, 0, 0, 0}},
		{"QueryDerivationOutputMap", 41, 22, 99, list{f.drv.Path}, list{1, "out", out}},
		{"RegisterDrvOutput", 42, 27, 31, list{f.id, f.out.Path.Base()}, nil},
		{"RegisterDrvOutput", 42, 31, 99, f.register(d), nil},
		{"QueryRealisation", 43, 27, 31, list{f.id}, list{1, out}},
		{"QueryRealisation", 43, 31, 99, f.query(d), f.realisation(d)},
		{"AddMultipleToStore", 44, 32, 99, list{0, 1, frames(bytesOf(1, out, info(f.out, 38), archive))}, nil},
		{"AddBuildLog", 45, 32, 99, list{f.drv.Path.Base(), frames([]byte("a line\n"))}, list{1}},
		{"BuildPathsWithResults", 46, 34, 99, list{1, name, 0}, list{1, name, f.result(d)}},
		{"AddPermRoot", 47, 36, 99, list{out, f.link}, list{f.link}},
	}
}

func (f *facts) query(d dialect) list {
	if d.byPath() {
		return list{f.drv.Path, "out"}
	}
	return list{f.id}
}

func (f *facts) register(d dialect) list {
	if d.byPath() {
		return list{f.drv.Path, "out", f.out.Path, 0}
	}
	return list{f.json()}
}

func (f *facts) realisation(d dialect) list {
	if d.byPath() {
		return list{1, f.out.Path, 0}
	}
	return list{1, f.json()}
}

// TestVersions speaks every version with every operation, byte by byte.
func TestVersions(t *testing.T) {
	r := start(t, &daemon.Options{Version: "2.8.0"})
	keeper := r.dial()
	f := newFacts(t, r, keeper)
	both := []protocol.Feature{protocol.FeatureDeleteReferrers, protocol.FeatureRealisations}
	var dialects []dialect
	for minor := 10; minor <= 38; minor++ {
		dialects = append(dialects, dialect{minor: minor})
	}
	for _, d := range append(dialects, dialect{38, both}) {
		t.Run(fmt.Sprintf("1.%d+%d", d.minor, len(d.features)), func(t *testing.T) { f.speak(t, r, d) })
	}
}

func (f *facts) speak(t *testing.T, r *rig, d dialect) {
	conn := r.pipe(daemon.Peer{Trusted: true})
	defer conn.Close()
	hello, greeting := d.hello("2.8.0")
	if _, err := conn.Write(hello); err != nil {
		t.Fatal(err)
	}
	rd := wire.NewReader(conn)
	expect(t, rd, "handshake", greeting)
	dec := protocol.NewDecoder(rd, protocol.Format{Dir: store.DefaultDir, Version: protocol.Minor(d.minor)})
	for _, x := range f.exchanges(d) {
		if d.minor < x.since || d.minor >= x.until {
			continue
		}
		if _, err := conn.Write(bytesOf(x.op, x.request)); err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		for {
			m := dec.Message()
			if err := dec.Err(); err != nil {
				t.Fatalf("%s: %v", x.name, err)
			}
			if m.Kind == protocol.KindError {
				t.Fatalf("%s: %v", x.name, m.Err)
			}
			if m.Kind == protocol.KindLast {
				break
			}
		}
		if x.op == 7 {
			f.added(t, dec, d)
			continue
		}
		expect(t, rd, x.name, bytesOf(x.reply))
	}
}

// added reads the reply of AddToStore, whose time is not known before.
func (f *facts) added(t *testing.T, dec *protocol.Decoder, d dialect) {
	t.Helper()
	got := dec.Path()
	if d.minor >= 25 {
		if i := dec.Info(got); i.NarHash != f.out.NarHash || i.NarSize != f.out.NarSize {
			t.Errorf("AddToStore: %+v", i)
		}
	}
	if dec.Err() != nil || got.Name() != "made" {
		t.Errorf("AddToStore: %s, %v", got, dec.Err())
	}
}

// expect reads exactly these bytes.
func expect(t *testing.T, r io.Reader, what string, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if len(want) > 0 && (err != nil || !bytes.Equal(got, want)) {
		t.Fatalf("%s: got  %q, %v\nwant %q", what, got[:n], err, want)
	}
}

// TestErrorForms fails a build and a request, before and after errors had a structure.
func TestErrorForms(t *testing.T) {
	r := start(t, nil)
	failing := script(t, r.dial(), "failing", "echo no; exit 3", false)
	for _, minor := range []int{25, 26, 38} {
		c := r.raw(minor)
		for _, ask := range []struct {
			op      protocol.Op
			request list
			status  uint64
			text    string
		}{
			{protocol.OpBuildPaths, list{1, failing.String(), 0}, 100, "exit code 3"},
			{protocol.OpBuildPaths, list{1, failing.String() + "!out", 9}, 1, "mode 9"},
			{protocol.OpIsValidPath, list{"relative"}, 1, "relative"},
		} {
			if minor >= 30 && ask.status == 100 {
				ask.request[1] = failing.String() + "!*"
			}
			c.send(ask.op, func(e *protocol.Encoder) { e.Wire().Write(bytesOf(ask.request)) })
			for kind := uint64(0); kind != uint64(protocol.KindError); {
				if kind = c.d.Uint64(); kind != uint64(protocol.KindError) {
					skip(t, c.d, kind)
				}
			}
			var text string
			if minor < 26 {
				text = c.d.Text(1 << 20)
				if status := c.d.Uint64(); status != ask.status {
					t.Errorf("1.%d: %s: status %d, want %d", minor, text, status, ask.status)
				}
			} else {
				if a, level, b := c.d.Text(10), c.d.Uint64(), c.d.Text(10); a != "Error" || level != 0 || b != "Error" {
					t.Errorf("1.%d: error begins with %q, %d, %q", minor, a, level, b)
				}
				text = c.d.Text(1 << 20)
				if position, traces := c.d.Uint64(), c.d.Uint64(); position != 0 || traces != 0 {
					t.Errorf("1.%d: error ends with %d, %d", minor, position, traces)
				}
			}
			if err := c.d.Err(); err != nil || !strings.Contains(text, ask.text) {
				t.Errorf("1.%d: got %q, %v, want %q", minor, text, err, ask.text)
			}
		}
	}
}

// skip reads a message that is no error.
func skip(t *testing.T, d *protocol.Decoder, kind uint64) {
	t.Helper()
	fields := func() {
		for range d.Uint64() {
			if d.Uint64() == 0 {
				d.Uint64()
			} else {
				d.Text(1 << 20)
			}
		}
	}
	switch kind {
	case 0x6f6c6d67:
		d.Text(1 << 20)
	case 0x53545254:
		d.Uint64()
		d.Uint64()
		d.Uint64()
		d.Text(1 << 20)
		fields()
		d.Uint64()
	case 0x53544f50:
		d.Uint64()
	case 0x52534c54:
		d.Uint64()
		d.Uint64()
		fields()
	default:
		t.Fatalf("message of kind %#x", kind)
	}
}
