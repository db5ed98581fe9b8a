package daemon

import (
	"context"
	"fmt"

	"cairn/daemon/protocol"
)

// readLogOf reads the base name of the derivation that AddBuildLog brings a log of.
func readLogOf(d *protocol.Decoder) string { return d.Text(protocol.MaxPath) }

// addBuildLog stores a log that came from elsewhere.
func (x *session) addBuildLog(ctx context.Context, base string) (reply, error) {
	drv, err := x.server.store.Dir().Path(base)
	if err != nil {
		return nil, err
	}
	if !drv.IsDerivation() {
		return nil, fmt.Errorf("add log of %s: it is no derivation", drv)
	}
	return one, x.server.build.AddLog(ctx, drv, x.upload)
}
