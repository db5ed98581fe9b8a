package meta

import (
	"fmt"

	"cairn/store"
)

// Lease is a persisted promise to keep paths until a time.
type Lease struct {
	Owner   string
	Expires int64 // Unix seconds
	Paths   []store.Path
}

// Output is an output of a derivation, as far as it is known.
type Output struct {
	Name     string
	Path     store.Path // perhaps not valid
	Realised bool       // only a realisation says so

	Signatures []string // of that realisation
}

const (
	flagRealised = 1 << iota
	flagSigned
)

// Deriver is a derivation and the output of it that an object is.
type Deriver struct {
	Drv    Digest
	Output string
}

// Object returns the row of an object, or ErrNotFound.
func (d *DB) Object(digest Digest) (*Object, error) {
	v, err := d.get(objectKey(digest))
	if err != nil {
		return nil, err
	}
	o := new(Object)
	if err := decodeObject(d.store, v, o); err != nil {
		return nil, fmt.Errorf("read row of %s: %w", digest, err)
	}
	return o, nil
}

// Objects calls fn for each object. The row is only lent.
func (d *DB) Objects(fn func(Digest, *Object) error) error {
	var o Object
	return d.scan([]byte{tableObjects}, func(key, value []byte) error {
		digest := Digest(key[1:])
		if err := decodeObject(d.store, value, &o); err != nil {
			return fmt.Errorf("read row of %s: %w", digest, err)
		}
		return fn(digest, &o)
	})
}

// Realisation returns the realisation of an output, or ErrNotFound.
func (d *DB) Realisation(id store.DrvOutput) (*store.Realisation, error) {
	v, err := d.get(realisationKey(id))
	if err != nil {
		return nil, err
	}
	r, err := decodeRealisation(d.store, id, v)
	if err != nil {
		return nil, fmt.Errorf("read realisation %s: %w", id, err)
	}
	return r, nil
}

// RealisationsOf returns which outputs are realised by an object.
func (d *DB) RealisationsOf(object Digest) ([]store.DrvOutput, error) {
	prefix := append([]byte{tableRealisedBy}, object[:]...)
	var ids []store.DrvOutput
	err := d.scan(prefix, func(key, _ []byte) error {
		rest := key[len(prefix):]
		if len(rest) < 32 {
			return errRecord
		}
		ids = append(ids, store.DrvOutput{Drv: store.NewHash(store.SHA256, rest[:32]), Output: string(rest[32:])})
		return nil
	})
	return ids, err
}

// Outputs returns the outputs of a derivation that are known, by name.
func (d *DB) Outputs(drv Digest) ([]Output, error) {
	prefix := outputKey(drv, "")
	var outputs []Output
	err := d.scan(prefix, func(key, value []byte) error {
		o, err := decodeOutput(d.store, string(key[len(prefix):]), value)
		outputs = append(outputs, o)
		return err
	})
	return outputs, err
}

// Output returns an output of a derivation, or ErrNotFound.
func (d *DB) Output(drv Digest, name string) (Output, error) {
	v, err := d.get(outputKey(drv, name))
	if err != nil {
		return Output{}, err
	}
	return decodeOutput(d.store, name, v)
}

func decodeOutput(dir store.Dir, name string, value []byte) (Output, error) {
	r := reader{b: value}
	r.version()
	flags := r.u8()
	if flags > flagRealised|flagSigned || flags == flagSigned {
		r.fail()
	}
	o := Output{Name: name, Path: r.base(dir), Realised: flags&flagRealised != 0}
	if flags&flagSigned != 0 {
		if o.Signatures = r.strings(nil); len(o.Signatures) == 0 {
			r.fail()
		}
	}
	return o, r.end()
}

// Derivers returns the derivations that have an object as output.
func (d *DB) Derivers(object Digest) ([]Deriver, error) {
	prefix := append([]byte{tableDerivers}, object[:]...)
	var derivers []Deriver
	err := d.scan(prefix, func(key, _ []byte) error {
		d, err := decodeDeriver(key[len(prefix):])
		derivers = append(derivers, d)
		return err
	})
	return derivers, err
}

func decodeDeriver(rest []byte) (Deriver, error) {
	if len(rest) < len(Digest{}) {
		return Deriver{}, errRecord
	}
	return Deriver{Drv: Digest(rest[:20]), Output: string(rest[20:])}, nil
}

// Named calls fn for each object of which other tables say that it is a derivation with outputs, or an output
// that was realised. Others can be forgotten by their own row alone.
func (d *DB) Named(fn func(object Digest, isDrv, isOut bool)) error {
	err := d.scan([]byte{tableRealisedBy}, func(key, _ []byte) error {
		if len(key) < 21 {
			return errRecord
		}
		fn(Digest(key[1:21]), false, true)
		return nil
	})
	if err != nil {
		return err
	}
	return d.scan([]byte{tableOutputs}, func(key, value []byte) error {
		if len(key) < 21 {
			return errRecord
		}
		o, err := decodeOutput(d.store, "", value)
		if err != nil {
			return err
		}
		fn(Digest(key[1:21]), true, false)
		if o.Realised {
			fn(DigestOf(o.Path), false, true)
		}
		return nil
	})
}

// Leases calls fn for each lease.
func (d *DB) Leases(fn func(*Lease) error) error {
	return d.scan([]byte{tableLeases}, func(key, value []byte) error {
		l, err := decodeLease(d.store, string(key[1:]), value)
		if err != nil {
			return fmt.Errorf("read lease of %q: %w", key[1:], err)
		}
		return fn(l)
	})
}

func objectKey(d Digest) []byte { return append([]byte{tableObjects}, d[:]...) }

func realisationKey(id store.DrvOutput) []byte {
	return append(append([]byte{tableRealisations}, id.Drv.Bytes()...), id.Output...)
}

func realisedByKey(out Digest, id store.DrvOutput) []byte {
	return append(append(append([]byte{tableRealisedBy}, out[:]...), id.Drv.Bytes()...), id.Output...)
}

func outputKey(drv Digest, output string) []byte {
	return append(append([]byte{tableOutputs}, drv[:]...), output...)
}

func deriverKey(out, drv Digest, output string) []byte {
	return append(append(append([]byte{tableDerivers}, out[:]...), drv[:]...), output...)
}

func leaseKey(owner string) []byte { return append([]byte{tableLeases}, owner...) }
