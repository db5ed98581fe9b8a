package deploy

import (
	"context"
	"fmt"
	"io"

	"cairn/archive/nar"
	"cairn/client"
	"cairn/store"
)

// programName is what cairn is called as an object of a system's closure.
const programName = "cairn"

// addOwn puts the agent's own program into the machine's store when p is the name it has there. A system brings its
// cairn along as an object, and the one that was just brought here to run this agent need not come twice.
func (a *agent) addOwn(ctx context.Context, d *client.Conn, p store.Path) (bool, error) {
	h := store.SHA256.New()
	if err := nar.Dump(h, a.Program); err != nil {
		return false, fmt.Errorf("look at %s: %w", a.Program, err)
	}
	own, err := a.Layout.Dir.SourcePath(p.Name(), store.NewHash(store.SHA256, h.Sum(nil)), store.References{})
	if err != nil || own != p {
		return false, err
	}
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(nar.Dump(w, a.Program)) }()
	info, err := d.AddToStore(ctx, p.Name(), store.Recursive, store.SHA256, nil, r)
	if err != nil {
		return false, err
	}
	return info.Path == p, nil
}
