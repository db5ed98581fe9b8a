package nar

import (
	"io"
	"sync"
	"sync/atomic"
)

// maxBlocks is how many blocks of an archive may be on their way at once: the memory of one Restore.
const maxBlocks = 12

// block is a piece of an archive, shared by those who need its bytes.
type block struct {
	buf   *[]byte // of buffers
	fill  int
	users atomic.Int32
	freed chan<- *block
}

func (b *block) bytes() []byte { return (*b.buf)[:b.fill] }

// release says that one user is done.
func (b *block) release() {
	if b.users.Add(-1) == 0 {
		b.freed <- b
	}
}

// tape passes an archive on from its source, and keeps its bytes in blocks: what reads the archive gets file data as part
// of a block, and the sums get the blocks, each in a goroutine of its own as soon as there is more than one block.
// It reads what it is asked for and no more.
type tape struct {
	src   io.Reader
	cur   *block // being filled
	made  int    // blocks that exist
	free  chan *block
	sums  []io.Writer
	lanes []chan *block // of the sums; nil before the first block is full
	wg    sync.WaitGroup
	fail  func(error)
	full  func() // called before a block is given away
}

func newTape(src io.Reader, sums []io.Writer, full func(), fail func(error)) *tape {
	t := &tape{src: src, sums: sums, free: make(chan *block, maxBlocks), full: full, fail: fail}
	t.cur = t.block()
	return t
}

// block returns an empty block, of which its maker is a user.
func (t *tape) block() *block {
	var b *block
	if t.made < maxBlocks {
		select {
		case b = <-t.free:
		default:
			t.made++
			b = &block{buf: buffers.Get().(*[]byte), freed: t.free}
		}
	} else {
		b = <-t.free
	}
	b.fill = 0
	b.users.Store(1)
	return b
}

// Read reads tokens, which are copied to the block.
func (t *tape) Read(p []byte) (int, error) {
	n, err := t.src.Read(p)
	for q := p[:n]; len(q) > 0; {
		k := copy(t.room(1), q)
		t.cur.fill += k
		q = q[k:]
	}
	return n, err
}

// room returns the free part of the current block, or of a new one when there are less than n bytes.
func (t *tape) room(n int) []byte {
	if len(*t.cur.buf)-t.cur.fill < n {
		t.turn()
	}
	return (*t.cur.buf)[t.cur.fill:]
}

// turn gives the current block to the sums, and begins another.
func (t *tape) turn() {
	t.full()
	if t.lanes == nil && len(t.sums) > 0 {
		t.lanes = make([]chan *block, len(t.sums))
		for i, w := range t.sums {
			t.lanes[i] = make(chan *block, maxBlocks)
			t.wg.Go(func() { t.feed(w, t.lanes[i]) })
		}
	}
	t.cur.users.Add(int32(len(t.lanes)))
	for _, lane := range t.lanes {
		lane <- t.cur
	}
	t.cur.release()
	t.cur = t.block()
}

func (t *tape) feed(w io.Writer, lane <-chan *block) {
	for b := range lane {
		if _, err := w.Write(b.bytes()); err != nil {
			t.fail(err)
		}
		b.release()
	}
}

// close gives what is left to the sums and waits for them. Nobody else uses a block any more.
func (t *tape) close() {
	if t.lanes == nil {
		for _, w := range t.sums {
			if _, err := w.Write(t.cur.bytes()); err != nil {
				t.fail(err)
			}
		}
	} else {
		t.cur.users.Add(int32(len(t.lanes)))
		for _, lane := range t.lanes {
			lane <- t.cur
			close(lane)
		}
		t.wg.Wait()
	}
	t.cur.release()
	for range t.made {
		buffers.Put((<-t.free).buf)
	}
}
