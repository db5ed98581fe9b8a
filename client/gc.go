package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"cairn/daemon/protocol"
	"cairn/store"
)

// AddTempRoot keeps a path alive until the connection ends, whether it is valid yet or not.
func (c *Conn) AddTempRoot(ctx context.Context, path store.Path) error {
	return c.do(ctx, &call{
		op: protocol.OpAddTempRoot, what: "keep " + path.String(),
		fields: func(e *protocol.Encoder) { e.Path(path) }, reply: ack,
	})
}

// AddIndirectRoot keeps alive what a link outside the store's state points to.
func (c *Conn) AddIndirectRoot(ctx context.Context, link string) error {
	return c.do(ctx, &call{
		op: protocol.OpAddIndirectRoot, what: "add root " + link,
		fields: func(e *protocol.Encoder) { e.Text(link) }, reply: ack,
	})
}

// AddPermRoot makes link point to path and keeps it alive. Only trusted peers may.
func (c *Conn) AddPermRoot(ctx context.Context, path store.Path, link string) error {
	return c.do(ctx, &call{
		op: protocol.OpAddPermRoot, what: "add root " + link, since: 36,
		fields: func(e *protocol.Encoder) {
			e.Path(path)
			e.Text(link)
		},
		reply: func(d *protocol.Decoder) { d.Text(protocol.MaxPath) },
	})
}

// FindRoots returns what keeps paths alive.
func (c *Conn) FindRoots(ctx context.Context) ([]protocol.Root, error) {
	var roots []protocol.Root
	err := c.do(ctx, &call{
		op: protocol.OpFindRoots, what: "find roots",
		reply: func(d *protocol.Decoder) { roots = d.Roots() },
	})
	return roots, err
}

// CollectGarbage collects as Nix's clients do, with paths in any spelling of the daemon.
func (c *Conn) CollectGarbage(ctx context.Context, o *protocol.GCOptions) (*protocol.GCResult, error) {
	return c.collectGarbage(ctx, o, nil)
}

func (c *Conn) collectGarbage(ctx context.Context, o *protocol.GCOptions, obs Observer) (*protocol.GCResult, error) {
	var r *protocol.GCResult
	err := c.do(ctx, &call{
		op: protocol.OpCollectGarbage, what: "collect garbage", obs: obs,
		fields: func(e *protocol.Encoder) { e.GCOptions(o) },
		reply:  func(d *protocol.Decoder) { r = d.GCResult() },
	})
	return r, err
}

// Collect collects garbage; obs, which may be nil, is told the progress.
func (c *Conn) Collect(ctx context.Context, req *protocol.GCRequest, obs Observer) (*protocol.GCResult, error) {
	if o := req.Options(); o != nil && !c.answer.Serves(protocol.OpCollectGarbage2) {
		return c.collectGarbage(ctx, o, obs)
	}
	r := &protocol.GCResult{}
	err := c.json(ctx, &call{op: protocol.OpCollectGarbage2, what: "collect garbage", obs: obs}, req, r)
	return r, err
}

// Why returns the chains from roots to path; none means that it is garbage.
func (c *Conn) Why(ctx context.Context, path store.Path) ([]protocol.Chain, error) {
	var chains []protocol.Chain
	err := c.json(ctx, &call{
		op: protocol.OpGCWhy, what: "find what keeps " + path.String(),
		fields: func(e *protocol.Encoder) { e.Path(path) },
	}, nil, &chains)
	return chains, err
}

// Status returns what the daemon is and does.
func (c *Conn) Status(ctx context.Context) (*protocol.DaemonStatus, error) {
	s := &protocol.DaemonStatus{}
	err := c.json(ctx, &call{op: protocol.OpStatus, what: "query status"}, nil, s)
	return s, err
}

// json runs an operation of cairn's whose answer, and request unless it is nil, is JSON.
func (c *Conn) json(ctx context.Context, k *call, request, answer any) error {
	if request != nil {
		b, err := json.Marshal(request)
		if err != nil {
			return fmt.Errorf("%s: %w", k.what, err)
		}
		k.fields = func(e *protocol.Encoder) { e.Text(string(b)) }
	}
	var text string
	k.reply = func(d *protocol.Decoder) { text = d.Text(protocol.MaxValue) }
	if err := c.do(ctx, k); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), answer); err != nil {
		return fmt.Errorf("%s: answer: %w", k.what, err)
	}
	return nil
}

// Check verifies the store or some paths, and repairs them if asked to; obs, which may be nil, is told the progress. planned, which may be nil, is
// told what will be done about a finding, before anything is; by another goroutine.
func (c *Conn) Check(ctx context.Context, req *protocol.VerifyRequest, obs Observer, planned func(protocol.Finding)) (*protocol.VerifyResult, error) {
	if planned != nil && req.Repair {
		mine := *req
		mine.Plan = true
		req = &mine
	}
	r := &protocol.VerifyResult{}
	findings := []protocol.Finding{}
	take := func(f protocol.Finding) {
		if !f.Planned {
			findings = append(findings, f)
		} else if planned != nil {
			planned(f)
		}
	}
	lines, writer := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- readFindings(lines, take) }()
	err := c.json(ctx, &call{op: protocol.OpVerify, what: "verify the store", obs: obs, chunk: writeTo(writer)}, req, r)
	writer.Close()
	if bad := <-done; err == nil && bad != nil {
		err = fmt.Errorf("verify the store: %w", bad)
	}
	r.Findings = findings
	return r, err
}

// readFindings decodes what comes through a pipe, to its end.
func readFindings(lines *io.PipeReader, take func(protocol.Finding)) error {
	d := json.NewDecoder(lines)
	for {
		var f protocol.Finding
		if err := d.Decode(&f); err != nil {
			lines.CloseWithError(err)
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("findings: %w", err)
		}
		take(f)
	}
}

// Scrub starts, pauses or resumes the verification in the background, or only asks, and returns how it is then.
func (c *Conn) Scrub(ctx context.Context, req *protocol.ScrubRequest) (*protocol.Scrub, error) {
	r := &protocol.Scrub{}
	err := c.json(ctx, &call{op: protocol.OpScrub, what: "scrub"}, req, r)
	return r, err
}

// Optimise makes equal files of the store hard links; obs, which may be nil, is told the progress.
func (c *Conn) Optimise(ctx context.Context, obs Observer) (*protocol.OptimiseResult, error) {
	r := &protocol.OptimiseResult{}
	err := c.json(ctx, &call{op: protocol.OpOptimise, what: "optimise the store", obs: obs}, nil, r)
	return r, err
}

// Verify checks the store, with contents or without, and reports whether errors remain.
// What is wrong is told to the observer.
func (c *Conn) Verify(ctx context.Context, contents, repair bool, obs Observer) (bool, error) {
	var remain bool
	err := c.do(ctx, &call{
		op: protocol.OpVerifyStore, what: "verify the store", obs: obs,
		fields: func(e *protocol.Encoder) {
			e.Bool(contents)
			e.Bool(repair)
		},
		reply: func(d *protocol.Decoder) { remain = d.Bool() },
	})
	return remain, err
}
