package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cairn/store"
	"cairn/store/base32"
)

// Digest is the binary form of the 32 digits of a store path.
type Digest [20]byte

// DigestOf returns the digest of a path that is not zero.
func DigestOf(p store.Path) Digest {
	d, ok := ParseDigest(p.Digest())
	if !ok {
		panic("BUG: digest of no path")
	}
	return d
}

// ParseDigest parses 32 digits.
func ParseDigest(s string) (Digest, bool) {
	b, err := base32.AppendDecode(make([]byte, 0, len(Digest{})), s)
	if err != nil || len(b) != len(Digest{}) {
		return Digest{}, false
	}
	return Digest(b), true
}

func (d Digest) String() string { return base32.Encode(d[:]) }

// Seal is the BLAKE3 hash of an archive that has been read together with its SHA-256 hash, and can be read again faster. Zero: not known.
type Seal [32]byte

// Object is the row of a valid path, without the digest that is its key.
type Object struct {
	Name         string
	NarHash      [32]byte
	Seal         Seal
	NarSize      int64
	RegisteredAt int64
	Ultimate     bool
	Deriver      store.Path // perhaps not valid
	CA           store.ContentAddress
	References   []Digest // perhaps with the object itself
	Signatures   []string
}

const (
	flagUltimate = 1 << iota
	flagDeriver
	flagCA
	flagSeal
	flagsKnown = 1<<iota - 1
)

const recordVersion = 1

// errRecord says that a record is damaged or of another version.
var errRecord = errors.New("record is damaged")

func (o *Object) encode() ([]byte, error) {
	flags := byte(0)
	if o.Ultimate {
		flags |= flagUltimate
	}
	if !o.Deriver.IsZero() {
		flags |= flagDeriver
	}
	if !o.CA.IsZero() {
		flags |= flagCA
	}
	if o.Seal != (Seal{}) {
		flags |= flagSeal
	}
	b := make([]byte, 0, 128+len(o.Name)+20*len(o.References))
	b = append(b, recordVersion, flags)
	b = append(b, o.NarHash[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(o.NarSize))
	b = binary.LittleEndian.AppendUint64(b, uint64(o.RegisteredAt))
	b, err := appendString(b, o.Name)
	if err != nil {
		return nil, err
	}
	if flags&flagDeriver != 0 {
		d := DigestOf(o.Deriver)
		b, _ = appendString(append(b, d[:]...), o.Deriver.Name())
	}
	if flags&flagCA != 0 {
		b = append(b, byte(o.CA.Method), byte(o.CA.Hash.Algorithm()))
		b = append(b, o.CA.Hash.Bytes()...)
	}
	if flags&flagSeal != 0 {
		b = append(b, o.Seal[:]...)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.References)))
	for _, r := range o.References {
		b = append(b, r[:]...)
	}
	return appendStrings(b, o.Signatures)
}

// decodeObject decodes into o, whose slices it uses again.
func decodeObject(dir store.Dir, b []byte, o *Object) error {
	r := reader{b: b}
	r.version()
	flags := r.u8()
	if flags&^flagsKnown != 0 {
		r.fail()
	}
	*o = Object{References: o.References[:0], Signatures: o.Signatures[:0]}
	copy(o.NarHash[:], r.bytes(32))
	o.NarSize, o.RegisteredAt = int64(r.u64()), int64(r.u64())
	o.Name = r.string()
	o.Ultimate = flags&flagUltimate != 0
	if o.NarSize < 0 || store.CheckName(o.Name) != nil {
		r.fail()
	}
	if flags&flagDeriver != 0 {
		o.Deriver = r.path(dir, r.digest(), r.string())
	}
	if flags&flagCA != 0 {
		o.CA = r.contentAddress()
	}
	if flags&flagSeal != 0 {
		o.Seal = r.seal()
	}
	for range r.count(int(r.u32()), len(Digest{})) {
		o.References = append(o.References, r.digest())
	}
	o.Signatures = r.strings(o.Signatures)
	return r.end()
}

