package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"cairn/archive"
	"cairn/archive/cache"
	"cairn/client"
	"cairn/client/peer"
	"cairn/store"
)

type storeCopyOptions struct {
	to, from string

	noClosure, noCheck, substitute, dryRun, json, quiet bool
}

func newStoreCopyCmd(env *Env) *cobra.Command {
	o := &storeCopyOptions{}
	cmd := &cobra.Command{
		Use:   "copy (--to URI | --from URI) PATH…",
		Short: "Copy objects and their closures to or from another machine's store",
		Long: `Copy objects, and all that they refer to, to another store or from it. One question
finds out what is missing there; only that travels, in one stream.

  ssh-ng://[USER@]HOST[:PORT]  a machine with cairn or Nix, through its daemon
  ssh://[USER@]HOST[:PORT]     the same through 'nix-store --serve', for old ones
  unix:///SOCKET               the daemon at a socket
  file:///FOLDER, https://…    a binary cache; 'cairn cache push' has more options

Nix's parameters may follow: remote-program, remote-store, ssh-key, compress. The
options in NIX_SSHOPTS are given to ssh. Objects that are not addressed by their
content need a signature by a key that the receiving store trusts; a trusted user
can do without (--no-check-sigs).`,
		Example: `  cairn store copy --to ssh-ng://root@web-1 ./result
  cairn store copy --from ssh://builder /cairn/store/0v3q…-hello
  cairn store copy --dry-run --json --to ssh-ng://web-1 ./result`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runStoreCopy(cmd.Context(), env, o, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "copy to the store `URI`")
	f.StringVar(&o.from, "from", "", "copy from the store `URI`")
	f.BoolVar(&o.noClosure, "no-closure", false, "only the objects themselves; what they refer to must be there")
	f.BoolVar(&o.noCheck, "no-check-sigs", false, "take objects without a signature; for trusted users")
	f.BoolVarP(&o.substitute, "substitute-on-destination", "s", false, "let the receiving store fetch from its caches first")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "print what would be copied and copy nothing")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
	cmd.MarkFlagsMutuallyExclusive("to", "from")
	cmd.MarkFlagsOneRequired("to", "from")
	return cmd
}

// copied is what --json prints.
type copied struct {
	From    string         `json:"from"`
	To      string         `json:"to"`
	Present int            `json:"present"` // objects that were there
	Objects []copiedObject `json:"objects"` // that were not
}

type copiedObject struct {
	Path    store.Path `json:"path"`
	NarSize int64      `json:"narSize"`
}

// origin is a store that objects are copied from.
type origin interface {
	store.Reader
	Closure(ctx context.Context, paths []store.Path) ([]*store.Info, error)
}

// destination is a store that objects are copied to.
type destination interface {
	client.Holder
	AddFrom(ctx context.Context, infos []*store.Info, from store.Reader) error
}

func runStoreCopy(ctx context.Context, env *Env, o *storeCopyOptions, args []string) error {
	return env.withSession(ctx, func(s *session) error {
		if o.to != "" && isCache(o.to) {
			push := &cachePushOptions{noClosure: o.noClosure, dryRun: o.dryRun, json: o.json, quiet: o.quiet, jobs: 8}
			return runCachePush(ctx, env, s, push, o.to, args)
		}
		paths, err := s.objects(env, args)
		if err != nil {
			return err
		}
		if o.to != "" {
			return o.copyTo(ctx, env, s, paths)
		}
		return o.copyFrom(ctx, env, s, paths)
	})
}

// isCache reports whether a URI names a binary cache.
func isCache(uri string) bool {
	scheme, _, _ := strings.Cut(uri, "://")
	return strings.HasPrefix(uri, "/") || slices.Contains([]string{"file", "http", "https", "s3"}, scheme)
}

// dialPeer connects to the store of a URI.
func (o *storeCopyOptions) dialPeer(ctx context.Context, env *Env, s *session, uri string) (*peer.Conn, error) {
	a, err := peer.ParseAddress(uri)
	if err != nil {
		return nil, &usageError{err}
	}
	return peer.Dial(ctx, a, &peer.Options{
		Dir: s.layout.Dir, Socket: s.layout.SocketPath, SSHOptions: env.Getenv("NIX_SSHOPTS"), CheckSignatures: !o.noCheck,
	})
}

func (o *storeCopyOptions) copyTo(ctx context.Context, env *Env, s *session, paths []store.Path) error {
	to, err := o.dialPeer(ctx, env, s, o.to)
	if err != nil {
		return err
	}
	defer to.Close()
	return o.copy(ctx, env, s.Conn, to, paths, &copied{From: "local", To: to.Address().String()})
}

// copyFrom adds with a connection of its own, which has signatures checked unless told not to.
func (o *storeCopyOptions) copyFrom(ctx context.Context, env *Env, s *session, paths []store.Path) error {
	var from origin
	name := o.from
	if isCache(o.from) {
		c, err := cache.Open(o.from, s.layout.Dir, &cache.Options{Getenv: env.Getenv, NetrcFile: netrcFile(env, s)})
		if err != nil {
			return err
		}
		defer cache.CloseIdle(c)
		from, name = &cacheOrigin{c}, c.URI()
	} else {
		p, err := o.dialPeer(ctx, env, s, o.from)
		if err != nil {
			return err
		}
		defer p.Close()
		from, name = p, p.Address().String()
	}
	s.SetCheckSignatures(!o.noCheck)
	return o.copy(ctx, env, from, s.Conn, paths, &copied{From: name, To: "local"})
}

