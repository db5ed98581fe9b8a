package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cairn/daemon/protocol"
	"cairn/store"
)

// readLogOf reads the base name of the derivation that AddBuildLog brings a log of.
func readLogOf(d *protocol.Decoder) store.Path { return d.BasePath() }

// addBuildLog keeps the log of a build that was done elsewhere.
func (x *session) addBuildLog(ctx context.Context, drv store.Path) (reply, error) {
	if !drv.IsDerivation() {
		return nil, fmt.Errorf("add log of %s: it is no derivation", drv)
	}
	return one, x.server.build.AddLog(ctx, drv, x.upload)
}

// followLog sends a build log, to the end of the build if it runs. One that is not here may be in a cache.
func (x *session) followLog(ctx context.Context, drv store.Path) (reply, error) {
	err := x.server.build.FollowLog(ctx, drv, x.tunnel)
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	r, other := x.search().Log(ctx, drv)
	if other != nil {
		return nil, err
	}
	defer r.Close()
	_, err = io.Copy(x.tunnel, r)
	return nil, err
}
