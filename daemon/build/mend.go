package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/daemon/protocol"
	"cairn/daemon/substitute"
	"cairn/derivation"
	"cairn/store"
	"cairn/store/disk"
)

// An object whose files are damaged or gone gets the registered ones, whose hash is known, from, in this order:
//
//  1. another object here that has the same archive,
//  2. a cache of the settings that has the same archive,
//  3. the derivation that built it, or one that has it as an output, by building that again: what is fixed is fetched again.
//
// Whatever they give is checked against the registered hash before it takes the place of the old files.
//
// A request mends what it relies on and what is known to be damaged (disk.Store.Damage) before anything is built, and fails when that is
// not possible. A build that meets a damaged input nevertheless, because that has just been found, fails.

// remedy is a way to mend an object.
type remedy struct {
	protocol.Remedy
	drv   store.Path                  // what is built again; else zero
	apply func(context.Context) error // leaves what is registered, or an error
}

// Mend gives a registered object the files that it should have, and returns where they come from. Derivations may be given that perhaps
// built it.
func (b *Builder) Mend(ctx context.Context, p store.Path, obs Observer, drvs ...store.Path) (string, error) {
	info, err := b.store.Registered(p)
	if err != nil {
		return "", err
	}
	lease := b.store.Lease("repair", 0)
	defer lease.Release()
	if err := lease.Hold(append(slices.Clone(info.References), p)...); err != nil {
		return "", err
	}
	if whole, err := b.store.Intact(ctx, p); err == nil && whole {
		return "what was built with it", nil
	}
	ctx = whileMending(ctx, p)
	var failed error
	for _, remedies := range []func(context.Context, *store.Info) ([]remedy, error){
		b.twins,
		func(ctx context.Context, i *store.Info) ([]remedy, error) { return b.offers(ctx, i, obs) },
		func(ctx context.Context, i *store.Info) ([]remedy, error) { return b.makers(i, drvs, obs) },
	} {
		how, err := b.cure(ctx, info, remedies)
		if err == nil && how != "" || ctx.Err() != nil {
			return how, err
		}
		failed = both(failed, err)
	}
	return "", failed
}

// cure tries remedies of one kind, and returns what helped.
func (b *Builder) cure(ctx context.Context, info *store.Info, find func(context.Context, *store.Info) ([]remedy, error)) (string, error) {
	list, err := find(ctx, info)
	for _, r := range list {
		tried := r.apply(ctx)
		if tried == nil {
			return "'" + r.From + "'", nil
		}
		err = both(err, tried)
		if ctx.Err() != nil {
			break
		}
	}
	return "", err
}

// both is a sentence of two reasons.
func both(a, b error) error {
	if a == nil || b == nil {
		return errors.Join(a, b)
	}
	return fmt.Errorf("%w, and %w", a, b)
}

