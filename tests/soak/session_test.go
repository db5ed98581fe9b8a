package soak

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/derivation/eval"
	"cairn/store"
)

// script makes the bytes that a client sends in one session, from a seed: a handshake of some version, requests that are
// right, or nearly, and then, mostly, damage. Nothing in it depends on what the daemon answers.
type script struct {
	*rand.Rand
	e       *protocol.Encoder
	known   []store.Path // that may be there
	trusted bool
}

// session returns the bytes of the session with a number.
func session(seed uint64, known []store.Path, trusted bool) []byte {
	s := &script{Rand: rand.New(rand.NewPCG(seed, 0x6361)), known: known, trusted: trusted}
	var out bytes.Buffer
	s.hello(&out)
	hello := out.Len()
	for range 1 + s.IntN(12) {
		s.request()
	}
	s.e.Flush()
	return s.damage(out.Bytes(), hello)
}

// hello writes the handshake, and makes the encoder of what was announced.
func (s *script) hello(out *bytes.Buffer) {
	f := protocol.Format{Dir: store.DefaultDir, Version: protocol.Minor([]int{10, 11, 15, 16, 18, 20, 21, 22, 23, 25, 27, 28, 30, 31, 32, 34, 35, 37, 38, 38, 38, 38, 39}[s.IntN(23)])}
	for _, v := range []uint64{0x6e697863, uint64(f.Version)} {
		binary.Write(out, binary.LittleEndian, v)
	}
	if f.Version >= protocol.Minor(38) {
		for _, feature := range protocol.AllFeatures() {
			if s.IntN(2) == 0 {
				f.Features = append(f.Features, feature)
			}
		}
		w := wire.NewWriter(out)
		w.Uint64(uint64(len(f.Features)))
		for _, feature := range f.Features {
			w.String(string(feature))
		}
		w.Flush()
	}
	if f.Version >= protocol.Minor(14) {
		binary.Write(out, binary.LittleEndian, uint64(0))
	}
	if f.Version >= protocol.Minor(11) {
		binary.Write(out, binary.LittleEndian, uint64(0))
	}
	s.e = protocol.NewEncoder(wire.NewWriter(out), f)
}

// path is one that is known, or one that is not.
func (s *script) path() store.Path {
	if len(s.known) > 0 && s.IntN(4) > 0 {
		return s.known[s.IntN(len(s.known))]
	}
	return s.newPath(fmt.Sprintf("p%d", s.IntN(50)))
}

func (s *script) drv() store.Path {
	return s.newPath(fmt.Sprintf("d%d.drv", s.IntN(50)))
}

func (s *script) newPath(name string) store.Path {
	p, err := store.DefaultDir.ContentPath(name, store.ContentAddress{Method: store.Text, Hash: store.SHA256.Sum([]byte(name))}, store.References{})
	if err != nil {
		panic(err)
	}
	return p
}

func (s *script) paths() (list []store.Path) {
	for range s.IntN(5) {
		list = append(list, s.path())
	}
	return list
}

// targets are objects, and outputs of derivations.
func (s *script) targets() (list []protocol.Target) {
	for range 1 + s.IntN(3) {
		switch s.IntN(3) {
		case 0:
			list = append(list, protocol.Target{Path: s.path()})
		case 1:
			list = append(list, protocol.Target{Path: s.drv(), Outputs: protocol.All()})
		default:
			list = append(list, protocol.Target{Path: s.drv(), Outputs: []string{"out", "dev"}[:1+s.IntN(2)]})
		}
	}
	return list
}

// archive is a NAR.
func (s *script) archive() []byte {
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	contents := bytes.Repeat([]byte{'x'}, s.IntN(1<<s.IntN(14)))
	w.WriteHeader(&nar.Header{Type: nar.Regular, Size: int64(len(contents)), Executable: s.IntN(2) == 0})
	w.Write(contents)
	w.Close()
	return b.Bytes()
}

// info describes an archive as an object that proves itself, or does not.
func (s *script) info(archive []byte) *store.Info {
	i := &store.Info{NarHash: store.SHA256.Sum(archive), NarSize: int64(len(archive)), References: nil}
	i.CA = store.ContentAddress{Method: store.Recursive, Hash: i.NarHash}
	i.Path, _ = store.DefaultDir.ContentPath(fmt.Sprintf("n%d", s.IntN(50)), i.CA, store.References{})
	switch s.IntN(8) {
	case 0:
		i.CA = store.ContentAddress{}
	case 1:
		i.References = store.SortPaths(s.paths())
	case 2:
		i.NarSize++
	case 3:
		i.Signatures = []string{"nobody-1:AAAA", "x"}
	}
	return i
}

