package client

import (
	"context"
	"io"

	"cairn/daemon/protocol"
	"cairn/store"
)

// ImportBundle makes the objects of a signed bundle valid, all or none, and returns them.
// The daemon's ACL decides whether the signer may.
func (c *Conn) ImportBundle(ctx context.Context, r io.Reader) ([]store.Path, error) {
	var list []store.Path
	err := c.do(ctx, &call{
		op: protocol.OpImportBundle, what: "import bundle",
		body: copyAll(r), whole: true,
		reply: func(d *protocol.Decoder) { list = d.Paths() },
	})
	return list, err
}

// ExportBundle writes paths, with their closure or alone, as a bundle signed with the daemon's key.
func (c *Conn) ExportBundle(ctx context.Context, paths []store.Path, closure bool, w io.Writer) error {
	return c.do(ctx, &call{
		op: protocol.OpExportBundle, what: "export bundle",
		fields: func(e *protocol.Encoder) {
			e.Paths(paths)
			e.Bool(closure)
		},
		chunk: writeTo(w),
	})
}
