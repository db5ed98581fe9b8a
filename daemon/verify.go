package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"cairn/archive"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/store/disk"
)

// progressEvery is how often progress is told at most.
const progressEvery = 50 * time.Millisecond

// readVerify reads the request of VerifyStore.
func readVerify(d *protocol.Decoder) *protocol.VerifyRequest {
	return &protocol.VerifyRequest{Contents: d.Bool(), Repair: d.Bool()}
}

// verifyStore verifies as Nix's clients ask for it, and tells what is wrong in lines of log.
func (x *session) verifyStore(ctx context.Context, q *protocol.VerifyRequest) (reply, error) {
	r, err := x.verifyWith(ctx, q, x.say, nil)
	if err != nil {
		return nil, err
	}
	return replyBool(r.Left > 0), nil
}

// verify verifies as our own client asks for it: it learns what is wrong from the answer.
func (x *session) verify(ctx context.Context, q *protocol.VerifyRequest) (reply, error) {
	lines := json.NewEncoder(x.tunnel)
	var plan func(protocol.Finding)
	var untold error
	if q.Repair && q.Plan && !q.DryRun {
		plan = func(f protocol.Finding) {
			f.Planned = true
			untold = errors.Join(untold, lines.Encode(f))
		}
	}
	r, err := x.verifyWith(ctx, q, nil, plan)
	if err = errors.Join(err, untold); err != nil {
		return nil, err
	}
	for _, f := range r.Findings {
		if err := lines.Encode(f); err != nil {
			return nil, err
		}
	}
	r.Findings = nil
	return replyJSON(r)
}

func (x *session) verifyWith(ctx context.Context, q *protocol.VerifyRequest, say func(protocol.Verbosity, string), plan func(protocol.Finding)) (*protocol.VerifyResult, error) {
	if q.Repair {
		if err := x.need(archive.Repair, "verify store: repair"); err != nil {
			return nil, err
		}
	}
	id := x.server.ids.Add(1)
	x.tunnel.send(&protocol.Message{Kind: protocol.KindStart, ID: id, Level: protocol.LevelTalkative, Activity: protocol.ActVerifyPaths})
	defer x.tunnel.send(&protocol.Message{Kind: protocol.KindStop, ID: id})
	var told atomic.Int64 // when, in nanoseconds since began
	began := time.Now()
	v := &build.Verification{Say: say, Plan: plan, Progress: func(p build.VerifyProgress) {
		now, last := int64(time.Since(began)), told.Load()
		if p.Done < p.Total && (now-last < int64(progressEvery) || !told.CompareAndSwap(last, now)) {
			return
		}
		x.tunnel.send(&protocol.Message{Kind: protocol.KindResult, ID: id, Result: protocol.ResProgress, Fields: numbers(p.Done, p.Total, 0, p.Bad, int(p.Read), int(p.Size))})
	}}
	if q.Repair {
		o := x.observe()
		defer o.end()
		v.Builds = o
	}
	return x.builder().Verify(ctx, q, v)
}

// optimiseStore optimises as Nix's clients ask for it.
func (x *session) optimiseStore(ctx context.Context, _ struct{}) (reply, error) {
	r, err := x.optimiseWith(ctx)
	if err != nil {
		return nil, err
	}
	x.tell(fmt.Sprintf("%.2f MiB freed by hard-linking %d files", float64(r.Bytes)/(1<<20), r.Files))
	return one, nil
}

func (x *session) optimise(ctx context.Context, _ struct{}) (reply, error) {
	r, err := x.optimiseWith(ctx)
	if err != nil {
		return nil, err
	}
	return replyJSON(r)
}

func (x *session) optimiseWith(ctx context.Context) (*protocol.OptimiseResult, error) {
	id := x.server.ids.Add(1)
	x.tunnel.send(&protocol.Message{Kind: protocol.KindStart, ID: id, Level: protocol.LevelTalkative, Activity: protocol.ActOptimise})
	defer x.tunnel.send(&protocol.Message{Kind: protocol.KindStop, ID: id})
	total, _ := x.server.store.Count()
	result := func(kind protocol.ResultType, fields []protocol.Field) {
		x.tunnel.send(&protocol.Message{Kind: protocol.KindResult, ID: id, Result: kind, Fields: fields})
	}
	stats, err := x.server.store.Optimise(ctx, &disk.OptimiseOptions{
		Progress: func(t disk.LinkStats) { result(protocol.ResProgress, numbers(t.Paths, total, 0, 0)) },
		Linked:   func(size, blocks int64) { result(protocol.ResFileLinked, numbers(int(size), int(blocks))) },
	})
	if err != nil {
		return nil, err
	}
	r := protocol.OptimiseResult(stats)
	return &r, nil
}