// recipe is a derivation that may be built.
func (s *script) recipe() *derivation.Derivation {
	n := s.IntN(50)
	d := &derivation.Derivation{
		Name: fmt.Sprintf("d%d", n), System: []string{eval.System(), "none", "builtin"}[s.IntN(3)], Builder: "/bin/sh",
		Outputs: map[string]derivation.Output{"out": {Method: store.Recursive, Algo: store.SHA256}},
		Args:    []string{"-c", fmt.Sprintf("echo %d; echo %d > $out; [ %d != 3 ]", n, n, n%7)},
		Env:     map[string]string{"name": fmt.Sprintf("d%d", n), "out": derivation.Placeholder("out")},
	}
	if d.System == "builtin" {
		d.Builder = "builtin:tree"
		d.Env["tree"] = fmt.Sprintf(`{"a/b":{"text":"%d\n"},"c":{"symlink":"a/b"}}`, n)
	}
	if s.IntN(6) == 0 {
		d.InputSrcs = store.SortPaths(s.paths())
	}
	return d
}

// frames sends contents as a framed upload, in pieces.
func (s *script) frames(contents []byte) {
	for len(contents) > 0 {
		n := 1 + s.IntN(len(contents))
		s.e.Uint64(uint64(n))
		s.e.Wire().Write(contents[:n])
		contents = contents[n:]
	}
	s.e.Uint64(0)
}

// upload sends contents as the session's version does: in frames, as they are, or as the answer to a request for data.
func (s *script) upload(framed int, contents []byte) {
	switch {
	case s.e.Version >= protocol.Minor(framed):
		s.frames(contents)
	case s.IntN(2) == 0:
		s.e.Wire().Write(contents)
	default:
		s.e.Text(string(contents))
	}
}

// operations are the requests there are.
var operations = []struct {
	op   protocol.Op
	send func(*script)
}{
	{protocol.OpIsValidPath, (*script).sendPath},
	{protocol.OpHasSubstitutes, (*script).sendPath},
	{protocol.OpQueryPathHash, (*script).sendPath},
	{protocol.OpQueryReferences, (*script).sendPath},
	{protocol.OpQueryReferrers, (*script).sendPath},
	{protocol.OpAddToStore, (*script).addToStore},
	{protocol.OpAddToStore, (*script).addDerivation},
	{protocol.OpAddToStore, (*script).addDerivation},
	{protocol.OpAddTextToStore, func(s *script) { s.e.Text("t"); s.e.Text("hello"); s.e.Paths(s.paths()) }},
	{protocol.OpBuildPaths, (*script).build},
	{protocol.OpBuildPathsWithResults, (*script).build},
	{protocol.OpEnsurePath, (*script).sendPath},
	{protocol.OpAddTempRoot, (*script).sendPath},
	{protocol.OpAddIndirectRoot, func(s *script) { s.e.Text([]string{"relative", "/nowhere/x", "", "/\x00"}[s.IntN(4)]) }},
	{protocol.OpSyncWithGC, func(*script) {}},
	{protocol.OpFindRoots, func(*script) {}},
	{protocol.OpExportPath, func(s *script) { s.sendPath(); s.e.Uint64(0) }},
	{protocol.OpQueryDeriver, (*script).sendPath},
	{protocol.OpSetOptions, (*script).options},
	{protocol.OpCollectGarbage, (*script).collect},
	{protocol.OpQuerySubstitutablePathInfo, (*script).sendPath},
	{protocol.OpQueryDerivationOutputs, func(s *script) { s.e.Path(s.drv()) }},
	{protocol.OpQueryAllValidPaths, func(*script) {}},
	{protocol.OpQueryPathInfo, (*script).sendPath},
	{protocol.OpImportPaths, func(s *script) { s.e.Text("\x01\x00\x00\x00\x00\x00\x00\x00" + string(s.archive())) }},
	{protocol.OpQueryDerivationOutputNames, func(s *script) { s.e.Path(s.drv()) }},
	{protocol.OpQueryPathFromHashPart, func(s *script) { s.e.Text(s.path().Digest()) }},
	{protocol.OpQuerySubstitutablePathInfos, func(s *script) { s.e.Uint64(1); s.sendPath(); s.e.Text("") }},
	{protocol.OpQueryValidPaths, (*script).validPaths},
	{protocol.OpQuerySubstitutablePaths, func(s *script) { s.e.Paths(s.paths()) }},
	{protocol.OpQueryValidDerivers, (*script).sendPath},
	{protocol.OpOptimiseStore, func(*script) {}},
	{protocol.OpOptimise, func(*script) {}},
	{protocol.OpVerify, func(s *script) { s.e.Text(`{"contents":false}`) }},
	{protocol.OpVerifyStore, func(s *script) { s.e.Bool(s.IntN(50) == 0); s.e.Bool(false) }},
	{protocol.OpBuildDerivation, func(s *script) {
		d := s.recipe()
		s.e.Path(s.drv())
		s.e.BasicDerivation(d)
		s.e.Uint64(uint64(s.IntN(3)))
	}},
	{protocol.OpAddSignatures, func(s *script) { s.sendPath(); s.e.Texts([]string{"a:b", "nobody-1:AAAA"}) }},
	{protocol.OpNarFromPath, (*script).sendPath},
	{protocol.OpAddToStoreNar, (*script).addNAR},
	{protocol.OpQueryMissing, func(s *script) { s.e.Targets(s.targets()) }},
	{protocol.OpQueryDerivationOutputMap, func(s *script) { s.e.Path(s.drv()) }},
	{protocol.OpRegisterDrvOutput, (*script).register},
	{protocol.OpQueryRealisation, (*script).realisation},
	{protocol.OpAddMultipleToStore, (*script).addMultiple},
	{protocol.OpAddBuildLog, func(s *script) { s.e.Text(s.drv().Base()); s.frames([]byte("some log\n")) }},
	{protocol.OpImportBundle, func(s *script) { s.frames([]byte("cairn bundle, perhaps")) }},
	{protocol.OpExportBundle, func(s *script) { s.e.Paths(s.paths()); s.e.Bool(true) }},
	{protocol.OpFollowLog, func(s *script) { s.e.Path(s.drv()) }},
	{protocol.OpGCWhy, (*script).sendPath},
	{protocol.OpStatus, func(*script) {}},
	{protocol.OpScrub, func(s *script) {
		s.e.Text(fmt.Sprintf(`{"action":%q}`, []string{"", "start", "pause", "resume", "else"}[s.IntN(5)]))
	}},
	{protocol.OpRoots, func(*script) {}},
	{protocol.OpAddRoot, func(s *script) {
		s.e.Text(fmt.Sprintf(`{"path":%q,"name":"root-%d","ttl":%d}`, s.path(), s.IntN(5), s.IntN(3)))
	}},
	{protocol.OpDeleteRoots, func(s *script) { s.e.Text(fmt.Sprintf(`{"names":["root-%d"]}`, s.IntN(5))) }},
	{protocol.OpCollectGarbage2, func(s *script) { s.e.Text(`{"dryRun":true}`) }},
	{protocol.OpQueryClosure, func(s *script) { s.e.Paths(s.paths()) }},
	{protocol.OpQueryClosurePaths, func(s *script) { s.e.Paths(s.paths()) }},
	{protocol.OpNARs, func(s *script) { s.e.PathList(s.paths()) }},
	{protocol.Op(24), func(*script) {}},
	{protocol.Op(99), func(*script) {}},
	{protocol.OpAddSized, func(s *script) {
		contents := s.archive()
		s.e.Text(fmt.Sprintf("n%d", s.IntN(50)))
		s.e.Method([]store.Method{store.Recursive, store.Flat, store.Text}[s.IntN(3)], store.SHA256)
		s.e.Paths(s.paths())
		s.e.Uint64(uint64(len(contents) + s.IntN(3) - 1))
		s.frames(contents)
	}},
}

