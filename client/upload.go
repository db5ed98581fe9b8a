package client

import (
	"errors"
	"io"
	"sync/atomic"

	"cairn/archive/wire"
)

// errAnswered stops an upload because the server has answered already.
var errAnswered = errors.New("the daemon has answered before the end of the upload")

// frames is a framed upload that stops when the server has answered.
type frames struct {
	w        *wire.FrameWriter
	answered atomic.Bool
	err      error // of the stream
}

func (f *frames) Write(p []byte) (int, error) {
	if f.answered.Load() {
		return 0, errAnswered
	}
	n, err := f.w.Write(p)
	if err != nil {
		f.err = err
	}
	return n, err
}

// upload sends a body while a goroutine reads the messages.
func (c *Conn) upload(k *call) error {
	f := &frames{w: wire.NewFrameWriter(c.e.Wire())}
	answer := make(chan error, 1)
	go func() {
		err := c.messages(k)
		f.answered.Store(true)
		answer <- err
	}()
	err := k.body(f)
	switch {
	case err == nil, errors.Is(err, errAnswered), f.err != nil, k.whole:
	default:
		// The server must not take what it got for all.
		c.Close()
		<-answer
		c.err = err
		return err
	}
	closeErr := f.w.Close()
	answered := <-answer
	if err != nil && f.err == nil && !errors.Is(err, errAnswered) {
		return err
	}
	if answered == nil && closeErr != nil {
		return c.lost(closeErr)
	}
	return answered
}

// copyAll returns a body that sends all of r.
func copyAll(r io.Reader) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	}
}
