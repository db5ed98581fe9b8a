package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"

	"golang.org/x/sync/errgroup"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/store"
)

// importBundle receives all objects of a bundle out of sight, and makes them valid together when the
// last byte has proved right. Anybody may bring a bundle; the ACL decides about its signer.
func (x *session) importBundle(ctx context.Context, _ struct{}) (reply, error) {
	s := x.server
	acl, err := x.signers()
	if err != nil {
		return nil, err
	}
	in := &metered{r: x.upload, m: &x.memory, free: protocol.Step}
	b, err := archive.OpenBundle(in, s.store.Dir())
	if err != nil {
		return nil, err
	}
	in.over = true
	defer b.Close()
	if err := b.VerifySignature(acl); err != nil {
		return nil, err
	}
	paths := store.PathsOf(b.Infos())
	for _, p := range paths {
		if err := x.hold(p); err != nil {
			return nil, err
		}
	}
	i := s.store.Import()
	defer i.Close()
	for {
		info, r, err := b.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		info.Ultimate = false
		if err := i.AddLater(ctx, info, r); err != nil {
			return nil, err
		}
	}
	if err := i.Commit(ctx); err != nil {
		return nil, err
	}
	return replyPaths(paths, nil)
}

// bundleRequest is the request of ExportBundle.
type bundleRequest struct {
	paths   []store.Path
	closure bool
}

func readBundle(d *protocol.Decoder) bundleRequest { return bundleRequest{d.Paths(), d.Bool()} }

// exportBundle signs with the machine's key, for whoever asks: the signature says that this store has these
// objects, which is so.
func (x *session) exportBundle(ctx context.Context, q bundleRequest) (reply, error) {
	s := x.server
	key, err := archive.ReadSecretKey(s.opts.SigningKey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; make one with: cairn archive --generate-key", err)
	}
	if err != nil {
		return nil, err
	}
	if err := x.holdToSend(q.paths...); err != nil {
		return nil, err
	}
	paths := q.paths
	if q.closure {
		if paths, err = s.store.Closure(q.paths...); err != nil {
			return nil, err
		}
	}
	if err := x.sendable(paths); err != nil {
		return nil, err
	}
	infos, err := x.infos(ctx, paths)
	if err != nil {
		return nil, err
	}
	return nil, archive.WriteBundle(ctx, x.tunnel, key, s.store.Dir(), infos, s.store)
}

// infosAtOnce is how many infos a goroutine looks up before it takes others.
const infosAtOnce = 256

// infos looks up many paths, on all cores.
func (x *session) infos(ctx context.Context, paths []store.Path) ([]*store.Info, error) {
	infos := make([]*store.Info, len(paths))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for at := 0; at < len(paths); at += infosAtOnce {
		g.Go(func() (err error) {
			for i := at; i < min(at+infosAtOnce, len(paths)) && err == nil; i++ {
				infos[i], err = x.server.store.Info(ctx, paths[i])
			}
			return err
		})
	}
	return infos, g.Wait()
}

// exportRequest is the request of ExportPath.
func readExport(d *protocol.Decoder) store.Path {
	p := d.Path()
	d.Uint64()
	return p
}

// exportPath sends one object of an export stream, for clients of long ago: the stream without its frame.
func (x *session) exportPath(ctx context.Context, p store.Path) (reply, error) {
	if err := x.sendable([]store.Path{p}); err != nil {
		return nil, err
	}
	w := &middle{w: x.tunnel, skip: 8}
	if err := archive.WriteExport(ctx, w, x.server.store, []store.Path{p}); err != nil {
		return nil, err
	}
	return one, w.end()
}

// middle passes a stream on without its first and last 8 bytes.
type middle struct {
	w    io.Writer
	skip int
	last []byte
}

func (m *middle) Write(p []byte) (int, error) {
	n := len(p)
	cut := min(m.skip, len(p))
	m.skip -= cut
	p = p[cut:]
	all := append(m.last, p...)
	keep := min(8, len(all))
	m.last = bytes.Clone(all[len(all)-keep:])
	if _, err := m.w.Write(all[:len(all)-keep]); err != nil {
		return 0, err
	}
	return n, nil
}

func (m *middle) end() error {
	if len(m.last) != 8 || !bytes.Equal(m.last, make([]byte, 8)) {
		return errors.New("BUG: export stream without an end")
	}
	return nil
}

// importPaths reads an export stream, which has no signatures, so that the table asks for the right to import without proof.
func (x *session) importPaths(ctx context.Context, _ struct{}) (reply, error) {
	var paths []store.Path
	err := archive.ReadExport(&pull{x: x}, x.server.store.Dir(), func(info *store.Info, r io.Reader) error {
		if info.Path.IsDerivation() {
			b, err := x.checkedDerivation(info.Path.Name(), true, r)
			if err != nil {
				return fmt.Errorf("import %s: %w", info.Path, err)
			}
			r = bytes.NewReader(b)
		}
		paths = append(paths, info.Path)
		return x.server.store.Add(ctx, info, r)
	})
	return replyPaths(paths, err)
}
