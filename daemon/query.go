package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/daemon/protocol"
	"cairn/store"
	"cairn/store/base32"
)

func readPath(d *protocol.Decoder) store.Path { return d.Path() }

// replyPaths replies a set of paths.
func replyPaths(list []store.Path, err error) (reply, error) {
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.Paths(list)
		return nil
	}, nil
}

func replyBool(b bool) reply {
	return func(e *protocol.Encoder) error {
		e.Bool(b)
		return nil
	}
}

func replyPath(p store.Path) reply {
	return func(e *protocol.Encoder) error {
		e.Path(p)
		return nil
	}
}

func (x *session) isValidPath(_ context.Context, p store.Path) (reply, error) {
	return replyBool(x.server.store.IsValid(p)), nil
}

func (x *session) queryPathHash(ctx context.Context, p store.Path) (reply, error) {
	info, err := x.server.store.Info(ctx, p)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.Text(info.NarHash.Hex())
		return nil
	}, nil
}

func (x *session) queryReferences(ctx context.Context, p store.Path) (reply, error) {
	info, err := x.server.store.Info(ctx, p)
	if err != nil {
		return nil, err
	}
	return replyPaths(info.References, nil)
}

// queryReferrers knows of no referrers of what is not valid, as in Nix.
func (x *session) queryReferrers(_ context.Context, p store.Path) (reply, error) {
	if !x.server.store.IsValid(p) {
		return replyPaths(nil, nil)
	}
	return replyPaths(x.server.store.Referrers(p))
}

func (x *session) queryDeriver(ctx context.Context, p store.Path) (reply, error) {
	info, err := x.server.store.Info(ctx, p)
	if err != nil {
		return nil, err
	}
	return replyPath(info.Deriver), nil
}

func (x *session) queryValidDerivers(_ context.Context, p store.Path) (reply, error) {
	return replyPaths(x.server.store.Derivers(p))
}

func (x *session) queryAllValidPaths(context.Context, struct{}) (reply, error) {
	return replyPaths(slices.Collect(x.server.store.All()), nil)
}

func (x *session) queryPathInfo(ctx context.Context, p store.Path) (reply, error) {
	return x.replyInfo(x.server.store.Info(ctx, p))
}

// replyInfo replies what is known of a path; since 1.17 one that is not valid is no error.
func (x *session) replyInfo(info *store.Info, err error) (reply, error) {
	flagged := x.d.Version >= protocol.Minor(17)
	if errors.Is(err, store.ErrNotValid) && flagged {
		return replyBool(false), nil
	}
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		if flagged {
			e.Bool(true)
		}
		e.Info(info)
		return nil
	}, nil
}

// queryFailedPaths knows of none: failures are not remembered.
func (x *session) queryFailedPaths(context.Context, struct{}) (reply, error) {
	return replyPaths(nil, nil)
}

func readTexts(d *protocol.Decoder) []string { return d.Texts(protocol.MaxPath) }

func (x *session) clearFailedPaths(context.Context, []string) (reply, error) { return one, nil }

func readDigest(d *protocol.Decoder) string { return d.Text(protocol.MaxPath) }

func (x *session) queryPathFromHashPart(_ context.Context, digest string) (reply, error) {
	if len(digest) != store.DigestLen || !base32.Valid(digest) {
		return nil, fmt.Errorf("%q is no digest of a store path", digest)
	}
	p, _ := x.server.store.PathFromDigest(digest)
	return replyPath(p), nil
}

// validQuery is the request of QueryValidPaths.
type validQuery struct {
	paths      []store.Path
	substitute bool
}

func readValid(d *protocol.Decoder) validQuery {
	q := validQuery{paths: d.Paths()}
	if d.Version >= protocol.Minor(27) {
		q.substitute = d.Bool()
	}
	return q
}

func (x *session) queryClosure(ctx context.Context, roots []store.Path) (reply, error) {
	paths, err := x.server.store.Closure(roots...)
	if err != nil {
		return nil, err
	}
	infos, err := x.infos(ctx, paths)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.Uint64(uint64(len(infos)))
		for _, i := range infos {
			e.KeyedInfo(i)
		}
		return nil
	}, nil
}

func (x *session) queryClosurePaths(_ context.Context, roots []store.Path) (reply, error) {
	list, err := x.server.store.Closure(roots...)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.PathList(list)
		return nil
	}, nil
}
