package daemon

import (
	"io"
	"sync/atomic"

	"cairn/daemon/protocol"
)

// maxMemory is how many MiB all requests together may take beyond the first of each.
const maxMemory = 256

// memory is what a request has reserved of what all may take, in MiB. Who gets none is refused at once:
// waiting would let idle requests block others.
type memory struct {
	all  *atomic.Int64
	mine int64
}

// take reserves one MiB.
func (m *memory) take() bool {
	if m.all.Add(1) > maxMemory {
		m.all.Add(-1)
		return false
	}
	m.mine++
	return true
}

// release gives everything back.
func (m *memory) release() {
	m.all.Add(-m.mine)
	m.mine = 0
}

// metered passes a stream on that is kept in memory, and reserves what it takes.
type metered struct {
	r    io.Reader
	m    *memory
	free int64
	over bool // the rest is not kept
}

func (m *metered) Read(p []byte) (int, error) {
	if m.over {
		return m.r.Read(p)
	}
	if m.free == 0 {
		if !m.m.take() {
			return 0, protocol.ErrBusy
		}
		m.free = protocol.Step
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.free)])
	m.free -= int64(n)
	return n, err
}
