package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/daemon/protocol"
	"cairn/store"
)

// AddFile adds a copy of the file or, with store.Recursive, the tree at path, as AddToStore does. A link is added as a link.
//
// Over a socket of this machine cairn's daemon is handed the open file, and reads it itself, so that its contents are copied
// once; else, and when it does not want that, they are sent.
func (c *Conn) AddFile(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, path string) (*store.Info, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) && method == store.Recursive {
		return c.sendTree(ctx, name, algo, refs, func(w io.Writer) error { return nar.Dump(w, path) })
	}
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", name, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", name, err)
	}
	if !fi.Mode().IsRegular() && (!fi.IsDir() || method != store.Recursive) {
		return nil, fmt.Errorf("add %s: %s is not a regular file", name, path)
	}
	if info, err := c.handOver(ctx, name, method, algo, refs, f, fi); info != nil || err != nil {
		return info, err
	}
	switch {
	case fi.IsDir():
		return c.sendTree(ctx, name, algo, refs, func(w io.Writer) error { return nar.DumpOpen(w, f) })
	case method == store.Recursive:
		return c.AddToStore(ctx, name, method, algo, refs, nar.NewFileReader(f, fi.Size(), fi.Mode()&0o100 != 0))
	}
	if c.answer.Serves(protocol.OpAddSized) && !strings.HasSuffix(name, ".drv") {
		return c.addSized(ctx, name, method, algo, refs, f, fi.Size())
	}
	return c.AddToStore(ctx, name, method, algo, refs, f)
}

// addSized is AddToStore of a file of known size.
func (c *Conn) addSized(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, f *os.File, size int64) (*store.Info, error) {
	var info *store.Info
	err := c.do(ctx, &call{
		op: protocol.OpAddSized, what: "add " + name,
		fields: func(e *protocol.Encoder) {
			e.Text(name)
			e.Method(method, algo)
			e.Paths(refs)
			e.Uint64(uint64(size))
		},
		body: func(w io.Writer) error {
			_, err := io.CopyN(w, f, size)
			return err
		},
		whole: true,
		reply: func(d *protocol.Decoder) { info = d.KeyedInfo() },
	})
	if err != nil {
		return nil, err
	}
	return info, nil
}

// sendTree is AddToStore with an archive that is written instead of read.
func (c *Conn) sendTree(ctx context.Context, name string, algo store.Algorithm, refs []store.Path, dump func(io.Writer) error) (*store.Info, error) {
	return c.addToStore(ctx, name, store.Recursive, algo, refs, dump)
}

// handOver has the daemon read an open file. It returns nil when the contents must be sent.
func (c *Conn) handOver(ctx context.Context, name string, method store.Method, algo store.Algorithm, refs []store.Path, f *os.File, fi os.FileInfo) (*store.Info, error) {
	if !c.answer.Serves(protocol.OpAddOpen) || fi.IsDir() && !c.Trusted() {
		return nil, nil
	}
	var info *store.Info
	err := c.do(ctx, &call{
		op: protocol.OpAddOpen, what: "add " + name, file: f,
		fields: func(e *protocol.Encoder) {
			e.Text(name)
			e.Method(method, algo)
			e.Paths(refs)
		},
		reply: func(d *protocol.Decoder) {
			if d.Bool() {
				info = d.KeyedInfo()
			}
		},
	})
	return info, err
}

// passer writes to a stream, and hands a file over with the first byte that comes after it was set.
type passer struct {
	io.Writer
	file *os.File
}

func (p *passer) Write(b []byte) (int, error) {
	f := p.file
	c, ok := p.Writer.(*net.UnixConn)
	if f == nil || !ok || len(b) == 0 {
		return p.Writer.Write(b)
	}
	p.file = nil
	n, _, err := c.WriteMsgUnix(b, unix.UnixRights(int(f.Fd())), nil)
	if err != nil || n == len(b) {
		return n, err
	}
	m, err := c.Write(b[n:])
	return n + m, err
}