// request writes one request.
func (s *script) request() {
	row := operations[s.IntN(len(operations))]
	s.e.Uint64(uint64(row.op))
	row.send(s)
}

func (s *script) sendPath() { s.e.Path(s.path()) }

func (s *script) addToStore() {
	contents := s.archive()
	if s.e.Version < protocol.Minor(25) {
		s.e.Text("old")
		s.e.Bool(s.IntN(2) == 0)
		s.e.Bool(true)
		s.e.Text("sha256")
		s.e.Wire().Write(contents)
		return
	}
	s.e.Text(fmt.Sprintf("n%d", s.IntN(50)))
	s.e.Method([]store.Method{store.Recursive, store.Flat, store.Text}[s.IntN(3)], []store.Algorithm{store.SHA256, store.SHA1}[s.IntN(2)])
	s.e.Paths(s.paths())
	s.e.Bool(false)
	s.frames(contents)
}

// addDerivation adds one that later requests may build.
func (s *script) addDerivation() {
	d := s.recipe()
	if s.e.Version < protocol.Minor(25) {
		s.e.Text(d.Name + ".drv")
		s.e.Bool(true)
		s.e.Bool(false)
		s.e.Text("sha256")
		s.e.Wire().Write(s.archive())
		return
	}
	s.e.Text(d.Name + ".drv")
	s.e.Method(store.Text, store.SHA256)
	s.e.Paths(d.References())
	s.e.Bool(false)
	s.frames(d.ATerm())
	if p, err := d.Path(store.DefaultDir); err == nil && s.IntN(2) == 0 {
		s.e.Uint64(uint64(protocol.OpBuildPathsWithResults))
		s.e.Targets([]protocol.Target{{Path: p, Outputs: protocol.All()}})
		s.e.Uint64(uint64(s.IntN(40) / 38 * 2))
	}
}

