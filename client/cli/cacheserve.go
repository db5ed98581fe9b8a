package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"cairn/archive"
	cacheserve "cairn/archive/cache/serve"
	"cairn/client"
	"cairn/daemon/protocol"
	"cairn/store"
)

type cacheServeOptions struct {
	listen      string
	keys        []string
	priority    int
	compression string
	streams     int
	connections int
}

func newCacheServeCmd(env *Env) *cobra.Command {
	o := &cacheServeOptions{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the store as a binary cache over HTTP",
		Long: `Serve the store as a binary cache over HTTP, read-only, until it is told to stop; then
let downloads under way finish for up to a minute. Archives are packed while they are
sent; uncompressed ones can be resumed. Descriptions are signed with the keys given
and kept in memory. /metrics has counters for Prometheus.

Whoever can reach it can read every object in the store. For more than the machine
itself, put a proxy with TLS in front of it, or listen on a private network.`,
		Example: `  cairn cache serve
  cairn cache serve --listen 10.0.0.1:8080 --key /etc/cairn/signing-key.sec --priority 20
  nix-store -r /nix/store/… --option substituters http://10.0.0.1:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCacheServe(cmd.Context(), env, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "`ADDRESS` and port to listen at")
	f.StringArrayVar(&o.keys, "key", nil, "sign descriptions with the secret key in `FILE`; may be given more than once")
	f.IntVar(&o.priority, "priority", 30, "among the caches of a client; lower comes first")
	f.StringVar(&o.compression, "compression", "zstd", "of archives, on the way: zstd or none")
	f.IntVar(&o.streams, "max-streams", 64, "send `N` archives at a time; others wait")
	f.IntVar(&o.connections, "max-connections", 1024, "serve `N` connections at a time")
	return cmd
}

// serveGrace is how long downloads may go on after SIGTERM.
const serveGrace = time.Minute

func runCacheServe(ctx context.Context, env *Env, o *cacheServeOptions) error {
	c := archive.Compression(o.compression)
	if c != archive.Zstd && c != archive.Uncompressed {
		return &usageError{fmt.Errorf("--compression is zstd or none, not %q", o.compression)}
	}
	if o.streams < 1 || o.connections < 1 {
		return &usageError{errors.New("--max-streams and --max-connections are at least 1")}
	}
	keys, err := env.readKeys(o.keys)
	if err != nil {
		return err
	}
	return env.withSession(ctx, func(s *session) error {
		pool := client.NewPool(o.streams+16, s.dial)
		defer pool.Close()
		server := cacheserve.New(s.layout.Dir, &poolSource{pool}, &cacheserve.Options{
			Keys: keys, Priority: o.priority, Compression: c, Streams: o.streams, Connections: o.connections,
			Logger: slog.New(slog.NewTextHandler(env.Stderr, nil)),
		})
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", o.listen)
		if err != nil {
			return fmt.Errorf("listen at %s: %w", o.listen, err)
		}
		if err := notify(env.Getenv, "READY=1"); err != nil {
			return errors.Join(err, l.Close())
		}
		env.note("serving %s at http://%s", s.layout.Dir, l.Addr())
		if len(keys) == 0 {
			env.note("nothing is signed here (--key): clients take what is content-addressed or has a signature they trust")
		}
		return server.Serve(ctx, l, serveGrace)
	})
}

// poolSource is the store behind a daemon, without what that knows to be damaged.
type poolSource struct{ *client.Pool }

func (p *poolSource) ByDigest(ctx context.Context, digest string) (*store.Info, error) {
	var info *store.Info
	err := p.Do(ctx, func(c *client.Conn) error {
		path, err := c.PathFromDigest(ctx, digest)
		if err != nil {
			return err
		}
		if path.IsZero() {
			return fmt.Errorf("object with digest %s: %w", digest, store.ErrNotValid)
		}
		if info, err = c.Info(ctx, path); err != nil {
			return err
		}
		whole, err := c.ValidPaths(ctx, []store.Path{path})
		if err == nil && len(whole) == 0 {
			err = fmt.Errorf("%s is damaged, or has just gone; to mend it: cairn store repair %s: %w", path, path, cacheserve.ErrWithheld)
		}
		return err
	})
	return info, err
}

func (p *poolSource) Log(ctx context.Context, drv store.Path, w io.Writer) error {
	return absent(p.Do(ctx, func(c *client.Conn) error { return c.FollowLog(ctx, drv, w) }))
}

func (p *poolSource) Realisation(ctx context.Context, id store.DrvOutput) (*store.Realisation, error) {
	var r store.Realisation
	err := p.Do(ctx, func(c *client.Conn) error {
		found, known, err := c.Realisation(ctx, id)
		if err == nil && !known {
			err = fmt.Errorf("realisation of %s: %w", id, store.ErrNotValid)
		}
		r = found
		return err
	})
	return &r, err
}

func (p *poolSource) Output(ctx context.Context, drv store.Path, output string) (store.Path, error) {
	var to store.Path
	err := p.Do(ctx, func(c *client.Conn) error {
		outputs, err := c.OutputMap(ctx, drv)
		if err != nil {
			return absent(err)
		}
		to = outputs[output]
		if to.IsZero() {
			return fmt.Errorf("output %s of %s: %w", output, drv, store.ErrNotValid)
		}
		_, err = c.Info(ctx, to)
		return err
	})
	return to, err
}

// absent makes the daemon's refusal mean that something is not there.
func absent(err error) error {
	if as[*protocol.Error](err) {
		return fmt.Errorf("%w: %w", err, store.ErrNotValid)
	}
	return err
}
