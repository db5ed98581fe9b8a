package daemon

import (
	"context"
	"slices"

	"cairn/archive"
	"cairn/daemon/build"
	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
	"cairn/store"
)

// search begins to ask the session's caches for a request, and tells the client.
func (x *session) search() *substitute.Search {
	obs := &observer{x: x}
	return x.builder().Caches().Search(substitute.Watch{
		Warn: func(text string) { x.warn("%s", text) },
		Asking: func(p store.Path, uri string) func() {
			e := build.Event{Kind: build.Asking, Activity: x.server.ids.Add(1), Path: p, Text: uri}
			obs.fetch(e)
			e.Kind = build.Answered
			return func() { obs.fetch(e) }
		},
	})
}

// offers asks caches for paths alone, valid or not. known are content addresses of those without references.
func (x *session) offers(ctx context.Context, paths []store.Path, known map[store.Path]store.ContentAddress) (map[store.Path]*substitute.Offer, error) {
	s := x.search()
	for p, ca := range known {
		s.Expect(p, ca)
	}
	if err := s.AskAlone(ctx, paths); err != nil {
		return nil, err
	}
	found := map[store.Path]*substitute.Offer{}
	for _, p := range paths {
		if o, _ := s.Offer(p); o != nil {
			found[p] = o
		}
	}
	return found, nil
}

func (x *session) hasSubstitutes(ctx context.Context, p store.Path) (reply, error) {
	found, err := x.offers(ctx, []store.Path{p}, nil)
	if err != nil {
		return nil, err
	}
	return replyBool(found[p] != nil), nil
}

// queryValidPaths fetches what it can first, if the client wants that. What cannot be fetched is not valid; that is no error.
// Clients ask what they need not send, or may have sent to them: what is damaged is not listed, so that they send it, which mends it.
func (x *session) queryValidPaths(ctx context.Context, q validQuery) (reply, error) {
	if q.substitute && x.may(archive.Build) {
		if err := x.fetchOffered(ctx, q.paths); err != nil {
			return nil, err
		}
	}
	s := x.server.store
	return replyPaths(slices.DeleteFunc(s.ValidPaths(q.paths), func(p store.Path) bool { return s.Damage(p) != nil }), nil)
}

func (x *session) fetchOffered(ctx context.Context, paths []store.Path) error {
	var targets []protocol.Target
	for _, p := range paths {
		if !x.server.store.IsValid(p) {
			targets = append(targets, protocol.Target{Path: p})
		}
	}
	if len(targets) == 0 || x.builder().Caches().None() {
		return nil
	}
	obs := x.observe()
	defer obs.end()
	m, err := x.builder().Missing(ctx, targets, obs)
	if err != nil || len(m.Substitute) == 0 {
		return err
	}
	if err := x.fetch(ctx, m.Substitute); err != nil {
		if ctx.Err() != nil {
			return err
		}
		x.warn("%v", err)
	}
	return nil
}

// querySubstitutablePaths asks those caches that bear being asked for much.
func (x *session) querySubstitutablePaths(ctx context.Context, paths []store.Path) (reply, error) {
	s := x.search()
	if err := s.AskMany(ctx, paths); err != nil {
		return nil, err
	}
	var have []store.Path
	for _, p := range paths {
		if o, _ := s.Offer(p); o != nil {
			have = append(have, p)
		}
	}
	return replyPaths(store.SortPaths(have), nil)
}

func (x *session) querySubstitutablePathInfo(ctx context.Context, p store.Path) (reply, error) {
	found, err := x.offers(ctx, []store.Path{p}, nil)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		o := found[p]
		e.Bool(o != nil)
		if o != nil {
			substitutable(e, o)
		}
		return nil
	}, nil
}

// substitutable writes what is known of an object that a cache has.
func substitutable(e *protocol.Encoder, o *substitute.Offer) {
	e.Path(o.Deriver)
	e.Paths(o.References)
	e.Uint64(uint64(o.FileSize))
	e.Uint64(uint64(o.NarSize))
}

// wanted are paths, some of them with the content address that they follow from.
type wanted struct {
	paths []store.Path
	known map[store.Path]store.ContentAddress
}

func readSubstitutable(d *protocol.Decoder) wanted {
	if d.Version < protocol.Minor(22) {
		return wanted{paths: d.Paths()}
	}
	w := wanted{known: map[store.Path]store.ContentAddress{}}
	for range d.Count() {
		p, ca := d.Path(), d.ContentAddress()
		if d.Broken() != nil {
			break
		}
		w.paths = append(w.paths, p)
		w.known[p] = ca
	}
	return w
}

func (x *session) querySubstitutablePathInfos(ctx context.Context, q wanted) (reply, error) {
	found, err := x.offers(ctx, q.paths, q.known)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.Uint64(uint64(len(found)))
		for _, p := range q.paths {
			if o := found[p]; o != nil {
				delete(found, p)
				e.Path(p)
				substitutable(e, o)
			}
		}
		return nil
	}, nil
}