func (s *script) build() {
	s.e.Targets(s.targets())
	if s.e.Version >= protocol.Minor(15) {
		s.e.Uint64(uint64(s.IntN(4)))
	}
}

func (s *script) options() {
	s.e.Options(&protocol.Options{
		KeepGoing: s.IntN(2) == 0, MaxJobs: uint64(s.IntN(4)), VerboseBuild: s.IntN(2) == 0, UseSubstitutes: true, MaxSilent: 20,
		Overrides: map[string]string{"timeout": fmt.Sprint(s.IntN(100)), "cores": "x", "substituters": "file:///nowhere", "unknown": "?"},
	})
}

// collect asks for a collection, rarely one that deletes.
func (s *script) collect() {
	s.e.GCOptions(&protocol.GCOptions{Action: protocol.GCAction([]int{0, 1, 1, 2, 3, 9}[s.IntN(6)]), Paths: s.paths(), MaxFreed: uint64(s.IntN(3)) * 1000})
}

func (s *script) validPaths() {
	s.e.Paths(s.paths())
	if s.e.Version >= protocol.Minor(27) {
		s.e.Bool(s.IntN(2) == 0)
	}
}

func (s *script) addNAR() {
	a := s.archive()
	i := s.info(a)
	s.e.Path(i.Path)
	s.e.Info(i)
	s.e.Bool(s.IntN(10) == 0)
	s.e.Bool(s.IntN(2) == 0)
	s.upload(23, a)
}

func (s *script) addMultiple() {
	var b bytes.Buffer
	e := protocol.NewEncoder(wire.NewWriter(&b), protocol.Format{Version: protocol.Minor(16)})
	n := s.IntN(4)
	e.Uint64(uint64(n))
	for range n {
		a := s.archive()
		e.KeyedInfo(s.info(a))
		e.Wire().Write(a)
	}
	e.Flush()
	s.e.Bool(false)
	s.e.Bool(s.IntN(2) == 0)
	s.frames(b.Bytes())
}

func (s *script) id() store.DrvOutput {
	return store.DrvOutput{Drv: store.SHA256.Sum([]byte{byte(s.IntN(9))}), Output: "out"}
}

func (s *script) register() {
	r := store.Realisation{ID: s.id(), OutPath: s.path()}
	switch {
	case s.e.Has(protocol.FeatureRealisations):
		s.e.PathOutput(protocol.PathOutput{Drv: s.drv(), Output: "out"})
		s.e.Unkeyed(r)
	case s.e.Version >= protocol.Minor(31):
		s.e.Realisation(r)
	default:
		s.e.DrvOutput(r.ID)
		s.e.Text(r.OutPath.Base())
	}
}

func (s *script) realisation() {
	if s.e.Has(protocol.FeatureRealisations) {
		s.e.PathOutput(protocol.PathOutput{Drv: s.drv(), Output: "out"})
	} else {
		s.e.DrvOutput(s.id())
	}
}

// words are numbers at which programs break.
var words = []uint64{0, 1, 7, 8, 255, 4096, 1 << 16, 1<<20 + 1, 1 << 24, 1<<31 - 1, 1 << 31, 1 << 32, 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 8, 1<<64 - 1}

// damage changes bytes, of the handshake rarely. One session in four stays as it is.
func (s *script) damage(b []byte, hello int) []byte {
	if s.IntN(4) == 0 {
		return b
	}
	if s.IntN(20) == 0 {
		hello = 0
	}
	for range 1 + s.IntN(3) {
		if len(b) <= hello+8 {
			return b
		}
		at := hello + s.IntN(len(b)-hello-7)
		aligned := at &^ 7
		switch s.IntN(8) {
		case 0:
			b[at] ^= 1 << s.IntN(8)
		case 1, 2:
			if aligned >= hello {
				binary.LittleEndian.PutUint64(b[aligned:], words[s.IntN(len(words))])
			}
		case 3:
			if aligned >= hello {
				binary.LittleEndian.PutUint64(b[aligned:], binary.LittleEndian.Uint64(b[aligned:])+uint64(s.IntN(33))-16)
			}
		case 4:
			b = b[:at]
		case 5:
			b = append(b[:at:at], b[min(len(b), at+8*(1+s.IntN(4))):]...)
		case 6:
			from := hello + s.IntN(len(b)-hello)
			piece := bytes.Clone(b[from:min(len(b), from+s.IntN(256))])
			b = append(b[:aligned:aligned], append(piece, b[aligned:]...)...)
		case 7:
			garbage := make([]byte, 1+s.IntN(64))
			for i := range garbage {
				garbage[i] = byte(s.Uint32())
			}
			b = append(b[:at:at], append(garbage, b[at:]...)...)
		}
	}
	return b
}