// prescribe says in a finding what can be done about it: with each remedy whether it can be had, as far as that can be known without trying.
// The error is that of ctx.
func (b *Builder) prescribe(ctx context.Context, p store.Path, f *protocol.Finding) error {
	info, err := b.store.Registered(p)
	if err != nil {
		f.Error = err.Error()
		return nil
	}
	f.Size, f.Remedies = info.NarSize, []protocol.Remedy{}
	twins, twinErr := b.twins(ctx, info)
	offers, offerErr := b.offers(ctx, info, nil)
	makers, makerErr := b.makers(info, nil, nil)
	for i := range makers {
		if err := b.canBuild(whileMending(ctx, p), makers[i].drv); err != nil {
			makers[i].Unable = err.Error()
			makerErr = both(makerErr, err)
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for _, r := range slices.Concat(twins, offers, makers) {
		f.Remedies = append(f.Remedies, r.Remedy)
		if r.Unable == "" && f.How == "" {
			f.How = "'" + r.From + "'"
		}
	}
	if f.How != "" {
		return nil
	}
	f.Error = both(both(twinErr, offerErr), makerErr).Error()
	f.NeededBy = b.store.Dependents(p)
	return nil
}

// twins are objects here with the same archive.
func (b *Builder) twins(_ context.Context, info *store.Info) ([]remedy, error) {
	same, err := b.store.Twins(info.Path)
	var list []remedy
	for _, twin := range same {
		list = append(list, remedy{
			Remedy: protocol.Remedy{Kind: protocol.CopyRemedy, From: twin.String()},
			apply:  func(ctx context.Context) error { return b.copyOver(ctx, twin, info.Path) },
		})
	}
	return list, err
}

func (b *Builder) copyOver(ctx context.Context, from, to store.Path) error {
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() { pw.CloseWithError(b.store.NAR(ctx, from, pw)) }()
	err := b.store.Replace(ctx, to, pr)
	if errors.Is(err, store.ErrHashMismatch) {
		b.store.Intact(ctx, from) // notes that it is damaged as well
	}
	return err
}

// errNoOffer says that no cache has an object.
var errNoOffer = errors.New("no cache has it")

// offers are the caches that have the registered contents of an object: the first, whose remedy goes on to the next when it fails.
func (b *Builder) offers(ctx context.Context, info *store.Info, obs Observer) ([]remedy, error) {
	search := b.search(&watch{observer: obs})
	if info.CA.Method != store.Text && len(info.References) == 0 {
		search.Expect(info.Path, info.CA)
	}
	offer, err := b.sameOffer(ctx, info, search)
	if err != nil {
		return nil, err
	}
	r := remedy{Remedy: protocol.Remedy{Kind: protocol.CacheRemedy, From: offer.URI()}}
	r.apply = func(ctx context.Context) error { return b.fetchAgain(ctx, info, search, offer) }
	return []remedy{r}, nil
}

// fetchAgain replaces an object's files by those that caches have.
func (b *Builder) fetchAgain(ctx context.Context, info *store.Info, search *substitute.Search, offer *substitute.Offer) error {
	for {
		err := b.fetchOver(ctx, search, offer)
		if _, bad := errors.AsType[*substitute.OfferError](err); !bad || ctx.Err() != nil {
			return err
		}
		if offer, err = b.sameOffer(ctx, info, search); err != nil {
			return err
		}
	}
}

// sameOffer finds a cache that has the registered contents of an object.
func (b *Builder) sameOffer(ctx context.Context, info *store.Info, search *substitute.Search) (*substitute.Offer, error) {
	for {
		if err := search.AskAlone(ctx, []store.Path{info.Path}); err != nil {
			return nil, err
		}
		offer, _ := search.Offer(info.Path)
		switch {
		case offer != nil && offer.NarHash == info.NarHash:
			return offer, nil
		case offer != nil:
			search.Refuse(offer, fmt.Errorf("'%s' has other contents", offer.URI()))
			continue
		}
		if why := search.Failure(info.Path); why != nil {
			return nil, why
		}
		return nil, errNoOffer
	}
}

func (b *Builder) fetchOver(ctx context.Context, search *substitute.Search, offer *substitute.Offer) error {
	in, err := search.FetchAgain(ctx, offer, substitute.Progress{})
	if err != nil {
		return err
	}
	defer in.Close()
	return in.Commit(ctx)
}

// makers are the derivations that built an object, or have it as an output: that which is registered, those that are known to, and
// those of drvs that do.
func (b *Builder) makers(info *store.Info, drvs []store.Path, obs Observer) ([]remedy, error) {
	known, err := b.store.Derivers(info.Path)
	if err != nil {
		return nil, err
	}
	f := b.facts()
	var list []remedy
	seen := map[store.Path]bool{}
	for _, drv := range slices.Concat([]store.Path{info.Deriver}, known, drvs) {
		if drv.IsZero() || seen[drv] || !b.store.IsValid(drv) {
			continue
		}
		seen[drv] = true
		d, derr := f.derivation(drv)
		if derr != nil {
			err = both(err, derr)
			continue
		}
		if drv != info.Deriver && !f.makes(d, info.Path) {
			continue
		}
		r := remedy{Remedy: protocol.Remedy{Kind: protocol.BuildRemedy, From: drv.String()}, drv: drv}
		if kind, err := d.Kind(); err == nil && kind == derivation.Fixed {
			r.Kind, r.URL = protocol.FetchRemedy, d.Env["url"]
		}
		r.apply = func(ctx context.Context) error { return b.buildAgain(ctx, info, drv, obs) }
		list = append(list, r)
	}
	switch {
	case len(list) > 0 || err != nil:
	case info.Deriver.IsZero():
		err = errors.New("no derivation is known that builds it")
	default:
		err = fmt.Errorf("derivation '%s' that built it is not valid", info.Deriver)
	}
	return list, err
}

// makes reports whether an object is an output of a derivation.
func (f *storeFacts) makes(d *derivation.Derivation, p store.Path) bool {
	return slices.ContainsFunc(d.OutputNames(), func(name string) bool {
		o, err := outputPath(f, d, name)
		return err == nil && o == p
	})
}

// buildAgain builds a derivation that made an object.
func (b *Builder) buildAgain(ctx context.Context, info *store.Info, drv store.Path, obs Observer) error {
	mode := Repair
	if !b.store.IsValid(info.Path) {
		mode = Normal
	}
	list, err := b.request(ctx, b.facts(), []protocol.Target{{Path: drv, Outputs: protocol.All()}}, mode, obs)
	if err != nil {
		return err
	}
	if r := list[0]; !r.Status.OK() {
		return &Failure{Status: r.Status, Text: r.Error}
	}
	if whole, err := b.store.Intact(ctx, info.Path); err != nil || !whole {
		return fmt.Errorf("building '%s' again gave something else: %w", drv, errors.Join(err, store.ErrHashMismatch))
	}
	return nil
}

// canBuild plans the build of a derivation again, and says what it lacks.
func (b *Builder) canBuild(ctx context.Context, drv store.Path) error {
	q := &request{b: b, f: b.facts(), lease: b.store.Lease("query", 0), watch: &watch{}, mode: Repair,
		targets: []protocol.Target{{Path: drv, Outputs: protocol.All()}}}
	defer q.lease.Release()
	q.f.search = b.search(q.watch)
	p, err := q.plan(ctx)
	if err == nil && len(p.unknown) > 0 {
		err = q.unknown(p)
	}
	return err
}

// mending says in a context what is being mended, which whoever mends it must not wait for.
type mending struct {
	path  store.Path
	above *mending
}

type mendingKey struct{}

func whileMending(ctx context.Context, p store.Path) context.Context {
	above, _ := ctx.Value(mendingKey{}).(*mending)
	return context.WithValue(ctx, mendingKey{}, &mending{p, above})
}

func isMending(ctx context.Context, p store.Path) bool {
	m, _ := ctx.Value(mendingKey{}).(*mending)
	for ; m != nil; m = m.above {
		if m.path == p {
			return true
		}
	}
	return false
}

type leaveKey struct{}

// leaveDamaged lets a request succeed whose outputs, or what they refer to, are damaged: somebody will look after that.
func leaveDamaged(ctx context.Context) context.Context {
	return context.WithValue(ctx, leaveKey{}, true)
}

// soundPlan plans, and mends what is known to be damaged of what the plan relies on: derivations while it is made, all else when it is complete.
func (q *request) soundPlan(ctx context.Context) (*plan, error) {
	tried := map[store.Path]bool{}
	for {
		p, err := q.plan(ctx)
		bad, damaged := errors.AsType[*disk.DamagedError](err)
		switch {
		case err == nil:
			return p, q.mendRelied(ctx, p)
		case !damaged || tried[bad.Path] || isMending(ctx, bad.Path):
			return nil, err
		}
		tried[bad.Path] = true
		if err := q.mend(ctx, bad.Path); err != nil {
			return nil, err
		}
	}
}

func (q *request) mendRelied(ctx context.Context, p *plan) error {
	bad, err := q.b.store.DamagedIn(p.relied...)
	if err != nil {
		return err
	}
	for _, path := range bad {
		if isMending(ctx, path) {
			continue
		}
		if err := q.mend(ctx, path); err != nil && (ctx.Err() != nil || ctx.Value(leaveKey{}) == nil) {
			return err
		}
	}
	return nil
}

// mend mends what the request needs.
func (q *request) mend(ctx context.Context, p store.Path) error {
	why := q.b.store.Damage(p)
	if why == nil {
		return nil // somebody else has done it
	}
	how, err := q.b.Mend(ctx, p, q.watch.observer)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w; that has just been tried, and %w", why, err)
	}
	q.watch.warn(fmt.Sprintf("path '%s' was damaged, and has been repaired from %s", p, how))
	return nil
}

// repairOrder returns damaged objects, each after those that it refers to.
func repairOrder(damaged []store.Path, references func(store.Path) []store.Path) []store.Path {
	order := make([]store.Path, 0, len(damaged))
	left := map[store.Path]bool{}
	for _, p := range damaged {
		left[p] = true
	}
	var visit func(p store.Path)
	visit = func(p store.Path) {
		if !left[p] {
			return
		}
		delete(left, p)
		for _, r := range references(p) {
			visit(r)
		}
		order = append(order, p)
	}
	for _, p := range damaged {
		visit(p)
	}
	return order
}
