package remote

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"cairn/archive"
	"cairn/client"
	"cairn/client/peer"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

// maxUpload is how long a build waits for another one that sends to the same machine.
const maxUpload = 15 * time.Minute

// Build builds a task on the machine.
func (m *place) Build(ctx context.Context, t *build.Task) (*protocol.BuildResult, error) {
	p := m.pool
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.work.Add(1)
	}
	p.mu.Unlock()
	if closed {
		return nil, context.Canceled
	}
	defer p.work.Done()
	r, err := m.build(ctx, t)
	switch {
	case err == nil:
		p.worked(m.host)
	case ctx.Err() == nil:
		p.failed(m.host, err)
	}
	return r, err
}

func (m *place) build(ctx context.Context, t *build.Task) (*protocol.BuildResult, error) {
	began := time.Now()
	conn, err := peer.Dial(ctx, m.machine.Address, &m.pool.opts.Peer)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	plain := conn.Trusts() || provesItself(t.Plain)
	sent, err := m.send(ctx, conn, t, plain)
	if err != nil {
		return nil, fmt.Errorf("send inputs: %w", err)
	}
	ready := time.Now()
	var r *protocol.BuildResult
	if plain {
		r, err = conn.BuildDerivation(ctx, t.Drv, t.Plain, m.limits(t), t.Log)
	} else {
		r, err = conn.Build(ctx, t.Drv, m.limits(t), t.Log)
	}
	if err != nil {
		return nil, err
	}
	if r.Status == protocol.MiscFailure || r.Status == protocol.InputRejected {
		return nil, fmt.Errorf("%w: %s", errUnwell, r.Error)
	}
	if !r.Status.OK() {
		return r, nil
	}
	built := time.Now()
	if err := m.fetch(ctx, conn, t, r); err != nil {
		return nil, fmt.Errorf("fetch outputs: %w", err)
	}
	m.pool.opts.Logger.Info("built", "machine", m.Name(), "drv", t.Drv.String(), "inputs", sent,
		"sending", ready.Sub(began), "building", built.Sub(ready), "fetching", time.Since(built))
	return r, nil
}

// provesItself reports whether the outputs need nobody's word.
func provesItself(d *derivation.Derivation) bool {
	for _, o := range d.Outputs {
		if k := o.Kind(); k != derivation.Fixed && k != derivation.Floating {
			return false
		}
	}
	return true
}

func (m *place) limits(t *build.Task) peer.Limits {
	s := t.Settings
	return peer.Limits{MaxSilent: s.MaxSilent, Timeout: s.Timeout, MaxLog: s.MaxLog, KeepFailed: s.KeepFailed, Substitute: s.BuildersSubstitute}
}

// send makes the inputs valid at the machine and returns how many it sent. When the derivation is not sent alone, it is an input, too.
func (m *place) send(ctx context.Context, conn *peer.Conn, t *build.Task, plain bool) (int, error) {
	paths := t.Inputs
	if !plain {
		if !m.pool.store.IsValid(t.Drv) {
			return 0, fmt.Errorf("the machine does not trust us, and there is no file of %s to show it", t.Drv)
		}
		var err error
		if paths, err = m.pool.store.Closure(append(slices.Clip(t.Inputs), t.Drv)...); err != nil {
			return 0, err
		}
	}
	if len(paths) == 0 {
		return 0, nil
	}
	if err := conn.Keep(ctx, paths); err != nil {
		return 0, err
	}
	defer m.takeTurn(ctx)()
	missing, err := m.missing(ctx, conn, paths, t.Settings.BuildersSubstitute)
	if err != nil || len(missing) == 0 {
		return 0, err
	}
	return len(missing), conn.AddFrom(ctx, missing, m.pool.store)
}

// takeTurn waits until no other build sends to the machine, or long enough.
func (m *place) takeTurn(ctx context.Context) (done func()) {
	select {
	case m.host.sending <- struct{}{}:
		return func() { <-m.host.sending }
	case <-ctx.Done():
	case <-time.After(maxUpload):
	}
	return func() {}
}

// missing returns what the machine has not, references first.
func (m *place) missing(ctx context.Context, conn *peer.Conn, paths []store.Path, substitute bool) ([]*store.Info, error) {
	there, err := client.Present(ctx, conn, paths, substitute)
	if err != nil {
		return nil, err
	}
	var infos []*store.Info
	for _, p := range paths {
		if there[p] {
			continue
		}
		i, err := m.pool.store.Info(ctx, p)
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
	}
	return archive.Sort(infos)
}

// fetch makes the outputs valid here.
func (m *place) fetch(ctx context.Context, conn *peer.Conn, t *build.Task, r *protocol.BuildResult) error {
	var infos []*store.Info
	for _, name := range slices.Sorted(maps.Keys(t.Plain.Outputs)) {
		info, err := m.output(ctx, conn, t, name, r.Outputs[name].OutPath)
		if err != nil {
			return fmt.Errorf("output '%s': %w", name, err)
		}
		if !m.pool.store.IsValid(info.Path) {
			infos = append(infos, info)
		}
	}
	sorted, err := archive.Sort(infos)
	if err != nil {
		return err
	}
	if lease := disk.LeaseOf(ctx); lease != nil {
		for _, i := range sorted {
			if err := lease.Hold(i.Path); err != nil {
				return err
			}
		}
	}
	in := m.pool.store.Import()
	defer in.Close()
	for _, info := range sorted {
		if err := receive(ctx, conn, info, in); err != nil {
			return err
		}
	}
	return in.Commit(ctx)
}

// output returns what an output must be, as far as the derivation says it, and else what the machine says it is.
func (m *place) output(ctx context.Context, conn *peer.Conn, t *build.Task, name string, claimed store.Path) (*store.Info, error) {
	out := t.Plain.Outputs[name]
	path := out.Path
	if path.IsZero() {
		path = claimed
	}
	if path.IsZero() || path.Name() != t.Plain.OutputName(name) {
		return nil, fmt.Errorf("the machine does not say where it is")
	}
	info, err := conn.Info(ctx, path)
	if err != nil {
		return nil, err
	}
	info.Ultimate, info.RegisteredAt, info.Deriver = false, time.Now().Unix(), store.Path{}
	if m.pool.store.IsValid(t.Drv) {
		info.Deriver = t.Drv
	}
	switch out.Kind() {
	case derivation.Fixed:
		info.CA = out.ContentAddress()
	case derivation.Floating:
		if info.CA.IsZero() || info.CA.Method != out.Method || info.CA.Hash.Algorithm() != out.Algo {
			return nil, fmt.Errorf("%s has the content address %q, wanted is one of %s", path, info.CA, protocol.MethodText(out.Method, out.Algo))
		}
	default:
		info.CA = store.ContentAddress{}
	}
	return info, nil
}

// receive reads an object from the machine.
func receive(ctx context.Context, conn *peer.Conn, info *store.Info, in *disk.Import) error {
	pr, pw := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := conn.NAR(ctx, info.Path, pw)
		pw.CloseWithError(err)
		sent <- err
	}()
	err := in.Add(ctx, info, pr)
	pr.CloseWithError(io.ErrClosedPipe)
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	return err
}
