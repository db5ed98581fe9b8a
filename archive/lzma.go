package archive

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// errLZMA says that a stream is not of LZMA.
var errLZMA = errors.New("damaged lzma stream")

// lzmaWindow bounds the dictionary that a stream may ask for. What "lzip -9" and "xz -9" write needs 64 MiB.
const lzmaWindow = 128 << 20

// lzma decodes one LZMA stream: a range coder, whose bits choose between literals and matches in what was decoded before.
// See the LZMA specification for the names.
type lzma struct {
	r          *bufio.Reader
	err        error
	code, rang uint32

	lc, lp, pb uint8
	state      int
	rep        [4]uint32 // the last distances, less one
	probs      lzmaProbs

	window  []byte // a ring once it has its full size; grows up to it
	full    int    // that size
	at      int    // next place in window
	written int64  // bytes decoded

	pending int   // bytes left of a match
	left    int64 // bytes still to come, -1 when an end marker says
	done    bool
}

// Sizes of the tables.
const (
	lzmaStates    = 12
	lzmaPosStates = 16
	lzmaAlign     = 4
)

type lzmaProbs struct {
	match, long           [lzmaStates][lzmaPosStates]uint16
	rep, rep0, rep1, rep2 [lzmaStates]uint16
	slots                 [4][64]uint16
	position              [115]uint16
	align                 [1 << lzmaAlign]uint16
	length, repLength     lzmaLength
	literals              []uint16
}

type lzmaLength struct {
	choice, choice2 uint16
	low, mid        [lzmaPosStates][8]uint16
	high            [256]uint16
}

// newLZMA starts to decode. size is -1 when the stream has an end marker.
func newLZMA(r *bufio.Reader, properties byte, dictionary uint32, size int64) (*lzma, error) {
	if properties >= 9*5*5 {
		return nil, fmt.Errorf("properties %d: %w", properties, errLZMA)
	}
	if dictionary > lzmaWindow {
		return nil, fmt.Errorf("dictionary of %d bytes, the limit is %d", dictionary, lzmaWindow)
	}
	d := &lzma{r: r, rang: 0xffffffff, left: size, full: int(max(dictionary, 4096))}
	d.lc, d.lp, d.pb = properties%9, properties/9%5, properties/45
	d.window = make([]byte, min(d.full, 64<<10))
	d.probs.init(1 << (d.lc + d.lp))
	if d.byte() != 0 {
		d.fail()
	}
	for range 4 {
		d.code = d.code<<8 | uint32(d.byte())
	}
	return d, d.err
}

func (p *lzmaProbs) init(contexts int) {
	fill := func(rows ...[]uint16) {
		for _, row := range rows {
			for i := range row {
				row[i] = 1 << 10
			}
		}
	}
	p.literals = make([]uint16, 0x300*contexts)
	fill(p.literals, p.rep[:], p.rep0[:], p.rep1[:], p.rep2[:], p.position[:], p.align[:])
	for i := range lzmaStates {
		fill(p.match[i][:], p.long[i][:])
	}
	for i := range p.slots {
		fill(p.slots[i][:])
	}
	for _, l := range []*lzmaLength{&p.length, &p.repLength} {
		l.choice, l.choice2 = 1<<10, 1<<10
		fill(l.high[:])
		for i := range lzmaPosStates {
			fill(l.low[i][:], l.mid[i][:])
		}
	}
}

func (d *lzma) fail() {
	if d.err == nil {
		d.err = errLZMA
	}
}

func (d *lzma) byte() byte {
	b, err := d.r.ReadByte()
	if err != nil && d.err == nil {
		if d.err = err; err == io.EOF {
			d.err = io.ErrUnexpectedEOF
		}
	}
	return b
}

// normalize keeps enough bits in the range. It runs after each bit, so that no byte behind the stream is read.
func (d *lzma) normalize() {
	if d.rang < 1<<24 {
		d.rang <<= 8
		d.code = d.code<<8 | uint32(d.byte())
	}
}

func (d *lzma) bit(p *uint16) uint32 {
	bound := (d.rang >> 11) * uint32(*p)
	var b uint32
	if d.code < bound {
		d.rang = bound
		*p += (1<<11 - *p) >> 5
	} else {
		d.rang -= bound
		d.code -= bound
		*p -= *p >> 5
		b = 1
	}
	d.normalize()
	return b
}

func (d *lzma) direct(n uint32) uint32 {
	var v uint32
	for range n {
		d.rang >>= 1
		d.code -= d.rang
		borrow := -(d.code >> 31)
		d.code += d.rang & borrow
		d.normalize()
		v = v<<1 + borrow + 1
	}
	return v
}

// tree decodes n bits, the highest first.
func (d *lzma) tree(probs []uint16, n uint32) uint32 {
	m := uint32(1)
	for range n {
		m = m<<1 | d.bit(&probs[m])
	}
	return m - 1<<n
}

// reverse decodes n bits, the lowest first. Its table starts at 1.
func (d *lzma) reverse(probs []uint16, n uint32) uint32 {
	m, v := uint32(1), uint32(0)
	for i := range n {
		b := d.bit(&probs[m])
		m = m<<1 | b
		v |= b << i
	}
	return v
}