// copy sends what the destination lacks.
func (o *storeCopyOptions) copy(ctx context.Context, env *Env, from origin, to destination, paths []store.Path, result *copied) error {
	infos, err := infosIn(ctx, from, paths, !o.noClosure)
	if err != nil {
		return err
	}
	missing, err := o.missing(ctx, to, infos)
	if err != nil {
		return err
	}
	result.Present, result.Objects = len(infos)-len(missing), []copiedObject{}
	for _, i := range missing {
		result.Objects = append(result.Objects, copiedObject{i.Path, i.NarSize})
	}
	if !o.dryRun && len(missing) > 0 {
		p := newCopyProgress(env, o.quiet, from)
		err := to.AddFrom(ctx, missing, p)
		p.progress.close()
		if errors.Is(err, store.ErrUntrusted) {
			err = hinted(err, "sign the objects with a key that the receiving store trusts; a trusted user can copy with --no-check-sigs")
		}
		if err != nil {
			return err
		}
	}
	return o.print(env, result)
}

// infosIn returns what a store knows of paths, or of their closures, references first.
func infosIn(ctx context.Context, from origin, paths []store.Path, closure bool) ([]*store.Info, error) {
	if closure {
		return from.Closure(ctx, paths)
	}
	var infos []*store.Info
	for _, p := range store.SortPaths(paths) {
		i, err := from.Info(ctx, p)
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
	}
	return archive.Sort(infos)
}

func (o *storeCopyOptions) missing(ctx context.Context, to destination, infos []*store.Info) ([]*store.Info, error) {
	there, err := client.Present(ctx, to, store.PathsOf(infos), o.substitute && !o.dryRun)
	if err != nil {
		return nil, err
	}
	var missing []*store.Info
	for _, i := range infos {
		if !there[i.Path] {
			mine := *i
			mine.Ultimate = false // it was not built there
			missing = append(missing, &mine)
		}
	}
	return missing, nil
}

func (o *storeCopyOptions) print(env *Env, c *copied) error {
	if o.json {
		return env.printJSON(c)
	}
	var size int64
	paths := make([]store.Path, len(c.Objects))
	for i, obj := range c.Objects {
		paths[i] = obj.Path
		size += obj.NarSize
	}
	if err := env.printPaths(false, paths); err != nil {
		return err
	}
	verb := "copied"
	if o.dryRun {
		verb = "would be copied"
	}
	if o.dryRun || !o.quiet {
		env.note("%s (%s) %s from %s to %s; %d there already", count(len(c.Objects), "object"), formatSize(size), verb, c.From, c.To, c.Present)
	}
	return nil
}

// copyProgress is a reader that shows what is read.
type copyProgress struct {
	store.Reader
	progress *progress

	mu sync.Mutex // guards id
	id uint64
}

func newCopyProgress(env *Env, quiet bool, from store.Reader) *copyProgress {
	return &copyProgress{Reader: from, progress: env.newProgress(quiet)}
}

// begin shows that an object is read, until its number is finished.
func (p *copyProgress) begin(path store.Path) uint64 {
	p.mu.Lock()
	p.id++
	id := p.id
	p.mu.Unlock()
	p.progress.start(id, "copy "+path.Name())
	return id
}

// NAR reads an object.
func (p *copyProgress) NAR(ctx context.Context, path store.Path, w io.Writer) error {
	defer p.progress.finish(p.begin(path))
	return p.Reader.NAR(ctx, path, w)
}

// NARs reads objects.
func (p *copyProgress) NARs(ctx context.Context, paths []store.Path, next func(store.Path) (io.Writer, error)) error {
	id := uint64(0)
	defer func() { p.progress.finish(id) }()
	return client.NARs(ctx, p.Reader, paths, func(path store.Path) (io.Writer, error) {
		p.progress.finish(id)
		id = p.begin(path)
		return next(path)
	})
}

// cacheOrigin reads from a binary cache.
type cacheOrigin struct{ cache cache.Cache }

// Info returns what the cache says of a path.
func (c *cacheOrigin) Info(ctx context.Context, p store.Path) (*store.Info, error) {
	n, err := c.cache.NarInfo(ctx, p)
	if err != nil {
		return nil, err
	}
	return &n.Info, nil
}

// NAR writes an object's archive.
func (c *cacheOrigin) NAR(ctx context.Context, p store.Path, w io.Writer) error {
	n, err := c.cache.NarInfo(ctx, p)
	if err != nil {
		return err
	}
	r, err := c.cache.NAR(ctx, n)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// maxClosure bounds the closure that a cache may announce.
const maxClosure = 1 << 20

// Closure asks for narinfos until nothing new is named.
func (c *cacheOrigin) Closure(ctx context.Context, paths []store.Path) ([]*store.Info, error) {
	var infos []*store.Info
	seen := map[store.Path]bool{}
	todo := slices.Clone(paths)
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[p] {
			continue
		}
		if seen[p] = true; len(seen) > maxClosure {
			return nil, fmt.Errorf("closure in %s has more than %d objects", c.cache.URI(), maxClosure)
		}
		i, err := c.Info(ctx, p)
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
		todo = append(todo, i.References...)
	}
	return archive.Sort(infos)
}
