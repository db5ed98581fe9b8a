package daemon

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"

	"cairn/archive"
	"cairn/archive/nar"
	"cairn/archive/wire"
	"cairn/daemon/protocol"
	"cairn/store"
)

// addition is the request of AddToStore.
type addition struct {
	name   string
	method store.Method
	algo   store.Algorithm
	refs   []store.Path
	repair bool
	inline bool // before 1.25: a NAR without frames follows, whatever the method
}

func readAddition(d *protocol.Decoder) addition {
	a := addition{name: d.Text(protocol.MaxPath)}
	if d.Version >= protocol.Minor(25) {
		a.method, a.algo = d.Method()
		a.refs = d.Paths()
		a.repair = d.Bool()
		return a
	}
	a.inline = true
	fixed, recursive, algo := d.Bool(), d.Bool(), d.Text(protocol.MaxPath)
	a.method, a.algo = store.Recursive, store.SHA256
	if !fixed {
		return a
	}
	if !recursive {
		a.method = store.Flat
	}
	var err error
	if a.algo, err = store.ParseAlgorithm(algo); err != nil {
		a.algo = 0
	}
	return a
}

// addToStore adds contents whose path follows from them.
func (x *session) addToStore(ctx context.Context, a addition) (reply, error) {
	if err := x.checkAddition(a); err != nil {
		return nil, err
	}
	info, err := x.addContents(ctx, a)
	if err != nil {
		return nil, err
	}
	return a.reply(info), nil
}

// checkAddition says whether a request makes sense and the peer may make it.
func (x *session) checkAddition(a addition) error {
	if err := store.CheckName(a.name); err != nil {
		return fmt.Errorf("add: %w", err)
	}
	if a.algo == 0 {
		return fmt.Errorf("add %s: unknown hash algorithm", a.name)
	}
	if a.repair {
		return x.need(archive.Repair, fmt.Sprintf("add %s: repair", a.name))
	}
	return nil
}

// reply tells what the contents have become.
func (a addition) reply(info *store.Info) reply {
	return func(e *protocol.Encoder) error {
		if a.inline {
			e.Path(info.Path)
		} else {
			e.KeyedInfo(info)
		}
		return nil
	}
}

// sized is the request of OpAddSized.
type sized struct {
	addition
	size int64
}

func readSized(d *protocol.Decoder) sized {
	return sized{readOpen(d).addition, d.Int63()}
}

// addSized adds a file whose size the client knows.
func (x *session) addSized(ctx context.Context, a sized) (reply, error) {
	if err := x.checkAddition(a.addition); err != nil {
		return nil, err
	}
	if a.method == store.Recursive || strings.HasSuffix(a.name, ".drv") {
		return nil, fmt.Errorf("add %s: trees and derivations are added with another operation", a.name)
	}
	info, err := x.server.store.AddSized(ctx, a.name, a.method, a.algo, a.refs, x.upload, a.size)
	if err != nil {
		return nil, err
	}
	return a.reply(info), nil
}

// addContents adds what the upload, or the inline archive, contains.
func (x *session) addContents(ctx context.Context, a addition) (*store.Info, error) {
	if !a.inline {
		return x.addStream(ctx, a, x.upload)
	}
	if a.method == store.Recursive {
		return x.addStream(ctx, a, x.d.Wire())
	}
	r := nar.NewReader(x.d.Wire())
	h, err := r.Next()
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", a.name, err)
	}
	if h.Type != nar.Regular {
		return nil, fmt.Errorf("add %s: a flat object must be a regular file, not a %s", a.name, h.Type)
	}
	info, err := x.addStream(ctx, a, r)
	if err != nil {
		return nil, err
	}
	if _, err := r.Next(); err != io.EOF {
		return nil, fmt.Errorf("add %s: the archive does not end: %w", a.name, err)
	}
	return info, nil
}

// addStream adds contents.
func (x *session) addStream(ctx context.Context, a addition, r io.Reader) (*store.Info, error) {
	if strings.HasSuffix(a.name, ".drv") {
		b, err := x.checkedDerivation(a.name, a.method == store.Recursive, r)
		if err != nil {
			return nil, fmt.Errorf("add %s: %w", a.name, err)
		}
		r = bytes.NewReader(b)
	}
	return x.server.store.AddStream(ctx, a.name, a.method, a.algo, a.refs, r)
}

// text is the request of AddTextToStore.
type text struct {
	name, contents string
	refs           []store.Path
}

func readText(d *protocol.Decoder) text {
	return text{name: d.Text(protocol.MaxPath), contents: d.Text(protocol.MaxValue), refs: d.Paths()}
}

