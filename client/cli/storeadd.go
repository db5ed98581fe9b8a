package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/client"
	"cairn/client/sources"
	"cairn/store"
)

type storeAddOptions struct {
	name         string
	flat, reread bool
}

func newStoreAddCmd(env *Env) *cobra.Command {
	o := &storeAddOptions{}
	cmd := &cobra.Command{
		Use:   "add [--name NAME] [--flat] [--reread] FILE…",
		Short: "Copy files and trees into the store",
		Long: `Copy files and directory trees into the store and print their store paths.
An object's path depends on its name and contents alone: adding it again changes
nothing. Links are copied as links, never followed.

Large files and trees that are as they were when they were added the last time,
by all that the file system says of them, are not read again; --reread does.
What they were is remembered in ~/.cache/cairn.`,
		Example: `  cairn store add index.html
  cairn store add --name site ./public`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runStoreAdd(cmd.Context(), env, o, args) },
	}
	cmd.Flags().StringVar(&o.name, "name", "", "the object's `NAME`; default: the file's")
	cmd.Flags().BoolVar(&o.flat, "flat", false, "address a regular file by its bytes alone, without its executable bit")
	cmd.Flags().BoolVar(&o.reread, "reread", false, "read everything, whether it looks unchanged or not")
	return cmd
}

func runStoreAdd(ctx context.Context, env *Env, o *storeAddOptions, args []string) error {
	if o.name != "" && len(args) > 1 {
		return &usageError{errors.New("--name is for one file")}
	}
	return env.withSession(ctx, func(s *session) error {
		a := &adder{env: env, s: s, o: o, method: store.Recursive}
		defer a.close()
		if o.flat {
			a.method = store.Flat
		}
		for _, arg := range args {
			if err := a.add(ctx, arg); err != nil {
				return errors.Join(a.flush(ctx), err)
			}
		}
		return a.flush(ctx)
	})
}

// adder adds files to a store.
type adder struct {
	env    *Env
	s      *session
	o      *storeAddOptions
	method store.Method
	cache  *sources.Cache // nil before something wants it, and when there is none
	asked  bool           // for the cache
	small  []client.File  // that are added together
}

func (a *adder) close() {
	a.cache.Close() // what could not be written is read the next time
}

// rememberSize is from which size on a regular file is remembered: to look whether the store has a smaller one costs as much as adding it.
const rememberSize = 1 << 20

// smallFiles is how many small files are collected before they are added.
const smallFiles = 4096

// add adds a file and prints its path, or leaves that to the next flush.
func (a *adder) add(ctx context.Context, arg string) error {
	f := client.File{Name: a.o.name, Method: a.method, Path: a.env.path(arg)}
	if f.Name == "" {
		f.Name = filepath.Base(f.Path)
	}
	if err := store.CheckName(f.Name); err != nil {
		return hinted(fmt.Errorf("add %s: %w", arg, err), "--name gives it another name")
	}
	fi, err := os.Lstat(f.Path)
	if err != nil {
		return fmt.Errorf("add %s: %w", arg, err)
	}
	regular := fi.Mode().IsRegular()
	if a.o.flat && !regular {
		return hinted(fmt.Errorf("add %s: it is no regular file", arg), "leave out --flat")
	}
	if regular && fi.Size() <= client.SmallFile {
		if a.small = append(a.small, f); len(a.small) < smallFiles {
			return nil
		}
		return a.flush(ctx)
	}
	if err := a.flush(ctx); err != nil {
		return err
	}
	p, err := a.addLarge(ctx, f, fi)
	if err != nil {
		return err
	}
	a.env.printf("%s\n", p)
	return nil
}

// flush adds the small files that were collected, and prints their paths.
func (a *adder) flush(ctx context.Context) error {
	files := a.small
	a.small = nil
	paths, err := a.s.AddFiles(ctx, files)
	if printed := a.env.printPaths(false, paths); err == nil {
		err = printed
	}
	return err
}

// addLarge adds a tree or a file that is not small, unless it is known to be there.
func (a *adder) addLarge(ctx context.Context, f client.File, fi os.FileInfo) (store.Path, error) {
	if (!fi.IsDir() && fi.Size() < rememberSize) || a.memory() == nil { // then nobody needs a listing
		return a.read(ctx, f)
	}
	kind, began := "address "+a.method.Prefix(), time.Now()
	list := sync.OnceValues(func() (*sources.Listing, error) { return sources.List(f.Path, kind, began) })
	if a.memory().Blank(f.Path, kind) {
		go list() // which is waited for below
	} else {
		l, err := list()
		if err != nil {
			return store.Path{}, fmt.Errorf("add %s: %w", f.Path, err)
		}
		if p, ok := a.known(ctx, f.Name, l); ok {
			return p, nil
		}
	}
	info, err := a.s.AddFile(ctx, f.Name, a.method, store.SHA256, nil, f.Path)
	l, unlisted := list()
	if err != nil {
		return store.Path{}, err
	}
	if unlisted == nil {
		a.memory().Remember(l, info.CA.Hash)
	}
	return info.Path, nil
}

// read adds a file.
func (a *adder) read(ctx context.Context, f client.File) (store.Path, error) {
	info, err := a.s.AddFile(ctx, f.Name, a.method, store.SHA256, nil, f.Path)
	if err != nil {
		return store.Path{}, err
	}
	return info.Path, nil
}

// known returns what unchanged contents became, if the store still has that, and keeps it until the session ends.
func (a *adder) known(ctx context.Context, name string, l *sources.Listing) (store.Path, bool) {
	if a.o.reread {
		return store.Path{}, false
	}
	contents, ok := a.memory().Recall(l)
	if !ok {
		return store.Path{}, false
	}
	p, err := a.s.Dir().ContentPath(name, store.ContentAddress{Method: a.method, Hash: contents}, store.References{})
	if err != nil || a.s.AddTempRoot(ctx, p) != nil {
		return store.Path{}, false
	}
	whole, err := a.s.ValidPaths(ctx, []store.Path{p}) // without what is damaged, which adding it mends
	return p, err == nil && len(whole) == 1
}

// memory opens the cache when it is first wanted. Without one everything is read.
func (a *adder) memory() *sources.Cache {
	if a.asked {
		return a.cache
	}
	a.asked = true
	if dir := a.env.cacheDir(); dir != "" {
		a.cache, _ = sources.Open(dir)
	}
	return a.cache
}

// cacheDir returns where the user's caches are, or "" when that would be in somebody else's home.
func (e *Env) cacheDir() string {
	dir, home := e.Getenv("XDG_CACHE_HOME"), e.Getenv("HOME")
	if dir == "" && home != "" {
		dir = filepath.Join(home, ".cache")
	} else {
		home = filepath.Dir(dir)
	}
	var st unix.Stat_t
	if !filepath.IsAbs(dir) || unix.Stat(home, &st) != nil || int(st.Uid) != os.Geteuid() {
		return ""
	}
	return filepath.Join(dir, "cairn")
}
