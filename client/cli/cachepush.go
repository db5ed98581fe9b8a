package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"cairn/archive/cache"
	"cairn/archive/nar"
	"cairn/client"
	"cairn/derivation"
	"cairn/store"
)

type cachePushOptions struct {
	noClosure, logs, dryRun, json, quiet bool

	keys        []string
	compression string
	jobs        int
}

func newCachePushCmd(env *Env) *cobra.Command {
	o := &cachePushOptions{}
	cmd := &cobra.Command{
		Use:   "push URI PATH…",
		Short: "Copy objects and their closures to a binary cache",
		Long: `Copy objects, and all that they refer to, to a binary cache: a folder (file:///folder
or its absolute path), a web server that takes PUT (http://, https://), or a bucket
(s3://BUCKET/PREFIX?region=…&endpoint=…). What is there already is not sent again.
References become visible before what refers to them.

Nix's parameters may follow the URI: compression, compression-level, secret-key,
write-nar-listing, index-debug-info, priority, want-mass-query; for S3 region,
endpoint, scheme, profile, narinfo-compression, ls-compression, log-compression.

Of outputs that are addressed by their content it writes which derivation they are
of (realisations, for Nix before and since 2.35), so that others need not build them.`,
		Example: `  cairn cache push file:///srv/cache ./result
  cairn cache push --key ~/cache.sec 's3://my-cache?region=eu-west-1' ./result
  cairn cache push --dry-run --json https://cache.example.org ./result`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error {
				return runCachePush(cmd.Context(), env, s, o, args[0], args[1:])
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.noClosure, "no-closure", false, "only the objects themselves; what they refer to must be there")
	f.StringArrayVar(&o.keys, "key", nil, "sign each object with the secret key in `FILE`; may be given more than once")
	f.StringVar(&o.compression, "compression", "", "pack archives with `NAME`: zstd (default), gzip or none")
	f.IntVar(&o.jobs, "jobs", 8, "pack and send `N` objects at a time")
	f.BoolVar(&o.logs, "logs", false, "copy the build logs that there are, too")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what would be sent and send nothing")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
	return cmd
}

// pushed is what --json prints.
type pushed struct {
	Cache   string         `json:"cache"`
	Present int            `json:"present"` // objects that were there
	Objects []pushedObject `json:"objects"` // that were not
}

type pushedObject struct {
	Path     store.Path `json:"path"`
	NarSize  int64      `json:"narSize"`
	FileSize int64      `json:"fileSize,omitempty"` // packed
}

func (p *pushed) sizes() (plain, packed int64) {
	for _, o := range p.Objects {
		plain, packed = plain+o.NarSize, packed+o.FileSize
	}
	return plain, packed
}

func runCachePush(ctx context.Context, env *Env, s *session, o *cachePushOptions, uri string, args []string) error {
	paths, err := s.objects(env, args)
	if err != nil {
		return err
	}
	w, err := o.open(env, s, uri)
	if err != nil {
		return err
	}
	defer cache.CloseIdle(w)
	infos, err := infosIn(ctx, s, paths, !o.noClosure)
	if err != nil {
		return err
	}
	if !o.dryRun {
		if err := w.Init(ctx); err != nil {
			return err
		}
	}
	missing, err := cache.Missing(ctx, w, infos)
	if err != nil {
		return err
	}
	result := &pushed{Cache: w.URI(), Present: len(infos) - len(missing), Objects: []pushedObject{}}
	if o.dryRun {
		for _, i := range missing {
			result.Objects = append(result.Objects, pushedObject{Path: i.Path, NarSize: i.NarSize})
		}
		return o.print(env, result)
	}
	if err := o.send(ctx, env, s, w, missing, infos, result); err != nil {
		return err
	}
	return o.print(env, result)
}

// open opens the cache; flags come before parameters of the URI.
func (o *cachePushOptions) open(env *Env, s *session, uri string) (cache.Writer, error) {
	if o.compression != "" {
		bare, query, _ := strings.Cut(uri, "?")
		values, err := url.ParseQuery(query)
		if err != nil {
			return nil, &usageError{fmt.Errorf("parameters of the cache: %w", err)}
		}
		values.Set("compression", o.compression)
		uri = bare + "?" + values.Encode()
	}
	keys, err := env.readKeys(o.keys)
	if err != nil {
		return nil, err
	}
	w, err := cache.OpenWriter(uri, s.layout.Dir, &cache.Options{Keys: keys, Getenv: env.Getenv, NetrcFile: netrcFile(env, s)})
	if err != nil {
		return nil, hinted(err, "a cache is file:///FOLDER, /FOLDER, http://…, https://… or s3://BUCKET")
	}
	return w, nil
}

// netrcFile is where credentials of web servers are: the daemon's settings are not this user's to read.
func netrcFile(env *Env, s *session) string {
	if home := env.Getenv("HOME"); home != "" {
		return filepath.Join(home, ".netrc")
	}
	return filepath.Join(s.layout.ConfDir, "netrc")
}

// send copies objects, and what goes with all of the infos.
func (o *cachePushOptions) send(ctx context.Context, env *Env, s *session, w cache.Writer, missing, infos []*store.Info, result *pushed) error {
	pool := client.NewPool(max(o.jobs, 1), s.dial)
	defer pool.Close()
	p := newPushProgress(env, o.quiet, missing)
	err := cache.Push(ctx, w, missing, pool, &cache.PushOptions{Jobs: o.jobs, Report: p.report})
	p.progress.close()
	result.Objects = append(result.Objects, p.done...)
	if err != nil {
		return err
	}
	with := &companions{session: s, writer: w, logs: o.logs}
	with.hashes = derivation.NewHashes(func(p store.Path) (*derivation.Derivation, error) { return with.load(ctx, p) })
	for _, i := range infos {
		if err := with.push(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (o *cachePushOptions) print(env *Env, p *pushed) error {
	if o.json {
		return env.printJSON(p)
	}
	for _, obj := range p.Objects {
		env.printf("%s\n", obj.Path)
	}
	plain, packed := p.sizes()
	switch {
	case o.dryRun:
		env.note("%d objects (%s) would be sent to %s; %d are there", len(p.Objects), formatSize(plain), p.Cache, p.Present)
	case !o.quiet:
		env.note("%d objects (%s, packed %s) sent to %s; %d were there", len(p.Objects), formatSize(plain), formatSize(packed), p.Cache, p.Present)
	}
	return nil
}

// pushProgress shows the objects that are under way.
type pushProgress struct {
	progress *progress
	total    int

	mu   sync.Mutex // guards what follows
	ids  map[store.Path]uint64
	done []pushedObject
}

func newPushProgress(env *Env, quiet bool, missing []*store.Info) *pushProgress {
	return &pushProgress{progress: env.newProgress(quiet), total: len(missing), ids: map[store.Path]uint64{}}
}

func (p *pushProgress) report(r cache.PushReport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Done == nil {
		id := uint64(len(p.ids) + 1)
		p.ids[r.Info.Path] = id
		p.progress.start(id, fmt.Sprintf("push %s (%s)", r.Info.Path.Name(), formatSize(r.Info.NarSize)))
		return
	}
	p.done = append(p.done, pushedObject{r.Info.Path, r.Info.NarSize, r.Done.FileSize})
	p.progress.finish(p.ids[r.Info.Path])
}

// companions are what goes with an object: realisations and logs.
type companions struct {
	session *session
	writer  cache.Writer
	logs    bool
	hashes  *derivation.Hashes
}

// load reads a derivation from the store.
func (c *companions) load(ctx context.Context, p store.Path) (*derivation.Derivation, error) {
	var b bytes.Buffer
	if err := c.session.NAR(ctx, p, &b); err != nil {
		return nil, err
	}
	text, _, err := nar.ReadFile(&b, 64<<20)
	if err != nil {
		return nil, err
	}
	return derivation.ParseAt(p, text)
}

func (c *companions) push(ctx context.Context, info *store.Info) error {
	if info.CA.IsZero() && (!c.logs || info.Deriver.IsZero()) {
		return nil
	}
	derivers, err := c.session.Derivers(ctx, info.Path)
	if err != nil {
		return err
	}
	for _, drv := range derivers {
		if !info.CA.IsZero() {
			if err := c.realisations(ctx, drv, info.Path); err != nil {
				return err
			}
		}
	}
	if c.logs && !info.Deriver.IsZero() {
		return c.log(ctx, info.Deriver)
	}
	return nil
}

// realisations writes that path is an output of drv, if its path was not known before the build.
func (c *companions) realisations(ctx context.Context, drv, path store.Path) error {
	d, err := c.load(ctx, drv)
	if err != nil {
		return err
	}
	if kind, err := d.Kind(); err != nil || kind != derivation.Floating && kind != derivation.Deferred {
		return err
	}
	outputs, err := c.session.OutputMap(ctx, drv)
	if err != nil {
		return err
	}
	for output, to := range outputs {
		if to != path {
			continue
		}
		id, err := c.hashes.DrvOutput(d, output)
		if err != nil {
			return err
		}
		r, known, err := c.session.Realisation(ctx, id)
		if err != nil {
			return err
		}
		if !known || r.OutPath != path {
			continue
		}
		if err := c.writer.PutRealisation(ctx, &r); err != nil {
			return err
		}
		if err := c.writer.PutTrace(ctx, &cache.Trace{Drv: drv, Output: output, OutPath: path}); err != nil {
			return err
		}
	}
	return nil
}

// log writes a build log, if there is one.
func (c *companions) log(ctx context.Context, drv store.Path) error {
	var text bytes.Buffer
	if err := c.session.FollowLog(ctx, drv, &text); err != nil {
		if ctx.Err() != nil || errors.Is(err, client.ErrClosed) {
			return err
		}
		return nil // there is none
	}
	return c.writer.PutLog(ctx, drv, &text)
}
