package protocol

import (
	"errors"
	"fmt"
	"io"

	"cairn/archive/wire"
	"cairn/store"
)

// Errors of size.
var (
	// ErrTooMuch says that one request or reply is larger than its budget.
	ErrTooMuch = errors.New("message exceeds its memory budget")
	// ErrBusy says that all large messages together take too much memory now.
	ErrBusy = errors.New("too many large requests at once; try again later")
)

// Decoder reads values. Its first error of either kind stays; see the package comment.
type Decoder struct {
	Format
	r      *wire.Reader
	budget int64
	spent  int64
	broken error // framing: the position in the stream is lost
	bad    error // value: the position is right

	// Reserve is asked for each further MiB that a message takes; the first is free. If it says no, the message
	// is refused. Nil: always yes.
	Reserve func() bool
}

// Step is how much memory Reserve is asked for.
const Step = 1 << 20

// NewDecoder returns a decoder with the budget of a request.
func NewDecoder(r *wire.Reader, f Format) *Decoder {
	return &Decoder{Format: f, r: r, budget: MaxRequest}
}

// Reset forgets a bad value and gives the next message the budget n.
// A broken stream stays broken.
func (d *Decoder) Reset(n int64) { d.budget, d.spent, d.bad = n, 0, nil }

// Wire returns the reader below, for frames and archives.
func (d *Decoder) Wire() *wire.Reader { return d.r }

// Err returns the first error, broken before bad.
func (d *Decoder) Err() error {
	if d.broken != nil {
		return d.broken
	}
	return d.bad
}

// Broken returns the error after which the session cannot go on.
func (d *Decoder) Broken() error { return d.broken }

func (d *Decoder) fail(err error) {
	if d.broken == nil && err != nil {
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.ErrUnexpectedEOF
		}
		d.broken = err
	}
}

func (d *Decoder) reject(err error) {
	if d.bad == nil && d.broken == nil {
		d.bad = err
	}
}

func (d *Decoder) spend(n int) bool {
	before := d.spent / Step
	d.spent += int64(n)
	if d.spent > d.budget {
		d.fail(d.tooMuch())
	}
	for range d.spent/Step - before {
		if d.Reserve != nil && !d.Reserve() {
			d.fail(ErrBusy)
			break
		}
	}
	return d.broken == nil
}

func (d *Decoder) tooMuch() error {
	return fmt.Errorf("%w of %d MiB; ask for less at a time", ErrTooMuch, d.budget/Step)
}

// Uint64 reads an integer.
func (d *Decoder) Uint64() uint64 {
	if d.broken != nil {
		return 0
	}
	v, err := d.r.Uint64()
	d.fail(err)
	return v
}

// Int63 reads an integer that must not be negative as an int64.
func (d *Decoder) Int63() int64 {
	v := d.Uint64()
	if v > 1<<63-1 {
		d.reject(fmt.Errorf("number %d is out of range", v))
		return 0
	}
	return int64(v)
}

// Bool reads a truth value; anything but zero is true.
func (d *Decoder) Bool() bool { return d.Uint64() != 0 }

// Count reads the number of elements that follow.
func (d *Decoder) Count() int {
	n := d.Uint64()
	if n > MaxCount {
		d.fail(fmt.Errorf("list of %d elements: %w", n, ErrTooMuch))
	}
	if d.broken != nil {
		return 0
	}
	return int(n)
}

// Text reads a text of at most limit bytes.
func (d *Decoder) Text(limit int) string {
	if d.broken != nil {
		return ""
	}
	room := max(d.budget-d.spent, 0)
	s, err := d.r.String(int(min(int64(limit), room)))
	if room < int64(limit) && errors.Is(err, wire.ErrTooLong) {
		err = d.tooMuch()
	}
	if err != nil {
		d.fail(err)
		return ""
	}
	d.spend(len(s) + elementCost)
	return s
}

// Texts reads a list of texts.
func (d *Decoder) Texts(limit int) []string {
	var list []string
	for range d.Count() {
		s := d.Text(limit)
		if d.broken != nil {
			return nil
		}
		list = append(list, s)
	}
	return list
}

// Map reads a map of texts.
func (d *Decoder) Map(keyLimit, limit int) map[string]string {
	m := map[string]string{}
	for range d.Count() {
		k, v := d.Text(keyLimit), d.Text(limit)
		if d.broken != nil {
			return nil
		}
		m[k] = v
	}
	return m
}

// parsed turns a text into a value; bad text is a bad value.
func parsed[T any](d *Decoder, s string, parse func(string) (T, error)) T {
	var zero T
	if d.broken != nil {
		return zero
	}
	v, err := parse(s)
	if err != nil {
		d.reject(err)
		return zero
	}
	return v
}

// Path reads a store path.
func (d *Decoder) Path() store.Path { return parsed(d, d.Text(MaxPath), d.Dir.ParsePath) }

// OptionalPath reads a store path or the zero value.
func (d *Decoder) OptionalPath() store.Path {
	s := d.Text(MaxPath)
	if s == "" {
		return store.Path{}
	}
	return parsed(d, s, d.Dir.ParsePath)
}

// Paths reads a set of store paths; it comes back sorted and without doubles.
func (d *Decoder) Paths() []store.Path { return store.SortPaths(d.PathList()) }

// PathList reads store paths and keeps their order.
func (d *Decoder) PathList() []store.Path {
	var list []store.Path
	for range d.Count() {
		p := d.Path()
		if d.broken != nil {
			return nil
		}
		list = append(list, p)
	}
	return list
}

// ContentAddress reads a content address or the zero value.
func (d *Decoder) ContentAddress() store.ContentAddress {
	return parsed(d, d.Text(MaxPath), store.ParseContentAddress)
}

// Method reads a content address without digest.
func (d *Decoder) Method() (store.Method, store.Algorithm) {
	s := d.Text(MaxPath)
	if d.broken != nil {
		return 0, 0
	}
	m, a, err := store.ParseContentAddressMethod(s)
	if err != nil {
		d.reject(err)
	}
	return m, a
}

// NarHash reads a SHA-256 in any notation.
func (d *Decoder) NarHash() store.Hash {
	return parsed(d, d.Text(MaxPath), func(s string) (store.Hash, error) { return store.ParseHash(s, store.SHA256) })
}

// BasePath reads the base name of a store path.
func (d *Decoder) BasePath() store.Path { return parsed(d, d.Text(MaxPath), d.Dir.Path) }
