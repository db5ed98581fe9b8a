package sandbox

import (
	"strings"
	"sync"
	"unsafe"
)

// A program is what the two stages of a sandbox do: lists of system calls, with all that these point to. The daemon lays it out in
// one piece, an image, for the address where the fork server will map it to be read:
//
//	header | what calls point to, and the calls of each list
//
// Both are the same executable, so that an image has the layout of its types.
type program struct {
	base  uintptr // the address of image
	image []byte
	lists [stages][]call
	list  int // that is being written
	step  text
	made  map[string]bool    // directories that calls make
	known map[string]uintptr // texts, and where they are
	cut   string             // one that the kernel would not read to its end
}

// header is the beginning of an image.
type header struct {
	lists  [stages]part
	spaces [2]uintptr // new namespaces of stage 1 and of stage 2
}

// part is where a list is.
type part struct{ at, count uintptr } // at counts from the image's beginning

// The lists of a program.
const (
	stageFirst   = iota // stage 1, until the builder's process is there
	stageThen           // and with it
	stageBuilder        // stage 2
	stages
)

// A call is one system call. It may write to no memory.
type call struct {
	number uintptr
	args   [6]uintptr
	least  uintptr // a result below is a failure
	ignore uintptr // an error that is none
	takes  bool    // its first argument is the result kept last
	keep   bool    // its result
	step   text    // that it is part of, for the report of its failure
	what   text    // it does, where the step alone does not tell
}

// text is where a string is.
type text struct{ at, size uintptr }

// programs are the memory that was used before.
var programs = sync.Pool{New: func() any { return &program{made: map[string]bool{}, known: map[string]uintptr{}} }}

// newImage begins a program, which drop ends.
func newImage(base uintptr) *program {
	p := programs.Get().(*program)
	*p = program{base: base, image: append(p.image[:0], make([]byte, unsafe.Sizeof(header{}))...), made: p.made, known: p.known, lists: p.lists}
	for i := range p.lists {
		p.lists[i] = p.lists[i][:0]
	}
	clear(p.known)
	clear(p.made)
	p.made["/"] = true
	return p
}

// drop keeps the memory for the next program, if it is not too much.
func (p *program) drop() {
	if cap(p.image) <= 1<<20 {
		programs.Put(p)
	}
}

// seal completes the image.
func (p *program) seal(spaces [2]uintptr) {
	h := header{spaces: spaces}
	for i, list := range p.lists {
		h.lists[i] = part{at: put(p, list...) - p.base, count: uintptr(len(list))}
	}
	copy(p.image, bytesOf([]header{h}))
}

// put adds values, which have no pointers, and returns their address.
func put[T any](p *program, values ...T) uintptr {
	const word = unsafe.Sizeof(uintptr(0))
	for uintptr(len(p.image))%word != 0 {
		p.image = append(p.image, 0)
	}
	at := p.base + uintptr(len(p.image))
	p.image = append(p.image, bytesOf(values)...)
	return at
}

// bytesOf is the memory of values.
func bytesOf[T any](values []T) []byte {
	var one T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), uintptr(len(values))*unsafe.Sizeof(one))
}

// text returns the address of a string with a zero byte behind it.
func (p *program) text(s string) uintptr {
	if at := p.known[s]; at != 0 {
		return at
	}
	at := p.base + uintptr(len(p.image))
	p.image = append(append(p.image, s...), 0)
	if strings.IndexByte(s, 0) >= 0 {
		p.cut = s
	}
	p.known[s] = at
	return at
}

// texts returns the address of a list of strings as execve takes it.
func (p *program) texts(list []string) uintptr {
	at := make([]uintptr, len(list)+1)
	for i, s := range list {
		at[i] = p.text(s)
	}
	return put(p, at...)
}

// begin has the next calls be part of a step.
func (p *program) begin(list int, step string) {
	p.list, p.step = list, text{p.text(step), uintptr(len(step))}
}

// add appends a call. What it returns is good until the next one.
func (p *program) add(what string, number uintptr, args ...uintptr) *call {
	c := call{number: number, step: p.step}
	if what != "" {
		c.what = text{p.text(what), uintptr(len(what))}
	}
	copy(c.args[:], args)
	list := append(p.lists[p.list], c)
	p.lists[p.list] = list
	return &list[len(list)-1]
}

// with appends a call whose first argument is the result kept last.
func (p *program) with(what string, number uintptr, rest ...uintptr) *call {
	c := p.add(what, number)
	copy(c.args[1:], rest)
	c.takes = true
	return c
}
