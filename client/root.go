package client

import (
	"context"

	"cairn/daemon/protocol"
)

// Roots returns everything that keeps an object alive.
func (c *Conn) Roots(ctx context.Context) ([]protocol.RootInfo, error) {
	var list []protocol.RootInfo
	err := c.json(ctx, &call{op: protocol.OpRoots, what: "list roots"}, nil, &list)
	return list, err
}

// AddRoot keeps an object for the user of this connection, under a name, for ever or for a time.
func (c *Conn) AddRoot(ctx context.Context, req *protocol.AddRootRequest) (*protocol.RootInfo, error) {
	r := &protocol.RootInfo{}
	err := c.json(ctx, &call{op: protocol.OpAddRoot, what: "add root"}, req, r)
	return r, err
}

// DeleteRoots deletes roots that AddRoot has made, all or none, and returns them.
func (c *Conn) DeleteRoots(ctx context.Context, req *protocol.DeleteRootsRequest) ([]protocol.RootInfo, error) {
	var list []protocol.RootInfo
	err := c.json(ctx, &call{op: protocol.OpDeleteRoots, what: "delete roots"}, req, &list)
	return list, err
}