func encodeRealisation(r *store.Realisation) ([]byte, error) {
	b, err := appendString([]byte{recordVersion}, r.OutPath.Base())
	if err != nil {
		return nil, err
	}
	if b, err = appendStrings(b, r.Signatures); err != nil {
		return nil, err
	}
	if len(r.Dependents) > 0xffff {
		return nil, fmt.Errorf("%d dependents are too many", len(r.Dependents))
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.Dependents)))
	for _, id := range slices.SortedFunc(maps.Keys(r.Dependents), compareOutputs) {
		b = append(b, id.Drv.Bytes()...)
		if b, err = appendString(b, id.Output); err != nil {
			return nil, err
		}
		if b, err = appendString(b, r.Dependents[id].Base()); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func compareOutputs(a, b store.DrvOutput) int {
	if c := bytes.Compare(a.Drv.Bytes(), b.Drv.Bytes()); c != 0 {
		return c
	}
	return strings.Compare(a.Output, b.Output)
}

func decodeRealisation(dir store.Dir, id store.DrvOutput, b []byte) (*store.Realisation, error) {
	r := reader{b: b}
	r.version()
	real := &store.Realisation{ID: id, OutPath: r.base(dir), Signatures: r.strings(nil)}
	var last store.DrvOutput
	for i := range r.count(int(r.u16()), 32+2+2) {
		dep := r.drvOutput()
		if i > 0 && compareOutputs(last, dep) >= 0 {
			r.fail()
		}
		if real.Dependents == nil {
			real.Dependents = map[store.DrvOutput]store.Path{}
		}
		last, real.Dependents[dep] = dep, r.base(dir)
	}
	return real, r.end()
}

func (l *Lease) encode() ([]byte, error) {
	b := binary.LittleEndian.AppendUint64([]byte{recordVersion}, uint64(l.Expires))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Paths)))
	for _, p := range l.Paths {
		b, _ = appendString(b, p.Base())
	}
	return b, nil
}

func decodeLease(dir store.Dir, owner string, b []byte) (*Lease, error) {
	r := reader{b: b}
	r.version()
	l := &Lease{Owner: owner, Expires: int64(r.u64())}
	for range r.count(int(r.u32()), 2+store.DigestLen+2) {
		l.Paths = append(l.Paths, r.base(dir))
	}
	return l, r.end()
}

func appendString(b []byte, s string) ([]byte, error) {
	if len(s) > 0xffff {
		return nil, fmt.Errorf("text of %d bytes is too long", len(s))
	}
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(s))), s...), nil
}

func appendStrings(b []byte, ss []string) ([]byte, error) {
	if len(ss) > 0xffff {
		return nil, fmt.Errorf("%d texts are too many", len(ss))
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(ss)))
	for _, s := range ss {
		var err error
		if b, err = appendString(b, s); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// reader takes columns off a record; after the first fault it yields zeros and end reports it.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) end() error {
	if r.bad || len(r.b) > 0 {
		return errRecord
	}
	return nil
}

// count checks that n things of at least size bytes each can follow.
func (r *reader) count(n, size int) int {
	if n < 0 || n > len(r.b)/size {
		r.fail()
		return 0
	}
	return n
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.fail()
		return make([]byte, min(n, 64))
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u8() byte    { return r.bytes(1)[0] }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.bytes(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.bytes(4)) }
func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.bytes(8)) }

func (r *reader) version() {
	if r.u8() != recordVersion {
		r.fail()
	}
}

func (r *reader) seal() Seal {
	v := Seal(r.bytes(32))
	if v == (Seal{}) {
		r.fail()
	}
	return v
}

func (r *reader) string() string { return string(r.text()) }

// text is string, only lent.
func (r *reader) text() []byte {
	n := int(r.u16())
	if n > len(r.b) {
		r.fail()
		return nil
	}
	return r.bytes(n)
}

// name reads the name of an object, only lent.
func (r *reader) name() []byte {
	name := r.text()
	if store.CheckName(string(name)) != nil {
		r.fail()
	}
	return name
}

// strings appends to ss, a text having at least the two bytes of its length.
func (r *reader) strings(ss []string) []string {
	for range r.count(int(r.u16()), 2) {
		ss = append(ss, r.string())
	}
	return ss
}

func (r *reader) digest() (d Digest) {
	copy(d[:], r.bytes(len(d)))
	return d
}

func (r *reader) base(dir store.Dir) store.Path {
	p, err := dir.Path(r.string())
	if err != nil {
		r.fail()
	}
	return p
}

func (r *reader) path(dir store.Dir, d Digest, name string) store.Path {
	p, err := dir.Path(d.String() + "-" + name)
	if err != nil {
		r.fail()
	}
	return p
}

func (r *reader) drvOutput() store.DrvOutput {
	return store.DrvOutput{Drv: store.NewHash(store.SHA256, r.bytes(32)), Output: r.string()}
}

func (r *reader) contentAddress() store.ContentAddress {
	m, a := store.Method(r.u8()), store.Algorithm(r.u8())
	if m < store.Text || m > store.Recursive || a.Size() == 0 {
		r.fail()
		return store.ContentAddress{}
	}
	digest := r.bytes(a.Size())
	if r.bad {
		return store.ContentAddress{}
	}
	return store.ContentAddress{Method: m, Hash: store.NewHash(a, digest)}
}
