package cli

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/store"
)

type storeUsageOptions struct{ json, closure bool }

func newStoreUsageCmd(env *Env) *cobra.Command {
	o := &storeUsageOptions{}
	cmd := &cobra.Command{
		Use:   "du [-r] [--json] [PATH…]",
		Short: "Show what objects take on disk, and what they share",
		Long: `Show what objects take on disk, all of them when none is given. Equal files are one
file with several names in the store, so that what an object takes (SIZE) is not
what deleting it would free: that is its own (OWN), while the rest is SHARED with
objects that are not listed above it or at all. The last line counts every file
once, and OWN in it is what deleting all that are listed would free.

With -r also everything that they refer to, references first.`,
		Example: `  cairn store du ./result
  cairn store du -r --json ./result`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.withSession(cmd.Context(), func(s *session) error { return runStoreUsage(cmd.Context(), env, s, o, args) })
		},
	}
	cmd.Flags().BoolVarP(&o.closure, "recursive", "r", false, "the closure as well")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// usage is bytes on disk.
type usage struct {
	Path   string `json:"path,omitempty"`
	Size   int64  `json:"size"`   // of all files and folders, each once
	Own    int64  `json:"own"`    // that deleting would free
	Shared int64  `json:"shared"` // with others
}

// usages is the answer of "store du".
type usages struct {
	Objects []usage `json:"objects"`
	Total   usage   `json:"total"`
}

func runStoreUsage(ctx context.Context, env *Env, s *session, o *storeUsageOptions, args []string) error {
	paths, err := s.usedPaths(ctx, env, o, args)
	if err != nil {
		return err
	}
	all := inodes{}
	list := usages{Objects: []usage{}}
	for _, p := range paths {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		one := inodes{}
		if err := one.add(s.layout.RealPath(p)); err != nil {
			return fmt.Errorf("look at %s: %w", p, err)
		}
		all.merge(one)
		u := one.usage()
		u.Path = p.String()
		list.Objects = append(list.Objects, u)
	}
	list.Total = all.usage()
	if o.json {
		return env.printJSON(list)
	}
	rows := [][]string{{"PATH", "SIZE", "OWN", "SHARED"}}
	for _, u := range list.Objects {
		rows = append(rows, u.row(u.Path))
	}
	return env.printTable(append(rows, list.Total.row("total of "+count(len(paths), "object"))))
}

func (u usage) row(name string) []string {
	return []string{name, formatSize(u.Size), formatSize(u.Own), formatSize(u.Shared)}
}

// usedPaths are the objects that the command line means.
func (s *session) usedPaths(ctx context.Context, env *Env, o *storeUsageOptions, args []string) ([]store.Path, error) {
	if len(args) == 0 {
		return s.AllPaths(ctx)
	}
	infos, err := infosOf(ctx, s, env, o.closure, args)
	return store.PathsOf(infos), err
}

// inodes are files and folders, and how many names of each were seen.
type inodes map[uint64]inode

type inode struct {
	bytes int64
	names uint64 // seen
	links uint64 // that there are outside of the pool
}

// add looks at a tree.
func (m inodes) add(tree string) error {
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		links := uint64(1)
		if !d.IsDir() && st.Nlink > 1 {
			links = uint64(st.Nlink) - 1 // one is the pool's
		}
		m.merge(inodes{st.Ino: {bytes: st.Blocks * 512, names: 1, links: links}})
		return nil
	})
}

func (m inodes) merge(other inodes) {
	for ino, i := range other {
		i.names += m[ino].names
		m[ino] = i
	}
}

func (m inodes) usage() (u usage) {
	for _, i := range m {
		u.Size += i.bytes
		if i.names >= i.links {
			u.Own += i.bytes
		}
	}
	u.Shared = u.Size - u.Own
	return u
}
