package daemon

import (
	"net"
	"sync"
)

// Door is a listener whose connections are for one server after the other: when the store of one has been deleted under it,
// the connection that comes next waits for the server of a new store.
//
//	for err == nil {
//		err = server.Serve(ctx, door.Listener(store.Deleted))
//		if !door.Waits() { break }
//		close the old store, open a new one
//	}
type Door struct {
	l net.Listener

	mu    sync.Mutex // guards what follows
	waits net.Conn
}

// NewDoor returns a door that owns l.
func NewDoor(l net.Listener) *Door { return &Door{l: l} }

// Waits reports whether a connection waits for the next server.
func (d *Door) Waits() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waits != nil
}

// take returns the connection that waits, if there is one.
func (d *Door) take() net.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.waits
	d.waits = nil
	return c
}

// Close stops listening, and closes what waits.
func (d *Door) Close() error {
	if c := d.take(); c != nil {
		c.Close()
	}
	return d.l.Close()
}

// Listener returns what one server serves; deleted says whether its store is gone.
func (d *Door) Listener(deleted func() bool) net.Listener { return &doorway{Door: d, deleted: deleted} }

type doorway struct {
	*Door
	deleted func() bool
}

func (w *doorway) Accept() (net.Conn, error) {
	if c := w.take(); c != nil {
		return c, nil
	}
	c, err := w.l.Accept()
	if err != nil || !w.deleted() {
		return c, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits = c
	return nil, net.ErrClosed
}

// Addr returns where it listens.
func (w *doorway) Addr() net.Addr { return w.l.Addr() }

// Close closes the door, unless the next server will use it.
func (w *doorway) Close() error {
	if w.Waits() {
		return nil
	}
	return w.Door.Close()
}