func (x *session) addTextToStore(ctx context.Context, t text) (reply, error) {
	if err := store.CheckName(t.name); err != nil {
		return nil, fmt.Errorf("add: %w", err)
	}
	info, err := x.addStream(ctx, addition{name: t.name, method: store.Text, algo: store.SHA256, refs: t.refs}, strings.NewReader(t.contents))
	if err != nil {
		return nil, err
	}
	return replyPath(info.Path), nil
}

// archived is the request of AddToStoreNar, and the head of AddMultipleToStore without info.
type archived struct {
	info     *store.Info
	repair   bool
	unsigned bool // do not check signatures
}

func readNAR(d *protocol.Decoder) archived {
	return archived{info: d.KeyedInfo(), repair: d.Bool(), unsigned: d.Bool()}
}

func (x *session) addToStoreNar(ctx context.Context, a archived) (reply, error) {
	var r io.Reader = x.upload
	switch {
	case x.upload != nil:
	case x.d.Version >= protocol.Minor(21):
		r = wire.NewReader(&pull{x: x})
	default:
		r = x.d.Wire()
	}
	return nil, x.addArchive(ctx, a, wire.NewReader(r))
}

// addArchive adds one NAR under the rules of trust. r is read up to the archive's end at most.
func (x *session) addArchive(ctx context.Context, a archived, r *wire.Reader) error {
	if err := x.admit(a); err != nil {
		return fmt.Errorf("add %s: %w", a.info.Path, err)
	}
	var contents io.Reader = r
	if a.info.Path.IsDerivation() {
		b, err := x.checkedDerivation(a.info.Path.Name(), true, r)
		if err != nil {
			return fmt.Errorf("add %s: %w", a.info.Path, err)
		}
		contents = bytes.NewReader(b)
	}
	return x.server.store.Add(ctx, a.info, contents)
}

// pull asks the client for data with Read messages, as 1.21, 1.22 and ImportPaths do it.
type pull struct {
	x    *session
	left []byte
}

// pullSize is how much is asked for at once.
const pullSize = 64 << 10

func (p *pull) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		p.x.tunnel.send(&protocol.Message{Kind: protocol.KindRead, Size: pullSize})
		s := p.x.d.Text(pullSize)
		if err := p.x.d.Err(); err != nil {
			return 0, err
		}
		if s == "" {
			return 0, io.EOF
		}
		p.x.d.Reset(protocol.MaxRequest)
		p.left = []byte(s)
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

func readMultiple(d *protocol.Decoder) archived {
	return archived{repair: d.Bool(), unsigned: d.Bool()}
}

// addMultipleToStore adds objects whose references come first.
func (x *session) addMultipleToStore(ctx context.Context, a archived) (reply, error) {
	r := wire.NewReader(x.upload)
	d := protocol.NewDecoder(r, x.d.Format)
	d.Reserve = x.memory.take
	n := d.Uint64()
	p := newPipeline(ctx, x.server.store)
	for i := uint64(0); i < n; i++ {
		d.Reset(protocol.MaxRequest)
		a.info = d.KeyedInfo()
		err := d.Err()
		if err != nil {
			err = fmt.Errorf("add path %d of %d: %w", i+1, n, err)
		} else {
			err = x.addNext(ctx, p, a, r)
		}
		if err != nil {
			return nil, cmp.Or(p.flush(), err) // what came before is added
		}
	}
	return nil, cmp.Or(p.flush(), d.Err())
}

// addNext adds a small object with others, and another when all before it are added.
func (x *session) addNext(ctx context.Context, p *pipeline, a archived, r *wire.Reader) error {
	if a.info.NarSize == 0 || a.info.NarSize > smallArchive || a.info.Path.IsDerivation() {
		if err := p.flush(); err != nil {
			return err
		}
		return x.addArchive(ctx, a, r)
	}
	if err := x.admit(a); err != nil {
		return fmt.Errorf("add %s: %w", a.info.Path, err)
	}
	return p.add(a.info, r)
}

func (x *session) narFromPath(ctx context.Context, p store.Path) (reply, error) {
	return x.nars(ctx, []store.Path{p})
}

// sendable says why some of the objects cannot be sent, while the client can still be told: within a reply an error ends the session.
func (x *session) sendable(paths []store.Path) error {
	for _, p := range paths {
		if !x.server.store.IsValid(p) {
			return fmt.Errorf("path %s: %w", p, store.ErrNotValid)
		}
		if err := x.server.store.Damage(p); err != nil {
			return err
		}
	}
	return nil
}

// nars replies many archives at once, so that a closure takes one question.
func (x *session) nars(ctx context.Context, paths []store.Path) (reply, error) {
	if err := x.holdToSend(paths...); err != nil {
		return nil, err
	}
	if err := x.sendable(paths); err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		for _, p := range paths {
			if err := x.server.store.NAR(x.ctx, p, e.Wire()); err != nil {
				return err
			}
		}
		return nil
	}, nil
}