func (d *lzma) lengthOf(l *lzmaLength, pos int) int {
	if d.bit(&l.choice) == 0 {
		return int(d.tree(l.low[pos][:], 3))
	}
	if d.bit(&l.choice2) == 0 {
		return 8 + int(d.tree(l.mid[pos][:], 3))
	}
	return 16 + int(d.tree(l.high[:], 8))
}

func (d *lzma) distance(length int) uint32 {
	slot := d.tree(d.probs.slots[min(length, 3)][:], 6)
	if slot < 4 {
		return slot
	}
	n := slot>>1 - 1
	v := (2 | slot&1) << n
	if slot < 14 {
		return v + d.reverse(d.probs.position[v-slot:], n)
	}
	return v + d.direct(n-lzmaAlign)<<lzmaAlign + d.reverse(d.probs.align[:], lzmaAlign)
}

// back returns the byte that stands distance+1 before the next.
func (d *lzma) back(distance uint32) byte {
	i := d.at - int(distance) - 1
	if i < 0 {
		i += len(d.window)
	}
	return d.window[i]
}

func (d *lzma) put(b byte) {
	if d.at == len(d.window) {
		d.at = 0
		if len(d.window) < d.full {
			d.at = len(d.window)
			grown := make([]byte, min(2*len(d.window), d.full))
			copy(grown, d.window)
			d.window = grown
		}
	}
	d.window[d.at] = b
	d.at++
	d.written++
}

func (d *lzma) literal() byte {
	var before byte
	if d.written > 0 {
		before = d.back(0)
	}
	context := uint32(d.written)&(1<<d.lp-1)<<d.lc + uint32(before)>>(8-d.lc)
	probs := d.probs.literals[0x300*context:][:0x300]
	symbol := uint32(1)
	if d.state >= 7 {
		match := uint32(d.back(d.rep[0]))
		for symbol < 0x100 {
			want := match >> 7 & 1
			match <<= 1
			b := d.bit(&probs[(1+want)<<8+symbol])
			symbol = symbol<<1 | b
			if b != want {
				break
			}
		}
	}
	for symbol < 0x100 {
		symbol = symbol<<1 | d.bit(&probs[symbol])
	}
	return byte(symbol)
}

// next decodes a literal or the head of a match.
func (d *lzma) next(p []byte) int {
	pos := int(d.written) & (1<<d.pb - 1)
	if d.bit(&d.probs.match[d.state][pos]) == 0 {
		p[0] = d.literal()
		d.put(p[0])
		switch {
		case d.state < 4:
			d.state = 0
		case d.state < 10:
			d.state -= 3
		default:
			d.state -= 6
		}
		return 1
	}
	if d.bit(&d.probs.rep[d.state]) == 0 {
		length := d.lengthOf(&d.probs.length, pos)
		copy(d.rep[1:], d.rep[:3])
		d.rep[0] = d.distance(length)
		if d.rep[0] == 0xffffffff {
			d.done = true
			return 0
		}
		d.state = after(d.state, 7, 10)
		d.pending = length + 2
	} else {
		d.repeated(pos)
	}
	if dist := int64(d.rep[0]); dist >= d.written || dist >= int64(d.full) {
		d.fail()
	}
	return 0
}

func after(state, low, high int) int {
	if state < 7 {
		return low
	}
	return high
}

// repeated decodes a match at one of the last distances.
func (d *lzma) repeated(pos int) {
	switch {
	case d.bit(&d.probs.rep0[d.state]) == 0:
		if d.bit(&d.probs.long[d.state][pos]) == 0 {
			d.state = after(d.state, 9, 11)
			d.pending = 1
			return
		}
	case d.bit(&d.probs.rep1[d.state]) == 0:
		d.rep[0], d.rep[1] = d.rep[1], d.rep[0]
	case d.bit(&d.probs.rep2[d.state]) == 0:
		d.rep[0], d.rep[1], d.rep[2] = d.rep[2], d.rep[0], d.rep[1]
	default:
		d.rep[0], d.rep[1], d.rep[2], d.rep[3] = d.rep[3], d.rep[0], d.rep[1], d.rep[2]
	}
	d.pending = d.lengthOf(&d.probs.repLength, pos) + 2
	d.state = after(d.state, 8, 11)
}

// Read decodes. It returns io.EOF right behind the last byte of the stream.
func (d *lzma) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && d.err == nil {
		switch {
		case d.left == 0:
			d.done = true
		case d.pending > 0:
			b := d.back(d.rep[0])
			d.put(b)
			p[n] = b
			n++
			d.pending--
			d.count(1)
			continue
		case !d.done:
			got := d.next(p[n:])
			if d.err != nil {
				return n, d.err
			}
			n += got
			d.count(got)
			continue
		}
		d.err = io.EOF
		if d.pending > 0 || d.left > 0 {
			d.err = errLZMA
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, d.err
}

func (d *lzma) count(n int) {
	if d.left > 0 {
		d.left -= int64(n)
	}
}
