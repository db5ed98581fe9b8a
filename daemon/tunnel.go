package daemon

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/daemon/protocol"
)

// Limits of what waits for a client that reads slowly.
const (
	maxQueued = 4 << 20 // bytes of log lines; what is more is dropped
	maxBulk   = 1 << 20 // bytes of Write messages; the producer waits
	queueCost = 100     // bytes that a message costs beside its text
)

// talkDelay is how long messages for people wait for more of them: to write each by itself took a tenth of the time of small builds.
const talkDelay = 5 * time.Millisecond

// tunnel carries messages to the client while work runs. Anybody may send, nobody waits but
// write. Between begin and end the encoder is the tunnel's.
type tunnel struct {
	e    *protocol.Encoder
	gone func() // called when the client cannot be reached

	mu      sync.Mutex // guards what follows
	more    sync.Cond  // something is due, or the end
	less    sync.Cond  // something was written, or failed
	open    bool
	pumping bool
	due     bool // what is queued is written now
	queue   []*protocol.Message
	queued  int
	dropped int
	err     error
}

func newTunnel(e *protocol.Encoder) *tunnel {
	t := &tunnel{e: e}
	t.more.L, t.less.L = &t.mu, &t.mu
	return t
}

func (t *tunnel) begin(gone func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open, t.gone = true, gone
	t.wake()
}

// end writes what is queued and gives the encoder back.
func (t *tunnel) end() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open, t.due = false, true
	t.more.Signal()
	for t.pumping {
		t.less.Wait()
	}
	return t.err
}

// send queues a message. Outside work only lines of log are kept, for the next work, and send reports false; when too much waits,
// it is dropped.
func (t *tunnel) send(m *protocol.Message) (working bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil || !t.open && m.Kind != protocol.KindNext {
		return false
	}
	if t.queued > maxQueued && (m.Kind == protocol.KindNext || m.Kind == protocol.KindResult) {
		t.dropped++
		return true
	}
	t.push(m)
	return t.open
}

// write queues bulk data, after waiting until little enough waits.
func (t *tunnel) write(p []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.queued > maxBulk && t.err == nil {
		t.less.Wait()
	}
	if t.err != nil {
		return t.err
	}
	t.push(&protocol.Message{Kind: protocol.KindWrite, Data: slices.Clone(p)})
	return nil
}

// Write makes the tunnel an io.Writer of bulk data.
func (t *tunnel) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), 64<<10)
		if err := t.write(rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// push is called with mu held.
func (t *tunnel) push(m *protocol.Message) {
	t.queue = append(t.queue, m)
	t.queued += cost(m)
	switch {
	case m.Kind == protocol.KindRead || m.Kind == protocol.KindWrite:
		t.due = true
	case len(t.queue) == 1:
		time.AfterFunc(talkDelay, t.hurry)
	}
	if t.open {
		t.wake()
	}
}

// hurry has what is queued written now.
func (t *tunnel) hurry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) > 0 {
		t.due = true
		t.more.Signal()
	}
}

// wake has what is queued written. It is called with mu held.
func (t *tunnel) wake() {
	if len(t.queue) > 0 && !t.pumping {
		t.pumping = true
		go t.pump()
	}
	if t.due {
		t.more.Signal()
	}
}

func cost(m *protocol.Message) int {
	n := queueCost + len(m.Text) + len(m.Data)
	for _, f := range m.Fields {
		n += len(f.Text)
	}
	return n
}

// pump writes until the end of the work. It holds mu except while it writes.
func (t *tunnel) pump() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		for t.open && (len(t.queue) == 0 || !t.due) {
			t.more.Wait()
		}
		if len(t.queue) == 0 {
			break
		}
		batch := t.take()
		t.mu.Unlock()
		err := t.put(batch)
		t.mu.Lock()
		if err != nil && t.err == nil {
			t.err, t.queue, t.queued = err, nil, 0
			t.gone()
		}
		t.less.Broadcast()
	}
	t.pumping = false
	t.less.Broadcast()
}

// take empties the queue.
func (t *tunnel) take() []*protocol.Message {
	batch := t.queue
	if t.dropped > 0 {
		batch = append(batch, &protocol.Message{Kind: protocol.KindNext, Text: fmt.Sprintf(
			"%d messages are left out, because they are read too slowly; the build logs are complete\n", t.dropped)})
	}
	t.queue, t.queued, t.dropped, t.due = nil, 0, 0, false
	return batch
}

func (t *tunnel) put(batch []*protocol.Message) error {
	for _, m := range batch {
		t.e.Message(m)
	}
	return t.e.Flush()
}
